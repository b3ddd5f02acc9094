"""Flags of the commands `init`, `prepare`, `plan`, `train`, `tune`, `evaluate`, `audit`, `compare`, `train-ranker`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from features.locations.object_path import TablePath
from features.locations.table_path import TABLE_FILE
from towers.rerankers.kinds import RERANKER_KINDS
from training.presets import PRESETS, Preset, preset_settings

PROTOCOLS = ("leave-one-out", "leave-one-basket-out", "time", "users", "queries", "cold-items")
GATE_FAILED = 3
"""Exit status of `towers audit` when a `--fail-if` condition holds."""

# What `train` and `evaluate` have in common.
_settings = click.argument("settings", type=click.Path(path_type=Path), metavar="run.toml")
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to train on.",
)
_preset = click.option(
    "--preset", type=click.Choice(PRESETS), help="Size of the model: dimensions, layers, heads and dropout rate."
)
_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="table.key=value",
    help="Override a setting of run.toml; may be repeated.",
)


_no_baselines = click.option(
    "--no-baselines",
    is_flag=True,
    help="Compare with no baselines; then nothing says whether the model is worth its cost.",
)


def _is_given(option: str) -> bool:
    """Return whether the command line gives an option of the current command, so that its value is no default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _baseline_minutes(default: float) -> Callable[[Any], Any]:
    return click.option(
        "--baseline-minutes",
        type=click.FloatRange(min=0),
        default=default,
        show_default=True,
        help="Time for choosing the hyperparameters of the baselines; each is fitted once in any case.",
    )


