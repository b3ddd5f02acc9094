"""Vectors of a catalogue's items by actors of Ray, on several cores or machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from features.tables.tables import Catalog
from serving.config import ServingConfig
from serving.jobs.offline.ray_engine import RayEngine
from serving.jobs.offline.workers import check_same, settings_of_workers
from serving.search.vectors import blocks_of
from serving.snapshot.encoding import EncodedItems, part_of
from towers.bundle.bundle import ModelBundle

ITEMS_AT_ONCE = 4096
"""Items of one task: few enough for results to be small, and enough for a model to be quick."""


class ItemsTask(NamedTuple):
    """Some items of the catalogue, and which rows they are."""

    rows: slice
    items: Catalog


@dataclass(frozen=True)
class EncodeWork:
    """Encodes items: what each process has to know.

    Attributes:
        bundle: The folder of the bundle, without links.
        model: The version that it must have.
        settings: The settings of the service.
        device: Where the model computes.
    """

    bundle: Path
    model: str
    settings: ServingConfig
    device: str

    def open(self) -> Callable[[ItemsTask], EncodedItems]:
        """Open the bundle, and return the function that encodes some items.

        Raises:
            BundleError: The bundle is another than the one that the job was started with.
        """
        bundle = ModelBundle.open(self.bundle, self.device, trust=self.settings.trust)
        check_same(self.bundle, found=f"model {bundle.version}", expected=f"model {self.model}")
        return lambda task: (task.rows, bundle.encode_items(task.items))


@dataclass(frozen=True)
class RayItemEncoder:
    """Encodes catalogues on Ray, as `Snapshot.build` takes it.

    Attributes:
        settings: The settings of the service: what a bundle is trusted with.
        engine: The actors.
    """

    settings: ServingConfig
    engine: RayEngine[ItemsTask, EncodedItems]

    def __call__(self, bundle: ModelBundle, catalog: Catalog) -> Iterator[EncodedItems]:
        """Yield the vectors of some items after the other, in any order.

        Raises:
            BundleError: A worker found another bundle.
            DataError: Ray is not installed, or cannot be started.
            UnavailableError: The cluster does not answer, or its actors are lost again and again.
        """
        device = "cuda" if self.engine.num_gpus else "cpu"
        work = EncodeWork(bundle.path.resolve(), bundle.version, settings_of_workers(self.settings), device)
        blocks = blocks_of(len(catalog), ITEMS_AT_ONCE)
        return self.engine.run(work, (ItemsTask(rows, part_of(catalog, rows)) for rows in blocks))
