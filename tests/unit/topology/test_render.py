"""Generated files: clean, valid, and the same cluster in each of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dss.topology.config import check_env_file, load_node_config
from dss.topology.envfile import parse_env
from dss.topology.generate import generated_files, main, stale_files
from dss.topology.model import DSSCluster, cluster_of
from dss.topology.render_env import render_configuration_page, render_env
from dss.topology.render_limits import render_limits_page
from dss.topology.render_local import render_local
from dss.topology.render_prometheus import alerts
from dss.topology.variables import VARIABLES

ROOT = Path(__file__).parents[3]
CLUSTER = DSSCluster()
FILES = generated_files(CLUSTER)


def compose(cluster: DSSCluster = CLUSTER) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(generated_files(cluster)["docker/docker-compose.yml"])
    return document


def interpolated(value: str, env: dict[str, str]) -> str:
    """`${X-}`, `${X:-default}` and `${X:?…}` as Compose resolves them."""
    return re.sub(
        r"\$\{(\w+)(?::?[-?]([^}]*))?\}", lambda m: env.get(m[1], "") or m[2] or "", value
    )


def node_environments(cluster: DSSCluster = CLUSTER) -> dict[str, dict[str, str]]:
    env = parse_env(render_env(cluster)).values
    return {
        name: {key: interpolated(value, env) for key, value in service["environment"].items()}
        for name, service in compose(cluster)["services"].items()
        if "NODE_ID" in service.get("environment", {})
    }


def test_generated_files__in_the_repository_are_not_stale() -> None:
    assert stale_files(ROOT, FILES) == []


def test_generate__writes_then_check_is_clean_then_finds_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path)]) == 2
    (tmp_path / "pyproject.toml").touch()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    (tmp_path / ".env.example").write_text("changed")
    capsys.readouterr()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == ".env.example: stale. Run: make generate\n"


def test_every_generated_file__says_so() -> None:
    for path, text in FILES.items():
        assert "enerated by `make generate`" in text[:700], path


def test_generated_files__same_text_in_another_process() -> None:
    program = (
        "import json; from dss.topology.generate import *;"
        "print(json.dumps(generated_files(DSSCluster())))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True,
        env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert json.loads(answer.stdout) == FILES


def test_env_example__has_no_problem_and_every_variable() -> None:
    env = parse_env(FILES[".env.example"])
    assert check_env_file(env) == []
    assert list(env.values) == [v.name for v in VARIABLES if v.scope != "node"]


def test_configuration_page__names_every_variable_with_its_range() -> None:
    page = render_configuration_page()
    for variable in VARIABLES:
        assert f"| `{variable.name}` |" in page
        assert variable.expected in page


def test_compose__exactly_the_eleven_services() -> None:
    assert tuple(compose()["services"]) == CLUSTER.names()


def test_compose_nodes__load_as_the_nodes_they_are() -> None:
    environments = node_environments()
    assert list(environments) == [member.id for member in CLUSTER.members()]
    for name, environ in environments.items():
        config = load_node_config(environ)
        assert config.node_id == name
        assert (config.me.host, config.me.port, config.me.peer_port) == (name, 8000, 9000)


@pytest.mark.parametrize("cluster", [CLUSTER, cluster_of(5, 3, 3), cluster_of(1, 1, 1)])
def test_compose_and_local__same_ids_roles_and_settings(cluster: DSSCluster) -> None:
    containers = node_environments(cluster)
    processes = {n.id: n.env for n in render_local(cluster, Path("/x"), cluster_secret="s" * 16)}
    assert list(containers) == list(processes)
    apart = {"DATA_DIR", "BIND_HOST", "MEMORY_URL", "CLUSTER_SECRET"}
    lists = {"RAFT_PEERS", "QUEUE_NODES", "CACHE_PEERS"}
    from_env_file_only = {
        "AUTH_TOKENS", "SNAPSHOT_EVERY_ENTRIES", "FEATURE_LEVEL_MAX", "LOG_LEVEL", "LOG_FORMAT",
    }  # fmt: skip
    for name, process in processes.items():
        container = containers[name]
        assert set(container) - from_env_file_only == set(process)
        for key in set(process) - apart - lists:
            assert container[key] == process[key], key
        for key in lists:
            ids = [[peer["id"] for peer in json.loads(env[key])] for env in (container, process)]
            assert ids[0] == ids[1]


def test_compose_services__hardened_bounded_and_checked() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith("0"), name
        assert service["restart"] == "unless-stopped", name
        assert service["tmpfs"][0].startswith("/tmp:"), name
        assert {"mem_limit", "pids_limit", "cpus"} <= set(service), name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
        assert service["healthcheck"]["test"][0].startswith("CMD"), name
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        own = [v for v in service["volumes"] if v.startswith(f"{name}-data:")]
        assert len(own) == 1, name


def test_compose_start_order__never_raft_on_raft_always_healthy() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert needed not in [member.id for member in CLUSTER.members()], name
    assert "ports" not in services["redis"]
    assert services["redis"]["networks"] == ["internal"]


def test_compose_published_ports__those_of_the_contract() -> None:
    services = compose()["services"]
    published = {name: s["ports"][0].split(":")[1] for name, s in services.items() if "ports" in s}
    expected = {m.id: str(m.http_port()) for m in CLUSTER.members()}
    assert published == expected | {"prometheus": "9090", "grafana": "3000"}


def test_compose_redis__durable_never_evicts_needs_a_password() -> None:
    redis = compose()["services"]["redis"]
    script = redis["command"][-1]
    for needed in ("requirepass", "--appendonly yes", "--appendfsync always", "noeviction"):
        assert needed in script
    assert redis["environment"]["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?")


def test_compose_file__holds_no_secret() -> None:
    text = FILES["docker/docker-compose.yml"]
    for variable in VARIABLES:
        value = parse_env(FILES[".env.example"]).values.get(variable.name)
        if variable.secret and value and value != "admin":
            assert value not in text


def test_prometheus__scrapes_every_node_once() -> None:
    config = yaml.safe_load(FILES["docker/prometheus/prometheus.yml"])
    targets = [
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert targets == [f"{member.id}:8000" for member in CLUSTER.members()]


def test_alerts__each_has_a_rule_and_a_runbook() -> None:
    rules = yaml.safe_load(FILES["docker/prometheus/rules.yml"])["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [alert.name for alert in alerts(CLUSTER)]
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        heading = next(line for line in FILES[page].splitlines() if line.lower() == f"## {anchor}")
        assert heading == f"## {rule['alert']}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_files__promtool_accepts_them(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "rules.yml"):
        text = FILES[f"docker/prometheus/{name}"].replace("/etc/prometheus/", f"{tmp_path}/")
        (tmp_path / name).write_text(text)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_limits_page__each_row_has_its_value_and_reason_out_of_limits_py() -> None:
    page = render_limits_page()
    assert (
        "| a lock's, queue's or cache key's name | 256 bytes | Lock, queue and cache names: long "
        "enough for a path-like key, short enough to hold millions. |\n"
    ) in page
    assert "| `wait_ms` | 30 s |" in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| what |" not in line]
    for row in rows:
        what, limit, why = row.strip("| ").split(" | ")
        assert what, row
        assert limit[0].isdigit(), row
        assert why.endswith("."), row