@click.command()
@click.option("--interactions", type=TABLE_FILE, help="Table of interactions: CSV or Parquet.")
@click.option("--items", type=TABLE_FILE, help="Table of items (catalogue).")
@click.option("--users", type=TABLE_FILE, help="Table of user attributes.")
@click.option(
    "--documents",
    type=TABLE_FILE,
    help="Documents of a search corpus: a table, or a folder of .md and .txt files.",
)
@click.option("--queries", type=TABLE_FILE, help="Queries of a search, for training.")
@click.option("--pairs", type=TABLE_FILE, help="Relevant (query, document) pairs of a search, for training.")
@click.option("--user-column", metavar="NAME", help="User-id column of the interactions, if it is not detected.")
@click.option("--item-column", metavar="NAME", help="Item-id column of the interactions.")
@click.option("--time-column", metavar="NAME", help="Timestamp column of the interactions.")
@click.option(
    "--time-format", metavar="FORMAT", help='Format of the timestamps: dmy, mdy, ..., or a pattern such as "%d.%m.%y".'
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("run.toml"),
    show_default=True,
    help="Settings file to write.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option(
    "--validation",
    type=click.Choice(("auto", "leave-one-out", "time", "users")),
    default="auto",
    show_default=True,
    help="The question that the model is to answer well: which item comes next (leave-one-out), what users will have "
    "in the coming weeks (time), or what else users like who are new (users). auto: leave-one-out if the order is "
    "known, else users.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Spend these minutes on short trainings with other settings, and keep what is better on validation data.",
)
@_device
def init(
    interactions: TablePath | None,
    items: TablePath | None,
    users: TablePath | None,
    documents: TablePath | None,
    queries: TablePath | None,
    pairs: TablePath | None,
    user_column: str | None,
    item_column: str | None,
    time_column: str | None,
    time_format: str | None,
    output: Path,
    force: bool,
    validation: str,
    minutes: float | None,
    device: str,
) -> None:
    """Inspect the tables and write run.toml, with a comment for each setting.

    A table is a CSV or Parquet file, a folder of such files, or a quoted pattern ('orders-*.csv'), here or in an object
    store (s3://BUCKET/NAME, gs://BUCKET/NAME). The command shows how each column will be used, reads the tables as
    training does, and reports all errors at once.

    A recommender needs --interactions; --items and --users are optional. A search needs --documents; --queries and
    --pairs are optional training data.

    With --minutes the settings are chosen by measurement: each change that helps on some data (such as recent
    popularity in the score, or predicting any later item) is trained with for an equal share of the time, and kept if
    the validation N@10 is higher. The test data of `towers evaluate` is not read. Ctrl-C ends it; run.toml has what was
    kept until then.
    """
    from features.errors import DataError
    from training.tasks.init import propose, said_of, write_proposal

    if output.exists() and not force:
        raise DataError(f"{output}: exists; name another --output, or use --force to write over it")
    if documents is not None and validation != "auto":
        raise DataError("--validation is about a recommender; a search holds out queries")
    named = {"user_id": user_column, "item_id": item_column, "timestamp": time_column}
    proposal = propose(
        output,
        interactions=interactions,
        items=items,
        users=users,
        documents=documents,
        queries=queries,
        pairs=pairs,
        named={setting: column for setting, column in named.items() if column is not None},
        time_format=time_format,
    )
    write_proposal(proposal, output, validation)
    click.echo(f"{output}: written for {said_of(proposal.inference)}")
    if minutes is not None:
        from training.tasks.choose import choose, trials_in_words

        click.echo(f"\n{trials_in_words(choose(output, minutes=minutes, device=device))}")
    click.echo(f"\nNext:\n  towers train {shlex.quote(str(output))}")


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), metavar="[run.toml]", required=False)
@click.option(
    "--continue",
    "continued",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Continue the training of this bundle with new interactions, instead of training on run.toml from nothing.",
)
@click.option(
    "--interactions",
    type=TABLE_FILE,
    help="With --continue: new interactions, added to those of RUN.  [default: the table of RUN, as it is now]",
)
@click.option(
    "--items",
    type=TABLE_FILE,
    help="With --continue: the whole catalogue of today.  [default: the table of RUN, as it is now]",
)
@click.option(
    "--users",
    type=TABLE_FILE,
    help="With --continue: the whole table of users of today.  [default: the table of RUN, as it is now]",
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of the bundle.  [default: runs/run-N]"
)
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the newest unfinished run with these settings. Under torchrun, begin one if there is none.",
)
@_device
@_preset
@_overrides
@_no_baselines
@_baseline_minutes(2)
def train(
    settings: Path | None,
    continued: Path | None,
    interactions: TablePath | None,
    items: TablePath | None,
    users: TablePath | None,
    output: Path | None,
    resume: bool,
    device: str,
    preset: Preset | None,
    overrides: tuple[str, ...],
    no_baselines: bool,
    baseline_minutes: float,
) -> None:
    """Train on the tables of run.toml and write a bundle that can be served.

    Ctrl-C or SIGTERM stops after the current step; the same command with --resume continues exactly from there. A
    running service is not affected: runs/latest points to the newest bundle, and `towers deploy` makes a service use a
    bundle.

    Several processes train together with torchrun: `torchrun --nproc-per-node 4 -m towers train run.toml`.

    `towers train --continue runs/latest --interactions today.parquet` trains a few epochs on what is new, with a sample
    of the old, and writes another bundle: new users, items and categories join, and RUN stays as it is. Its settings
    are those of RUN; [continuation] has the epochs and the share of the old.
    """
    from features.errors import DataError
    from training.distributed.launch import is_first
    from training.tasks.train import next_steps, train_and_bundle

    overrides = (*preset_settings(preset), *overrides)
    given = {"interactions": interactions, "items": items, "users": users}
    tables = {name: path for name, path in given.items() if path is not None}
    if continued is not None:
        from training.tasks.continue_training import continue_and_bundle

        if settings is not None:
            raise DataError(
                f"{settings}: not with --continue, whose settings are those of {continued}; leave it out, and change "
                "single settings with --set"
            )
        if _is_given("baseline_minutes"):
            raise DataError("--baseline-minutes: not with --continue, which fits no baselines; leave it out")
        bundle = continue_and_bundle(continued, overrides, tables=tables, output=output, resume=resume, device=device)
    elif settings is None:
        raise DataError("run.toml: missing; name the settings, or the run to go on with: --continue runs/latest")
    elif tables:
        raise DataError(f"--{min(tables)}: only with --continue; without it run.toml names the tables")
    else:
        bundle = train_and_bundle(
            settings,
            overrides,
            output=output,
            resume=resume,
            device=device,
            baselines=not no_baselines,
            baseline_minutes=baseline_minutes,
        )
    if is_first():
        click.echo(f"\n{next_steps(bundle)}")


