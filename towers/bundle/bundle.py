"""A model bundle: a folder with the towers, everything they need to read tables, and a digest of each file.

    manifest.json  run.toml  schema.json  columns.json  vocabularies/  model.safetensors  report.json  report.html
    README.md
    encoders/                      where texts are read by pretrained models
    validation_users.safetensors   where whole users were held out for validation
    continuation.safetensors       what `towers train --continue` needs and no service

Training writes it, serving reads it; it is the only thing they share. It appears under its name complete or not at
all, holds no pickle, and is verified, every byte of it, each time it is opened.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomlkit
import torch
from jaxtyping import Bool, Float32, Int
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.config import FeaturesConfig
from features.encoders.encoder import load_encoders
from features.errors import DataError
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.files import atomic_folder, sha256
from features.sequences.ragged import offsets_of, ragged_arange
from features.sequences.timeline import Timeline
from features.sequences.trend import ItemTrend
from features.settings import parse_settings, read_toml
from features.spelling import Spelling
from features.tables.tables import Catalog, Tables, read_tables
from towers.bundle.continuation import CONTINUATION, Continuation
from towers.bundle.manifest import COLUMNS, FORMAT_VERSION, MANIFEST, WEIGHTS, Manifest, open_bundle
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, reading, seal
from towers.bundle.signature import KEY_VARIABLE, sign, signing_key
from towers.bundle.trust import DEFAULT_TRUST, Trust
from towers.bundle.validation_users import VALIDATION_USERS, are_validation_users, write_validation_users
from towers.config import TowersConfig
from towers.model.numpy_user_tower import NumpyUserTower
from towers.model.trend_head import with_numbers
from towers.model.two_tower import TwoTower

_MOST_FIXED = 4096
BLOCK = 4096
"""Items or users encoded at a time."""


class BundleConfig(BaseModel):
    """The part of run.toml that the model needs wherever it goes; how it was trained is left to training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    features: FeaturesConfig
    """The tables, and what is read from them."""
    towers: TowersConfig = TowersConfig()
    """The shape of the two towers."""

    @property
    def reads_time(self) -> bool:
        """Whether a user's vector depends on the time of the request."""
        return bool(self.features.context) or self.towers.time_bias

    @property
    def asked_by(self) -> list[str]:
        """The text columns of a query, if users are queries; none if users have histories."""
        texts = [column for column, settings in self.features.user.items() if settings.definition.content == "texts"]
        return [] if self.towers.reads_history else texts


