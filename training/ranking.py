"""What `towers train-ranker` does: teach a ranker to put what a bundle retrieves into a better order.

It learns from the questions that were held out while the bundle was trained: of a model that has seen the answers, the
order says nothing. The questions are dealt into `FOLDS` parts; one member of the ranker learns from all parts but one
and stops by that one, on which it is then judged. So every question is learned from, and every one judges a member that
did not learn from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from tqdm import tqdm

from features.errors import DataError
from features.sequences import Queries
from features.split import Split
from features.tables import Tables, data_digests, read_tables
from towers.bundle import ModelBundle
from towers.item_facts import ItemFacts
from towers.rank_features import RankFeatures
from towers.ranker import RankNetwork, write_ranker
from training.config import RunConfig, read_run_config
from training.learning import shipping_split
from training.metrics import bootstrap_interval
from training.shortlists import shortlists

FOLDS = 5
MOST_QUESTIONS = 10_000
"""Questions learned from; a sample where there are more."""
LEAST_QUESTIONS = 50
"""Questions whose answer is on the shortlist that it takes to learn anything."""
EPOCHS = 40
PATIENCE = 5
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Lessons:
    """The shortlists of questions; those that are shorter than others have places at the end where nothing is.

    Attributes:
        features: What is read of each candidate, `[questions, candidates, features]`.
        is_there: Where there is a candidate, `[questions, candidates]`.
        is_answer: Which are answers, `[questions, candidates]`.
        num_answers: How many answers each question has, those that retrieval missed included, `[questions]`.
    """

    features: Float32[np.ndarray, "questions candidates features"]
    is_there: Bool[np.ndarray, "questions candidates"]
    is_answer: Bool[np.ndarray, "questions candidates"]
    num_answers: Int[np.ndarray, " questions"]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.num_answers)

    @property
    def is_answerable(self) -> Bool[np.ndarray, " questions"]:
        """Which questions have an answer on their shortlist."""
        return np.asarray(self.is_answer.any(axis=1))

    def ndcg(
        self, questions: Int[np.ndarray, " some"], scores: Float[np.ndarray, "some candidates"]
    ) -> Float[np.ndarray, " some"]:
        """Return N@10 of some questions, the candidates of each in the order of some scores."""
        order = np.argsort(np.where(self.is_there[questions], -scores, np.inf), axis=1, kind="stable")
        found = np.take_along_axis(self.is_answer[questions], order, axis=1)
        gains = (found[:, :10] / np.log2(2 + np.arange(found[:, :10].shape[1]))).sum(axis=1)
        ideal = np.cumsum(1 / np.log2(2 + np.arange(10)))[np.minimum(self.num_answers[questions], 10) - 1]
        return np.asarray(gains / ideal)


@dataclass(frozen=True)
class Taught:
    """A ranker, and how it did on what it was not taught.

    Attributes:
        network: In evaluation mode.
        before: N@10 of the retriever's order, by question.
        after: N@10 of the order of a member that did not learn from the question.
        num_answerable: How many questions had an answer on their shortlist.
    """

    network: RankNetwork
    before: Float[np.ndarray, " questions"]
    after: Float[np.ndarray, " questions"]
    num_answerable: int

    def gain(self) -> tuple[float, float, float]:
        """Return the mean gain in N@10 and its paired 95 % bootstrap interval."""
        gains = self.after - self.before
        low, high = bootstrap_interval(gains[:, None])
        return float(gains.mean()), float(low[0]), float(high[0])


def train_bundle_ranker(path: Path, num_candidates: int) -> None:
    """Train the ranker of a bundle on the questions that its training held out, say what it gains, and write it.

    Args:
        path: The bundle.
        num_candidates: How long the shortlists are.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: The tables cannot be read, nothing was held out, or too few answers are on the shortlists.
    """
    bundle = ModelBundle.open(path)
    config = read_run_config(path / "run.toml")
    if config.training.refit:
        raise DataError(
            f"{path}: trained with `refit`, so on every interaction, and nothing is left that a ranker could learn "
            "from; train again with --set training.refit=false"
        )
    tables, split = _held_out(bundle, config)
    facts = ItemFacts.of(split.train, tables.catalog, bundle.config.features.item)
    lessons = make_lessons(bundle, tables, facts, split.validation, num_candidates, config.training.seed)
    taught = teach(lessons, config.training.seed)
    before, after = float(taught.before.mean()), float(taught.after.mean())
    gain, low, high = taught.gain()
    click.echo(
        f"{len(lessons):,} questions, {taught.num_answerable:,} of them with an answer among the first "
        f"{num_candidates}\nN@10 {before:.4f} -> {after:.4f} ({after / max(before, 1e-9) - 1:+.1%}; the gain is "
        f"{gain:+.4f}, 95 % interval {low:+.4f} to {high:+.4f})"
    )
    if gain <= 0:
        click.echo("not written: it is no better than the order in which retrieval finds things")
        return
    folder = write_ranker(
        bundle,
        taught.network,
        RankFeatures(facts).names,
        num_candidates=num_candidates,
        num_questions=len(lessons),
        ndcg_before=before,
        ndcg_after=after,
    )
    click.echo(f"{folder}: written\n\nNext:\n  towers index {path}")


def make_lessons(
    bundle: ModelBundle, tables: Tables, facts: ItemFacts, questions: Queries, num_candidates: int, seed: int
) -> Lessons:
    """Return what is learned from questions, or from a sample where there are many.

    Args:
        bundle: What retrieves.
        tables: The catalogue and the users.
        facts: What is known of the items without the answers.
        questions: Who asks, and what should be found.
        num_candidates: How long the shortlists are.
        seed: For the sample.
    """
    if len(questions) > MOST_QUESTIONS:
        chosen = np.random.default_rng(seed).choice(len(questions), MOST_QUESTIONS, replace=False)
        questions = questions.take(np.sort(chosen))
    maker = RankFeatures(facts)
    most = min(num_candidates, len(tables.catalog))
    features = np.full((len(questions), most, len(maker.names)), np.nan, dtype=np.float32)
    is_there, is_answer = np.zeros((2, len(questions), most), dtype=bool)
    found = shortlists(bundle, tables, questions, num_candidates)
    shown = tqdm(found, total=len(questions), desc="Shortlists", disable=None, leave=False)
    for place, (shortlist, answers) in enumerate(shown):
        features[place, : len(shortlist)] = maker.of(shortlist)
        is_there[place, : len(shortlist)], is_answer[place, : len(shortlist)] = True, answers
    return Lessons(features, is_there, is_answer, np.diff(questions.target_offsets))


def teach(lessons: Lessons, seed: int) -> Taught:
    """Return a ranker that learned from shortlists.

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
    before = lessons.ndcg(everyone, -np.tile(np.arange(lessons.is_there.shape[1], dtype=np.float32), (len(lessons), 1)))
    after = np.zeros(len(lessons))
    part = np.random.default_rng(seed).permutation(everyone % FOLDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RankNetwork(lessons.features.shape[2], FOLDS)
        _standardise(network, lessons.features[is_answerable][lessons.is_there[is_answerable]])
        pupil = _Pupil.prepare(network, lessons)
        for fold, member in enumerate(tqdm(network.members, desc="Learning", disable=None, leave=False)):
            judged = everyone[part == fold]
            after[judged] = pupil.teach(member, everyone[(part != fold) & is_answerable], judged, seed + fold)
    return Taught(network.eval(), before, after, int(is_answerable.sum()))


def _held_out(bundle: ModelBundle, config: RunConfig) -> tuple[Tables, Split]:
    """Return today's tables, and what they hold divided as it was when the bundle was trained."""
    tables = read_tables(config.features, bundle.tables_folder)
    digests = data_digests(config.features, bundle.tables_folder)
    if any(bundle.manifest.digests.get(name) not in (None, digest) for name, digest in digests.items()):
        click.echo("note: the tables have changed since the model was trained; it is asked for today's last items")
    return tables, shipping_split(config, tables.interactions.sequences(tables.catalog), len(tables.catalog))


def _standardise(network: RankNetwork, features: Float32[np.ndarray, "candidates features"]) -> None:
    """Set what is usual of each feature."""
    known = np.isfinite(features)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0).sum(axis=0, dtype=np.float64) / counts
    spread = np.sqrt((np.where(known, features - mean, 0) ** 2).sum(axis=0) / counts)
    network.mean.copy_(torch.from_numpy(mean))
    network.spread.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)))


