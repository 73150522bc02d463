"""The compose stack for real: `make e2e-compose`, against any Docker Engine with Compose v2.

It uses a project of its own (`dss-e2e`) and the default ports. Where Grafana's image cannot be had,
that one service is left out, loudly, and its files are checked by schema.
`DSS_COMPOSE_NO_CACHE=1` builds the image without Docker's cache.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from asking import http, until
from compose_stack import (
    BUILD_S,
    COMPOSE_FILE,
    ROOT,
    Stack,
    can_have,
    run,
    say,
    services,
    taken_ports,
    why_no_docker,
)
from grafana_schema import check_grafana_files

pytestmark = pytest.mark.compose

LOCK = [f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003)]
QUEUE = [f"http://127.0.0.1:{port}" for port in (8011, 8012, 8013)]
CACHE = [f"http://127.0.0.1:{port}" for port in (8021, 8022)]
PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The images are there, the ports are free; nothing runs yet."""
    missing = why_no_docker()
    assert missing is None, missing
    file = services()
    leave_out: tuple[str, ...] = ()
    for name in ("redis", "prometheus", "grafana"):
        image = file[name]["image"]
        if can_have(image):
            continue
        assert name == "grafana", f"{image} is neither local nor can it be pulled"
        leave_out = ("grafana",)
        say("!" * 88)
        say(f"GRAFANA IS LEFT OUT: {image} is neither local nor can it be pulled.")
        say("The other ten services run for real; Grafana's files are checked by schema only.")
        say("!" * 88)
    stack = Stack("dss-e2e", tmp_path_factory.mktemp("compose") / ".env", leave_out)
    stack.write_env()
    stack.compose("down", "-v", "--remove-orphans")
    taken = taken_ports(stack.names)
    assert not taken, "; ".join(taken) + ". Stop it and repeat: make e2e-compose"
    fresh = ["--no-cache"] if os.environ.get("DSS_COMPOSE_NO_CACHE") == "1" else []
    began = time.monotonic()
    stack.must("build", *fresh, timeout=BUILD_S)
    say(f"image built{' without cache' if fresh else ''} ({time.monotonic() - began:.0f} s)")
    return stack


@pytest.fixture(scope="module")
def stack(built: Stack) -> Iterator[Stack]:
    """The whole stack, up and healthy; taken down at the end whatever happens."""
    try:
        built.up()
        yield built
    finally:
        built.compose("down", "-v", "--remove-orphans")


def test_compose_file__accepted_and_has_eleven_services(built: Stack) -> None:
    assert sorted(built.must("config", "--services").split()) == sorted(services())
    assert len(services()) == 11


