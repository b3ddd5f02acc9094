"""`PretrainedText`: texts to the vectors of a model that is not trained here, each text encoded once.

The vectors are turned by a rotation so that the first numbers say most (principal directions, fitted on the texts of
training). A rotation does not change the inner products of whole vectors; the first N numbers approximate these as well
as N numbers can. So the beginning of a vector is a vector by itself, whether or not the model was trained for that.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32
from tqdm import tqdm

from features.config import EncoderSettings
from features.encoders.cache import CacheError, VectorCache, cache_folder
from features.encoders.folder import copy_model, find_model, model_digest
from features.encoders.local import LocalModel
from features.encoders.model import Role, TextModel
from features.encoders.policy import NOTHING, RemotePolicy
from features.encoders.remote import RemoteModel
from features.errors import DataError
from features.parquet import read_parquet
from features.settings import parse_settings

FEW = 64
"""So many texts are encoded without a look at the disk: those of a request, of which no trace is to stay."""
PROBE = "The quick brown fox jumps over the lazy dog"
"""Text whose vector shows whether an embeddings service still uses the same model."""
LEAST_LIKENESS = 0.99
"""Minimum cosine between the vectors of training and today; batching and rounding change the last digits."""

_log = logging.getLogger(__name__)


class PretrainedText:
    """A pretrained model of texts, as a featurizer holds it.

    Args:
        settings: How it is used.
        model: Where its vectors come from.
        rotation: `[width, width]`, orthonormal columns, the most telling first.
        probe: What a service said to `PROBE` in training. None: the model runs here, and its digest says what it is.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        model: TextModel,
        rotation: Float32[np.ndarray, "width width"],
        probe: Float32[np.ndarray, "width"] | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.rotation = rotation
        self._probe = probe
        self._is_probed = False

    @classmethod
    def fit(cls, settings: EncoderSettings, texts: Sequence[str], role: Role = "document") -> PretrainedText:
        """Return the encoder whose rotation comes from `texts`.

        Raises:
            DataError: The model cannot be loaded.
        """
        model = open_model(settings)
        probe = _vectors(model, [PROBE], "document")[0] if isinstance(model, RemoteModel) else None
        return cls(settings, model, _principal_directions(_vectors(model, texts, role)), probe)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return len(self.rotation)

    def numbers(self, texts: Sequence[str], role: Role, width: int | None = None) -> Float32[np.ndarray, "texts width"]:
        """Return the unit vector of each text; zeros for empty texts.

        Args:
            texts: The texts.
            role: What they are.
            width: How many of its numbers are wanted, from the first. None: all.
        """
        if any(texts):
            self._check_service()
        turned: np.ndarray = _vectors(self.model, texts, role) @ self.rotation[:, :width]
        return turned

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Return the tokens of each text, for a model that is fine-tuned; none for empty texts."""
        assert isinstance(self.model, LocalModel), "a model behind an address is not trained"
        prompt = self.model.prompt(role)
        tokens = self.model.tokens([prompt + text for text in texts])
        return [one if text else [] for one, text in zip(tokens, texts, strict=True)]

    def save(self, folder: Path) -> None:
        """Write the settings, the rotation, and the model if it is bundled, into a folder."""
        folder.mkdir(parents=True)
        described: dict[str, Any] = {"settings": self.settings.model_dump(mode="json"), "width": self.width}
        if isinstance(self.model, LocalModel):
            described["digest"] = self.model.digest
            if self.settings.bundled:
                copy_model(self.model.folder, folder / "model")
            if self.settings.precision == "int8":
                shutil.copyfile(self.model.graph_path, folder / "graph.onnx")
        else:
            described["probe"] = None if self._probe is None else self._probe.tolist()
        (folder / "encoder.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        pd.DataFrame({"weight": self.rotation.ravel()}).to_parquet(folder / "rotation.parquet", index=False)

    @classmethod
    def load(cls, folder: Path, policy: RemotePolicy = NOTHING) -> PretrainedText:
        """Read what `save` wrote.

        Args:
            folder: Where that is.
            policy: What it may reach outside of this machine.

        Raises:
            DataError: It names a service or a key that is not allowed; the model is not in the folder, and is elsewhere
                not what it was.
        """
        path = folder / "encoder.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        settings = parse_settings(EncoderSettings, described["settings"], str(path))
        policy.check(folder.name, settings)
        width = described["width"]
        weights = read_parquet(folder / "rotation.parquet").to_pandas()["weight"]
        rotation = weights.to_numpy(np.float32).reshape(width, width)
        if settings.url is not None:
            probe = np.array(described["probe"], dtype=np.float32)
            return cls(settings, RemoteModel(settings, width, policy.time_left), rotation, probe)
        place = folder / "model" if settings.bundled else _found_again(settings, policy)
        digest = model_digest(place)
        if digest != described["digest"]:
            raise DataError(
                f"model {settings.model!r} in {place}: expected the files of digest {described['digest'][:12]}, with "
                f"which the towers were trained, found {digest[:12]}; bring the model of then, or train again"
            )
        graph = folder / "graph.onnx" if settings.precision == "int8" else None
        return cls(settings, LocalModel(place, settings, digest, width, graph), rotation)

    def _check_service(self) -> None:
        """Check once in the life of this object that the service has the model of the training."""
        if self._probe is None or self._is_probed:
            return
        (now,) = (vectors for _, vectors in self.model.encode([PROBE], "document"))
        likeness = float(now[0] @ self._probe)
        if likeness < LEAST_LIKENESS:
            raise DataError(
                f"{self.settings.url}: model {self.settings.model!r} is not what it was in training (the same text has "
                f"a cosine of {likeness:.3f} to its vector of then, expected {LEAST_LIKENESS} or more); train again"
            )
        self._is_probed = True


def _found_again(settings: EncoderSettings, policy: RemotePolicy) -> Path:
    try:
        return find_model(settings.model, settings.revision, policy)
    except DataError as error:
        raise DataError(f"needs a model that is not in it: {error}") from None


def open_model(settings: EncoderSettings) -> TextModel:
    """Return the model that the settings name.

    Raises:
        DataError: There is none.
    """
    if settings.url is not None:
        return RemoteModel(settings)
    folder = find_model(settings.model, settings.revision)
    return LocalModel(folder, settings, model_digest(folder))


def load_encoders(folder: Path, names: Iterable[str], policy: RemotePolicy = NOTHING) -> dict[str, PretrainedText]:
    """Return the encoders of the given names that were saved in folders below one.

    Raises:
        DataError: As `PretrainedText.load` does.
    """
    return {name: PretrainedText.load(folder / name, policy) for name in names}


def save_encoders(encoders: Mapping[str, PretrainedText], folder: Path) -> None:
    """Write each encoder into a folder of its name."""
    for name, encoder in encoders.items():
        encoder.save(folder / name)


def _vectors(model: TextModel, texts: Sequence[str], role: Role) -> Float32[np.ndarray, "texts width"]:
    """Return a vector for each text, computed once per distinct text; zeros for empty texts."""
    distinct = list(dict.fromkeys(text for text in texts if text))
    place = {text: row for row, text in enumerate(distinct, 1)}
    made = np.zeros((len(distinct) + 1, model.width), dtype=np.float32)
    cache = VectorCache(model.fingerprint, cache_folder()) if len(distinct) > FEW else None
    known = _looked_up(cache, distinct, role)
    for text, vector in known.items():
        made[place[text]] = vector
    missing = [text for text in distinct if text not in known]
    with tqdm(
        total=len(missing), desc="encoding texts", unit=" texts", leave=False, disable=len(missing) <= FEW or None
    ) as bar:
        for rows, vectors in model.encode(missing, role):
            batch = [missing[row] for row in rows]
            made[[place[text] for text in batch]] = vectors
            cache = _kept(cache, batch, role, vectors)
            bar.update(len(batch))
    return made[[place[text] if text else 0 for text in texts]]


def _looked_up(cache: VectorCache | None, texts: Sequence[str], role: Role) -> dict[str, np.ndarray]:
    try:
        return cache.get(texts, role) if cache is not None else {}
    except CacheError as error:
        _log.warning("vectors of texts cannot be read again: %s", error)
        return {}


def _kept(cache: VectorCache | None, texts: Sequence[str], role: Role, vectors: np.ndarray) -> VectorCache | None:
    """Keep vectors, and return where the next are kept: nowhere once that has failed."""
    try:
        if cache is not None:
            cache.put(texts, role, vectors)
    except CacheError as error:
        _log.warning("vectors of texts are not kept: %s", error)
        return None
    return cache


def _principal_directions(vectors: Float32[np.ndarray, "texts width"]) -> Float32[np.ndarray, "width width"]:
    """Return orthonormal columns in which the vectors are longest, the longest first; signs that do not wobble."""
    double = vectors.astype(np.float64)
    directions = np.linalg.eigh(double.T @ double)[1][:, ::-1]
    largest = np.abs(directions).argmax(axis=0)
    turned = directions * np.sign(directions[largest, np.arange(len(largest))])
    return np.ascontiguousarray(turned, dtype=np.float32)