@dataclass(frozen=True)
class _Pupil:
    """Teaches the members of a network, one after the other.

    Attributes:
        lessons: What they learn from.
        prepared: The features as they read them, `[questions, candidates, 2 * features]`.
        is_there: Where there is a candidate.
        is_answer: Which are answers.
    """

    lessons: Lessons
    prepared: Tensor
    is_there: Tensor
    is_answer: Tensor

    @classmethod
    def prepare(cls, network: RankNetwork, lessons: Lessons) -> _Pupil:
        """Return what the members of a network read."""
        features, is_there = torch.from_numpy(lessons.features), torch.from_numpy(lessons.is_there)
        prepared = torch.zeros(*features.shape[:2], 2 * features.shape[2])
        for one, (mine, there) in enumerate(zip(features, is_there, strict=True)):
            prepared[one, there] = network.prepared(mine[there])
        return cls(lessons, prepared, is_there, torch.from_numpy(lessons.is_answer))

    def teach(
        self, member: nn.Module, learned: Int[np.ndarray, " learned"], judged: Int[np.ndarray, " judged"], seed: int
    ) -> Float[np.ndarray, " judged"]:
        """Let a member learn from some questions until it gets no better at others; return its N@10 on those."""
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
        """Return the mean cross-entropy between who is an answer and the softmax over each list."""
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
