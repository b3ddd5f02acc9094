from __future__ import annotations

import pytest
from pydantic import SecretStr

from features.errors import DataError
from serving.config import ServingConfig, read_settings


def write(tmp_path, text):
    path = tmp_path / "serving.toml"
    path.write_text(text)
    return path


def test_defaults_hold_where_nobody_says_anything():
    assert read_settings(environment={}) == ServingConfig()


def test_the_flag_wins_over_the_environment_and_that_over_the_file(tmp_path):
    path = write(tmp_path, 'port = 1\nworkers = 2\nmax_k = 20\nserver = "gunicorn"')
    settings = read_settings(path, {"TOWERS_PORT": "3", "TOWERS_WORKERS": "4"}, {"port": 5, "workers": None})
    assert (settings.port, settings.workers, settings.max_k, settings.server) == (5, 4, 20, "gunicorn")


def test_each_setting_is_an_environment_variable():
    values = {
        "host": "0.0.0.0", "port": "9", "workers": "3", "threads": "2", "server": "gunicorn", "default_k": "5",
        "max_k": "50", "max_offset": "8", "max_users": "7", "max_history": "6",
        "max_slate_slots": "4", "max_explained_users": "2", "max_limited_users": "3", "timeout_seconds": "1.5",
        "max_body_bytes": "99", "body_seconds": "4.5", "connections": "32", "recommend_seen": "true", "device": "auto",
        "filter_columns": "brand, price", "queue_size": "7", "micro_batching": "on",
        "api_keys_file": "keys.toml", "rate": "2.5", "burst": "3", "cors_origins": "https://a.example, https://b.example:81",
        "trusted_proxies": "1", "log_format": "json", "log_requests": "all", "slow_seconds": "0.5",
        "live": "live.db", "watch_seconds": "1.5",
        "rerank": "false", "rerank_candidates": "150", "rerank_budget_ms": "7.5",
        "trusted_keys": "trusted.pub", "encoder_hosts": "api.example.com, http://10.0.0.5:80",
        "encoder_key_variables": "ONE, TWO", "picture_origins": "https://pictures.example", "audit": "audit",
        "index": "qdrant://localhost", "index_key": "secret", "index_timeout_seconds": "0.2", "index_retries": "3",
        "index_fallback": "none", "index_keep": "4",
        "request_log": "requests.jsonl", "request_log_share": "0.5", "request_log_key": "a key of sixteen characters",
        "request_log_max_bytes": "5000", "request_log_files": "3",
    }  # fmt: skip
    assert set(values) == set(ServingConfig.model_fields)
    settings = read_settings(environment={f"TOWERS_{key.upper()}": value for key, value in values.items()})
    assert settings.live == SecretStr("live.db")
    assert settings.model_dump(mode="json") == {
        "host": "0.0.0.0", "port": 9, "workers": 3, "threads": 2, "server": "gunicorn", "default_k": 5,
        "max_k": 50, "max_offset": 8, "max_users": 7, "max_history": 6,
        "max_slate_slots": 4, "max_explained_users": 2, "max_limited_users": 3, "timeout_seconds": 1.5,
        "max_body_bytes": 99, "body_seconds": 4.5, "connections": 32, "recommend_seen": True, "device": "auto",
        "filter_columns": ["brand", "price"], "queue_size": 7, "micro_batching": "on",
        "api_keys_file": "keys.toml", "rate": 2.5, "burst": 3, "cors_origins": ["https://a.example", "https://b.example:81"],
        "trusted_proxies": 1, "log_format": "json", "log_requests": "all", "slow_seconds": 0.5,
        "live": "**********", "watch_seconds": 1.5,
        "rerank": False, "rerank_candidates": 150, "rerank_budget_ms": 7.5,
        "trusted_keys": "trusted.pub", "encoder_hosts": ["api.example.com", "http://10.0.0.5:80"],
        "encoder_key_variables": ["ONE", "TWO"], "picture_origins": ["https://pictures.example"], "audit": "audit",
        "index": "**********", "index_key": "**********", "index_timeout_seconds": 0.2, "index_retries": 3,
        "index_fallback": "none", "index_keep": 4,
        "request_log": "requests.jsonl", "request_log_share": 0.5, "request_log_key": "**********",
        "request_log_max_bytes": 5000, "request_log_files": 3,
    }  # fmt: skip


def test_columns_to_filter_by_are_a_list_in_a_file(tmp_path):
    assert read_settings(write(tmp_path, 'filter_columns = ["brand"]'), {}).filter_columns == ["brand"]
    assert read_settings(write(tmp_path, "filter_columns = []"), {}).filter_columns == []


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = write(tmp_path, 'prot = 8000\nworkers = "two"')
    with pytest.raises(DataError, match=r"serving.toml: .*workers: .*prot: no such setting|prot: no such.*workers: "):
        read_settings(path, {})


def test_mistakes_of_the_environment_name_the_variable():
    with pytest.raises(DataError, match=r"environment: TOWERS_PORT: .*found 'http'"):
        read_settings(environment={"TOWERS_PORT": "http"})


def test_a_default_beyond_the_maximum_is_a_mistake():
    with pytest.raises(DataError, match="default_k = 10 is greater than max_k = 5"):
        read_settings(environment={}, flags={"max_k": 5})


def test_flags_out_of_range_are_mistakes():
    with pytest.raises(DataError, match=r"settings of the service: port: .*found 70000"):
        read_settings(environment={}, flags={"port": 70_000})


def test_every_setting_says_what_it_means():
    for name, field in ServingConfig.model_fields.items():
        assert field.description, name