@dataclass(frozen=True)
class ModelBundle:
    """An opened bundle.

    Attributes:
        path: The folder.
        manifest: Its seal.
        folder: Its files, verified.
        config: `[features]` and `[towers]`.
        featurizer: Columns to numbers.
        contract: What training saw in the columns, and what other tables are held to.
        model: The towers, in evaluation mode.
        report: What the evaluation found.
        copies: Where its files were copied to. None: they are read where they lie.
        trust: What it was trusted with when it was opened, and its index and ranker with it.
    """

    path: Path
    manifest: Manifest
    folder: SealedFolder
    config: BundleConfig
    featurizer: Featurizer
    contract: ColumnContract
    model: TwoTower
    report: dict[str, Any]
    copies: PrivateCopies | None = None
    trust: Trust = DEFAULT_TRUST

    @classmethod
    def open(
        cls,
        path: Path,
        device: str = "cpu",
        copies: PrivateCopies | None = None,
        trust: Trust = DEFAULT_TRUST,
    ) -> ModelBundle:
        """Verify a bundle and load it.

        Args:
            path: The folder.
            device: Where the model computes.
            copies: Where its files, those of its index and of its ranker are copied to, and read from then on. None:
                they are read where they lie, and must not be written to while they are used.
            trust: What the operator trusts it with.

        Raises:
            BundleError: It is missing, incomplete, changed, or of another version; it names a service or a key that is
                not allowed, or is not signed by a key that is trusted.
        """
        manifest, folder = open_bundle(path, copies, trust.keys)
        remedy = f"train again, or install two-towers {manifest.made_with}"
        with reading(path, remedy, "sealed, yet it cannot be read with this version of towers"):
            try:
                pretrained = load_encoders(folder.folder("encoders"), folder.names("encoders"), trust.remote)
            except DataError as error:
                raise BundleError(f"{path}: {error}") from None
            settings = folder.file("run.toml")
            config = parse_settings(BundleConfig, read_toml(settings), str(settings))
            featurizer = Featurizer.load(folder.root, pretrained)
            contract = ColumnContract.load(folder.file(COLUMNS))
            report = json.loads(folder.file("report.json").read_text(encoding="utf-8"))
            weights = load_file(folder.file(WEIGHTS), device=device)
            _check_sizes(featurizer, weights)
            with torch.device(device):
                model = TwoTower(config.towers, featurizer, config.features.max_history)
            model.load_state_dict(weights)
        return cls(path, manifest, folder, config, featurizer, contract, model.eval(), report, copies, trust)

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return self.manifest.weights_digest

    @property
    def version(self) -> str:
        """A short name of the weights: the first 12 digits of their digest."""
        return self.manifest.version

    def read_tables(self, config: FeaturesConfig | None = None, *, accept_changed_columns: bool = False) -> Tables:
        """Return tables, read as those of the training were and held to the contract of columns.

        Args:
            config: Which tables. None: those that training read, as they are now.
            accept_changed_columns: Whether a collapse of what is filled or known of a column is a note.

        Raises:
            DataError: A table cannot be read, lacks a column that the model reads, or a column collapsed.
        """
        config = config or self.config.features
        tables = read_tables(config, self.tables_folder, self.contract.readings_to_keep)
        notes = self.contract.check(self.featurizer, tables, config, self.tables_folder, accept=accept_changed_columns)
        return replace(tables, notes=(*tables.notes, *notes))

    @property
    def tables_folder(self) -> Path:
        """Base folder of relative paths in `config.features`."""
        return Path(self.manifest.tables_folder)

    def validation_users(self, user_ids: Sequence[Any] | np.ndarray) -> Bool[np.ndarray, "users"] | None:
        """Return which users the training held out for validation; None if it held out interactions of all users."""
        if VALIDATION_USERS not in self.folder:
            return None
        return are_validation_users(self.folder.file(VALIDATION_USERS), user_ids)

    def continuation(self) -> Continuation | None:
        """Return what a training that continues the one of this bundle needs; None if it was not kept."""
        return Continuation.load(self.folder.file(CONTINUATION)) if CONTINUATION in self.folder else None

    def encode_items(self, catalog: Catalog) -> Float32[np.ndarray, "items width"]:
        """Return the unit vector of every item of a catalogue, items that training did not know included."""
        features = self.featurizer.item_features(catalog)
        blocks = torch.arange(len(catalog)).split(BLOCK)
        with torch.inference_mode():
            vectors = [
                self.model.item_vectors(features.take(rows).to(self._device)).float().cpu().numpy() for rows in blocks
            ]
        width = self.config.towers.embedding_dim
        return np.concatenate([np.zeros((0, width), dtype=np.float32), *vectors])

    @property
    def spellings(self) -> Mapping[str, Spelling]:
        """Spelling of the values of item columns, by column."""
        return self.featurizer.schema.item_spellings

    def knows(self, attributes: pd.DataFrame) -> Bool[np.ndarray, "users"]:
        """Return which users have an attribute value that the model knows, one row each."""
        return self.featurizer.users.knows(attributes)

    def unknown_values(self, attributes: pd.DataFrame) -> list[dict[str, tuple[str, ...]]]:
        """Return the values of each user's attributes that were not there in training, by column."""
        return self.featurizer.users.unknown(attributes)

    def unknown_values_of_items(self, frame: pd.DataFrame) -> list[dict[str, tuple[str, ...]]]:
        """Return the values of each row of a catalogue that were not there in training, by column."""
        return self.featurizer.items.unknown(frame)

    def encode_users(
        self,
        history_vectors: Float32[np.ndarray, "events width"],
        history_offsets: Int[np.ndarray, "users_plus_1"],
        attributes: pd.DataFrame | None = None,
        user_ids: Sequence[Any] | np.ndarray | None = None,
        *,
        request_times: Int[np.ndarray, "users"] | None = None,
        event_times: Int[np.ndarray, "events"] | None = None,
    ) -> Float32[np.ndarray, "users searched"]:
        """Return the unit vector of each user, and behind it the weights of recent popularity if the model reads it.

        Args:
            history_vectors: The vectors (rows of `encode_items`) of the items of all histories, oldest first. Of each
                user the newest `config.features.max_history` are read. What is behind a unit vector is not.
            history_offsets: Where each user's history begins, from 0 to `events`.
            attributes: One row per user, columns as in the users' table; what is missing is unknown.
            user_ids: The users' ids, for models that know users by id. None: unknown.
            request_times: Unix seconds of each request, for models that look at the clock. None: unknown.
            event_times: Unix seconds of each event of the histories, `UNKNOWN_TIME` where it is not known, for the
                same models. None: unknown.
        """
        history_vectors = history_vectors[:, : self.config.towers.embedding_dim]
        num_users = len(history_offsets) - 1
        ids = [None] * num_users if user_ids is None else user_ids
        if num_users == 1 and self._one_user is not None and self.featurizer.have_no_features(ids, attributes):
            newest = slice(-self.config.features.max_history, None)
            times = None if event_times is None else event_times[newest]
            at = None if request_times is None else int(request_times[0])
            return self._with_weights(self._one_user(history_vectors[newest], at, times)[None])
        features = self.featurizer.user_features(ids, attributes)
        lengths = np.minimum(np.diff(history_offsets), self.config.features.max_history)
        vectors = []
        for begin in range(0, num_users, BLOCK):
            block = slice(begin, min(begin + BLOCK, num_users))
            events = ragged_arange(history_offsets[1:][block] - lengths[block], lengths[block])
            with torch.inference_mode():
                encoded = self.model.user_vectors(
                    self._tensor(history_vectors[events]),
                    self._tensor(offsets_of(lengths[block])),
                    features.take(torch.arange(num_users)[block]).to(self._device),
                    request_times=None if request_times is None else self._tensor(request_times[block]),
                    event_times=None if event_times is None else self._tensor(event_times[events]),
                )
            vectors.append(encoded.float().cpu().numpy())
        empty = np.zeros((0, self.config.towers.embedding_dim), dtype=np.float32)
        return self._with_weights(np.concatenate([empty, *vectors]))

    def trend(self, timeline: Timeline, num_items: int) -> ItemTrend:
        """Return the recent popularity of items at any moment, as a model that reads it was trained with.

        Args:
            timeline: The events that count.
            num_items: Size of the catalogue that their rows are from.
        """
        head = self.model.trend
        assert head is not None, "only models that read recent popularity are asked for it"
        return ItemTrend(timeline, num_items, head.half_lives, head.levels.cpu().numpy())

    def _with_weights(self, vectors: Float32[np.ndarray, "users width"]) -> Float32[np.ndarray, "users searched"]:
        """Return users' vectors with their weights of recent popularity behind them, if the model reads it."""
        if self._trend_weights is None:
            return vectors
        matrix, bias = self._trend_weights
        # Not a matrix product, whose rounding depends on how many users there are.
        return with_numbers(vectors, np.vecdot(vectors[:, None], matrix) + bias)

    @cached_property
    def _trend_weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The matrix and the bias that make a user's weights of recent popularity; None if the model reads none."""
        if self.model.trend is None:
            return None
        linear = self.model.trend.weights
        return linear.weight.detach().cpu().numpy(), linear.bias.detach().cpu().numpy()

    @cached_property
    def _one_user(self) -> NumpyUserTower | None:
        """The user tower for one user at a time, in numpy; None if it does not support the configuration."""
        tower = self.model.user_tower
        return NumpyUserTower(tower, self.featurizer.unknown_user_features) if NumpyUserTower.can_be(tower) else None

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.model.log_scale.device


