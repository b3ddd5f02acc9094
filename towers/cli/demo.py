"""`towers demo`: the whole of it on a generated shop, which is also the tutorial.

Each command is printed and then run as it was printed, as a process of its own, in a working folder. What the service
answers over HTTP is shown by titles, so that a person can judge it. Nothing is left running, however the demo ends.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import click

from features.errors import DataError
from towers.process import own_python
from towers.tracking.store import how_to_open

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("mini", "tiny", "small", "medium", "large")
TABLES = Path("data/shop")
BOUND = "best possible"
EPOCHS = 3
"""Enough for nearly all that the shop has to teach; by itself training goes on until it has stopped getting better."""
SECONDS_TO_START = 120
SECONDS_TO_STOP = 30
SHOWN = 5
"""Lines in each list."""
WIDTH = 76
"""Characters of a title."""


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another shop.")
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True, help="Of the shop.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Work in this folder, and keep it.")
def demo(seed: int, size: str, keep: Path | None) -> None:
    """Show the whole of it on a generated shop, command by command.

    Makes a shop, trains, evaluates, serves and asks, printing each command before it runs.
    """
    began = time.monotonic()
    with _working_folder(keep) as folder:
        click.echo(
            "Two Towers: from two tables to recommendations.\n"
            "A line that begins with $ is a command; you can type the same, and what it says stands below it.\n"
            f"The working folder is {folder}."
        )
        terminal = Terminal(folder)
        make_tables(terminal, seed, size)
        judge(terminal, seed)
        train(terminal, seed)
        serve(terminal)
    say_what_next(keep, time.monotonic() - began)


@dataclass(frozen=True)
class Terminal:
    """Runs commands in a folder and shows them as they would be typed.

    Attributes:
        folder: The working folder.
    """

    folder: Path

    def run(self, *words: str) -> None:
        """Show a command and run it; its output goes where ours goes.

        Raises:
            click.exceptions.Exit: It failed, and so the demo ends, with the same status.
        """
        with self.start(*words) as process:
            if process.wait():
                _give_up(words, process.returncode)

    @contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Show a command and start it; it is stopped at the end of the block if it is still running."""
        self.show(*words)
        # A store that is set elsewhere is not for this; and a group of its own, so that one Ctrl-C arrives just once.
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        process = subprocess.Popen(
            own_python("-m", *words, folder=self.folder),
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            yield process
        except KeyboardInterrupt:
            _stop(process, signal.SIGINT)
            raise
        finally:
            _stop(process, signal.SIGTERM)

    def show(self, *words: str) -> None:
        """Show a command without running it."""
        click.echo(f"\n$ {shlex.join(words)}")
        sys.stdout.flush()

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the working folder."""
        import pandas as pd

        return pd.read_parquet(self.folder / name)


def make_tables(terminal: Terminal, seed: int, size: str) -> None:
    """Generate the shop and look at its tables."""
    _head(
        "1. The tables",
        "A shop is made up: what there is, who there is, and who chose what when. Your own tables take its place.",
    )
    flags = [*(["--seed", str(seed)] if seed else []), *(["--size", size] if size != "small" else [])]
    terminal.run("towers", "dataset", "shop", *flags)
    _head(
        "2. The settings",
        "`towers init` looks at the tables and writes run.toml: what each column is, and why it thinks so.",
    )
    files = [word for name in ("interactions", "items", "users") for word in (f"--{name}", f"{TABLES / name}.parquet")]
    terminal.run("towers", "init", *files)
    click.echo("\nAmong other things run.toml says of the items:\n")
    click.echo(_indented(_section(terminal.folder / "run.toml", "[features.item]")))


def judge(terminal: Terminal, seed: int) -> None:
    """Train on a part, and compare on the rest with baselines and with the best that anybody could do."""
    _head(
        "3. How good is it?",
        "Each user's last interaction is held out; the model is trained on the rest and must find it among all items.\n"
        "The shop is generated, so the best possible recommendations are known: they are the upper bound.\n"
        "A few epochs are enough here; without `--set`, early stopping ends the training.",
    )
    bound = f"{BOUND}={TABLES / 'best_possible.parquet'}"
    terminal.run("towers", "evaluate", "run.toml", "--upper-bound", bound, "--output", "evaluation", *_settings(seed))
    report = json.loads((terminal.folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    recall = {row["name"]: row["metrics"]["recall_at_10"]["mean"] for row in report["rows"]}
    shares = {name: value / recall[BOUND] for name, value in recall.items()}
    towers, *others = (name for name in recall if name != BOUND)
    baselines = ", ".join(f"{name} {shares[name]:.0%}" for name in others)
    click.echo(f"\nThe {towers} reach {shares[towers]:.0%} of the best possible recall@10 ({baselines}).")


def train(terminal: Terminal, seed: int) -> None:
    """Train the bundle to serve."""
    _head(
        "4. The model", "`towers train` learns from all but what early stopping needs, and writes a folder: a bundle."
    )
    terminal.run("towers", "train", "run.toml", *_settings(seed))


def serve(terminal: Terminal) -> None:
    """Deploy the bundle, start the service, send requests, write recommendations for all users, stop the service."""
    _head(
        "5. What is served",
        "Training changes nothing that is served; `towers deploy` does. It verifies the bundle, makes its index from\n"
        "today's tables (every item's vector, every user's history, what is popular), and points runs/production at\n"
        "it. `towers index runs/production` rebuilds the index, for example each night, without training.",
    )
    terminal.run("towers", "deploy", "runs/latest")
    _head("6. The service", "It runs in the background here; by itself it would run until Ctrl-C.")
    port = _free_port()
    words = ("towers", "serve", "runs/production", "--port", str(port))
    with terminal.start(*words) as process:
        service = Service(terminal, f"http://127.0.0.1:{port}")
        if not service.is_ready_in_time(process):
            _give_up(words, process.poll() or 1)
        ask(service)
        write_candidates(terminal)
        process.terminate()
        status = process.wait(SECONDS_TO_STOP)
        click.echo(f"\nThe service was asked to stop (SIGTERM) and ended with status {status}.")
        if status:
            _give_up(words, status)


@dataclass(frozen=True)
class Service:
    """The running service, called over HTTP like by any client.

    Attributes:
        terminal: Where the questions are shown.
        address: Its address.
    """

    terminal: Terminal
    address: str

    def is_ready_in_time(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until it is ready; False if it ended or took too long."""
        deadline = time.monotonic() + SECONDS_TO_START
        while process.poll() is None and time.monotonic() < deadline:
            try:
                self._answer("/readyz")
                return True
            except (URLError, OSError):
                time.sleep(0.1)
        return False

    def get(self, path: str) -> dict[str, Any]:
        """Show the question as a curl line, ask it, and return the answer."""
        self.terminal.show("curl", f"{self.address}{path}")
        return self._answer(path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Show the question as a curl line, ask it, and return the answer."""
        content = json.dumps(body, ensure_ascii=False)
        header = "Content-Type: application/json"
        self.terminal.show("curl", f"{self.address}{path}", "--header", header, "--data", content)
        return self._answer(path, content.encode())

    def _answer(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if body else {}
        request = Request(f"{self.address}{path}", body, headers)  # noqa: S310 (the service that was just started)
        # This machine asks itself, whatever proxy the environment names.
        with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


def ask(service: Service) -> None:
    """Request recommendations for known, unknown and described users, and similar items."""
    click.echo("\nIt answers in JSON (asked from here, so that you need no curl); below are the titles, best first.")
    items = service.terminal.table(f"{TABLES / 'items'}.parquet").set_index("item_id")
    newest_of = _newest_choices(service.terminal)
    people = service.terminal.table(f"{TABLES / 'users'}.parquet").set_index("user_id")
    chosen = _people_to_show(people, newest_of)
    for user_id in chosen:
        answer = service.get(f"/recommendations/{user_id}?k={SHOWN}")
        click.echo(f"User {user_id}: {_described(people.loc[user_id].to_dict())}")
        _list("chose lately", items, newest_of[user_id][:SHOWN])
        _list("is recommended", items, _item_ids(answer), _scores(answer))

    answer = service.get(f"/recommendations/unknown-user?k={SHOWN}")
    click.echo(f'This user is unknown: popular items, marked as such ("fallback": "{answer["fallback"]}")')
    _list("is recommended", items, _item_ids(answer))

    history, person = newest_of[chosen[0]][:2][::-1], people.loc[chosen[0]].to_dict()
    attributes = {name: str(person[name]) for name in ("country", "language")}
    answer = service.post("/recommendations", {"history": history, "attributes": attributes, "k": SHOWN})
    click.echo(f"Someone without an account, from {attributes['country']}, who looked at two things")
    _list("looked at", items, history)
    _list("is recommended", items, _item_ids(answer), _scores(answer))

    answer = service.get(f"/items/{history[-1]}/similar?k={SHOWN}")
    click.echo(f"Items like: {_named(items, history[-1])}")
    _list("similar", items, _item_ids(answer), _scores(answer))


def write_candidates(terminal: Terminal) -> None:
    """Write recommendations for all users and show the first."""
    _head("7. The nightly file", "Recommendations for all users in one file, for other systems.")
    terminal.run("towers", "recommend", "runs/production", "--output", "candidates.parquet")
    click.echo(f"\n{_indented(terminal.table('candidates.parquet').head(SHOWN).to_string(index=False))}")


def say_what_next(keep: Path | None, seconds: float) -> None:
    """Say where things are, and what to type next."""
    program = "towers" if shutil.which("towers") else _shown(Path(sys.executable).with_name("towers"))
    _head(f"That was all of it, in {seconds:,.0f} seconds")
    if keep is None:
        click.echo("The working folder is removed; `--keep DIR` keeps one.")
    else:
        store = f"sqlite:///{keep.resolve()}/mlflow.db"
        click.echo(f"{keep} is kept:")
        click.echo(f"  {keep / 'run.toml'}                   the settings, to change and train again")
        click.echo(f"  {keep / 'runs/latest/report.html'}    how good the model is")
        click.echo(f"  {keep / 'candidates.parquet'}         recommendations for all users")
        click.echo(f"  {how_to_open(store, '1')}    every training, in a browser")
    click.echo("\nNext, with your own tables (CSV or Parquet; users are optional):")
    click.echo(f"  {program} init --interactions FILE --items FILE --users FILE")
    click.echo(f"  {program} train run.toml\n  {program} deploy runs/latest\n  {program} serve runs/production")


@contextmanager
def _working_folder(keep: Path | None) -> Iterator[Path]:
    """Yield the folder to work in: the one to keep, or one that is removed at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="two-towers-demo-") as name:
            yield Path(name)
        return
    if keep.exists() and any(keep.iterdir()):
        raise DataError(f"{keep}: expected an empty or new folder, found files in it; name another with --keep")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


def _stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Stop a process if it is running; after a timeout kill its process group."""
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _give_up(words: tuple[str, ...], status: int) -> NoReturn:
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    click.echo(f"error: the demo stops here: `{shlex.join(words)}` {how}; what it said stands above", err=True)
    raise click.exceptions.Exit(128 - status if status < 0 else status)


def _head(title: str, text: str = "") -> None:
    click.echo(f"\n\n{title}\n{'-' * len(title)}" + (f"\n{text}" if text else ""))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _section(path: Path, head: str) -> str:
    """Return the text of a section of a TOML file."""
    text = path.read_text(encoding="utf-8")
    return text[text.index(head) :].partition("\n\n")[0]


def _settings(seed: int) -> list[str]:
    """Return the settings that the demo overrides: few epochs, so that it is short."""
    return ["--set", f"training.epochs={EPOCHS}", *(["--set", f"training.seed={seed}"] if seed else [])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _newest_choices(terminal: Terminal) -> dict[int, list[str]]:
    """Return each user's items, newest first, without repeats."""
    events = terminal.table(f"{TABLES / 'interactions'}.parquet").iloc[::-1].drop_duplicates(["user_id", "item_id"])
    return {int(str(user_id)): list(ids) for user_id, ids in events.groupby("user_id")["item_id"]}


def _people_to_show(people: pd.DataFrame, newest_of: dict[int, list[str]]) -> list[int]:
    """Return two users who read English and one who does not, each with a long history."""
    seasoned = people[[len(newest_of.get(user_id, [])) >= 3 * SHOWN for user_id in people.index]]
    seasoned = people if len(seasoned) < 3 else seasoned
    reads_english = seasoned["language"] == "en"
    return [*seasoned.index[reads_english][:2].tolist(), *seasoned.index[~reads_english][:1].tolist()]


def _described(person: dict[Hashable, Any]) -> str:
    interests = f", interested in {person['interests']}" if isinstance(person["interests"], str) else ""
    return f"{person['country']}, reads {person['language']}, {person['age_band']}{interests}"


def _list(title: str, items: pd.DataFrame, item_ids: list[str], scores: list[float] | None = None) -> None:
    click.echo(f"  {title}")
    for place, item_id in enumerate(item_ids):
        score = f"{scores[place]:6.2f}  " if scores else "     -  "
        click.echo(f"  {score}{_named(items, item_id)}")


def _named(items: pd.DataFrame, item_id: str) -> str:
    title = str(items.loc[item_id, "title"])
    shown = title if len(title) <= WIDTH else f"{title[: WIDTH - 3]}..."
    return f"{shown:<{WIDTH}}  {str(items.loc[item_id, 'category']).rpartition(' > ')[2]}"


def _item_ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def _scores(answer: dict[str, Any]) -> list[float]:
    return [item["score"] for item in answer["items"]]


def _shown(path: Path) -> str:
    """Return a path as a person types it from here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
