"""`towers plan`: its figures are those of a model that is built, trained and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from tests.running import write_small_shop
from towers.model.embeddings import FeatureEmbeddings
from training.commands import plan
from training.config import RunConfig, Sharding, read_run_config, with_settings
from training.distributed.sharded_tables import planning, table_planner
from training.loop.build import TrainingData, build, dense_parameters
from training.loop.fit import fit_featurizer
from training.loop.trainer import Trainer
from training.planning import trial
from training.planning.model_sizes import ModelSizes, model_sizes, unbuilt
from training.planning.plan import Plan, said_bytes
from training.planning.remedies import Needs, needs_of, remedies
from training.planning.trial import Trial, peak_bytes
from training.prepared.prepare import training_tables
from training.tasks.plan import plan_run
from training.tasks.protocols import early_stopping_split

RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
recommend_seen = true

[features.columns]
timestamp = "timestamp"

[features.item]
item_id = { kind = "id" }
brand = { kind = "category" }
title = { kind = "text" }

[features.user]
user_id = { kind = "id" }

[towers]
embedding_dim = 16
num_layers = 1

[training]
epochs = 1
track = false
"""


@pytest.fixture(scope="module", autouse=True)
def short_trials() -> Iterator[None]:
    """A few steps are timed, so that the tests are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "ENOUGH_STEPS", 5)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_small_shop(folder / "data", users=60, items=100, interactions=650)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    return folder / "run.toml"


@pytest.fixture(scope="module")
def data(settings: Path) -> TrainingData:
    config = read_run_config(settings)
    tables = training_tables(config.features, settings)
    train = early_stopping_split(config, tables.interactions.sequences(tables.catalog), len(tables.catalog)).train
    return TrainingData.prepare(train, tables.catalog, tables.users, fit_featurizer(config, tables, train))


@pytest.fixture(scope="module")
def found(settings: Path) -> Plan:
    return plan_run(settings, ())


def test_bytes_are_those_of_the_tensors_of_a_model_that_is_built(settings: Path, data: TrainingData) -> None:
    config = read_run_config(settings)
    sizes = model_sizes(config, data.featurizer)
    model = build(config, data, torch.device("cpu")).model
    parts = [part for part in model.modules() if isinstance(part, FeatureEmbeddings)]
    weights = [weight for part in parts for weight in part.collection.state_dict().values()]
    states = [
        state
        for part in parts
        if part.fused_optimizer is not None
        for states in part.fused_optimizer.state_dict()["state"].values()
        for state in states.values()
    ]
    assert [table.weight_bytes for table in sizes.tables] == [weight.nbytes for weight in weights]
    assert [(table.rows, table.width) for table in sizes.tables] == [tuple(weight.shape) for weight in weights]
    assert [table.optimizer_bytes for table in sizes.tables] == [state.nbytes for state in states]
    assert sizes.trained_bytes == sum(one.nbytes for one in dense_parameters(model))
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    assert sizes.dense_bytes + sizes.table_bytes == sum(one.nbytes for one in everything.values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_checkpoint_has_the_size_that_was_said(
    dtype: str, settings: Path, data: TrainingData, tmp_path: Path
) -> None:
    config = with_settings(read_run_config(settings), {"towers.embedding_dtype": dtype}, "test")
    path = tmp_path / "checkpoint.safetensors"
    trainer = Trainer(
        build(config, data, torch.device("cpu")), checkpoint=path, validate=lambda _: 0.5, steps=2, quiet=True
    )
    trainer.fit()
    trainer.save()
    said, real = model_sizes(config, data.featurizer).checkpoint_bytes, path.stat().st_size
    assert said < real < 1.05 * said + 40_000  # names, counters, states of random numbers


@pytest.mark.parametrize("sharding", ["auto", "table-wise", "row-wise", "column-wise"])
def test_the_parts_of_a_table_are_the_table(sharding: str, settings: Path, data: TrainingData) -> None:
    config = with_settings(read_run_config(settings), {"training.table_sharding": sharding}, "test")
    whole, divided = model_sizes(config, data.featurizer), model_sizes(config, data.featurizer, processes=2)
    assert divided.fits
    for one, other in zip(whole.tables, divided.tables, strict=True):
        assert other.weight_bytes == one.weight_bytes
        assert sum(part.rows * part.width for part in other.parts) == one.rows * one.width
        assert sharding in ("auto", other.sharding)
        copies = 2 if sharding == "column-wise" else 1
        assert other.optimizer_bytes == copies * one.optimizer_bytes
    assert sum(divided.tables_of(rank).weights for rank in range(2)) == whole.table_bytes


def test_tables_of_16_bits_are_half_as_large_but_for_their_average(settings: Path, data: TrainingData) -> None:
    whole = model_sizes(config := read_run_config(settings), data.featurizer)
    halves = model_sizes(with_settings(config, {"towers.embedding_dtype": "float16"}, "test"), data.featurizer)
    assert [2 * table.weight_bytes for table in halves.tables] == [table.weight_bytes for table in whole.tables]
    assert {table.dtype for table in halves.tables} == {"float16"}
    assert halves.tables_of(0).optimizer == whole.tables_of(0).optimizer
    assert halves.tables_of(0).copies * 4 == whole.tables_of(0).copies * 3
    assert halves.dense_bytes == whole.dense_bytes


def test_a_table_that_fits_no_process_is_divided_by_rows(settings: Path, data: TrainingData) -> None:
    config = read_run_config(settings)
    largest = max(table.weight_bytes for table in model_sizes(config, data.featurizer).tables)
    tight = model_sizes(config, data.featurizer, processes=2, memory=3 * largest)
    assert tight.fits
    assert "row-wise" in {table.sharding for table in tight.tables}
    assert not model_sizes(config, data.featurizer, processes=2, memory=largest).fits


def test_of_a_gpu_the_memory_of_the_gpu_decides(settings: Path, data: TrainingData) -> None:
    config = read_run_config(settings)
    model = unbuilt(config, data.featurizer)
    tables = [part for part in model.modules() if isinstance(part, FeatureEmbeddings)]
    needed = 3 * model_sizes(config, data.featurizer).table_bytes

    def plan(memory: int) -> None:
        planner, sharders = table_planner(tables, "auto", 2, 2, torch.device("cuda"), memory)
        with planning():
            planner.plan(model, sharders)

    plan(4 * needed)
    with pytest.raises(DataError, match="planner finds no way"):
        plan(needed // 4)


@pytest.mark.parametrize("sharding", ["auto", "row-wise"])
def test_every_process_has_a_row_of_a_table_that_is_divided_by_rows(
    settings: Path, data: TrainingData, sharding: Sharding
) -> None:
    """However small the table of a column with few values is."""
    model = unbuilt(read_run_config(settings), data.featurizer)
    tables = [part for part in model.modules() if isinstance(part, FeatureEmbeddings)]
    rows = [config.num_embeddings for part in tables for config in part.collection.embedding_bag_configs()]
    size = min(rows) - 1  # two rows for each process, of which the last ones would get none
    planner, sharders = table_planner(tables, sharding, size, size, torch.device("cpu"), None)
    for tables_of_module in planner.plan(model, sharders).plan.values():
        for one in tables_of_module.values():
            assert all(part.shard_sizes[0] > 0 for part in one.sharding_spec.shards), one.sharding_type


def test_the_trial_times_real_steps(found: Plan) -> None:
    taken = found.trial
    assert taken is not None
    assert taken.steps == 5
    assert 0 < taken.seconds < 60
    assert taken.epoch_seconds == pytest.approx(taken.batches * taken.seconds / 5)
    assert taken.step_bytes > 0
    assert found.fits
    assert found.remedies == ()


def test_the_peak_of_a_computation_is_what_is_there_at_the_same_time() -> None:
    def compute() -> None:
        for _ in range(3):
            one = torch.ones(1_000_000)
            del one
        both = torch.ones(1_000_000), torch.ones(500_000)
        del both

    assert peak_bytes(compute) == pytest.approx(6_000_000, rel=0.01)


def needs_by_settings(config: RunConfig, data: TrainingData, taken: Trial | None = None) -> Needs:
    def sizes(other: RunConfig) -> ModelSizes:
        schema = Schema.from_config(other.features)
        return model_sizes(other, Featurizer.fit(schema, data.catalog, data.users, data.train))

    return needs_of(sizes, config, data.train.num_events, 1_000_000, taken)


def test_a_remedy_is_the_nearest_value_that_fits(settings: Path, data: TrainingData) -> None:
    config = read_run_config(settings)
    needs = needs_by_settings(config, data)
    row = 7 * 4 * config.towers.embedding_dim  # the table, its average and the best, their copies, and rather less
    for memory, setting, values in (
        ((needs(config) + 1_000_000) // 2, "towers.embedding_dim", [12, 8, 4]),
        (needs(config) - 10 * row, "towers.embedding_dtype", ["float16"]),
        (needs(config) - 10 * row, "features.min_count", [2, 3, 5, 10, 20, 50]),
    ):
        found = {one.setting: one for one in remedies(config, needs, memory, 1)}[setting]
        by_value = {value: needs(with_settings(config, {setting: value}, "test")) for value in values}
        assert found.value == next(value for value in values if by_value[value] <= memory)
        assert found.bytes == by_value[found.value]


def test_a_smaller_batch_is_proposed_where_a_step_takes_the_memory(settings: Path, data: TrainingData) -> None:
    config = read_run_config(settings)
    needs = needs_by_settings(config, data, Trial(1, 1.0, 5, 10**9, 0, 0.0, 0))
    found = {one.setting: one for one in remedies(config, needs, needs(config) - 4 * 10**8, 1)}["training.batch_size"]
    assert found.value == 64  # a half of the 128 to which so few interactions lower the batch
    assert found.bytes == needs(config) - 5 * 10**8


def test_what_does_not_fit_is_said_with_the_memory_that_is_needed(settings: Path) -> None:
    tight = plan_run(settings, (), memory=1_000_000)
    assert not tight.fits
    assert "Does not fit into memory" in tight.to_text()
    assert f"  {said_bytes(tight.largest.total)} of memory" in tight.to_text()


def test_nothing_is_written(settings: Path, found: Plan) -> None:
    assert sorted(path.name for path in settings.parent.iterdir()) == ["data", "run.toml"]


def test_the_command_prints_a_table_or_json(settings: Path) -> None:
    overrides = ["--set", "training.batch_size=64"]
    run = CliRunner().invoke(plan, [str(settings), "--processes", "2", "--json", *overrides], catch_exceptions=False)
    said = json.loads(run.stdout)
    assert said["processes"] == len(said["memory"]) == 2
    assert [table["feature"] for table in said["tables"]] == ["item_id", "brand", "title", "user_id"]
    assert all(table["weight_bytes"] == table["rows"] * table["width"] * 4 for table in said["tables"])
    text = CliRunner().invoke(plan, [str(settings), "--memory", "0.001"], catch_exceptions=False).stdout
    assert "items: item_id" in text
    assert "of memory" in text


def test_interactions_on_disk_are_to_be_prepared_first(settings: Path) -> None:
    with pytest.raises(DataError, match="run `towers prepare"):
        plan_run(settings, ("features.prepare=always",))
