"""A planned stop of the lock leader (SIGTERM) fails no request: it hands over, then drains.

Clients that wait at other nodes notice nothing; those at the node that goes are told to ask
elsewhere (503 `stopping`), where they have their places again.
"""

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
from cluster_process import Cluster, request, until

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


class Waiter(threading.Thread):
    """Waits in line for a lock at one node; asks the next one when that one stops."""

    def __init__(self, cluster: Cluster, node: str, name: str, number: int) -> None:
        super().__init__(daemon=True)
        self.nodes = [node, *(each for each in cluster.names("lock") if each != node)]
        self.cluster = cluster
        self.path = f"/v1/locks/{name}"
        self.key = f"{name}-{number}"
        self.session = request("POST", f"{cluster.url(node)}/v1/sessions", {"ttl_ms": 60_000}).body[
            "session"
        ]
        self.moved: list[Any] = []
        self.failures: list[Any] = []
        self.granted_s = 0.0
        self.token = 0

    def run(self) -> None:
        body = {"session": self.session, "wait_ms": 30_000}
        headers = {"Idempotency-Key": self.key}
        for _ in range(20):
            url = self.cluster.url(self.nodes[0]) + self.path
            reply = request("POST", f"{url}/acquire", body, headers=headers)
            if reply.status == 200:
                self.granted_s = time.monotonic()
                self.token = reply.body["token"]
                return
            if reply.status == 503 and reply.body["code"] == "stopping":
                assert reply.headers["retry-after"] == "1"
                self.moved.append(reply.body)
            elif reply.status == 0 and "refused" in str(reply.body):
                time.sleep(0.05)
            else:
                self.failures.append((self.nodes[0], reply))
            self.nodes.append(self.nodes.pop(0))


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_node_is_terminated_while_clients_wait_at_all_nodes__all_are_granted_in_their_order(
    trio: Cluster, who: str
) -> None:
    until(trio.all_ready, "every node is ready", 60)
    leader = trio.lock_leader()
    follower = next(name for name in trio.names("lock") if name != leader)
    victim, other = (leader, follower) if who == "leader" else (follower, leader)
    name = f"waited-for-at-{who}"
    url = f"{trio.url(other)}/v1/locks/{name}"
    holder = request("POST", f"{trio.url(other)}/v1/sessions", {"ttl_ms": 60_000}).body["session"]
    held = request("POST", f"{url}/acquire", {"session": holder})
    assert held.status == 200, held
    waiters = []
    for number, node in enumerate(trio.names("lock") * 2):
        waiter = Waiter(trio, node, name, number)
        waiter.start()
        waiters.append(waiter)
        until(lambda n=number: request("GET", url).body["waiting"] == n + 1, "it stands in line")
    pid = trio.pid(victim)
    os.kill(pid, signal.SIGTERM)
    until(lambda: trio.pid(victim) not in (0, pid), "it runs again", 60)
    until(lambda: request("GET", url).body.get("waiting") == len(waiters), "all stand in line")
    places = [each["session"] for each in request("GET", url).body["waiters"]]
    assert places == [waiter.session[:8] for waiter in waiters], "as they came"
    give = {"session": holder, "token": held.body["token"]}
    until(lambda: request("POST", f"{url}/release", give).status == 200, "released")
    for waiter in waiters:
        waiter.join(40)
        assert waiter.token, waiter.failures
        give = {"session": waiter.session, "token": waiter.token}
        assert request("POST", f"{url}/release", give).status == 200
    assert [waiter.failures for waiter in waiters] == [[]] * len(waiters)
    tokens = [waiter.token for waiter in waiters]
    assert tokens == sorted(set(tokens))
    moved = {waiter.key for waiter in waiters if waiter.moved}
    at_victim = {
        f"{name}-{number}" for number, node in enumerate(trio.names("lock") * 2) if node == victim
    }
    assert moved == at_victim, "nobody else noticed"
