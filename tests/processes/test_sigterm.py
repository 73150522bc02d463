"""A planned stop of the lock leader (SIGTERM) fails no request: it hands over, then drains."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_process import Cluster, until

THREADS_PER_NODE = 4


class Client:
    """Acquires and releases its own lock over one kept-alive connection; notes every failure.

    When its node is about to go it says so with an answer (`Connection: close`), then refuses
    connections: the client goes on at another node. Anything else is a failure.
    """

    def __init__(self, cluster: Cluster, node: str, number: str) -> None:
        self.cluster = cluster
        self.nodes = [node, *(name for name in cluster.names("lock") if name != node)]
        self.name = f"lock-of-{node}-{number}"
        self.done = 0
        self.moved = 0
        self.failures: list[str] = []
        self.connection: http.client.HTTPConnection | None = None
        self.session = ""

    def run(self, stop: threading.Event) -> None:
        try:
            self.load(stop)
        finally:
            if self.connection is not None:
                self.connection.close()

    def load(self, stop: threading.Event) -> None:
        self.session = self.ask("/v1/sessions", {"ttl_ms": 30_000})["session"]
        while not stop.is_set():
            held = self.ask(f"/v1/locks/{self.name}/acquire", {"session": self.session})
            body = {"session": self.session, "token": held.get("token")}
            self.ask(f"/v1/locks/{self.name}/release", body)
            self.done += 1

    def ask(self, path: str, body: Any) -> dict[str, Any]:
        for _ in range(20):
            connection = self.connect()
            try:
                connection.request("POST", path, json.dumps(body).encode())
                reply = connection.getresponse()
                data = json.loads(reply.read())
            except ConnectionRefusedError as nobody:
                self.leave(nobody)
                continue
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{self.nodes[0]} {path}: {error!r}")
                self.leave(error)
                continue
            if reply.status >= 300:
                self.failures.append(f"{self.nodes[0]} {path}: {reply.status} {data}")
            if reply.getheader("Connection") == "close":
                self.leave(None)
            return dict(data)
        raise AssertionError(f"{self.name}: nobody answers")

    def connect(self) -> http.client.HTTPConnection:
        if self.connection is None:
            port = self.cluster.port(self.nodes[0])
            self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        return self.connection

    def leave(self, why: Exception | None) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.moved += 1
        self.nodes.append(self.nodes.pop(0))
        if isinstance(why, ConnectionRefusedError):
            time.sleep(0.05)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("sigterm") / "data", counts=(3, 1, 1))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("round_number", range(3))
def test_leader_is_terminated_under_load__no_request_fails(
    trio: Cluster, round_number: int
) -> None:
    until(trio.all_ready, "every node is ready", 60)
    stop = threading.Event()
    clients = [
        Client(trio, name, f"{round_number}-{number}")
        for name in trio.names("lock")
        for number in range(THREADS_PER_NODE)
    ]
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        until(lambda: min(client.done for client in clients) >= 5, "the load runs", 30)
        leader = trio.lock_leader()
        pid = trio.pid(leader)
        before = [client.done for client in clients]
        os.kill(pid, signal.SIGTERM)
        until(lambda: trio.lock_leader() != leader, "another one leads")
        until(lambda: trio.pid(leader) != pid, "it has ended")
        until(
            lambda: all(client.done > old + 5 for client, old in zip(clients, before, strict=True)),
            "every client goes on",
            30,
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    failures = [failure for client in clients for failure in client.failures]
    assert failures == []
    assert any(client.moved for client in clients)
