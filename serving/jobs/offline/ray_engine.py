"""Work on several cores or machines, by Ray: actors that open something large once, and then do task after task.

Without an address Ray is started here for the job and ended with it: it listens on this machine alone, asks for a
token that only its own processes know, shows no dashboard, sends no usage statistics, and keeps its files in a folder
of its own among the temporary files.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from features.errors import DataError, UnavailableError, needing
from towers.process import available_cores, keeping_memory
from towers.warnings_filter import NO_STATISTICS

Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Task = TypeVar("Task")
Result = TypeVar("Result")

QUIET = {
    **NO_STATISTICS,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""Variables for Ray on any machine; a user may set others."""
# Without this Ray takes the address by which other machines reach this one, and listens there.
_THIS_MACHINE_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# Tasks and results are small: Ray's least, and twice that.
_OBJECT_STORE_BYTES = 160 << 20
_LONGEST_FOLDER = 40
_QUEUED_PER_ACTOR = 2
_RESTARTS = 3


class Work(Protocol[Task_contra, Result_co]):
    """What actors do. It is sent to them, so it holds names and numbers, not what they open."""

    def open(self) -> Callable[[Task_contra], Result_co]:
        """Open what is needed, and return the function that does one task."""


@dataclass(frozen=True)
class RayEngine(Generic[Task, Result]):
    """Does tasks in actors of Ray.

    Attributes:
        address: The cluster, `HOST:PORT` or `auto` for the one that this machine belongs to. None: Ray is started here.
        num_actors: Number of actors, of one core each. None: as many as there are cores.
        num_gpus: Number of GPUs that each actor needs.
    """

    address: str | None = None
    num_actors: int | None = None
    num_gpus: float = 0

    def run(self, work: Work[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the result of each task, in the order in which they are done.

        What a machine did not finish that went away is done again elsewhere.

        Raises:
            DataError: Ray is not installed, or cannot be started.
            UnavailableError: The cluster does not answer, or its actors are lost again and again.
            Exception: As the work raises it.
        """
        with needing("--engine ray"), _variables(QUIET | ({} if self.address else _THIS_MACHINE_ALONE)):
            import ray
        with self._connected(ray):
            yield from self._done(ray, work, tasks)

    def _done(self, ray: Any, work: Work[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
        cores = int(ray.cluster_resources().get("CPU", 1))
        num_actors = max(1, min(self.num_actors or cores, len(tasks)))
        again = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
        kind = ray.remote(num_cpus=1, num_gpus=self.num_gpus, **again)(_Actor)
        actors = [kind.remote(work) for _ in range(num_actors)]
        waiting = list(reversed(tasks))
        running: dict[Any, Any] = {}
        for actor in actors * _QUEUED_PER_ACTOR:
            if waiting:
                running[actor.do.remote(waiting.pop())] = actor
        while running:
            for done in ray.wait(list(running))[0]:
                actor = running.pop(done)
                if waiting:
                    running[actor.do.remote(waiting.pop())] = actor
                try:
                    result: Result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise UnavailableError(
                        f"Ray lost its workers: {_first_line(error)}; run the command again"
                    ) from None
                yield result

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        """Start Ray, or join a cluster, for the block."""
        if ray.is_initialized():  # by a program that uses Ray itself
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with ExitStack() as stack:
            options: dict[str, Any] = {
                "log_to_driver": False,
                "logging_level": logging.ERROR,
                "configure_logging": False,
            }
            if self.address is None:
                stack.enter_context(_variables(QUIET | _THIS_MACHINE_ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}))
                options |= {
                    "address": "local",
                    "num_cpus": self.num_actors or available_cores(),
                    "include_dashboard": False,
                    "object_store_memory": _OBJECT_STORE_BYTES,
                    "_temp_dir": stack.enter_context(_folder()),
                }
            else:
                stack.enter_context(_variables(QUIET))
                options |= {"address": self.address}
            stack.callback(ray.shutdown)
            try:
                ray.init(**options)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise self._no_ray(error) from None
            finally:
                for number, handler in handlers.items():  # Ray puts its own in their place
                    signal.signal(number, handler)
            yield

    def _no_ray(self, error: Exception) -> Exception:
        if self.address is None:
            return DataError(f"Ray cannot be started: {_first_line(error)}")
        return UnavailableError(
            f"--address {self.address}: no Ray cluster can be used there ({_first_line(error)}); run the command on a "
            "machine of the cluster, which `ray start` makes it, with the same versions of Python and Ray"
        )


class _Actor:
    """Opens the work when it is made, and does its tasks."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(keeping_memory())
        self._work = work
        self._function: Callable[[Any], Any] | None = None

    def do(self, task: Any) -> Any:
        if self._function is None:  # here rather than above, so that an error arrives as it is
            self._function = self._work.open()
        return self._function(task)


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the block, except those that are set."""
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _folder() -> Iterator[str]:
    """Yield a folder for Ray's files, removed at the end; its sockets need a short path."""
    given = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="towers-ray-", dir=given if len(given) <= _LONGEST_FOLDER else "/tmp")  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
