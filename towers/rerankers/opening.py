"""Opens the re-ranker of a bundle, whatever its kind, with the data about items that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_folder import SealedFolder
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.kinds import RERANKER_KINDS
from towers.rerankers.manifest import RankerManifest
from towers.rerankers.reranker import Reranker
from towers.rerankers.token_embeddings import TokenVectors


@dataclass(frozen=True)
class ItemInputs:
    """Data about the items of an index; a re-ranker takes what it reads.

    Attributes:
        statistics: Times and co-occurrences. None: the index does not store them.
        tokens: Embeddings of the tokens of the items' texts. None: the index does not store them.
        texts: Returns the text of each item, by row of the catalogue.
    """

    statistics: ItemStatistics | None = None
    tokens: TokenVectors | None = None
    texts: Callable[[], Sequence[str]] = tuple


class OpenableReranker(Protocol):
    """A class of re-rankers."""

    def open(
        self, bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs
    ) -> Reranker | None:
        """Return the re-ranker in the folder `ranker/` of a bundle; None if `items` lacks what it reads.

        Raises:
            BundleError: The re-ranker is damaged, or reads other features.
            DataError: A library that it needs is not installed.
        """


def open_reranker(
    bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs
) -> Reranker | None:
    """Return the re-ranker of a bundle; see `OpenableReranker.open`.

    Args:
        bundle: The bundle.
        manifest: As `open_ranker` returns it.
        folder: As `open_ranker` returns it.
        items: Data about the items of the index.
    """
    module, _, name = RERANKER_KINDS[manifest.kind].reranker.partition(":")
    reranker: OpenableReranker = getattr(import_module(module), name)
    return reranker.open(bundle, manifest, folder, items)
