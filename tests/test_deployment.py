"""What docs/deploy says, held against the service: metrics and labels, routes, settings, ports and commands."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from torch.distributed.run import get_args_parser

from serving.config import ENVIRONMENT_PREFIX, ServingConfig, read_settings
from serving.http.routes import ROUTES
from serving.observability.metrics import _Gathered, _Layout, families
from serving.recommend.response import Fallback
from serving.server.server import _SECONDS_TO_FINISH
from towers.cli.main import COMMANDS, load
from training.audit.thresholds import Threshold

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
FUNCTIONS = {"absent", "count", "histogram_quantile", "label_values", "max", "rate", "sum"}
KEYWORDS = {"and", "or", "unless"}
ADDED_BY_PROMETHEUS = {"instance", "job"}
FREE_VALUES = {"model", "index", "le"}
"""Labels whose values are not known before the service runs."""
NOT_SETTINGS = {
    "TOWERS_HOME": "a variable of nightly.sh",
    "TOWERS_FOLDER": "a variable of compose.yaml",
    "TOWERS_METRICS_KEY": "a variable of compose.yaml",
}


class WrongQueryError(AssertionError):
    """A query asks for something that the service does not have."""


def samples() -> dict[str, tuple[str, dict[str, set[str]]]]:
    """For each sample that `/metrics` can have: the type of its metric, and each label with its values."""
    layout = _Layout(families([route.path for route in ROUTES], get_args(Fallback)))
    workers = [{"model": "a", "index": "b", "created": 0}]
    found: dict[str, tuple[str, dict[str, set[str]]]] = {"up": ("gauge", {})}
    for metric in _Gathered(layout, np.ones(layout.size), workers).collect():
        for sample in metric.samples:
            labels = found.setdefault(sample.name, (metric.type, {}))[1]
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


SAMPLES = samples()


def check_query(query: str) -> None:
    """Check that a query names functions, metrics, labels and values that exist, and counters only by their rate."""
    text = re.sub(r"\[[^\]]*\]", "[]", query)
    grouped = [name for names in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", text) for name in names.split(",")]
    text = re.sub(r"\b(?:by|without|on)\s*\([^)]*\)", "", text)
    matchers = re.findall(r"([a-zA-Z_:][\w:]*)\s*{([^}]*)}", text)
    bare = re.sub(r'{[^}]*}|"[^"]*"', "", text)
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\s*(\()?", re.sub(r"label_values\((\w+), \w+\)", r"\1", bare))
    metrics = {word for word, called in words if not called and word not in KEYWORDS}
    if unknown := {word for word, called in words if called} - FUNCTIONS | metrics - SAMPLES.keys():
        raise WrongQueryError(f"{query}: no {unknown}")
    if not metrics:
        raise WrongQueryError(f"{query}: no metric")
    if unknown := {name.strip() for name in grouped} - ADDED_BY_PROMETHEUS.union(*(SAMPLES[one][1] for one in metrics)):
        raise WrongQueryError(f"{query}: no label {unknown}")
    rates = re.findall(r"\brate\(\s*(\w+)(?:{[^}]*})?\[\]", text)
    for metric in metrics:
        of_all = len(re.findall(rf"\b{metric}\b", text))
        if rates.count(metric) != (of_all if SAMPLES[metric][0] in ("counter", "histogram") else 0):
            raise WrongQueryError(f"{query}: {metric} is a {SAMPLES[metric][0]}")
    for metric, pairs in matchers:
        for name, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', pairs):
            check_matcher(query, metric, name, operator, value)


def check_matcher(query: str, metric: str, name: str, operator: str, value: str) -> None:
    labels = SAMPLES[metric][1]
    if name in ADDED_BY_PROMETHEUS or name in FREE_VALUES & labels.keys():
        return
    if name not in labels:
        raise WrongQueryError(f"{query}: {metric} has no label {name}")
    for one in value.split("|") if operator in ("=~", "!~") else [re.escape(value)]:
        if not any(re.fullmatch(one, known) for known in labels[name]):
            raise WrongQueryError(f"{query}: {name} of {metric} is never {one}")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


RULES = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "two-towers.json").read_text(encoding="utf-8"))
QUERIES = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *((one["name"], one["query"]["query"]) for one in DASHBOARD["templating"]["list"]),
]


@pytest.mark.parametrize(("name", "query"), QUERIES)
def test_panels_and_alerts_ask_for_metrics_that_exist(name, query):
    check_query(query)


def test_every_metric_is_in_a_panel():
    shown = " ".join(query for _, query in QUERIES)
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in SAMPLES if name.startswith("towers_")}
    assert {name for name in metrics if not re.search(rf"\b{name}(_bucket|_count|_sum)?\b", shown)} == set()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(rate(towers_request_total[5m]))", "no {'towers_request_total'}"),
        ("rate(towers_request_duration_seconds[5m])", "no {'towers_request_duration_seconds'}"),
        ("histogram_quantiles(0.99, rate(towers_request_duration_seconds_bucket[5m]))", "no {'histogram_quantiles'}"),
        ("sum(towers_requests_total)", "towers_requests_total is a counter"),
        ("rate(towers_workers[5m])", "towers_workers is a gauge"),
        ("sum by (path) (rate(towers_requests_total[5m]))", "no label {'path'}"),
        ('rate(towers_requests_total{code="500"}[5m])', "towers_requests_total has no label code"),
        ('rate(towers_requests_total{status="600"}[5m])', "status of towers_requests_total is never 600"),
        ('rate(towers_rejected_total{reason=~"busy|late"}[5m])', "reason of towers_rejected_total is never late"),
        ("1 > 2", "no metric"),
    ],
)
def test_a_query_for_what_does_not_exist_is_found(query, said):
    with pytest.raises(WrongQueryError, match=re.escape(said)):
        check_query(query)


@pytest.mark.parametrize(("what", "file"), [("check", "alerts.yml"), ("test", "alerts.test.yml")])
def test_prometheus_accepts_the_rules_and_their_tests(what, file):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    subprocess.run([promtool, what, "rules", DEPLOY / "prometheus" / file], check=True)


def test_the_dashboard_asks_the_data_source_that_is_provisioned():
    [source] = documents(DEPLOY / "grafana" / "datasources.yml")[0]["datasources"]
    panels = DASHBOARD["panels"]
    assert {one["datasource"]["uid"] for panel in panels for one in (panel, *panel["targets"])} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    services = documents(DEPLOY / "compose.yaml")[0]["services"]
    [provider] = documents(DEPLOY / "grafana" / "dashboards.yml")[0]["providers"]
    assert any(f":{provider['options']['path']}/two-towers.json" in one for one in services["grafana"]["volumes"])


def files() -> list[Path]:
    return sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def test_settings_in_the_environment_exist():
    settings = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in ServingConfig.model_fields}
    named = {(path.name, name) for path in files() for name in re.findall(r"\bTOWERS_[A-Z_]+\b", path.read_text())}
    assert {one for one in named if one[1] not in settings | NOT_SETTINGS.keys()} == set()


def test_no_password_is_written_down(services, resources):
    given = [pair for service in services.values() for pair in service.get("environment", {}).items()]
    for pod in pods(resources):
        given += [(one["name"], one.get("value", "")) for one in pod["spec"]["containers"][0]["env"]]
    passwords = {name: value for name, value in given if "PASSWORD" in name}
    assert passwords.keys() >= {"PGPASSWORD", "POSTGRES_PASSWORD_FILE", "GF_SECURITY_ADMIN_PASSWORD__FILE"}
    assert all(re.match(r"/run/secrets/|\$\{\w+:\?|$", value) for value in passwords.values())
    assert [path.name for path in files() if re.search(r"://[^/@\s]+:[^/@\s]+@", path.read_text())] == []


# compose.yaml


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return documents(DEPLOY / "compose.yaml")[0]["services"]


def test_compose_names_what_it_has(services):
    composed = documents(DEPLOY / "compose.yaml")[0]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= services.keys(), name
        assert all("healthcheck" in services[one] or one == "towers" for one in service.get("depends_on", {})), name
        assert set(service.get("secrets", [])) <= composed["secrets"].keys()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), volume
            else:
                assert volume.startswith("${") or source in composed["volumes"], volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_qdrant_is_laid_over_what_compose_has(services):
    composed = documents(DEPLOY / "qdrant.yaml")[0]
    assert composed["services"].keys() - services.keys() == {"qdrant"}
    qdrant = composed["services"]["qdrant"]
    assert qdrant["ports"] == ["127.0.0.1:6333:6333"]
    assert {one.partition(":")[0] for one in qdrant["volumes"]} == composed["volumes"].keys()
    for name in ("towers", "night"):
        given = composed["services"][name]["environment"]
        assert given["TOWERS_INDEX_KEY"] == qdrant["environment"]["QDRANT__SERVICE__API_KEY"]
        settings = read_settings(environment=given)
        assert settings.index.get_secret_value() == "qdrant://qdrant:6333?collection=items"
        assert settings.database.key == given["TOWERS_INDEX_KEY"]


def test_compose_runs_our_image_read_only_without_privileges(services):
    ours = [service for service in services.values() if service["image"] == "two-towers"]
    assert len(ours) == 3
    for service in ours:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_prometheus_scrapes_the_service_with_a_key(services):
    [scraped] = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert [one["targets"] for one in scraped["static_configs"]] == [[f"towers:{ServingConfig().port}"]]
    assert scraped.get("metrics_path", "/metrics") in {route.path for route in ROUTES if route.scope == "read"}
    assert Path(scraped["authorization"]["credentials_file"]).name in services["prometheus"]["secrets"]
    assert all(f'job="{scraped["job_name"]}"' in rule["expr"] for rule in RULES if "up{" in rule["expr"])


# The image


def test_the_image_runs_as_a_plain_user_and_gets_signals():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    for line in lines:
        if re.match(r"\s*(CMD|ENTRYPOINT) ", line):
            assert isinstance(json.loads(line.split(maxsplit=1)[1]), list), line  # without a shell, which keeps signals
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_asks_the_service(status, expected):
    command = json.loads(re.search(r"--retries.*\n\s+CMD (\[.*\])", (DEPLOY / "Dockerfile").read_text())[1])
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_port
        if status is None:
            server.shutdown()
            server.server_close()
        ended = subprocess.run(
            [sys.executable, *command[1:]], env={"TOWERS_PORT": str(port)}, capture_output=True, check=False
        )
        if status is not None:
            server.shutdown()
    assert ended.returncode == expected
    assert asked == ([] if status is None else ["/healthz"])
    assert "/healthz" in {route.path for route in ROUTES if route.scope == "none"}


def test_what_the_image_copies_reaches_the_builder():
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?:--chmod=\d+ )?(\S+) ", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / one).exists() for one in shown)
    assert [one for one in copied if one != "." and not one.startswith("--") and one not in shown] == []
    # What hatchling needs, and what is installed beside it.
    assert {"pyproject.toml", "README.md", "LICENSE", "features", "towers", "training", "serving", ".locks"} <= {*shown}


# Kubernetes


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, Any]]:
    listed = documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]["resources"]
    return {one["kind"]: one for name in listed for one in documents(DEPLOY / "kubernetes" / name)}


def pods(resources: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield resources["Deployment"]["spec"]["template"]
    yield resources["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]


def test_kubernetes_sends_requests_to_the_port_and_the_routes_of_the_service(resources):
    settings = read_settings(DEPLOY / "kubernetes" / "serving.toml", {})
    [container] = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    assert settings.host == "0.0.0.0"
    assert [one["targetPort"] for one in resources["Service"]["spec"]["ports"]] == [port["name"]]
    without_key = {route.path for route in ROUTES if route.scope == "none"}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/readyz", "/readyz", "/healthz"]
    assert {probe["path"] for probe in probes} <= without_key
    assert {probe["port"] for probe in probes} == {port["name"]}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(settings.api_keys_file).parent) in mounts
    assert str(Path(container["args"][container["args"].index("--config") + 1]).parent) in mounts
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert (
        resources["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > wait + _SECONDS_TO_FINISH
    )


def test_kubernetes_resources_refer_to_each_other(resources):
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        resources["Deployment"]["spec"]["selector"]["matchLabels"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["Service"]["spec"]["selector"],
    ):
        assert selector.items() <= labels.items()
    target = resources["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert resources[target["kind"]]["metadata"]["name"] == target["name"]
    generated = documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]["configMapGenerator"]
    for pod in pods(resources):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        [container] = pod["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        claim = resources["PersistentVolumeClaim"]["metadata"]["name"]
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert {v["configMap"]["name"] for v in volumes.values() if "configMap" in v} <= {g["name"] for g in generated}
    assert all((DEPLOY / "kubernetes" / name).exists() for one in generated for name in one["files"])


def test_kubernetes_runs_the_user_of_the_image_read_only(resources):
    user, group = re.search(r"USER (\d+):(\d+)", (DEPLOY / "Dockerfile").read_text()).groups()
    for pod in pods(resources):
        whole = pod["spec"]["securityContext"]
        assert (whole["runAsUser"], whole["runAsGroup"], whole["runAsNonRoot"]) == (int(user), int(group), True)
        [container] = pod["spec"]["containers"]
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_kubernetes_accepts_the_manifests(resources):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for resource in resources.values():
        kubernetes_validate.validate(resource, "1.32", strict=True)


# systemd, and the nightly run


UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def test_systemd_accepts_the_units(tmp_path):
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in (*UNITS, DEPLOY / "systemd" / "two-towers-nightly.timer"):
        # The commands are those of an installation that this machine need not have.
        text = re.sub(r"(?m)^ExecStart=/opt/two-towers/bin/\S+", "ExecStart=/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    verified = subprocess.run(
        [analyze, "verify", "--man=no", *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in verified.stderr.splitlines() if "two-towers" in line]
    assert (verified.returncode, about_ours) == (0, [])


def test_every_place_serves_by_a_command_that_exists(services, resources):
    [container] = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    unit = (DEPLOY / "systemd" / "two-towers.service").read_text()
    image = json.loads(re.search(r"(?m)^CMD (.*)$", (DEPLOY / "Dockerfile").read_text())[1])
    for words in (container["args"], image, re.search(r"ExecStart=\S*/towers (.*)", unit)[1].split()):
        known = {option for parameter in load(COMMANDS[words[0]]).params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


CONDITION = re.compile(r"recall@50 < [\d.]+")


def test_every_night_has_conditions(services, resources):
    nights = [
        *services["night"]["command"],
        *resources["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"],
        *CONDITION.findall((DEPLOY / "systemd" / "two-towers-nightly.service").read_text()),
        *CONDITION.findall((DEPLOY / "systemd" / "two-towers.cron").read_text()),
    ]
    assert len(nights) == 4
    conditions = [Threshold.parse(condition) for condition in nights]
    assert {(one.facet, one.measure, one.operator) for one in conditions} == {(None, "recall@50", "<")}


STAND_IN = """#!/bin/sh
echo "$*" >> commands
if [ "$1" = "$FAILS" ]; then exit 3; fi
if [ "$1" = train ]; then mkdir -p "$4"; fi
if [ "$1" = deploy ]; then ln -sfn "$(basename "$2")" runs/production; fi
"""


def night(folder: Path, *conditions: str, **environment: str) -> tuple[int, list[str]]:
    """Run nightly.sh with a stand-in for `towers`; return its status and the commands that it gave."""
    command = folder / "bin" / "towers"
    if not command.exists():
        command.parent.mkdir()
        command.write_text(STAND_IN)
        command.chmod(0o755)
        (folder / "runs").mkdir()
    (folder / "commands").unlink(missing_ok=True)
    ended = subprocess.run(
        [DEPLOY / "nightly.sh", *conditions],
        env={"PATH": f"{command.parent}:{os.environ['PATH']}", "TOWERS_HOME": str(folder), **environment},
        check=False,
    )
    return ended.returncode, (folder / "commands").read_text().splitlines()


def test_the_night_evaluates_checks_trains_and_deploys(tmp_path):
    status, commands = night(tmp_path, "recall@50 < 0.2", "slice:* gap > 0.3", TOWERS_LIVE="live.db")
    bundle = commands[2].split()[-1]
    assert status == 0
    assert commands == [
        "evaluate run.toml --output evaluation",
        "audit evaluation --fail-if recall@50 < 0.2 --fail-if slice:* gap > 0.3",
        f"train run.toml --output {bundle}",
        f"index {bundle} --live live.db",
        f"deploy {bundle}",
    ]
    assert {line.split()[0] for line in commands} <= COMMANDS.keys()


@pytest.mark.parametrize(("fails", "last"), [("audit", "audit"), ("train", "train"), ("index", "index")])
def test_a_night_that_fails_deploys_nothing(tmp_path, fails, last):
    status, commands = night(tmp_path, FAILS=fails)
    assert (status, commands[-1].split()[0]) == (3, last)
    assert not (tmp_path / "runs" / "production").exists()


def test_old_nights_are_removed_but_not_those_in_use(tmp_path):
    night(tmp_path)
    old = [tmp_path / "runs" / f"night-2000010{day}T000000" for day in range(1, 4)]
    for folder in (*old, tmp_path / "runs" / "run-1"):
        folder.mkdir()
        os.utime(folder, (0, 0))
    (tmp_path / "runs" / "production.previous").symlink_to(old[1].name)
    assert night(tmp_path)[0] == 0
    assert [folder.exists() for folder in old] == [False, True, False]
    assert (tmp_path / "runs" / "run-1").exists()
    assert (tmp_path / "runs" / "production").resolve().exists()


# Training in several processes

TRAINING = documents(DEPLOY / "kubernetes" / "training.yaml")
SLURM = DEPLOY / "slurm" / "train.sbatch"


def torchrun(words: list[str]) -> argparse.Namespace:
    """Return what torchrun makes of its command line."""
    return get_args_parser().parse_args(words)


def test_kubernetes_accepts_the_training_and_its_pods_meet_at_the_first_one(resources):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for resource in TRAINING:
        kubernetes_validate.validate(resource, "1.32", strict=True)
    service, job = TRAINING
    template = job["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    [container] = template["spec"]["containers"]
    asked = torchrun(container["args"])
    [port] = service["spec"]["ports"]
    assert asked.rdzv_endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert int(asked.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert (
        container["securityContext"]
        == resources["Deployment"]["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    )
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"][:1]]
    assert claims == [resources["PersistentVolumeClaim"]["metadata"]["name"]]


def test_a_cluster_trains_by_a_command_that_exists(monkeypatch):
    text = SLURM.read_text(encoding="utf-8")
    checked = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    [line] = re.findall(r"srun .*? torchrun (.*)", text.replace("\\\n", ""))
    of_slurm = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line))
    for words in (of_slurm, TRAINING[1]["spec"]["template"]["spec"]["containers"][0]["args"]):
        asked = torchrun(words)
        assert (asked.module, asked.training_script, asked.rdzv_backend) == (True, "towers", "c10d")
        assert asked.max_restarts > 0
        command, *flags = asked.training_script_args
        load(COMMANDS[command]).make_context(command, [str(flag) for flag in flags])
