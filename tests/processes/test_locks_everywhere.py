"""Locks on real nodes: exactly once over a killed leader, events and deadlocks over all nodes."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from cluster_process import Cluster, Reply, request, until
from test_locks import session


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, method: str, url: str, body: Any, key: str = "") -> None:
        super().__init__(daemon=True)
        self.reply: Reply | None = None
        self.session = str((body or {}).get("session", ""))
        self._request = (method, url, body)
        self._headers = {"Idempotency-Key": key} if key else {}
        self.start()

    def run(self) -> None:
        self.reply = request(*self._request, headers=self._headers)

    def done(self) -> Reply:
        self.join(40)
        assert self.reply is not None, "no answer"
        return self.reply


def test_wait_over_a_killed_leader__goes_on_and_a_repeat_with_its_key_gets_the_same_answer(
    cluster: Cluster,
) -> None:
    leader = cluster.lock_leader()
    other = next(name for name in cluster.names("lock") if name != leader)
    url = cluster.url(other)
    holder, waiter = session(url), session(url)
    path = f"{url}/v1/locks/once%2Fkilled"
    held = request("POST", f"{path}/acquire", {"session": holder})
    assert held.status == 200, held
    ask = {"session": waiter, "wait_ms": 25_000}
    first = Asking("POST", f"{path}/acquire", ask, "over-a-killed-leader")
    until(lambda: request("GET", path).body.get("waiting") == 1, "the wait is in the log")
    cluster.kill(leader)
    until(lambda: cluster.lock_leader() != leader, "another one leads")

    def waiting_again() -> Asking | None:
        again = Asking("POST", f"{path}/acquire", ask, "over-a-killed-leader")
        again.join(0.5)
        return None if again.reply is not None and again.reply.status in (503, 504) else again

    second = until(waiting_again, "the repeat is taken")
    seen = until(lambda: request("GET", path).body if second.is_alive() else None, "a look")
    assert seen["waiting"] == 1, "the repeat joined its own wait"
    give = {"session": holder, "token": held.body["token"]}
    until(lambda: request("POST", f"{path}/release", give).status in (200, 409), "released")
    granted = second.done()
    assert granted.status == 200, granted
    assert granted.body["token"] > held.body["token"]
    both = first.done()
    assert (both.status, both.body) == (granted.status, granted.body), "whichever listens"
    third = Asking("POST", f"{path}/acquire", ask, "over-a-killed-leader").done()
    assert (third.status, third.body) == (granted.status, granted.body)
    assert request("GET", path).body["holders"][0]["count"] == 1
    reused = Asking("POST", f"{path}/acquire", ask | {"mode": "shared"}, "over-a-killed-leader")
    assert reused.done().body["code"] == "idempotency_key_reused"


def test_waits_at_every_node_over_a_killed_leader__those_of_the_others_notice_nothing(
    cluster: Cluster,
) -> None:
    leader = cluster.lock_leader()
    others = [name for name in cluster.names("lock") if name != leader]
    url = cluster.url(others[0])
    path = "/v1/locks/waits%2Fkilled"
    holder = session(url)
    held = request("POST", f"{url}{path}/acquire", {"session": holder})
    waits = []
    for number, name in enumerate((*others, leader, *others)):
        ask = {"session": session(url), "wait_ms": 25_000}
        waits.append((name, Asking("POST", f"{cluster.url(name)}{path}/acquire", ask)))
        until(lambda n=number: request("GET", url + path).body["waiting"] == n + 1, "it waits")
    cluster.kill(leader)
    until(lambda: cluster.lock_leader() != leader, "another one leads")
    time.sleep(1.5)  # longer than anybody waits for an answer that got lost
    for name, wait in waits:
        assert wait.is_alive() == (name != leader), (name, wait.reply)
    assert request("DELETE", f"{url}/v1/sessions/{holder}").status == 200
    tokens = [held.body["token"]]
    for name, wait in waits:
        if name == leader:
            continue  # its client's connection broke, and its place is its own to cancel
        reply = wait.done()
        assert reply.status == 200, reply
        tokens.append(reply.body["token"])
        ended = request("DELETE", f"{url}/v1/sessions/{wait.session}")
        assert ended.status == 200, ended
        request("DELETE", f"{url}/v1/sessions/{waits[2][1].session}")
    assert tokens == sorted(set(tokens))


def event_stream(url: str, query: str = "") -> Any:
    """Its answer; a node that has just been started may not know the leader yet."""

    def opened() -> Any:
        try:
            return urllib.request.urlopen(f"{url}/v1/locks:events?{query}", timeout=20)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return None

    return until(opened, "an event stream opens")


def events(url: str, prefix: str, since: int, count: int) -> list[dict[str, Any]]:
    """The next `count` events after `since`, as this node tells them."""
    found: list[dict[str, Any]] = []
    with event_stream(url, f"prefix={prefix}&since={since}") as stream:
        while len(found) < count:
            line = stream.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


def newest(url: str) -> int:
    """The number from which a new event stream goes on."""
    with event_stream(url) as stream:
        while not (line := stream.readline()).startswith(b"id: "):
            assert line, "the stream has ended"
        return int(line[4:])


def test_events__the_same_numbers_on_every_node_and_no_gap_from_one_to_another(
    cluster: Cluster,
) -> None:
    first, second, third = cluster.urls("lock")
    mine = session(first)
    since = max(newest(url) for url in (first, second, third))
    for name in ("ev-a", "ev-b"):
        got = request("POST", f"{second}/v1/locks/{name}/acquire", {"session": mine})
        give = {"session": mine, "token": got.body["token"]}
        assert request("POST", f"{third}/v1/locks/{name}/release", give).status == 200
    told = [events(url, "ev-", since, 4) for url in (first, second, third)]
    for each in told:
        for event in each:
            event.pop("ago_ms")
    assert told[0] == told[1] == told[2]
    assert [(event["event"], event["name"]) for event in told[0]] == [
        ("granted", "ev-a"),
        ("released", "ev-a"),
        ("granted", "ev-b"),
        ("released", "ev-b"),
    ]
    resumed = events(second, "ev-", told[0][1]["index"], 2)
    assert [event["index"] for event in resumed] == [event["index"] for event in told[0][2:]]


def test_deadlock_over_two_nodes__the_later_waiter_is_told_at_once(cluster: Cluster) -> None:
    first, second, _ = cluster.urls("lock")
    one, two = session(first), session(second)
    several = {"session": one, "locks": ["dl-a", "dl-b"]}
    assert request("POST", f"{first}/v1/locks:acquire", several).status == 200
    assert request("POST", f"{second}/v1/locks/dl-c/acquire", {"session": two}).status == 200
    waits = Asking("POST", f"{first}/v1/locks/dl-c/acquire", {"session": one, "wait_ms": 20_000})
    until(lambda: request("GET", f"{second}/v1/locks/dl-c").body["waiting"] == 1, "one waits")
    began = time.monotonic()
    late = request("POST", f"{second}/v1/locks/dl-b/acquire", {"session": two, "wait_ms": 20_000})
    assert (late.status, late.body["code"]) == (409, "deadlock"), late
    assert [step["name"] for step in late.body["cycle"]] == ["dl-b", "dl-c"]
    assert time.monotonic() - began < 5
    assert request("DELETE", f"{second}/v1/sessions/{two}").status == 200
    assert waits.done().status == 200
