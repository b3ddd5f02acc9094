"""Work on several cores or machines, by Ray: actors that open something large once, and then do task after task.

Without an address Ray is started here for the job and ended with it: it listens on this machine alone, asks for a
token that Ray keeps in the user's home folder, shows no dashboard, sends no usage statistics, and keeps its files in a
folder of its own among the temporary files.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from types import FrameType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from features.errors import DataError, UnavailableError, needing
from towers.process import Stopped, available_cores, handled, keeping_memory
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
_TRIES = 4
# What Ray says where its processes are not there in time.
_TOO_SLOW = ("timed out during startup", "Failed to start GCS")
_SECONDS_TO_CONNECT = 10
_SECONDS_TO_JOIN = 60
"""Maximum time to join a cluster: Ray would wait for minutes where something listens that does not answer."""


class Work(Protocol[Task_contra, Result_co]):
    """What actors do. It is sent to them, so it holds names and numbers, not what they open."""

    def open(self) -> Callable[[Task_contra], Result_co]:
        """Open what is needed, and return the function that does one task."""


@dataclass(frozen=True)
class RayEngine(Generic[Task, Result]):
    """Does tasks in actors of Ray.

    Attributes:
        address: The cluster, `HOST:PORT` or `auto` for the one that this machine belongs to. None: Ray is started here.
        num_actors: Number of actors, of one core each. None: as many as there are cores. No more than the GPUs of the
            cluster are enough for, or the others would never start.
        num_gpus: Number of GPUs that each actor needs.
    """

    address: str | None = None
    num_actors: int | None = None
    num_gpus: float = 0

    def run(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task, in the order in which they are done.

        A task is taken when an actor is about to become free, so that tasks with data may be made one by one.
        What a machine did not finish that went away is done again elsewhere. A program that has connected to Ray itself
        keeps its connection.

        Raises:
            DataError: Ray is not installed, or cannot be started.
            UnavailableError: The cluster does not answer, or its actors are lost again and again.
            Exception: As the work raises it.
        """
        ray = _imported(self.address)
        with nullcontext() if ray.is_initialized() else connected(self.address, self.num_actors):
            yield from self._done(ray, work, tasks)

    def possible_actors(self, resources: Mapping[str, float]) -> int:
        """Return how many actors can run at once, given what the cluster has.

        Raises:
            DataError: They need GPUs, and it has none.
        """
        wanted = self.num_actors or int(resources.get("CPU", 1))
        if not self.num_gpus:
            return wanted
        possible = int(resources.get("GPU", 0) / self.num_gpus)
        if not possible:
            raise DataError('device = "cuda": Ray finds no GPU here; use "cpu", or a cluster that has one')
        return min(wanted, possible)

    def _done(self, ray: Any, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        num_actors = self.possible_actors(ray.cluster_resources())
        waiting = iter(tasks)
        first = list(islice(waiting, num_actors))
        waiting = chain(first, waiting)
        again = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
        kind = ray.remote(num_cpus=1, num_gpus=self.num_gpus, **again)(_Actor)
        actors = [kind.remote(work) for _ in first]
        free = actors * _QUEUED_PER_ACTOR
        running = {actor.do.remote(task): actor for actor, task in zip(free, waiting, strict=False)}
        while running:
            for done in ray.wait(list(running))[0]:
                actor = running.pop(done)
                running |= {actor.do.remote(task): actor for task in islice(waiting, 1)}
                try:
                    result: Result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    said = f"Ray lost its workers: {_first_line(error)}; run the command again"
                    raise UnavailableError(said) from None
                yield result


@contextmanager
def connected(address: str | None, num_cores: int | None = None) -> Iterator[None]:
    """Start Ray, or join a cluster, for the block.

    Args:
        address: As for `RayEngine`.
        num_cores: Number of cores where Ray is started. None: those that this process may use.

    Raises:
        DataError: Ray is not installed, or cannot be started.
        UnavailableError: The cluster does not answer.
    """
    ray = _imported(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with ExitStack() as stack:
        stack.enter_context(_variables(address))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            options |= {
                "address": "local",
                "num_cpus": num_cores or available_cores(),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": stack.enter_context(_folder()),
            }
        else:
            options |= {"address": address}
        stack.callback(ray.shutdown)
        try:
            _check_listens(address)
            with nullcontext() if address is None else _no_longer_than(_SECONDS_TO_JOIN):
                _initialise(ray, options)
        except Exception as error:  # Ray raises bare ones, too
            raise _not_connected(address, error) from None
        except SystemExit:  # Ray's own answer to SIGTERM
            raise Stopped(signal.SIGTERM) from None
        finally:
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        yield


class _TooLongError(BaseException):
    """Time is up. No `Exception`, as Ray catches those and tries again."""


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End a block that waits for too long; outside of the main thread it may take as long as it does.

    Raises:
        TimeoutError: It took too long.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise _TooLongError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled([signal.SIGALRM], end):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except _TooLongError:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _initialise(ray: Any, options: dict[str, Any]) -> None:
    """Call `ray.init`, again where a busy machine does not start Ray's processes within the 30 s that it waits."""
    for left in reversed(range(_TRIES)):
        try:
            ray.init(**options)
        except Exception as error:
            ray.shutdown()
            if not left or not any(said in str(error) for said in _TOO_SLOW):
                raise
        else:
            return


def _imported(address: str | None) -> Any:
    """Return the module `ray`, which reads some of the variables when it is imported."""
    with needing("offline jobs on Ray"), _variables(address):
        import ray
    return ray


def _check_listens(address: str | None) -> None:
    """Check that something listens at an address: Ray itself would try for minutes.

    Raises:
        OSError: Nothing does.
        ValueError: It is not of the form `HOST:PORT`.
    """
    if address in (None, "auto"):
        return
    host, colon, port = str(address).rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("expected HOST:PORT, such as 10.0.0.1:6379, or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()


def _not_connected(address: str | None, error: Exception) -> Exception:
    if address is None:
        return DataError(f"Ray cannot be started here: {_first_line(error)}")
    return UnavailableError(
        f"--address {address}: no Ray cluster can be used there ({_first_line(error)}); run the command on a machine "
        "of the cluster, which `ray start` makes it, with the same versions of Python and Ray"
    )


class _Actor:
    """Opens the work, and does its tasks."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self._work = work
        self._function: Callable[[Any], Any] | None = None
        self._stack = ExitStack()
        self._stack.enter_context(keeping_memory())

    def do(self, task: Any) -> Any:
        if self._function is None:  # here, so that what opening raises arrives as it is
            self._function = self._work.open()
        return self._function(task)


@contextmanager
def _variables(address: str | None) -> Iterator[None]:
    """Set the variables for Ray for the block, except those that are set."""
    wanted = QUIET if address else QUIET | _THIS_MACHINE_ALONE
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _folder() -> Iterator[str]:
    """Yield a folder for Ray's files, removed at the end; the paths of its sockets must be short."""
    given = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="towers-ray-", dir=given if len(given) <= _LONGEST_FOLDER else "/tmp")  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