@click.command()
@_settings
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write.  [default: run.prepared, where train looks for it]",
)
@click.option("--force", is_flag=True, help="Prepare them again, even if what is there fits.")
@_overrides
def prepare(settings: Path, output: Path | None, force: bool, overrides: tuple[str, ...]) -> None:
    """Sort the interactions of run.toml on disk, for tables larger than memory.

    The tables are checked as in training, in a stream. `towers train` does this by itself for 20 million interactions
    or more, or as [features] prepare says, and uses what is there if it was made of the same tables.
    """
    from training.config import read_run_config
    from training.prepared.prepare import prepared_folder, prepared_tables, said_of

    config = read_run_config(settings, overrides)
    where = output or prepared_folder(settings)
    tables = prepared_tables(config.features, settings.parent, where, again=force)
    for note in tables.notes:
        click.echo(f"note: {note}", err=True)
    sequences = tables.interactions.sequences(tables.catalog)
    click.echo(f"{where}: {said_of(sequences)}, {len(tables.catalog):,} items")
    click.echo(f"\nNext:\n  towers train {shlex.quote(str(settings))}")


@click.command()
@_settings
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes that torchrun is to start, on one machine or more.",
)
@click.option(
    "--memory",
    "memory_gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory of all processes together, in GB.  [default: that of this machine]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes.")
@_preset
@_overrides
def plan(
    settings: Path,
    processes: int,
    memory_gb: float | None,
    as_json: bool,
    preset: Preset | None,
    overrides: tuple[str, ...],
) -> None:
    """Show what a training on CPUs will take, before anything is trained: memory, disk, time, and what does not fit.

    The tables are read as in training, the model is sized without memory for it, and steps of a real training are timed
    for at most ten seconds. Nothing is written. Where memory does not suffice, the plan says which setting to change to
    what. Of interactions that are sorted on disk, `towers prepare` comes first.
    """
    from training.tasks.plan import plan_run

    memory = None if memory_gb is None else int(memory_gb * 1e9)
    found = plan_run(settings, (*preset_settings(preset), *overrides), processes=processes, memory=memory)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.to_text())


@click.command()
@_settings
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="How test data is held out.  [default: leave-one-out with an order, else users; queries for a search]",
)
@click.option(
    "--split",
    "part",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Held-out data to evaluate on: compare settings on validation, and use test once, at the end.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of trainings, each with its own seed.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report and the ranks that `towers audit` reads.",
)
@_device
@_preset
@_overrides
@click.option(
    "--compare",
    multiple=True,
    metavar="NAME=FILE",
    help="Table of other recommendations (user_id, item_id, rank or score) to evaluate; may be repeated.",
)
@click.option(
    "--upper-bound",
    multiple=True,
    metavar="NAME=FILE",
    help="Like --compare, for recommendations shown as an upper bound, such as an oracle's.",
)
@_no_baselines
@_baseline_minutes(15)
def evaluate(
    settings: Path,
    protocol: str | None,
    part: Literal["test", "validation"],
    seeds: int,
    output: Path | None,
    device: str,
    preset: Preset | None,
    overrides: tuple[str, ...],
    compare: tuple[str, ...],
    upper_bound: tuple[str, ...],
    no_baselines: bool,
    baseline_minutes: float,
) -> None:
    """Train on part of the data, evaluate on the held-out rest, and compare with baselines.

    Protocols: leave-one-out holds out each user's last item; leave-one-basket-out, all items with the time of the last
    one; time, all interactions after one point in time; users, users whose history is partly shown; queries, users
    without any history; cold-items, items without interactions.
    """
    from training.tasks.evaluate import evaluate_run

    report = evaluate_run(
        settings,
        (*preset_settings(preset), *overrides),
        protocol,
        part=part,
        seeds=seeds,
        device=device,
        compare=compare,
        upper_bound=upper_bound,
        output=output,
        baselines=not no_baselines,
        baseline_minutes=baseline_minutes,
    )
    click.echo(report.to_text())
    if output is not None:
        click.echo(f"\n{output / 'report.json'} and report.html written")
        click.echo(f"\nNext, the slices with the lowest recall:\n  towers audit {shlex.quote(str(output))}")


