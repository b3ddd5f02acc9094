"""Secrets that are planted wherever a service has one are found nowhere: in no error, log, answer or process."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

import pytest

from features.config import EncoderSettings, FeaturesConfig
from features.errors import DataError
from features.settings import parse_settings
from serving.config import ServingConfig, read_settings
from serving.errors import NotReady
from serving.http.app import create_app
from serving.http.contract.problems import problem_of
from serving.live.open_log import open_log
from serving.observability import logs
from tests import running
from towers.cli.main import main

PLANTED = "planted-pa55word"
UNREACHABLE = f"postgresql://towers:{PLANTED}@127.0.0.1:9/shop"
needs_psycopg = pytest.mark.skipif(find_spec("psycopg") is None, reason="psycopg is not installed")


@needs_psycopg
@pytest.mark.parametrize(
    "address",
    [
        UNREACHABLE,
        UNREACHABLE.replace("@", "%zz@"),
        UNREACHABLE.replace(PLANTED, f"{PLANTED} x"),
        UNREACHABLE.replace(PLANTED, f"1/{PLANTED}"),
        UNREACHABLE.replace(PLANTED, f"x/{PLANTED}"),
        UNREACHABLE.replace(PLANTED, f"x@{PLANTED}"),
        UNREACHABLE.replace("127.0.0.1:9", "[::1"),
        UNREACHABLE.replace(":9", ":port"),
        f"{UNREACHABLE}?unknown={PLANTED}",
        f"postgresql://127.0.0.1:9/shop?user=me&password={PLANTED}",
        UNREACHABLE.replace("postgresql", "mysql"),
        UNREACHABLE.replace("postgresql", "postgres"),
        f"host=127.0.0.1 port=9 password={PLANTED}",
        f"host=127.0.0.1 port=9 password = '{PLANTED}'",
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_its_password(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="live: ") as told:
        open_log(address)
    assert PLANTED not in str(told.value)
    assert list(tmp_path.iterdir()) == [], "no file has a password for a name"


@needs_psycopg
def test_commands_tell_of_a_database_without_its_password(two_models, capsys):
    assert main(["index", str(two_models / "one"), "--live", UNREACHABLE]) == 2
    said = capsys.readouterr().err
    assert "error: live: the database cannot be used (" in said
    assert "note: --live contains a password, which every user of this machine can see" in said
    assert PLANTED not in said


def test_settings_are_told_without_their_secrets(tmp_path, monkeypatch, capsys):
    settings = read_settings(environment={"TOWERS_LIVE": UNREACHABLE})
    assert settings.live.get_secret_value() == UNREACHABLE
    assert PLANTED not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    for wrong in ({"port": UNREACHABLE}, {"workers": f"key=x token={PLANTED}"}, {"filter_columns": 3, "live": 4}):
        with pytest.raises(DataError) as told:
            parse_settings(ServingConfig, wrong, "serving.toml")
        assert PLANTED not in str(told.value)
    with pytest.raises(DataError, match=r"TOWERS_PORT: .*, found 'postgresql://towers:"):
        read_settings(environment={"TOWERS_PORT": UNREACHABLE})
    encoder = {"model": "m", "url": f"https://me:{PLANTED}@host/v1"}
    for kind, values in ((EncoderSettings, encoder), (FeaturesConfig, {"items": "i", "encoders": {"a": encoder}})):
        with pytest.raises(DataError, match="url: expected https://HOST/PATH") as told:
            parse_settings(kind, values, "run.toml")
        assert PLANTED not in str(told.value)
    monkeypatch.setenv("TOWERS_PORT", UNREACHABLE)
    monkeypatch.setenv("TOWERS_TRACEBACK", "1")
    assert main(["search", "nowhere", "words"]) == 2
    assert main(["serve", "nowhere", "--port", UNREACHABLE]) == 2
    assert PLANTED not in "".join(capsys.readouterr())


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
def test_neither_form_of_the_log_holds_a_secret(formatter):
    try:
        raise OSError(f"cannot reach {UNREACHABLE}")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "of %s", (UNREACHABLE,), sys.exc_info())
    record.fields = {"path": f"/x?token={PLANTED}", "status": 500}
    written = formatter.format(record)
    assert PLANTED not in written
    assert "postgresql://towers:***@127.0.0.1:9/shop" in written


def test_no_answer_holds_a_secret(recommender):
    assert PLANTED.encode() not in problem_of(NotReady(f"no answer of {UNREACHABLE}")).data
    assert PLANTED.encode() not in problem_of(OSError(UNREACHABLE)).data
    client = create_app(recommender, ServingConfig(log_requests="all")).test_client()
    for path in ("/metrics", "/openapi.json", "/readyz", "/", "/recommendations/1?k=x", "/nowhere"):
        content = client.get(path, headers={"Authorization": f"Bearer {PLANTED}"}).data
        assert PLANTED.encode() not in content, path


@needs_psycopg
def test_a_server_whose_database_does_not_answer_keeps_its_password(two_models, tmp_path):
    settings = {"TOWERS_LIVE": UNREACHABLE, "TOWERS_LOG_FORMAT": "json", "MLFLOW_TRACKING_PASSWORD": "another-planted"}
    ended = running.towers(tmp_path, "serve", str(two_models / "one"), "--port", "0", **settings)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: live: the database cannot be used (")
    assert "planted" not in ended.stdout + ended.stderr
