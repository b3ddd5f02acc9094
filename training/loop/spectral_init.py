"""Initialisation of item embeddings from an SVD of the interaction and attribute matrix.

With few users, training from random embeddings overfits before it has learned which items occur together. The SVD
gives that at once, and contrastive training continues from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.utils.extmath import randomized_svd

from features.errors import DataError
from features.ids import ITEM_ID
from features.sequences.batches import EntityFeatures, JaggedFeatures
from features.sequences.matrix import interaction_matrix
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from towers.model.two_tower import TwoTower
from training.config import TrainingConfig


@dataclass(frozen=True)
class SpectralStart:
    """Initial vectors of items and of the values of their features.

    Attributes:
        items: A unit vector for each item, `[items, width]`. Its last number is what the others lack of length one.
        values: What each value of each sparse feature adds to an item that has it, `[values, width]`, by feature.
    """

    items: Float[np.ndarray, "items width"]
    values: dict[str, Float[np.ndarray, "values width"]]


def decompose(
    interactions: sp.csr_array[np.float32],
    bags: Mapping[str, sp.csr_array[np.float32]],
    width: int,
    *,
    regularisation: float,
    attributes: float,
    seed: int,
) -> SpectralStart:
    """Return initial vectors from the interactions and attribute values of the items.

    With `S` the interactions, and below them, as if each value were one more user, `attributes` times the TF-IDF of
    each value in each item, and with the largest singular values `S ~ U diag(s) V'`, the items are::

        items = V diag(s / sqrt(s^2 + regularisation)) / longest

    The inner products of the items of a history with those of the catalogue are then, up to the rank, the scores of the
    ridge regression of `S` on itself: `S' S (S' S + regularisation I)^-1`, EASE without its constraint on the diagonal,
    which does not affect items without an interaction of the user. One more number brings each item to length one; the
    user tower does not read it, so that no score changes. As an item is a sum over the rows of `S`, so is what each
    value adds, which is where an item without interactions begins.

    Args:
        interactions: Interaction matrix, `[users, items]`, as ones.
        bags: Which values each item has, `[items, values]`, as ones, by feature.
        width: Numbers in a vector.
        regularisation: What is added to the diagonal; the more, the less rare co-occurrences count.
        attributes: How much the attributes of an item count; an attribute value is so many users. 0: they do not.
        seed: Of the randomised decomposition.

    Source: the ridge regression and its stacking with attributes after Jeunen et al. 2020 (CEASE, RecSys); the
    decomposition of Halko et al. 2011 (arXiv 0909.4061); the additional number after Bachrach et al. 2014.
    """
    weighed = {name: TfidfTransformer().fit(bag) for name, bag in bags.items() if attributes}
    described = [attributes * transformer.transform(bags[name]).T for name, transformer in weighed.items()]
    stacked = sp.vstack([interactions, *described]).tocsr()
    left, singular, right = randomized_svd(stacked, min(width - 1, *stacked.shape), random_state=seed)
    shrunk = 1 / np.sqrt(singular**2 + regularisation)
    items = right.T * (singular * shrunk)
    longest = np.linalg.norm(items, axis=1).max()
    ends = np.cumsum([interactions.shape[0], *(block.shape[0] for block in described)])
    parts = np.split(left * (shrunk / longest), ends[:-1])[1:]
    values = {
        name: _padded(part * _shares(bags[name], transformer, attributes)[:, None], width)
        for part, (name, transformer) in zip(parts, weighed.items(), strict=True)
    }
    return SpectralStart(_at_length_one(_padded(items / longest, width)), values)


def initialise_embeddings(
    model: TwoTower, train: Sequences, item_features: EntityFeatures, settings: TrainingConfig
) -> None:
    """Initialise the embedding tables so that item vectors are those of the decomposition of the training data.

    The match is exact: the row of an id is the difference to the sum of the other features. History and candidate items
    use the same embeddings.

    Args:
        model: Towers as they were made.
        train: Interactions, with items as rows of `item_features`.
        item_features: The items that training knows.
        settings: `[training]`.

    Raises:
        DataError: Items are not known by their ids, or some share rows.
    """
    sparse, embeddings = item_features.sparse, model.item_tower.embeddings
    if sparse is None or embeddings is None or ITEM_ID not in sparse.keys:
        raise DataError(
            '[training] item_init = "spectral" initialises id embeddings, and items have no id feature; add '
            'item_id = { kind = "id" } to [features.item], or set item_init = "random"'
        )
    own = sparse.select([ITEM_ID])
    if int(own.lengths.max()) > 1 or len(own.values.unique()) < len(own.values):
        raise DataError(
            '[training] item_init = "spectral" initialises an embedding of each item, and hashed_rows of '
            f"[features.item.{ITEM_ID}] lets some share theirs; remove one of them"
        )
    others = [name for name in sparse.keys if name != ITEM_ID]
    bags = {name: _bags(sparse, name, len(embeddings.rows(name))) for name in others}
    start = decompose(
        interaction_matrix(train, len(item_features)),
        bags,
        model.item_tower.width,
        regularisation=settings.spectral_regularisation,
        attributes=settings.spectral_attribute_weight,
        seed=settings.seed,
    )
    ids = embeddings.rows(ITEM_ID)
    with torch.no_grad():
        for name, rows in start.values.items():
            embeddings.rows(name).copy_(torch.from_numpy(rows))
        ids.zero_()
        device = ids.device
        rest = torch.from_numpy(start.items).to(device) - model.eval().item_tower(item_features)
        ids[own.values] = rest[(own.lengths > 0).to(device)]  # rare ids may have no row
        model.user_tower.read.weight[-1, -1] = 0.0
        model.user_tower.beginning.zero_()


def _bags(features: JaggedFeatures, name: str, num_values: int) -> sp.csr_array[np.float32]:
    """Return which values of a feature each item has, `[items, values]`."""
    chosen = features.select([name])
    rows, lengths = chosen.values.cpu().numpy(), chosen.lengths.cpu().numpy()
    ones = np.ones(len(rows), dtype=np.float32)
    bags = sp.csr_array((ones, rows, offsets_of(lengths)), shape=(len(lengths), num_values))
    bags.sum_duplicates()
    return bags


def _shares(
    bags: sp.csr_array[np.float32], transformer: TfidfTransformer, attributes: float
) -> Float[np.ndarray, "values"]:
    """Return what each value counts in a bag that is summed and divided by the root of its size."""
    weights = bags @ sp.diags_array(transformer.idf_)
    lengths = sp.linalg.norm(weights, axis=1)
    is_described = lengths > 0
    usual = (np.sqrt(bags.sum(axis=1)[is_described]) / lengths[is_described]).mean() if is_described.any() else 0.0
    shares: np.ndarray = attributes * usual * transformer.idf_
    return shares


def _padded(rows: Float[np.ndarray, "rows rank"], width: int) -> Float[np.ndarray, "rows width"]:
    padded: np.ndarray = np.pad(rows, ((0, 0), (0, width - rows.shape[1]))).astype(np.float32)
    return padded


def _at_length_one(items: Float[np.ndarray, "items width"]) -> Float[np.ndarray, "items width"]:
    """Return the vectors with what they lack of length one in their last number."""
    items[:, -1] = np.sqrt(np.clip(1 - (items**2).sum(axis=1), 0, None))
    return items
