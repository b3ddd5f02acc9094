"""Training of the learned re-ranker.

It is trained on the queries that were held out when the bundle was trained, because the two towers rank targets of
their training data too high. Cross-validation with `FOLDS` folds: each training leaves two of them out. Stopped early
by one of the two, it is evaluated on the other, and the other way round. So each fold evaluates the mean of members
that neither learned from it nor were selected by it. They are one fewer than the network has, so what is reported is
nearly what is served; the gain of single members would be lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from tqdm import tqdm

from features.errors import DataError
from towers.rerankers.learned import RankNetwork
from training.rerankers.examples import RankingDataset

FOLDS = 5
LEAST_QUESTIONS = 50
"""Minimum number of queries with a target on the shortlist."""
EPOCHS = 40
PATIENCE = 5
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class FittedRanker:
    """A trained network, and its metrics on held-out folds.

    Attributes:
        network: In evaluation mode.
        after: N@10 by query, of the mean of the members that it evaluates.
        fold: The fold of each query; each fold evaluates other members.
    """

    network: RankNetwork
    after: Float[np.ndarray, " questions"]
    fold: Int[np.ndarray, " questions"]


def fit_ranker(dataset: RankingDataset, seed: int) -> FittedRanker:
    """Train on shortlists.

    Args:
        dataset: Shortlists with features and targets.
        seed: Seed of folds, initial weights and order.

    Raises:
        DataError: Too few shortlists contain a target.
    """
    is_answerable = dataset.is_answerable
    if is_answerable.sum() < LEAST_QUESTIONS:
        raise DataError(
            f"expected at least {LEAST_QUESTIONS} queries with a target among the candidates, found "
            f"{int(is_answerable.sum())}; give more interactions, or more --candidates"
        )
    fold = assign_folds(len(dataset), seed)
    scores = np.zeros(dataset.is_there.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RankNetwork(dataset.features.shape[2], FOLDS)
        _standardise(network, dataset.features[is_answerable][dataset.is_there[is_answerable]])
        trainer = _FoldTrainer.prepare(network, dataset)
        pairs = [(first, (first + apart) % FOLDS) for apart in range(1, 1 + FOLDS // 2) for first in range(FOLDS)]
        for place, pair in enumerate(tqdm(pairs, desc="Learning", disable=None, leave=False)):
            # The network keeps the pairs of neighbours, which leave out every fold equally often.
            member = network.members[place] if place < FOLDS else RankNetwork(dataset.features.shape[2], 1).members[0]
            fitted_on = np.flatnonzero(~np.isin(fold, pair) & is_answerable)
            left_out = [np.flatnonzero(fold == one) for one in pair]
            stopped = trainer.fit(member, fitted_on, left_out, seed + place)
            for weights, judged in zip(stopped, left_out[::-1], strict=True):
                member.load_state_dict(weights)
                scores[judged] += trainer.scores(member, judged)
    return FittedRanker(network.eval(), dataset.ndcg(np.arange(len(dataset)), scores), fold)


def assign_folds(num_questions: int, seed: int) -> Int[np.ndarray, " questions"]:
    """Return the fold of each query, at random."""
    part: np.ndarray = np.random.default_rng(seed).permutation(np.arange(num_questions) % FOLDS)
    return part


def _standardise(network: RankNetwork, features: Float32[np.ndarray, "candidates features"]) -> None:
    """Set mean and standard deviation of each feature."""
    known = np.isfinite(features)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0).sum(axis=0, dtype=np.float64) / counts
    spread = np.sqrt((np.where(known, features - mean, 0) ** 2).sum(axis=0) / counts)
    network.mean.copy_(torch.from_numpy(mean))
    network.spread.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)))


@dataclass(frozen=True)
class _FoldTrainer:
    """Trains the members of a network, one after the other.

    Attributes:
        dataset: Shortlists with features and targets.
        prepared: Standardised features, `[queries, candidates, 2 * features]`.
        is_there: Which places hold a candidate, `[queries, candidates]`; the others are padding.
        is_answer: Which candidates are targets, `[queries, candidates]`.
    """

    dataset: RankingDataset
    prepared: Tensor
    is_there: Tensor
    is_answer: Tensor

    @classmethod
    def prepare(cls, network: RankNetwork, dataset: RankingDataset) -> _FoldTrainer:
        """Prepare the features of a data set for a network."""
        features, is_there = torch.from_numpy(dataset.features), torch.from_numpy(dataset.is_there)
        prepared = torch.zeros(*features.shape[:2], 2 * features.shape[2])
        for one, (mine, there) in enumerate(zip(features, is_there, strict=True)):
            prepared[one, there] = network.prepared(mine[there])
        return cls(dataset, prepared, is_there, torch.from_numpy(dataset.is_answer))

    def fit(
        self,
        member: nn.Module,
        fit_rows: Int[np.ndarray, " fit"],
        left_out: Sequence[np.ndarray],
        seed: int,
    ) -> list[dict[str, Tensor]]:
        """Train a member on some queries, and return its weights as early stopping leaves them.

        Args:
            member: The member.
            fit_rows: Queries to learn from.
            left_out: Queries that stop it early, several sets of them; each gives weights of its own.
            seed: Of the order.
        """
        optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rng = np.random.default_rng(seed)
        best = [_Best(self.ndcg(member, queries), 0, _copy(member)) for queries in left_out]
        for epoch in range(1, EPOCHS + 1):
            member.train()
            for chosen in np.array_split(rng.permutation(fit_rows), max(1, len(fit_rows) // BATCH)):
                optimiser.zero_grad()
                self._loss(member, torch.from_numpy(chosen)).backward()
                optimiser.step()
            for place, queries in enumerate(left_out):
                ndcg = self.ndcg(member, queries)
                if ndcg > best[place].ndcg and epoch <= best[place].epoch + PATIENCE:
                    best[place] = _Best(ndcg, epoch, _copy(member))
            if epoch >= max(one.epoch for one in best) + PATIENCE:
                break
        return [one.weights for one in best]

    def _loss(self, member: nn.Module, chosen: Tensor) -> Tensor:
        """Return the mean cross-entropy between the targets and the softmax over each list."""
        logits = member(self.prepared[chosen]).squeeze(-1).masked_fill(~self.is_there[chosen], -torch.inf)
        is_answer = self.is_answer[chosen]
        log_shares = logits.log_softmax(dim=1).masked_fill(~is_answer, 0.0)
        loss: Tensor = -(log_shares.sum(dim=1) / is_answer.sum(dim=1)).mean()
        return loss

    def ndcg(self, member: nn.Module, queries: Int[np.ndarray, " some"]) -> float:
        """Return the mean N@10 of a member on some queries."""
        return float(self.dataset.ndcg(queries, self.scores(member, queries)).mean())

    def scores(self, member: nn.Module, queries: Int[np.ndarray, " some"]) -> Float32[np.ndarray, "some candidates"]:
        """Return a member's score of each candidate of some queries."""
        member.eval()
        with torch.inference_mode():
            scores = [member(self.prepared[part]).squeeze(-1) for part in torch.from_numpy(queries).split(BATCH)]
        return torch.cat(scores).numpy()


@dataclass(frozen=True)
class _Best:
    """The best epoch of a training so far, by the queries of a fold."""

    ndcg: float
    epoch: int
    weights: dict[str, Tensor]


def _copy(member: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in member.state_dict().items()}