def test_env_parser__agrees_with_compose(tmp_path: Path) -> None:
    missing = why_no_docker()
    assert missing is None, missing
    table = runpy.run_path(str(ROOT / "tests/unit/topology/test_envfile.py"))["VALUES"]
    compose_file, env_file = tmp_path / "compose.yml", tmp_path / ".env"
    compose_file.write_text('services: {a: {image: x, environment: {A: "${A-}"}}}')
    for text, value in table:
        env_file.write_text(f"B=bee\nEMPTY=\n{text}\n")
        answer = run(
            "docker", "compose", "-f", str(compose_file), "--env-file", str(env_file),
            "config", "--format", "json",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        shown = json.loads(answer.stdout)["services"]["a"]["environment"]["A"]
        assert shown.replace("$$", "$") == value, text


def test_broken_raft_peers__exit_78_and_nothing_but_that_one_line_at_each_try(
    built: Stack, tmp_path: Path
) -> None:
    broken = Stack("dss-e2e-broken", tmp_path / ".env")
    broken.write_env(RAFT_PEERS='[{"id": "lock-1", "host": "lock-1", "port": 8000')
    try:
        broken.compose("up", "-d", "--no-build", "lock-1")

        def refused_again() -> bool:
            status = broken.must("ps", "-a", "--format", "{{.Status}}", "lock-1")
            return "(78)" in status and broken.container("lock-1")["RestartCount"] >= 2

        until("the node was tried again and ended with 78", refused_again)
        logs = broken.compose("logs", "--no-color", "--no-log-prefix", "lock-1").stdout
        lines = {line for line in logs.splitlines() if line.strip()}
        assert lines == {
            "RAFT_PEERS line 1, column 49: expected ',' or '}' after the value of \"port\", "
            'found the end. Example: RAFT_PEERS=[{"id": "lock-1", "host": "lock-1", '
            '"port": 8000, "peer_port": 9000}]'
        }
    finally:
        broken.compose("down", "-v", "--remove-orphans")


def test_all_services__up_healthy_hardened_and_published_on_loopback_only(stack: Stack) -> None:
    states = stack.states()
    assert states == dict.fromkeys(stack.names, "running (healthy)")
    for name in stack.names:
        inspected = stack.container(name)
        assert inspected["RestartCount"] == 0, f"{name} restarted"
        assert inspected["HostConfig"]["ReadonlyRootfs"], name
        assert inspected["HostConfig"]["CapDrop"] == ["ALL"], name
        assert inspected["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
        for bindings in inspected["NetworkSettings"]["Ports"].values():
            assert {binding["HostIp"] for binding in bindings or []} <= {"127.0.0.1"}, name


def test_lock__held_once_across_nodes_and_granted_again_with_a_higher_token(stack: Stack) -> None:
    first, second = (
        http("POST", f"{node}/v1/sessions", {"ttl_ms": 30_000}).json["session"] for node in LOCK[:2]
    )
    path = "/v1/locks/e2e%2Forders"
    held = http("POST", f"{LOCK[0]}{path}/acquire", {"session": first, "mode": "exclusive"})
    assert held.status == 200, held.body
    refused = http("POST", f"{LOCK[1]}{path}/acquire", {"session": second, "mode": "exclusive"})
    assert (refused.status, refused.json["code"]) == (409, "lock_timeout")
    token = held.json["token"]
    released = http("POST", f"{LOCK[2]}{path}/release", {"session": first, "token": token})
    assert released.status // 100 == 2, released.body
    again = http("POST", f"{LOCK[2]}{path}/acquire", {"session": second, "mode": "exclusive"})
    assert again.status == 200, again.body
    assert again.json["token"] > token


def test_lock_leader_killed__lock_still_held_and_the_node_comes_back(stack: Stack) -> None:
    session = http("POST", f"{LOCK[0]}/v1/sessions", {"ttl_ms": 60_000}).json["session"]
    body = {"session": session, "mode": "exclusive"}
    held = http("POST", f"{LOCK[0]}/v1/locks/e2e-kept/acquire", body)
    assert held.status == 200, held.body
    groups = http("GET", f"{LOCK[0]}/v1/raft/status").json["groups"]
    leader = next(group["leader"] for group in groups if group["group_id"] == 1)
    others = [node for at, node in enumerate(LOCK, 1) if leader != f"lock-{at}"]
    stack.must("kill", "-s", "KILL", leader)

    def kept() -> bool:
        answer = http("GET", f"{others[0]}/v1/locks/e2e-kept")
        return answer.status == 200 and held.json["token"] in (
            holder["token"] for holder in answer.json["holders"]
        )

    until("another leader answers for the lock", kept, 20)
    other = http("POST", f"{others[1]}/v1/sessions", {"ttl_ms": 30_000}).json["session"]
    refused = http("POST", f"{others[1]}/v1/locks/e2e-kept/acquire", body | {"session": other})
    assert refused.status == 409, refused.body
    stack.must("start", leader)
    until(f"{leader} is healthy", lambda: stack.states()[leader] == "running (healthy)")


def test_message__sent_on_one_node_received_and_acknowledged_on_others(stack: Stack) -> None:
    made = http("PUT", f"{QUEUE[0]}/v1/queues/e2e", {})
    assert made.status // 100 == 2, made.body
    message = {"body": {"n": 1}, "key": "a"}
    sent = http("POST", f"{QUEUE[0]}/v1/queues/e2e/messages", message)
    assert sent.status == 201, sent.body
    received = http("POST", f"{QUEUE[1]}/v1/queues/e2e/receive", {"max": 1, "wait_ms": 10_000})
    assert received.status == 200, received.body
    [message] = received.json["messages"]
    assert (message["id"], message["body"]) == (sent.json["id"], {"n": 1})
    acked = http("POST", f"{QUEUE[2]}/v1/queues/e2e/ack", {"receipts": [message["receipt"]]})
    assert acked.status == 200, acked.body
    assert [result["ok"] for result in acked.json["results"]] == [True]


def test_cached_value__written_on_one_node_read_on_the_other_from_redis(stack: Stack) -> None:
    put = http("PUT", f"{CACHE[0]}/v1/cache/e2e-price", b"42")
    assert put.status // 100 == 2, put.body
    got = http("GET", f"{CACHE[1]}/v1/cache/e2e-price")
    assert (got.status, got.body) == (200, b"42")
    lines = [http("GET", f"{node}/v1/cache/e2e-price/line").json["state"] for node in CACHE]
    assert lines == ["S", "S"]
    count = stack.must(
        "exec", "-T", "redis", "sh", "-c", 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli dbsize'
    )
    assert int(count) > 0


def test_prometheus__eight_targets_up_and_every_metric_we_draw_exists(stack: Stack) -> None:
    def up() -> bool:
        active = http("GET", f"{PROMETHEUS}/api/v1/targets").json["data"]["activeTargets"]
        return len(active) == 8 and all(target["health"] == "up" for target in active)

    until("8 targets up", up)
    rules = http("GET", f"{PROMETHEUS}/api/v1/rules").json["data"]["groups"]
    assert [group["name"] for group in rules] == ["dss"]
    texts = " ".join([*dashboard_queries(), json.dumps(rules)])
    drawn = set(re.findall(r"\b(?:dss|process)_[a-z0-9_]+", texts))

    def missing() -> list[str]:
        names = http("GET", f"{PROMETHEUS}/api/v1/label/__name__/values").json["data"]
        return sorted(drawn - set(names))

    until("every metric of the dashboard and the alerts exists", lambda: not missing(), 30)
    for expression in dashboard_queries():
        query = quote(expression.replace("$__rate_interval", "1m"))
        answer = http("GET", f"{PROMETHEUS}/api/v1/query?query={query}")
        assert answer.status == 200, f"{expression}: {answer.body!r}"
    firing = http("GET", f"{PROMETHEUS}/api/v1/alerts").json["data"]["alerts"]
    assert [a["labels"]["alertname"] for a in firing if a["state"] == "firing"] == []


def dashboard_queries() -> list[str]:
    dashboard = json.loads((COMPOSE_FILE.parent / "grafana/dashboards/dss.json").read_text())
    return [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]


def test_grafana__provisioned_and_its_files_valid(stack: Stack) -> None:
    check_grafana_files(COMPOSE_FILE.parent)
    if "grafana" in stack.leave_out:
        say("GRAFANA WAS LEFT OUT: only its files were checked")
        return
    login = (stack.env["GRAFANA_ADMIN_USER"], stack.env["GRAFANA_ADMIN_PASSWORD"])
    sources = http("GET", f"{GRAFANA}/api/datasources", login=login)
    assert [source["uid"] for source in sources.json] == ["dss-prometheus"]
    dashboard = http("GET", f"{GRAFANA}/api/dashboards/uid/dss-overview", login=login)
    assert dashboard.status == 200, dashboard.body


def test_down__leaves_nothing_running_and_up_again_finds_the_data(stack: Stack) -> None:
    sent = http("POST", f"{QUEUE[0]}/v1/queues/e2e/messages", {"body": "kept", "key": "k"})
    assert sent.status == 201, sent.body
    stack.down(volumes=False)
    assert stack.left_over("container") == []
    assert stack.left_over("network") == []
    stack.up()
    received = http("POST", f"{QUEUE[2]}/v1/queues/e2e/receive", {"max": 1, "wait_ms": 20_000})
    assert [message["body"] for message in received.json["messages"]] == ["kept"], received.body
    assert http("GET", f"{CACHE[1]}/v1/cache/e2e-price").body == b"42"
    stack.down(volumes=True)
    for what in ("container", "network", "volume"):
        assert stack.left_over(what) == [], what
    running = run("docker", "ps", "--format", "{{.Names}}").stdout.split()
    assert not [name for name in running if name.startswith("dss-e2e")]
