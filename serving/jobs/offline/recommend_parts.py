"""Recommendations of all users into a folder of parts: resumable, in one process or on several machines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from features.locations.object_path import TablePath
from serving.config import USERS_PER_PART, ServingConfig
from serving.jobs.offline.parts import PART_LABEL, PartsFolder
from serving.jobs.offline.ray_engine import RayEngine
from serving.jobs.offline.workers import check_same, settings_of_workers
from serving.jobs.open import open_recommender
from serving.jobs.recommend_all import Audience, Wanted
from serving.recommend.recommender import Recommender
from towers.rerankers.manifest import open_ranker


class PartTask(NamedTuple):
    """One part.

    Attributes:
        number: Its number.
        path: The file to write.
        user_ids: Its users, `[users]`, int64 or object (str).
        user_rows: Their rows in the recommender, -1 for unknown users.
        label: What the file says of itself.
    """

    number: int
    path: Path
    user_ids: np.ndarray
    user_rows: Int64[np.ndarray, " users"]
    label: str


@dataclass(frozen=True)
class RecommendWork:
    """Writes parts: what each process has to know.

    Attributes:
        bundle: The folder of the bundle, without links.
        model: The version that it must have.
        index: The version that its index must have.
        settings: The settings of the service.
        wanted: What is recommended.
        now: The time for which it is recommended, in Unix seconds.
    """

    bundle: Path
    model: str
    index: str
    settings: ServingConfig
    wanted: Wanted
    now: float

    def open(self) -> Callable[[PartTask], int]:
        """Open the bundle, and return the function that writes a part and returns its number of users.

        Raises:
            BundleError: The bundle or its index are others than those that the job was started with.
        """
        recommender = open_recommender(self.bundle, self.settings)
        check_same(
            self.bundle,
            found=f"model {recommender.model} with index {recommender.snapshot.manifest.identity}",
            expected=f"model {self.model} with index {self.index}",
        )
        return self.with_recommender(recommender)

    def with_recommender(self, recommender: Recommender) -> Callable[[PartTask], int]:
        """Return the function that writes a part with a recommender that is open already."""
        recommender = recommender.with_clock(lambda: self.now)

        def write(task: PartTask) -> int:
            audience = Audience(task.user_ids, task.user_rows)
            self.wanted.write(recommender, audience, task.path, metadata={PART_LABEL: task.label})
            return len(task.user_ids)

        return write


def recommend_into_parts(
    bundle: Path,
    folder: Path,
    wanted: Wanted,
    users: TablePath | None = None,
    *,
    settings: ServingConfig | None = None,
    accept_changed_columns: bool = False,
    users_per_part: int = USERS_PER_PART,
    engine: RayEngine[PartTask, int] | None = None,
) -> None:
    """Write recommendations for each known user, or each user in a table, as parts, and print a summary.

    A folder that a killed run left is continued: only the missing parts are made, and the result is the same as without
    the interruption.

    Args:
        bundle: The folder of the bundle.
        folder: The folder to write.
        wanted: What is recommended.
        users: A table with the users. None: all known users.
        settings: The settings of the service. None: the defaults.
        accept_changed_columns: Used if the index is built first; see `build_index`.
        users_per_part: Number of users of one part.
        engine: Writes the parts. None: this process does.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The folder is of another job, a table cannot be read, a condition is invalid, or Ray is missing.
        UnavailableError: The Ray cluster does not answer.
    """
    settings = settings or ServingConfig()
    recommender, audience = wanted.opened(bundle, users, settings, accept_changed_columns=accept_changed_columns)
    num_parts = max(1, -(-len(audience) // users_per_part))
    options = {**_content(recommender, settings, wanted, audience), "users_per_part": users_per_part}
    began = time.perf_counter()
    with PartsFolder.opened(folder, num_parts, options, time.time()) as parts:
        work = RecommendWork(
            recommender.bundle.path.resolve(),
            recommender.model,
            recommender.snapshot.manifest.identity,
            settings_of_workers(settings),
            wanted,
            parts.started,
        )
        missing = parts.missing()
        if len(missing) < num_parts:
            click.echo(f"{folder}: {num_parts - len(missing):,} of {num_parts:,} parts are there already")
        tasks = [_task(parts, audience, number, users_per_part) for number in missing]
        num_users = sum(len(task.user_ids) for task in tasks)
        with tqdm(total=num_users, unit=" users", desc="Recommending", disable=None, leave=False) as bar:
            done: Iterable[int] = ()
            if engine is None:
                done = map(work.with_recommender(recommender), tasks)
            elif tasks:
                done = engine.run(work, tasks)
            for count in done:
                bar.update(count)
        num_rows = parts.finish()
    seconds = time.perf_counter() - began
    rate = f", {num_users / seconds:,.0f} users/s" if num_users else ""
    click.echo(
        f"{folder}: {num_rows:,} recommendations for {len(audience):,} users in {num_parts:,} parts, "
        f"{seconds:.1f} s{rate}"
    )
    audience.announce_unknown()


def _task(parts: PartsFolder, audience: Audience, number: int, users_per_part: int) -> PartTask:
    mine = slice(number * users_per_part, (number + 1) * users_per_part)
    path, label = parts.part(number).absolute(), parts.label(number)
    return PartTask(number, path, audience.user_ids[mine], audience.user_rows[mine], label)


def _content(recommender: Recommender, settings: ServingConfig, wanted: Wanted, audience: Audience) -> dict[str, Any]:
    """Return all that the content of the parts depends on, by the name that a message shows."""
    reranker = None if recommender.rerank is None else open_ranker(recommender.bundle)[0].digest
    return {
        "model": recommender.model,
        "index": recommender.snapshot.manifest.identity,
        "re-ranker": reranker,
        "rerank_candidates": None if recommender.rerank is None else recommender.rerank.num_candidates,
        "recommend_seen": settings.recommend_seen,
        "users": _digest(audience.user_ids.tolist()),
        **asdict(wanted),
    }


def _digest(ids: Sequence[int | str]) -> str:
    digest = hashlib.sha256()
    for one in ids:
        digest.update(f"{one!r}\n".encode())
    return digest.hexdigest()[:16]
