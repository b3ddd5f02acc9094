"""Transformers with random weights, small enough to be made by each test that needs one."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = "red green blue small large wooden steel lamp chair table cup bowl a fox runs whale the".split()  # noqa: SIM905


def tiny_model(
    folder: Path, *, width: int = 16, layers: int = 2, seed: int = 0, pooling: str = "mean", dropout: float = 0.1
) -> Path:
    """Write a BERT of two layers that knows `WORDS` and letters, in sentence-transformers' format, and return where."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    words += list("0123456789-:.,")
    bare = folder / "bare"
    bare.mkdir(parents=True)
    (bare / "vocab.txt").write_text("\n".join(dict.fromkeys(words)), encoding="utf-8")
    BertTokenizerFast(str(bare / "vocab.txt"), model_max_length=64).save_pretrained(bare)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(dict.fromkeys(words)),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).eval().save_pretrained(bare)
    model = SentenceTransformer(modules=[Transformer(str(bare)), Pooling(width, pooling_mode=pooling), Normalize()])
    model.prompts = {"query": "the: ", "document": ""}
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    assert json.loads((folder / "model" / "modules.json").read_text())
    return folder / "model"


def tiny_cross_encoder(bi_encoder: Path, num_labels: int = 1) -> Path:
    """Write a cross-encoder with random weights of the shape of a tiny model, and return where."""
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    folder, bare = bi_encoder.parent / f"cross-{num_labels}", bi_encoder.parent / "bare"
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(bare, num_labels=num_labels)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(bare).save_pretrained(folder)
    return folder
