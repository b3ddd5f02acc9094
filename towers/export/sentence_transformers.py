"""A bundle with the interface of a sentence-transformers model, for its evaluators and MTEB.

model = Sentences.of_towers(ModelBundle.open(Path("runs/latest")))
InformationRetrievalEvaluator(queries, documents, relevant)(model)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from features.encoders.model import Role
from features.errors import DataError
from features.ids import ITEM_ID
from features.schema import Feature
from features.tables.tables import Catalog
from towers.bundle.bundle import ModelBundle
from towers.model.text_encoder import TextEncoder

Text = str | Mapping[str, Any]
"""A text for all text columns, or cells by column."""
Encode = Callable[[Sequence[Text]], Float32[np.ndarray, "texts width"]]


class SentenceTransformerAdapter:
    """Texts to unit vectors, by the methods that sentence-transformers' evaluators call.

    Args:
        query: Encodes queries.
        document: Encodes documents.
    """

    similarity_fn_name = "cosine"

    def __init__(self, query: Encode, document: Encode) -> None:
        self._encoders: dict[Role, Encode] = {"query": query, "document": document}
        self.model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_, **__: None)

    @classmethod
    def of_towers(cls, bundle: ModelBundle) -> SentenceTransformerAdapter:
        """Return the towers: documents by the item tower, queries by the user tower if users have texts.

        A text is the value of all text columns of an item or a user without other attributes. If users have no text
        columns, queries are encoded as items.

        Raises:
            DataError: The items have no texts.
        """
        schema = bundle.featurizer.schema
        if not (written := _texts(schema.item)):
            raise DataError(f"{bundle.path}: the items have no column of text; train towers that read one")

        def document(texts: Sequence[Text]) -> np.ndarray:
            return bundle.encode_items(Catalog(_cells(texts, written).assign(**{ITEM_ID: None})))

        def query(texts: Sequence[Text]) -> np.ndarray:
            nothing = np.zeros((0, bundle.config.towers.embedding_dim), dtype=np.float32)
            offsets = np.zeros(len(texts) + 1, dtype=np.int64)
            return bundle.encode_users(nothing, offsets, _cells(texts, _texts(schema.user)))

        return cls(query if _texts(schema.user) else document, document)

    @classmethod
    def of_encoder(cls, bundle: ModelBundle, name: str) -> SentenceTransformerAdapter:
        """Return one of the bundle's text encoders, as fine-tuned.

        Raises:
            DataError: There is none of this name.
        """
        if name not in bundle.featurizer.pretrained:
            there = ", ".join(bundle.featurizer.pretrained) or "none"
            raise DataError(f"{bundle.path}: no pretrained model is called {name!r}; there is {there}")

        def encode(texts: Sequence[Text], role: Role) -> np.ndarray:
            return _encoded(bundle, name, [str(text) for text in texts], role)

        return cls(lambda texts: encode(texts, "query"), lambda texts: encode(texts, "document"))

    def encode(
        self,
        sentences: Text | Sequence[Text],
        *_: Any,
        prompt_name: str | None = None,
        prompt_type: Any = None,
        convert_to_tensor: bool = False,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        **__: Any,
    ) -> Any:
        """Return the vectors of texts, or the one of a single text; other options are ignored.

        Args:
            sentences: The texts.
            prompt_name: `query` for queries; else the texts are documents.
            prompt_type: The same, as MTEB calls it.
            convert_to_tensor: Whether a tensor is wanted rather than an array.
            truncate_dim: How many numbers are wanted, from the first. None: all.
            normalize_embeddings: Whether truncated vectors are brought to length one again.
        """
        is_query = "query" in (prompt_name, getattr(prompt_type, "value", prompt_type))
        is_single = isinstance(sentences, str | Mapping)
        texts = [sentences] if isinstance(sentences, str | Mapping) else list(sentences)
        vectors = torch.from_numpy(self._encoders["query" if is_query else "document"](texts))[:, :truncate_dim]
        if normalize_embeddings:
            vectors = functional.normalize(vectors, dim=1)
        vectors = vectors[0] if is_single else vectors
        return vectors if convert_to_tensor else vectors.numpy()

    def encode_query(self, sentences: Text | Sequence[Text], *given: Any, **options: Any) -> Any:
        """Return the vectors of queries; see `encode`."""
        return self.encode(sentences, *given, **{**options, "prompt_name": "query"})

    def encode_document(self, sentences: Text | Sequence[Text], *given: Any, **options: Any) -> Any:
        """Return the vectors of what can be found; see `encode`."""
        return self.encode(sentences, *given, **{**options, "prompt_name": "document"})

    def similarity(self, first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> Tensor:
        """Return the cosine of each of the first vectors with each of the second."""
        unit = [functional.normalize(torch.as_tensor(one), dim=-1) for one in (first, second)]
        return unit[0] @ unit[1].T


def _texts(features: Sequence[Feature]) -> list[str]:
    return [feature.name for feature in features if feature.definition.content == "texts"]


def _cells(texts: Sequence[Text], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame([dict.fromkeys(columns, text) if isinstance(text, str) else dict(text) for text in texts])


def _encoded(bundle: ModelBundle, name: str, texts: Sequence[str], role: Role) -> Float32[np.ndarray, "texts width"]:
    pretrained = bundle.featurizer.pretrained[name]
    if not pretrained.settings.is_trained:
        return pretrained.numbers(texts, role)
    encoder, tokens = bundle.model.encoders[name], pretrained.tokens(texts, role)
    assert isinstance(encoder, TextEncoder), "the towers hold no others there"
    device = encoder.rotation.device
    with torch.inference_mode():
        vectors: np.ndarray = (
            encoder(
                torch.tensor([token for one in tokens for token in one], dtype=torch.int64, device=device),
                torch.tensor([len(one) for one in tokens], device=device),
                pretrained.width,
            )
            .cpu()
            .numpy()
        )
    return vectors
