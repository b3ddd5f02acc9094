from __future__ import annotations

import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.settings import parse_settings, read_toml
from features.tables.tables import read_tables
from tests.broken_tables import BROKEN, BrokenTables, settings_of, write_run_toml, write_sound


def test_the_sound_tables_have_no_fault(tmp_path):
    tables = read_tables(parse_settings(FeaturesConfig, settings_of(), "run.toml"), write_sound(tmp_path))
    assert (len(tables.interactions), len(tables.catalog), tables.notes) == (5, 3, ())


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_broken_table_is_told_in_one_line_with_its_place(case: BrokenTables, tmp_path):
    case.write(write_sound(tmp_path))
    config = parse_settings(FeaturesConfig, settings_of(case), "run.toml")
    with pytest.raises(DataError, match=case.match) as caught:
        read_tables(config, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_the_settings_of_a_case_can_be_written_as_run_toml(case: BrokenTables, tmp_path):
    written = read_toml(write_run_toml(tmp_path, case))
    assert parse_settings(FeaturesConfig, written["features"], "run.toml") == parse_settings(
        FeaturesConfig, settings_of(case), "run.toml"
    )


def test_at_least_twenty_kinds_of_broken_table_are_covered():
    assert len({case.name for case in BROKEN}) >= 20
