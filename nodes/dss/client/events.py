"""What happens to one lock, as the nodes tell it: server-sent events, gone on with on any node.

Source: WHATWG HTML § Server-sent events. What must not live here: what follows from them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import msgspec

from dss.base.limits import EVENTS_COMMENT_S
from dss.client.nodes import Nodes
from dss.client.requests import segment

CONNECT_S: Final = 3.0
"""For the answer's first line: behind a proxy that keeps lines back there is no stream."""
PAUSE_S: Final = 0.2
PAUSE_S_MAX: Final = 2.0
KEPT_MAX: Final = 1_000
"""Events that the reader has not taken yet; beyond, it is told of a gap."""

GAP: Final[dict[str, Any]] = {"event": "gap"}
"""Something may have happened that no event tells of: look at the lock."""


class LockNews:
    """The events of one lock, while `follow` is open.

    Attributes:
        connected: a node tells what happens; without one nothing is known, and `next` says so by
            returning None when its time is over.
    """

    def __init__(self, http: aiohttp.ClientSession, nodes: Nodes, name: str) -> None:
        self._http = http
        self._nodes = nodes
        self._name = name
        self._found: asyncio.Queue[dict[str, Any]] = asyncio.Queue(KEPT_MAX)
        self._since = ""
        self.connected = False

    async def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event in order, or None. After each (re)connection comes GAP."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._found.get()
        except TimeoutError:
            return None

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[LockNews]:
        """Connected, and connected again, in the background."""
        task = asyncio.create_task(self._run(), name="dss-lock-news")
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        pause_s = PAUSE_S
        while True:
            for url in list(await self._nodes.of_role("lock")):
                if await self._read(url):
                    pause_s = PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            await self._nodes.refresh()

    async def _read(self, url: str) -> bool:
        """One node's stream until it breaks; whether it was one."""
        query = f"prefix={segment(self._name)}" + (f"&since={self._since}" if self._since else "")
        quiet = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=1.5 * EVENTS_COMMENT_S
        )
        try:
            async with asyncio.timeout(CONNECT_S) as first:
                async with self._http.get(f"{url}/v1/locks:events?{query}", timeout=quiet) as reply:
                    if reply.status != 200:
                        return False
                    async for text in _events(reply.content):
                        if not self.connected:
                            first.reschedule(None)
                            self.connected = True
                            if not self._since:
                                self._put(GAP)
                        self._take(text)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError, ValueError):
            pass  # the node is gone: another one goes on
        was, self.connected = self.connected, False
        return was

    def _take(self, fields: dict[str, str]) -> None:
        if "data" in fields:
            event = msgspec.json.decode(fields["data"])
            if event["event"] == "gap":
                self._put(GAP)
            elif event["name"] == self._name:
                self._put(event)
        self._since = fields.get("id", self._since)

    def _put(self, event: dict[str, Any]) -> None:
        if self._found.full():
            while not self._found.empty():
                self._found.get_nowait()
            event = GAP
        self._found.put_nowait(event)


async def _events(content: aiohttp.StreamReader) -> AsyncGenerator[dict[str, str], None]:
    """The fields of each block."""
    fields: dict[str, str] = {}
    async for raw in content:
        line = raw.decode().rstrip("\r\n")
        if not line:
            yield fields
            fields = {}
            continue
        key, _, value = line.partition(":")
        if key:  # else a comment
            fields[key] = value.removeprefix(" ")
