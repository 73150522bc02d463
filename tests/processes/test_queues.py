"""Queues on real nodes: lease and ack, and a queue node killed while messages are in flight."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from cluster_process import Cluster, request, until


def make_queue(cluster: Cluster, name: str, **settings: Any) -> list[str]:
    """Create a queue; the base paths for it on every queue node."""
    paths = [f"{url}/v1/queues/{name}" for url in cluster.urls("queue")]
    reply = request("PUT", paths[0], settings)
    assert reply.status in (200, 201), reply
    return paths


def test_message__leased_redelivered_and_gone_after_ack(cluster: Cluster) -> None:
    one, two, three = make_queue(cluster, "lease")
    sent = request("POST", f"{one}/messages", {"body": {"id": 1}})
    assert sent.status == 201, sent
    first = request("POST", f"{two}/receive", {"wait_ms": 5_000, "visibility_ms": 500}).body
    (message,) = first["messages"]
    assert message["body"] == {"id": 1}
    assert message["deliveries"] == 1
    again = request("POST", f"{three}/receive", {"wait_ms": 10_000, "visibility_ms": 60_000}).body
    (redelivered,) = again["messages"]
    assert (redelivered["id"], redelivered["deliveries"]) == (message["id"], 2)
    stale = request("POST", f"{one}/ack", {"receipts": [message["receipt"]]}).body
    assert stale["results"][0]["ok"] is False
    done = request("POST", f"{two}/ack", {"receipts": [redelivered["receipt"]]}).body
    assert done["results"][0]["ok"] is True
    empty = request("POST", f"{three}/receive", {"max": 10}).body
    assert empty["messages"] == []


def test_long_poll__answers_when_a_message_comes(cluster: Cluster) -> None:
    one, two, _ = make_queue(cluster, "poll")
    got: list[Any] = []
    poll = threading.Thread(
        target=lambda: got.append(request("POST", f"{one}/receive", {"wait_ms": 20_000}))
    )
    began = time.monotonic()
    poll.start()
    time.sleep(0.5)
    assert request("POST", f"{two}/messages", {"body": "hello"}).status == 201
    poll.join(25)
    assert [m["body"] for m in got[0].body["messages"]] == ["hello"], got
    assert time.monotonic() - began < 15


def test_partitions__every_one_on_three_distinct_nodes(cluster: Cluster) -> None:
    led: dict[int, str] = {}
    carried: dict[int, int] = {}
    for name in cluster.names("queue"):
        for group in cluster.raft_groups(name):
            carried[group["group_id"]] = carried.get(group["group_id"], 0) + 1
            if group["role"] == "leader":
                led[group["group_id"]] = name
    assert set(carried) == set(range(16, 48))
    assert set(carried.values()) == {3}
    assert set(led) == set(carried)


def test_queue_node_killed_under_load__no_acknowledged_message_lost(cluster: Cluster) -> None:
    paths = make_queue(cluster, "killed")
    stop = threading.Event()
    acknowledged: list[tuple[float, int]] = []
    numbers = itertools.count()

    def produce(number: int) -> None:
        nodes = itertools.cycle(paths[number % 3 :] + paths[: number % 3])
        path = next(nodes)
        while not stop.is_set():
            value = next(numbers)
            # Keys spread the messages over all partitions, a third of them led by the killed node.
            message = {"body": value, "key": str(value % 64)}
            reply = request("POST", f"{path}/messages", message, timeout=5)
            if reply.status == 201:
                acknowledged.append((time.monotonic(), value))
            else:
                path = next(nodes)
                time.sleep(0.01)

    producers = [threading.Thread(target=produce, args=(n,)) for n in range(4)]
    for producer in producers:
        producer.start()
    try:
        until(lambda: len(acknowledged) > 100, "the load runs")
        killed_at = time.monotonic()
        cluster.kill("queue-2")
        until(
            lambda: sum(at > killed_at + 1 for at, _ in list(acknowledged)) > 100,
            "messages are taken again",
            20,
        )
    finally:
        stop.set()
        for producer in producers:
            producer.join(30)
    until(cluster.all_ready, "all nodes ready again", 60)
    gaps = []
    for key in range(64):
        mine = sorted(at for at, value in acknowledged if value % 64 == key and at > killed_at)
        gaps += [after - before for before, after in itertools.pairwise([killed_at, *mine])]
    print(
        f"\nqueue-2 killed under load: {len(acknowledged)} messages acknowledged, "
        f"longest gap of one key {max(gaps):.2f} s"
    )

    wanted = {value for _, value in acknowledged}
    received: set[int] = set()
    deadline = time.monotonic() + 60
    while wanted - received and time.monotonic() < deadline:
        body = {"max": 1_000, "wait_ms": 1_000, "visibility_ms": 60_000}
        reply = request("POST", f"{paths[0]}/receive", body)
        if reply.status != 200:
            time.sleep(0.1)
            continue
        received |= {message["body"] for message in reply.body["messages"]}
        if receipts := [message["receipt"] for message in reply.body["messages"]]:
            request("POST", f"{paths[0]}/ack", {"receipts": receipts})
    lost = wanted - received
    assert not lost, f"{len(lost)} of {len(wanted)} acknowledged messages lost: {sorted(lost)[:10]}"