def _check_sizes(featurizer: Featurizer, weights: Mapping[str, Tensor]) -> None:
    """Make sure, before memory is taken for a model, that its weights are there: some for each thing that it reads.

    Raises:
        ValueError: They are not.
    """
    sizes = [side.sizes for side in (featurizer.items, featurizer.users)]
    num_read = sum(sum(one.tables.values()) + one.dense for one in sizes)
    num_weights = sum(tensor.numel() for tensor in weights.values())
    if num_read > num_weights:
        raise ValueError(f"{num_weights:,} weights for {num_read:,} values that are read")
    widest = max(max(one.fixed, default=0) for one in sizes)
    if widest > _MOST_FIXED:
        raise ValueError(f"a text of {widest:,} numbers, expected at most {_MOST_FIXED:,}")


def write_bundle(
    path: Path,
    *,
    settings: Mapping[str, Any],
    tables_folder: Path,
    data_digests: Mapping[str, str],
    featurizer: Featurizer,
    contract: ColumnContract,
    weights: Mapping[str, Tensor],
    report: Mapping[str, Any],
    pages: Mapping[str, str],
    primary_metric: Mapping[str, float],
    validation_users: Iterable[Any] | None = None,
    continuation: Continuation | None = None,
) -> None:
    """Write a bundle atomically; it is signed if the environment names a key.

    Args:
        path: The folder; one that is there is replaced.
        settings: The whole of run.toml, as it was used.
        tables_folder: What the paths in it are relative to.
        data_digests: SHA-256 of each table that was read, by name.
        featurizer: What was fitted.
        contract: What was seen in the columns of the tables.
        weights: The model's state.
        report: What the evaluation found.
        pages: Further text files, by name: the report as a page, the model card.
        primary_metric: Name and value of the metric the weights were selected by.
        validation_users: Ids of the users that were held out for validation. None: no whole users were.
        continuation: What a training that continues this one needs. None: none can.
    """
    with atomic_folder(path) as folder:
        (folder / "run.toml").write_text(tomlkit.dumps(_without_nulls(settings)), encoding="utf-8")
        featurizer.save(folder)
        contract.save(folder / COLUMNS)
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, folder / WEIGHTS
        )
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if validation_users is not None:
            write_validation_users(folder, validation_users)
        if continuation is not None:
            continuation.save(folder / CONTINUATION)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tables_folder=str(tables_folder.resolve()),
            libraries=library_versions(),
            digests={
                "configuration": hashlib.sha256((folder / "run.toml").read_bytes()).hexdigest(),
                "weights": sha256(folder / WEIGHTS),
                **data_digests,
            },
            primary_metric=dict(primary_metric),
            files=seal(folder),
        )
        (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        sign(folder / MANIFEST, signing_key())


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a model is."""
    names = ("two-towers", "torch", "torchrec", "numpy", "pandas")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings that are None: TOML has no null."""
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None
    }


def check_can_sign(bundle: ModelBundle) -> None:
    """Refuse to write into a bundle what would then not be used, because it must be signed and could not be.

    Raises:
        DataError: The bundle must be signed, and the signing key is missing or cannot be used.
    """
    if signing_key() is None and bundle.trust.keys is not None:
        raise DataError(
            f"{bundle.path}: what is written into it has to be signed by a key of {bundle.trust.keys}; set "
            f"{KEY_VARIABLE} to the private key, or do this where bundles are signed"
        )
