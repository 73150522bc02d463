"""Locks on real nodes: any node answers, the stream, and a leader killed under load."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
from cluster_process import Cluster, dss, request, until


def session(url: str, ttl_ms: int = 60_000) -> str:
    reply = request("POST", f"{url}/v1/sessions", {"ttl_ms": ttl_ms})
    assert reply.status == 201, reply
    return str(reply.body["session"])


def test_any_lock_node__answers_for_the_leader(cluster: Cluster) -> None:
    first, second, third = cluster.urls("lock")
    mine, other = session(first), session(second)
    taken = request("POST", f"{second}/v1/locks/any%2Fnode/acquire", {"session": mine})
    assert taken.status == 200, taken
    busy = request("POST", f"{third}/v1/locks/any%2Fnode/acquire", {"session": other})
    assert (busy.status, busy.body["code"]) == (409, "lock_timeout")
    seen = request("GET", f"{third}/v1/locks/any%2Fnode").body
    assert seen["token"] == taken.body["token"]
    body = {"session": mine, "token": taken.body["token"]}
    assert request("POST", f"{first}/v1/locks/any%2Fnode/release", body).status == 200
    later = request("POST", f"{third}/v1/locks/any%2Fnode/acquire", {"session": other})
    assert later.body["token"] > taken.body["token"]


def test_numbered_requests_over_http__carried_out_once_at_any_node_and_no_key_is_spent(
    cluster: Cluster,
) -> None:
    first, second, third = cluster.urls("lock")

    def keys() -> float:
        lines = request("GET", f"{first}/metrics").body.decode().splitlines()
        [line] = [line for line in lines if line.startswith("dss_lock_idempotency_keys ")]
        return float(line.split()[1])

    mine, before = session(first), keys()
    acquire = {"session": mine, "seq": 1}
    taken = request("POST", f"{first}/v1/locks/once/acquire", acquire)
    assert taken.status == 200, taken
    again = request("POST", f"{second}/v1/locks/once/acquire", acquire)
    assert (again.status, again.body) == (200, taken.body)
    release = {"session": mine, "token": taken.body["token"], "seq": 2, "ack": 1}
    for url in (third, first):
        assert request("POST", f"{url}/v1/locks/once/release", release).status == 200
    old = request("POST", f"{second}/v1/locks/once/acquire", acquire)
    assert (old.status, old.body["code"]) == (409, "sequence_too_old")
    assert keys() == before


def test_shared_holders__keep_a_writer_waiting_until_both_have_gone(cluster: Cluster) -> None:
    url = cluster.url("lock-1")
    readers, writer = [session(url), session(url)], session(url)
    acquire = f"{url}/v1/locks/rw/acquire"
    tokens = [
        request("POST", acquire, {"session": reader, "mode": "shared"}).body["token"]
        for reader in readers
    ]
    granted: list[Any] = []
    waiting = threading.Thread(
        target=lambda: granted.append(
            request("POST", acquire, {"session": writer, "wait_ms": 20_000})
        )
    )
    waiting.start()
    until(lambda: request("GET", f"{url}/v1/locks/rw").body["waiting"] == 1, "the writer waits")
    for reader, token in zip(readers, tokens, strict=True):
        assert not granted
        body = {"session": reader, "token": token}
        assert request("POST", f"{url}/v1/locks/rw/release", body).status == 200
    waiting.join(20)
    assert granted[0].status == 200, granted
    assert granted[0].body["token"] > max(tokens)


def test_session_that_is_not_kept_alive__ends_and_frees_its_lock(cluster: Cluster) -> None:
    url = cluster.url("lock-2")
    body = {"session": session(url, ttl_ms=500)}
    assert request("POST", f"{url}/v1/locks/short/acquire", body).status == 200
    waiter = {"session": session(url), "wait_ms": 15_000}
    assert request("POST", f"{url}/v1/locks/short/acquire", waiter).status == 200


def test_stream__many_requests_in_one_message(cluster: Cluster) -> None:
    async def scenario() -> dict[int, tuple[int, Any]]:
        answers: dict[int, tuple[int, Any]] = {}
        url = f"{cluster.url('lock-3')}/v1/locks:stream"
        async with aiohttp.ClientSession() as http, http.ws_connect(url) as stream:

            async def ask(*items: list[Any]) -> None:
                await stream.send_bytes(msgspec.msgpack.encode(items))
                wanted = {item[0] for item in items}
                while wanted - answers.keys():
                    message = await stream.receive_bytes(timeout=20)
                    for number, status, result in msgspec.msgpack.decode(message):
                        answers[number] = (status, result)

            await ask([1, "session.create", {"ttl_ms": 30_000}])
            mine = answers[1][1]["session"]
            await ask(
                *([10 + n, "acquire", {"session": mine, "name": f"stream-{n}"}] for n in range(50))
            )
            await ask([2, "get", {"name": "stream-7"}])
            await ask([3, "session.end", {"session": mine}])
        return answers

    answers = asyncio.run(scenario())
    granted = [answers[10 + n] for n in range(50)]
    assert [status for status, _ in granted] == [200] * 50
    tokens = [result["token"] for _, result in granted]
    assert tokens == sorted(set(tokens))
    assert answers[2][1]["token"] == tokens[7]


def test_lock_run__stops_its_command_when_the_lock_is_taken_away(cluster: Cluster) -> None:
    url = cluster.url("lock-1")
    done: list[Any] = []

    def run() -> None:
        words = ["lock", "run", "lost", "--ttl", "3", "--endpoints", url, "--", "sleep", "60"]
        done.append(dss(*words))

    holder = threading.Thread(target=run)
    holder.start()
    held = until(lambda: request("GET", f"{url}/v1/locks/lost").body["holders"] or None, "held")
    handle = held[0]["session"]
    assert len(handle) == 8
    assert request("DELETE", f"{url}/v1/sessions/{handle}").status == 409, "it proves nothing"
    assert request("DELETE", f"{url}/v1/locks/lost").status == 200
    holder.join(20)
    assert done[0].returncode == 75, done
    assert 'lock "lost" was lost' in done[0].stderr


def held_locks(url: str, prefix: str) -> dict[str, int]:
    """Name and token of every held lock, as this node answers."""
    held: dict[str, int] = {}
    cursor = ""
    while True:
        path = f"{url}/v1/locks?prefix={prefix}&limit=1000&cursor={cursor}"

        def page(path: str = path) -> Any:
            reply = request("GET", path)
            return reply.body if reply.status == 200 else None

        found = until(page, "the list of locks")
        held |= {item["name"]: item["token"] for item in found["items"]}
        cursor = found["next"]
        if not cursor:
            return held


class Load:
    """Threads that take locks of new names for ever and remember what was acknowledged."""

    def __init__(self, urls: list[str], threads: int = 6) -> None:
        self.urls = urls
        self.acknowledged: list[tuple[float, str, int]] = []
        """(when, lock, token), in the order in which each thread got them."""
        self.by_thread: list[list[int]] = []
        self.stop = threading.Event()
        self.session = session(urls[0], 600_000)
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        tokens: list[int] = []
        self.by_thread.append(tokens)
        nodes: Iterator[str] = itertools.cycle(self.urls[number % 3 :] + self.urls[: number % 3])
        url = next(nodes)
        for count in itertools.count():
            if self.stop.is_set():
                return
            name = f"load-{number}-{count}"
            reply = request(
                "POST", f"{url}/v1/locks/{name}/acquire", {"session": self.session}, timeout=5
            )
            if reply.status == 200:
                tokens.append(reply.body["token"])
                self.acknowledged.append((time.monotonic(), name, reply.body["token"]))
            else:
                url = next(nodes)
                time.sleep(0.01)

    def gap_s(self, since: float) -> float:
        """The longest time without any acknowledgement after `since`."""
        times = [since, *sorted(at for at, _, _ in self.acknowledged if at >= since)]
        return max(after - before for before, after in itertools.pairwise(times))


def test_leader_killed_under_load__nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    with Load(cluster.urls("lock")) as load:
        until(lambda: len(load.acknowledged) > 200, "the load runs")
        leader = cluster.lock_leader()
        killed_at = time.monotonic()
        killed = cluster.kill(leader)
        until(
            lambda: sum(at > killed_at + 0.5 for at, _, _ in list(load.acknowledged)) > 200,
            "locks are granted again",
            10,
        )
        until(lambda: cluster.pid(leader) not in (0, killed), "the killed node runs again")
        time.sleep(1)
    gap = load.gap_s(killed_at)
    print(
        f"\nleader {leader} killed under load: {len(load.acknowledged)} locks acknowledged, "
        f"service back after {gap:.2f} s"
    )
    assert gap < 10

    names = {name: token for _, name, token in load.acknowledged}
    assert len(set(names.values())) == len(names), "a token was given twice"
    for tokens in load.by_thread:
        assert tokens == sorted(set(tokens)), "tokens do not increase"
    held = held_locks(cluster.url(leader), "load-")  # the node that was killed must know them too
    lost = {name: token for name, token in names.items() if held.get(name) != token}
    assert not lost, f"{len(lost)} of {len(names)} acknowledged locks are gone: {list(lost)[:5]}"
    assert request("DELETE", f"{cluster.url(leader)}/v1/sessions/{load.session}").status < 300


def test_two_of_three_gone__refused_with_no_quorum_not_a_hang(cluster: Cluster) -> None:
    survivor, *others = cluster.names("lock")
    mine = session(cluster.url(survivor))
    stopped = [cluster.pid(name) for name in others]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()

        def refused() -> Any:
            body = {"session": mine}
            reply = request("POST", f"{cluster.url(survivor)}/v1/locks/minority/acquire", body)
            return reply if reply.status in (503, 504) else None

        reply = until(refused, "a refusal", 10)
        assert time.monotonic() - began < 10
        until(lambda: (r := refused()) and r.status == 503, "no_quorum", 10)
        assert reply.body["code"] in ("no_quorum", "indeterminate")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
