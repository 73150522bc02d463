"""Everything a client does, through the ingress controller: paths, long waits, streams, load."""

from __future__ import annotations

import asyncio
import csv
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from asking import http
from conftest import HOST, NAMESPACE
from e2e_dss import Cluster, until_answer
from e2e_faults import need
from e2e_kubectl import ROOT, say

pytestmark = pytest.mark.kube

LONG_MS = 25_000
"""Longer than the 15 s at which ingress controllers cut by default."""
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode
Args = dict[str, Any]


@pytest.fixture(scope="module")
def ingress(demo: Cluster) -> str:
    url = need("E2E_INGRESS", "the ingress is tried out")
    token = demo.token("client")
    until_answer("the ingress serves", lambda: http("GET", f"{url}/v1/locks", host=HOST,
                                                    token=token, timeout_s=10))  # fmt: skip
    return url


def test_paths__each_service_and_each_colon_route_reaches_a_node_of_its_role(
    demo: Cluster, ingress: str
) -> None:
    found = demo.kubectl.get("-n", NAMESPACE, "ingress", "demo")
    [rule] = found["spec"]["rules"]
    assert rule["host"] == HOST
    paths = {path["path"]: path for path in rule["http"]["paths"]}
    assert {"/v1/sessions", "/v1/locks", "/v1/queues", "/v1/cache"} <= set(paths)
    assert "/v1/locks:stream" in paths
    for path, described in paths.items():
        assert described["pathType"] == ("Exact" if ":" in path else "Prefix"), path
        status, body = probe(ingress + path, demo.token("client"))
        # A node answers; the controller alone would give 404 without a body of ours.
        assert status in (200, 400, 404, 405, 422, 426), (path, status, body)
        if status >= 400:
            assert "wrong_role" not in body, path
            assert '"code"' in body or path.endswith(":stream"), (path, body)


def probe(url: str, token: str) -> tuple[int, str]:
    """The status of a GET, and the body of a refusal; an event stream is not waited for."""
    headers = {"Host": HOST, "Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=15
        ) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_paths__what_is_not_for_clients_is_not_published(ingress: str) -> None:
    for path in ("/metrics", "/v1/raft/status", "/v1/raft/backoff"):
        assert http("GET", ingress + path, host=HOST).status == 404, path
    assert http("GET", f"{ingress}/v1/locks", host=HOST).status == 401


def test_long_waits__a_receive_an_acquire_and_idle_streams_outlive_the_controllers_limits(
    demo: Cluster, ingress: str
) -> None:
    token = demo.token("client")

    def ask(path: str, body: object) -> tuple[int, object, float]:
        began = time.monotonic()
        answer = http("POST", ingress + path, body, host=HOST, token=token, timeout_s=40)
        return answer.status, answer.json, time.monotonic() - began

    path = "/v1/queues/e2e-empty"
    until_answer("a queue", lambda: http("PUT", ingress + path, {}, host=HOST, token=token))
    holder, waiter = (ask("/v1/sessions", {"ttl_ms": 60_000})[1]["session"]  # type: ignore[index]
                      for _ in range(2))  # fmt: skip
    lock, body = "/v1/locks/e2e-long/acquire", {"mode": "exclusive"}
    assert ask(lock, body | {"session": holder})[0] == 200
    with ThreadPoolExecutor(4) as pool:
        told = pool.submit(events_for, ingress, token, LONG_MS / 1_000)
        received = pool.submit(ask, f"{path}/receive", {"max": 1, "wait_ms": LONG_MS})
        acquired = pool.submit(ask, lock, body | {"session": waiter, "wait_ms": LONG_MS})
        streamed = pool.submit(asyncio.run, _idle_streams(ingress, token, LONG_MS / 1_000))
        status, answer, took = received.result()
        assert (status, answer) == (200, {"messages": []})
        assert LONG_MS / 1_000 - 1 <= took < LONG_MS / 1_000 + 5
        status, answer, took = acquired.result()
        assert (status, answer["code"]) == (409, "lock_timeout")  # type: ignore[index]
        assert LONG_MS / 1_000 - 1 <= took < LONG_MS / 1_000 + 5
        assert told.result() >= 2, "a comment every ten seconds, and no end"
        for path, statuses in streamed.result().items():
            assert [status // 100 for status in statuses] == [2, 2], (path, statuses)


def events_for(ingress: str, token: str, seconds: float) -> int:
    """Lines that an event stream sent in that time, at the end of which it is still open."""
    url = f"{ingress}/v1/locks:events?prefix=e2e-nobody"
    headers = {"Host": HOST, "Authorization": f"Bearer {token}"}
    end, lines = time.monotonic() + seconds, 0
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=15
    ) as response:
        while time.monotonic() < end:
            line = response.readline()
            assert line, f"the event stream ended after {lines} lines"
            lines += line.startswith(b":")
    return lines


STREAMS: dict[str, tuple[tuple[str, Args], tuple[str, Args]]] = {
    "/v1/locks:stream": (
        ("session.create", {"ttl_ms": 60_000}),
        ("session.create", {"ttl_ms": 60_000}),
    ),
    "/v1/queues:stream": (
        ("queue.put", {"queue": "e2e-stream"}),
        ("send", {"queue": "e2e-stream", "body_json": b'{"n": 1}'}),
    ),
    "/v1/cache:stream": (
        ("set", {"key": "e2e-stream", "value": b"1"}),
        ("get", {"key": "e2e-stream"}),
    ),
}
"""Path -> a request before a silence and one after it."""


async def _idle_streams(ingress: str, token: str, idle_s: float) -> dict[str, list[int]]:
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(
            *(_idle_stream(session, ingress + path, token, idle_s, asks)
              for path, asks in STREAMS.items())
        )  # fmt: skip
    return dict(zip(STREAMS, answers, strict=True))


async def _idle_stream(
    session: aiohttp.ClientSession,
    url: str,
    token: str,
    idle_s: float,
    asks: tuple[tuple[str, Args], tuple[str, Args]],
) -> list[int]:
    """Statuses of both requests, over one WebSocket."""
    headers = {"Host": HOST, "Authorization": f"Bearer {token}"}
    (first_op, first_args), (second_op, second_args) = asks
    async with session.ws_connect(url, headers=headers) as socket:
        await socket.send_bytes(_encode([[1, first_op, first_args]]))
        [[_, first, _]] = _decode((await socket.receive(timeout=10)).data)
        # A receive must be under way for pings to be answered.
        receiving = asyncio.ensure_future(socket.receive())
        early, _ = await asyncio.wait([receiving], timeout=idle_s)
        assert not early, f"{url} did not stay idle and open: {receiving.result()}"
        await socket.send_bytes(_encode([[2, second_op, second_args]]))
        [[_, second, _]] = _decode((await asyncio.wait_for(receiving, 10)).data)
        return [first, second]


def test_locust__thirty_seconds_through_the_ingress_zero_failures(
    demo: Cluster, ingress: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "DSS_HOST_HEADER": HOST, "DSS_TOKEN": demo.token("client")}
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", "loadtest/load_test_scenarios.py", "--headless",
         "-u", "20", "-r", "10", "-t", "30s", "--host", ingress,
         "--csv", str(tmp_path / "load"), "--only-summary"],
        capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)  # the table: which of the two depends on Locust
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    with open(tmp_path / "load_stats.csv", newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    total = rows["Aggregated"]
    assert int(total["Failure Count"]) == 0
    assert int(total["Request Count"]) > 300
    say(f"Locust: {total['Request Count']} requests, 0 failures, median "
        f"{total['Median Response Time']} ms, p99 {total['99%']} ms")  # fmt: skip
