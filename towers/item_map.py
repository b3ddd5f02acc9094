"""A map of the items: positions in the plane, near for items with similar vectors, for people to look at.

The positions of the items with most interactions come from t-SNE (van der Maaten and Hinton 2008) on cosine distances;
every other item lies between those of them that are most similar to it. Of few items, principal components are enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from safetensors.numpy import save_file

from features.files import mapped

FILE = "map.safetensors"
MAX_SHOWN = 800
"""Maximum number of items that a map shows as its ground: a page has to carry them."""
MIN_TSNE = 500
"""Number of items from which t-SNE is used: it takes a second, and one sees through fewer items without it."""
NUM_COLOURS = 8
"""Number of values of a column that have a colour; the others share the last one, `OTHER`."""
OTHER = "other"
WIDTH, HEIGHT = 1000, 700
"""Size of a drawn map, in units of its own."""
_MARGIN = 24
_PERPLEXITY = 30
_NUM_NEIGHBOURS = 3
_BLOCK = 16_384


@dataclass(frozen=True)
class ItemMap:
    """Positions of all items.

    Attributes:
        positions: Of each item by row, 0 to 1, `[items, 2]`.
        shown: Rows of the items that are shown as ground, those with most interactions first, `[shown]`.
    """

    positions: Float32[np.ndarray, "items 2"]
    shown: Int64[np.ndarray, " shown"]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.positions)

    @classmethod
    def of(cls, vectors: Float32[np.ndarray, "items dim"], interactions: Int64[np.ndarray, " items"]) -> ItemMap:
        """Return the map of a catalogue; the same for the same arguments.

        Args:
            vectors: The items' unit vectors.
            interactions: Number of interactions of each item.
        """
        shown = np.argsort(-interactions, kind="stable")[:MAX_SHOWN]
        known = vectors[shown]
        placed = _projected(known)
        positions = np.empty((len(vectors), 2), dtype=np.float32)
        for start in range(0, len(vectors), _BLOCK):
            block = slice(start, start + _BLOCK)
            positions[block] = _between(vectors[block], known, placed)
        positions[shown] = placed
        return cls(positions, shown)

    def save(self, folder: Path) -> None:
        """Write it into the folder of an index."""
        save_file({"positions": self.positions, "shown": self.shown}, folder / FILE)

    @classmethod
    def load(cls, path: Path, num_items: int) -> ItemMap:
        """Return a map that was written.

        Args:
            path: Its file.
            num_items: Number of items of the catalogue.

        Raises:
            ValueError: It does not fit to the catalogue.
        """
        arrays, _ = mapped(path, "F32", "I64")
        positions, shown = arrays["positions"], arrays["shown"]
        if positions.shape != (num_items, 2) or shown.ndim != 1 or not np.isfinite(positions).all():
            raise ValueError(f"a map of {positions.shape} positions and {shown.shape} items")
        if len(shown) and not 0 <= shown.min() <= shown.max() < num_items:
            raise ValueError(f"a map with row {shown.max()} of {num_items}")
        return cls(positions, shown)


@dataclass(frozen=True)
class Colouring:
    """Which points of a map have one colour.

    Attributes:
        column: The column that decides; empty: none, and all points are alike.
        groups: The values that have a colour and the places of their points, the most frequent value first, and
            `OTHER` last.
    """

    column: str
    groups: Sequence[tuple[str, Sequence[int]]]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]], num_points: int, wanted: str = "") -> Colouring:
        """Return the colours of the points.

        Args:
            columns: The texts of the points, by column.
            num_points: How many points there are.
            wanted: The column to colour by. One that is not there: the first that has few values.
        """
        grouped = {name: _with_few_values(texts) for name, texts in columns.items()}
        few = [name for name, values in grouped.items() if len(set(values)) > 1 and OTHER not in values]
        column = wanted if wanted in grouped else next(iter([*few, *grouped]), "")
        values = grouped.get(column, [""] * num_points)
        order = sorted((value for value, _ in Counter(values).most_common()), key=lambda value: value == OTHER)
        places: dict[str, list[int]] = {value: [] for value in order}
        for place, value in enumerate(values):
            places[value].append(place)
        return cls(column, list(places.items()))


def drawn_at(position: Float32[np.ndarray, "2"]) -> tuple[int, int]:
    """Return where a position, 0 to 1, is drawn: from the left, within `WIDTH`, and from the top, within `HEIGHT`."""
    x, y = (_MARGIN + float(at) * (size - 2 * _MARGIN) for at, size in zip(position, (WIDTH, HEIGHT), strict=True))
    return round(x), round(y)


def _with_few_values(texts: Sequence[str]) -> list[str]:
    """Return the texts with few different ones: the first steps of paths, and else the most frequent texts."""
    if len(set(texts)) > NUM_COLOURS:
        texts = [text.partition(" > ")[0] for text in texts]
    kept = {text for text, _ in Counter(text for text in texts if text).most_common(NUM_COLOURS - 1)}
    if len({*texts}) <= NUM_COLOURS:
        kept = {text for text in texts if text}
    return [text if text in kept else OTHER for text in texts]


def _projected(vectors: Float32[np.ndarray, "items dim"]) -> Float32[np.ndarray, "items 2"]:
    """Return positions from 0 to 1 of items that are all compared with each other."""
    if len(vectors) < 3:
        return np.linspace(0, 1, 2 * len(vectors), dtype=np.float32).reshape(-1, 2)
    # Imported here, so that a service, which only reads maps, need not load it.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < MIN_TSNE:
        plane = PCA(2, svd_solver="full").fit_transform(vectors.astype(np.float64))
    else:
        # Distances of unit vectors, which order as cosines do, so that t-SNE can start from principal components.
        model = TSNE(
            2, perplexity=_PERPLEXITY, init="pca", learning_rate="auto", max_iter=500, random_state=0, n_jobs=1
        )
        plane = model.fit_transform(vectors)
    least, span = plane.min(axis=0), np.maximum(np.ptp(plane, axis=0), 1e-9)
    positions: np.ndarray = ((plane - least) / span).astype(np.float32)
    return positions


def _between(
    vectors: Float32[np.ndarray, "some dim"],
    known: Float32[np.ndarray, "known dim"],
    placed: Float32[np.ndarray, "known 2"],
) -> Float32[np.ndarray, "some 2"]:
    """Return the mean position of the placed items that are most similar to each item."""
    number = min(_NUM_NEIGHBOURS, len(known))
    nearest = np.argpartition(-(vectors @ known.T), number - 1, axis=1)[:, :number]
    positions: np.ndarray = placed[nearest].mean(axis=1).astype(np.float32)
    return positions