@click.command()
@_settings
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Number of trials, those of earlier calls and of other workers included.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop this worker after so many minutes; the comparison at the end comes after that.  [default: no limit]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the tuning; one that is there is continued, or joined.  [default: runs/run-tuning]",
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="How validation and test data are held out, as for `towers evaluate`.  [default: as there]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of trainings of the best settings and of run.toml for the comparison at the end, each with its own "
    "seed.",
)
@click.option(
    "--pruner",
    type=click.Choice(["median", "halving", "none"]),
    default="median",
    show_default=True,
    help="End a trial early: if it is worse than the median of the others at that epoch, by successive "
    "halving, or never.",
)
@_device
@_preset
@_overrides
def tune(
    settings: Path,
    trials: int,
    minutes: float | None,
    output: Path | None,
    protocol: str | None,
    seeds: int,
    pruner: Literal["median", "halving", "none"],
    device: str,
    preset: Preset | None,
    overrides: tuple[str, ...],
) -> None:
    """Search for better settings, and write the best as a run.toml.

    The first trial is run.toml as it is, so that the best is never worse on validation. What is searched is chosen by
    the data, or listed in the table [tune] of run.toml. At the end the best settings and run.toml are compared on the
    validation and, once, on the test data, with intervals.

    Ctrl-C, SIGTERM or a crash loses nothing: the same command continues, trials that were interrupted included. Started
    again while it runs, it joins as another worker.
    """
    from features.errors import needing

    with needing("searches for settings"):
        from training.tasks.tune import WINNER
        from training.tasks.tune import tune as search

    found = search(
        settings,
        (*preset_settings(preset), *overrides),
        trials=trials,
        minutes=minutes,
        output=output,
        protocol=protocol,
        seeds=seeds,
        pruner=pruner,
        device=device,
    )
    if found is not None:
        report, folder = found
        click.echo(report.to_text())
        click.echo(f"\n{folder / WINNER}, report.json and report.html written")
        if report.test is not None and not report.is_better:
            click.echo("\nThe gain is not clear of zero on the test data; --seeds 3 or more --trials may show more.")
        click.echo(f"\nNext:\n  towers train {shlex.quote(str(folder / WINNER if report.is_better else settings))}")


