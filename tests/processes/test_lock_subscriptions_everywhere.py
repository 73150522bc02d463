"""Events of locks on streams of real nodes: followed over a killed leader and from node to node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
from cluster_process import Cluster, request, until
from test_locks import session
from test_locks_everywhere import events, newest

Event = dict[str, Any]


class Load(threading.Thread):
    """Takes and gives back one lock after another, at the given nodes in turn."""

    def __init__(self, urls: list[str], prefix: str) -> None:
        super().__init__(daemon=True)
        self.tokens: dict[str, int] = {}
        """Name -> token, of acknowledged grants that were given back."""
        self._urls, self._prefix = urls, prefix
        self._sessions = [session(url) for url in urls]
        self._ends = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._ends.is_set():
            at = number % len(self._urls)
            name = f"{self._prefix}{number}"
            path = f"{self._urls[at]}/v1/locks/{name}"
            body = {"session": self._sessions[at]}
            got = request("POST", f"{path}/acquire", body, timeout=10)
            if got.status == 200:
                give = body | {"token": got.body["token"]}
                if request("POST", f"{path}/release", give, timeout=10).status == 200:
                    self.tokens[name] = got.body["token"]
            number += 1

    def end(self) -> None:
        self._ends.set()
        self.join(30)
        assert not self.is_alive()


class Follower:
    """One client that goes from node to node: its events, and where it goes on."""

    def __init__(self, prefix: str, since: int) -> None:
        self.prefix, self.index = prefix, since
        self.told: list[Event] = []

    async def at(self, url: str, enough: Callable[[], bool]) -> None:
        """Follow there until `enough`; the connection ends in the middle of what comes."""
        while not enough():
            async with aclosing(self._pushes(url)) as pushes:
                async for event, batch in pushes:
                    if event == "events_end":
                        break
                    self.told += batch
                    if enough():
                        return

    async def _pushes(self, url: str) -> AsyncGenerator[tuple[str, list[Event]], None]:
        args = {"prefix": self.prefix, "since": self.index}
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{url}/v1/locks:stream") as stream,
        ):
            await stream.send_bytes(msgspec.msgpack.encode([[1, "events", args]]))
            while True:
                message = await stream.receive_bytes(timeout=20)
                for number, status, body in msgspec.msgpack.decode(message):
                    if status == 503:  # it does not know the new leader yet
                        await asyncio.sleep(0.1)
                        return
                    assert status == 200, body
                    if number:
                        assert body == {"subscription": 1, "index": self.index}
                        continue
                    self.index = body["index"]
                    yield body["event"], body.get("events", [])


def test_subscription_over_a_killed_leader__goes_on_elsewhere_and_misses_and_repeats_nothing(
    cluster: Cluster,
) -> None:
    leader = cluster.lock_leader()
    one, other = (cluster.url(name) for name in cluster.names("lock") if name != leader)
    since = max(newest(url) for url in (one, other))
    load = Load([one, other], "es-")
    follower = Follower("es-", since)

    def kill() -> None:
        cluster.kill(leader)
        until(lambda: cluster.lock_leader() != leader, "another one leads")

    async def scenario() -> None:
        await follower.at(one, lambda: len(follower.told) >= 20)
        killing = asyncio.create_task(asyncio.to_thread(kill))
        await follower.at(one, killing.done)
        await killing
        seen = len(follower.told)
        await follower.at(other, lambda: len(follower.told) >= seen + 20)
        await follower.at(one, lambda: len(follower.told) >= seen + 40)
        await asyncio.to_thread(load.end)
        last = max(load.tokens.values())
        await follower.at(
            other,
            lambda: any(
                event["event"] == "released" and event["token"] == last for event in follower.told
            ),
        )

    load.start()
    asyncio.run(asyncio.wait_for(scenario(), 90))
    assert not any(event["event"] == "gap" for event in follower.told)
    numbers = [event["index"] for event in follower.told]
    assert numbers == sorted(set(numbers)), "an event was told twice"
    heard = [(event["event"], event["name"], event["token"]) for event in follower.told]
    for name, token in load.tokens.items():
        assert ("granted", name, token) in heard
        assert ("released", name, token) in heard
    without_age = [event | {"ago_ms": 0} for event in follower.told]
    for url in (one, other):
        by_sse = events(url, "es-", since, len(numbers))
        assert [event | {"ago_ms": 0} for event in by_sse] == without_age
