"""Training of the learned re-ranker.

It is trained on the queries that were held out when the bundle was trained, because the two towers rank targets of
their training data too high. Cross-validation with `FOLDS` folds: each member of the network is trained on all folds
but one, with early stopping and evaluation on that one. So every query is used for training, and every query evaluates
a member that was not trained on it.
"""

from __future__ import annotations

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
        after: N@10 by query, of the member that was not trained on it.
    """

    network: RankNetwork
    after: Float[np.ndarray, " questions"]


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
    everything = np.arange(len(dataset))
    after = np.zeros(len(dataset))
    part = assign_folds(len(dataset), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RankNetwork(dataset.features.shape[2], FOLDS)
        _standardise(network, dataset.features[is_answerable][dataset.is_there[is_answerable]])
        trainer = _FoldTrainer.prepare(network, dataset)
        for fold, member in enumerate(tqdm(network.members, desc="Learning", disable=None, leave=False)):
            held_out = everything[part == fold]
            after[held_out] = trainer.fit(member, everything[(part != fold) & is_answerable], held_out, seed + fold)
    return FittedRanker(network.eval(), after)


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
        self, member: nn.Module, fit_rows: Int[np.ndarray, " fit"], held_out: Int[np.ndarray, " held_out"], seed: int
    ) -> Float[np.ndarray, " held_out"]:
        """Train a member on some queries, with early stopping on others; return its N@10 on those."""
        optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rng = np.random.default_rng(seed)
        best, best_epoch, weights = self._validate(member, held_out), 0, _copy(member)
        for epoch in range(1, EPOCHS + 1):
            member.train()
            for chosen in np.array_split(rng.permutation(fit_rows), max(1, len(fit_rows) // BATCH)):
                optimiser.zero_grad()
                self._loss(member, torch.from_numpy(chosen)).backward()
                optimiser.step()
            found = self._validate(member, held_out)
            if found.mean() > best.mean():
                best, best_epoch, weights = found, epoch, _copy(member)
            if epoch - best_epoch >= PATIENCE:
                break
        member.load_state_dict(weights)
        return best

    def _loss(self, member: nn.Module, chosen: Tensor) -> Tensor:
        """Return the mean cross-entropy between the targets and the softmax over each list."""
        logits = member(self.prepared[chosen]).squeeze(-1).masked_fill(~self.is_there[chosen], -torch.inf)
        is_answer = self.is_answer[chosen]
        log_shares = logits.log_softmax(dim=1).masked_fill(~is_answer, 0.0)
        loss: Tensor = -(log_shares.sum(dim=1) / is_answer.sum(dim=1)).mean()
        return loss

    def _validate(self, member: nn.Module, held_out: Int[np.ndarray, " held_out"]) -> Float[np.ndarray, " held_out"]:
        member.eval()
        with torch.inference_mode():
            scores = [member(self.prepared[part]).squeeze(-1) for part in torch.from_numpy(held_out).split(BATCH)]
        return self.dataset.ndcg(held_out, torch.cat(scores).numpy())


def _copy(member: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in member.state_dict().items()}
