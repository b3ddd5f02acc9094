"""Training of the learned re-ranker.

It learns from the questions that were held out while the bundle was trained: of a model that has seen the answers, the
order says nothing. The questions are dealt into `FOLDS` parts; one member of the ranker learns from all parts but one
and stops by that one, on which it is then judged. So every question is learned from, and every one judges a member that
did not learn from it.
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
        after: N@10 of the order of a member that did not learn from the question, by question.
    """

    network: RankNetwork
    after: Float[np.ndarray, " questions"]


def fit_ranker(lessons: RankingDataset, seed: int) -> FittedRanker:
    """Train on shortlists.

    Args:
        lessons: They.
        seed: For the parts, the initial weights and the order.

    Raises:
        DataError: Too few have an answer.
    """
    is_answerable = lessons.is_answerable
    if is_answerable.sum() < LEAST_QUESTIONS:
        raise DataError(
            f"expected at least {LEAST_QUESTIONS} questions with an answer among the candidates to learn from, found "
            f"{int(is_answerable.sum())}; give more interactions, or more --candidates"
        )
    everyone = np.arange(len(lessons))
    after = np.zeros(len(lessons))
    part = assign_folds(len(lessons), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RankNetwork(lessons.features.shape[2], FOLDS)
        _standardise(network, lessons.features[is_answerable][lessons.is_there[is_answerable]])
        pupil = _FoldTrainer.prepare(network, lessons)
        for fold, member in enumerate(tqdm(network.members, desc="Learning", disable=None, leave=False)):
            judged = everyone[part == fold]
            after[judged] = pupil.fit(member, everyone[(part != fold) & is_answerable], judged, seed + fold)
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
    """Teaches the members of a network, one after the other.

    Attributes:
        lessons: What they learn from.
        prepared: The features as they read them, `[questions, candidates, 2 * features]`.
        is_there: Where there is a candidate.
        is_answer: Which are answers.
    """

    lessons: RankingDataset
    prepared: Tensor
    is_there: Tensor
    is_answer: Tensor

    @classmethod
    def prepare(cls, network: RankNetwork, lessons: RankingDataset) -> _FoldTrainer:
        """Return what the members of a network read."""
        features, is_there = torch.from_numpy(lessons.features), torch.from_numpy(lessons.is_there)
        prepared = torch.zeros(*features.shape[:2], 2 * features.shape[2])
        for one, (mine, there) in enumerate(zip(features, is_there, strict=True)):
            prepared[one, there] = network.prepared(mine[there])
        return cls(lessons, prepared, is_there, torch.from_numpy(lessons.is_answer))

    def fit(
        self, member: nn.Module, learned: Int[np.ndarray, " learned"], judged: Int[np.ndarray, " judged"], seed: int
    ) -> Float[np.ndarray, " judged"]:
        """Train a member on some queries, with early stopping on others; return its N@10 on those."""
        optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rng = np.random.default_rng(seed)
        best, best_epoch, weights = self._judge(member, judged), 0, _copy(member)
        for epoch in range(1, EPOCHS + 1):
            member.train()
            for chosen in np.array_split(rng.permutation(learned), max(1, len(learned) // BATCH)):
                optimiser.zero_grad()
                self._loss(member, torch.from_numpy(chosen)).backward()
                optimiser.step()
            found = self._judge(member, judged)
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

    def _judge(self, member: nn.Module, judged: Int[np.ndarray, " judged"]) -> Float[np.ndarray, " judged"]:
        member.eval()
        with torch.inference_mode():
            scores = [member(self.prepared[part]).squeeze(-1) for part in torch.from_numpy(judged).split(BATCH)]
        return self.lessons.ndcg(judged, torch.cat(scores).numpy())


def _copy(member: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in member.state_dict().items()}
