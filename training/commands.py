"""The commands of this room: `towers init`, `train`, `train-ranker`, `evaluate` and `audit`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

import click

from training.presets import PRESETS, Preset, preset_settings

PROTOCOLS = ("leave-one-out", "time", "users", "queries", "cold-items")
GATE_FAILED = 3
"""The exit status of an audit that found what must not be."""


@click.command()
@click.option("--interactions", type=click.Path(path_type=Path), help="Who had what: CSV or Parquet.")
@click.option("--items", type=click.Path(path_type=Path), help="What there is: the catalogue.")
@click.option("--users", type=click.Path(path_type=Path), help="What is known of the users.")
@click.option("--documents", type=click.Path(path_type=Path), help="Of a search: what there is, a table or a folder.")
@click.option("--queries", type=click.Path(path_type=Path), help="Of a search: what was asked.")
@click.option("--pairs", type=click.Path(path_type=Path), help="Of a search: which documents answer which query.")
@click.option("--user-column", metavar="NAME", help="The interactions' column of users, if it is not found.")
@click.option("--item-column", metavar="NAME", help="Their column of items.")
@click.option("--time-column", metavar="NAME", help="Their column of times.")
@click.option("--time-format", metavar="FORMAT", help='How these are written: dmy, mdy, ..., or such as "%d.%m.%y".')
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("run.toml"), show_default=True, help="What is written."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(
    interactions: Path | None,
    items: Path | None,
    users: Path | None,
    documents: Path | None,
    queries: Path | None,
    pairs: Path | None,
    user_column: str | None,
    item_column: str | None,
    time_column: str | None,
    time_format: str | None,
    output: Path,
    force: bool,
) -> None:
    """Look at the tables and write run.toml: settings that fit them, each with its reason.

    A table is a CSV or Parquet file, a folder of such files, or a pattern in quotes ('orders-*.csv'). What becomes of
    each column is shown; the tables are read as training will read them, and all that is wrong is told at once.

    A recommender has --interactions, and perhaps --items and --users. A search has --documents, a table or a folder of
    Markdown and text, and to learn from --queries and --pairs.
    """
    from features.errors import DataError, Problems
    from features.files import atomic_file
    from features.inference.inference import render_table
    from training.tasks.init import propose, render_model_settings, said_of

    if output.exists() and not force:
        raise DataError(f"{output}: exists; name another --output, or use --force to write over it")
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
    inference = proposal.inference
    click.echo(f"{render_table(inference)}\n")
    for warning in inference.warnings:
        click.echo(f"note: {warning}", err=True)
    Problems(proposal.problems).raise_all()
    with atomic_file(output) as temporary:
        temporary.write_text(f"{proposal.settings}\n{render_model_settings(inference)}", encoding="utf-8")
    click.echo(f"{output}: written for {said_of(inference)}\n\nNext:\n  towers train {shlex.quote(str(output))}")


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), metavar="run.toml")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The bundle.  [default: runs/run-N]")
@click.option("--resume", is_flag=True, help="Go on with the newest unfinished run of these settings.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where.")
@click.option("--preset", type=click.Choice(PRESETS), help="A size of the model; see README for cost and quality.")
@click.option("--set", "overrides", multiple=True, metavar="table.key=value", help="Replace a setting of run.toml.")
def train(
    settings: Path,
    output: Path | None,
    resume: bool,
    device: str,
    preset: Preset | None,
    overrides: tuple[str, ...],
) -> None:
    """Train on the tables of run.toml and write a bundle that can be served.

    Ctrl-C, or SIGTERM, stops after the current step; the same command with --resume goes on exactly from there. Nothing
    that is served changes: runs/latest points to the newest bundle, and `towers deploy` moves what a service follows.
    """
    from training.tasks.train import train_and_bundle

    overrides = (*preset_settings(preset), *overrides)
    bundle = train_and_bundle(settings, overrides, output=output, resume=resume, device=device)
    name = shlex.quote(str(bundle))
    click.echo(
        f"\nNext, to try it:\n  towers serve {name}\n"
        f"or, to let runs/production be this one, which a service in production follows:\n  towers deploy {name}"
    )


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), metavar="run.toml")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="[default: leave-one-out with an order, else users; queries of a search]",
)
@click.option(
    "--on",
    "part",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Which hidden questions are asked: compare settings on validation, and ask the test once, at the end.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings, each of its own seed."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for the report and the ranks.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where.")
@click.option("--preset", type=click.Choice(PRESETS), help="A size of the model; see README for cost and quality.")
@click.option("--set", "overrides", multiple=True, metavar="table.key=value", help="Replace a setting of run.toml.")
@click.option(
    "--beside",
    multiple=True,
    metavar="NAME=FILE",
    help="Recommendations (user_id, item_id, score or rank) to judge with the rest.",
)
@click.option("--bound", multiple=True, metavar="NAME=FILE", help="The same, for a limit such as the best possible.")
def evaluate(
    settings: Path,
    protocol: str | None,
    part: Literal["test", "validation"],
    seeds: int,
    output: Path | None,
    device: str,
    preset: Preset | None,
    overrides: tuple[str, ...],
    beside: tuple[str, ...],
    bound: tuple[str, ...],
) -> None:
    """Judge the settings: train on the protocol's training part, ask what was held out, baselines beside.

    leave-one-out: each user's last item. time: one cut in time for everybody. users: people never seen.
    queries: the same by what is said of them alone. cold-items: products never seen.
    """
    from training.audit.ranks import About, RanksWriter
    from training.config import read_run_config
    from training.tasks.evaluate import evaluate_run

    overrides = (*preset_settings(preset), *overrides)
    ranks = RanksWriter() if output is not None else None
    report = evaluate_run(
        settings, overrides, protocol, part=part, seeds=seeds, device=device, beside=beside, bound=bound, ranks=ranks
    )
    click.echo(report.to_text())
    if output is not None and ranks is not None:
        output.mkdir(parents=True, exist_ok=True)
        report.write(output)
        config = read_run_config(settings, overrides)
        ranks.write(output, About.of(config, settings.parent, report.protocol, report.part))
        click.echo(f"\n{output / 'report.json'} and report.html written")
        click.echo(f"\nNext, the slices in which it fails:\n  towers audit {shlex.quote(str(output))}")


@click.command()
@click.argument("evaluation", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="GATE",
    help="End with status 3 where this is so: 'recall@50 < 0.6', 'slice:language gap > 0.1', 'slice:genre=Horror "
    "recall@10 < 0.05', 'slice:* gap > 0.3', 'slice:brand exposure < 0.2'; may be repeated.",
)
@click.option(
    "--least",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Questions that a slice needs; values with fewer are put together, and no gate fails by them.",
)
@click.option("--recommender", metavar="NAME", help="Whose judgement, as the report calls it.  [default: two towers]")
@click.option("--show", type=click.IntRange(min=0), default=15, show_default=True, help="How many of the worst slices.")
def audit(evaluation: Path, gates: tuple[str, ...], least: int, recommender: str | None, show: int) -> None:
    """Find where the recommender fails: recall by language, category, brand, price, popularity, age, activity, ...

    DIR is what `towers evaluate run.toml --output DIR` wrote; nothing is ranked again. Slices come from the columns of
    the tables. audit.html has all of them, slices.parquet as a table; both are written into DIR.

    A GATE is [slice:FACET | slice:FACET=VALUE | slice:*] MEASURE < NUMBER, or with <=, > or >=; without slice: the
    whole is meant. MEASURE is recall@10, recall@50, gap@10, gap@50 (how far a slice is below the whole), exposure@10 or
    exposure@50 (share of what is shown over share of the catalogue); without @ it is @50. Status 3 is for CI.
    """
    from training.tasks.audit import audit_run

    if not audit_run(evaluation, gates, recommender=recommender, least=least, show=show):
        raise click.exceptions.Exit(GATE_FAILED)


@click.command("train-ranker")
@click.argument("bundle", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--kind",
    type=click.Choice(("learned", "cross-encoder", "late-interaction")),
    default="learned",
    show_default=True,
    help="What looks at the candidates: a small network at their features, or a model at their texts.",
)
@click.option("--model", metavar="NAME", help="Of kinds that read texts: a folder, or a name on the Hugging Face hub.")
@click.option(
    "--candidates",
    "num_candidates",
    type=click.IntRange(10, 1000),
    help="How many of the items that retrieval finds are put into a better order.  [default: 200 learned, 50 "
    "cross-encoder, 100 late-interaction]",
)
@click.option(
    "--questions",
    "num_questions",
    type=click.IntRange(min=1),
    help="How many of the questions held out are asked, a sample.  [default: 10000, 500, 2000]",
)
@click.option(
    "--learn",
    "num_learned",
    metavar="N",
    type=click.IntRange(min=1),
    help="Cross-encoder: learn first from so many questions of the training; --model may then be any transformer.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    help="How much the opinion of one that reads texts counts beside the retriever's; written whatever it gains.  "
    "[default: what is best on the questions]",
)
@click.option(
    "--read", "num_read", type=click.IntRange(min=1), default=3, show_default=True, help="Newest items of a history."
)
@click.option(
    "--tokens",
    "max_tokens",
    type=click.IntRange(min=4),
    help="How many are read of a pair of texts, or of a text.  [default: 128 cross-encoder, 32 late-interaction]",
)
def train_ranker(bundle: Path, **chosen: Any) -> None:
    """Make what puts the first items that retrieval finds into a better order.

    DIR is a bundle, such as runs/latest. What it gains and what a request costs is measured on what was held out while
    the bundle was trained, and told; where it gains nothing, it is not written. The service, `towers recommend` and
    `towers search` then use it, as soon as the index was made anew.

    The learned kind reads popularity, neighbours and likeness, and learns from what was held out. A cross-encoder reads
    the texts of what is asked, or was had, and of a candidate together: the closest look, and the dearest. Late
    interaction compares the tokens of both, those of the items read beforehand; its --model is a bi-encoder.
    """
    from training.tasks.train_ranker import RankerChoice, train_bundle_ranker

    train_bundle_ranker(bundle, RankerChoice(**chosen))