@click.command()
@click.argument("evaluation", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="GATE",
    help="Exit with status 3 if this holds: 'recall@50 < 0.6', 'slice:language gap > 0.1', 'slice:genre=Horror "
    "recall@10 < 0.05', 'slice:* gap > 0.3', 'slice:brand exposure < 0.2'; may be repeated.",
)
@click.option(
    "--min-support",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Minimum number of queries of a slice; smaller ones are merged and never fail a condition.",
)
@click.option(
    "--recommender", metavar="NAME", help="Recommender to audit, as named in the report.  [default: two towers]"
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Number of slices to print, the worst first.",
)
def audit(evaluation: Path, gates: tuple[str, ...], min_support: int, recommender: str | None, show: int) -> None:
    """Find the slices in which the recommender is worst: by language, category, price, popularity, age, activity, ...

    DIR is the folder that `towers evaluate run.toml --output DIR` wrote; nothing is ranked again. Slices come from the
    columns of the tables. Writes audit.html with all slices, and slices.parquet with the same as a table, into DIR.

    A condition (GATE) is [slice:FACET | slice:FACET=VALUE | slice:*] MEASURE < NUMBER, or with <=, > or >=; without
    slice: it is about all queries. MEASURE is recall, gap (recall of all queries minus that of the slice) or exposure
    (share in the recommendations over share in the catalogue), each @10 or @50; without @, @50 is used.
    """
    from training.tasks.audit import audit_run

    if not audit_run(evaluation, gates, recommender=recommender, min_support=min_support, show=show):
        raise click.exceptions.Exit(GATE_FAILED)


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN RUN...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("comparison"),
    show_default=True,
    help="Folder for compare.html and differences.parquet.",
)
@click.option(
    "--min-support",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Minimum number of queries of a slice.",
)
def compare(runs: tuple[Path, ...], output: Path, min_support: int) -> None:
    """Compare runs with the first: paired differences with intervals, by slice, and what each finds.

    A RUN is a folder that `towers evaluate run.toml --output RUN` wrote. All must have been evaluated on the same
    questions: the same tables, --protocol, --split and --seeds. Or each RUN is a bundle, such as runs/run-1; they are
    then evaluated on the questions that the training of the first held out. compare.html also shows the lists of twenty
    users side by side.
    """
    from training.tasks.compare import compare_runs

    compare_runs(runs, output, min_support)


def _defaults(name: str) -> str:
    """Return a default of each kind of re-ranker that has one, for help texts."""
    values = {kind.name: getattr(kind, name) for kind in RERANKER_KINDS.values()}
    return ", ".join(f"{value} {kind}" for kind, value in values.items() if value is not None)


@click.command("train-ranker")
@click.argument("bundle", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--kind",
    type=click.Choice(tuple(RERANKER_KINDS)),
    default="learned",
    show_default=True,
    help=" ".join(f"{kind.name}: {kind.summary}." for kind in RERANKER_KINDS.values()),
)
@click.option("--model", metavar="NAME", help="Pretrained text model: a folder, or a name on the Hugging Face hub.")
@click.option(
    "--candidates",
    "num_candidates",
    type=click.IntRange(10, 1000),
    help=f"Number of retrieved items to re-rank.  [default: {_defaults('num_candidates')}]",
)
@click.option(
    "--eval-queries",
    type=click.IntRange(min=1),
    help=f"Maximum number of held-out queries for evaluation, a sample.  [default: {_defaults('eval_queries')}]",
)
@click.option(
    "--train-queries",
    metavar="N",
    type=click.IntRange(min=1),
    help="Fine-tune first on so many training queries; --model may then be any transformer. For: "
    + ", ".join(kind.name for kind in RERANKER_KINDS.values() if kind.can_fine_tune)
    + ".",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 1),
    help="Weight of a text model's score against the retriever's; the re-ranker is then written whatever it gains.  "
    "[default: the best on held-out queries]",
)
@click.option(
    "--history-items",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Text models: number of the newest history items to read.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=4),
    help=f"Maximum tokens of a pair of texts, or of a text.  [default: {_defaults('max_tokens')}]",
)
def train_ranker(bundle: Path, **chosen: Any) -> None:
    """Train a re-ranker for a bundle, evaluate it, and add it to the bundle.

    DIR is a bundle, such as runs/latest. Gain and latency are measured on the data that was held out when the bundle
    was trained; unless the 99 % interval of the gain is above zero, nothing is written. Run `towers index` afterwards,
    so that the service, `towers recommend` and `towers search` use it.
    """
    from training.tasks.train_ranker import RankerChoice, train_bundle_ranker

    train_bundle_ranker(bundle, RankerChoice(**chosen))
