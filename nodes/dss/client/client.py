"""The SDK's entry: `async with connect() as client`.

    async with connect("http://127.0.0.1:8001") as client:
        async with client.lock("orders/42", ttl=10, wait=5) as held:
            await update(..., token=held.token)
        await client.queue("jobs").send({"order": 42}, key="42")
        price = await client.cache.get("price/42")

What must not live here: anything but putting the parts together.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from dss.base.limits import SESSION_TTL_MS_DEFAULT
from dss.client.caches import Cache
from dss.client.calls import Calls
from dss.client.locks import LockHandle, Locks, Session
from dss.client.nodes import Nodes, endpoints_of
from dss.client.queues import Queue
from dss.client.requests import Requests
from dss.client.stream import LockStream

DEFAULT_TTL_S = SESSION_TTL_MS_DEFAULT / 1_000


class Client:
    """A connected client; get one from `connect`. It belongs to one event loop."""

    def __init__(self, http: aiohttp.ClientSession, nodes: Nodes, locks: Locks) -> None:
        self._locks = locks
        self._requests = Requests(http, nodes)
        self._queues = Calls(http, nodes, "queue", "/v1/queues:stream")
        self._caches = Calls(http, nodes, "cache", "/v1/cache:stream")
        self.cache = Cache(self._caches, self._requests)

    async def close(self) -> None:
        """Disconnect from queues and cache; locks end by themselves."""
        await self._queues.close()
        await self._caches.close()

    def lock(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL_S,
        wait: float = 5.0,
        shared: bool = False,
        session: Session | None = None,
    ) -> LockHandle:
        """A lock, held inside `async with client.lock(name) as held`.

        Args:
            name: up to 256 bytes of UTF-8.
            ttl: seconds after which it is free when this process dies; kept alive until then. Locks
                with the same ttl share one session.
            wait: seconds to wait for it; 0 tries once.
            shared: together with other shared holders.
            session: hold it with this session instead of the one for `ttl`.
        """
        return LockHandle(self._locks, name, round(ttl * 1_000), wait, shared, session)

    @asynccontextmanager
    async def session(self, ttl: float = DEFAULT_TTL_S) -> AsyncIterator[Session]:
        """A session of one's own, kept alive inside the block and ended after it."""
        session = await self._locks.open_session(round(ttl * 1_000))
        try:
            yield session
        finally:
            await self._locks.end_session(session)

    def queue(self, name: str) -> Queue:
        """A queue by name; nothing is sent until it is used."""
        return Queue(self._queues, self._requests, name)


@asynccontextmanager
async def connect(
    endpoints: str | Sequence[str] | None = None, *, token: str | None = None, name: str = ""
) -> AsyncIterator[Client]:
    """A client for the cluster behind `endpoints`; nodes may start later than it.

    Args:
        endpoints: base URLs of any nodes, or of an ingress; comma-separated or a sequence.
            Default: DSS_ENDPOINTS, else the local ports.
        token: bearer token; default: DSS_TOKEN.
        name: what people see in messages about this client's sessions.
    """
    token = token or os.environ.get("DSS_TOKEN") or None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # No limit: each request is bounded by its own time, and waits must not block others.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
        nodes = Nodes(http, endpoints_of(endpoints))
        stream = LockStream(nodes.locks, http=http)
        locks = Locks(stream, name)
        client = Client(http, nodes, locks)
        try:
            yield client
        finally:
            await client.close()
            await locks.close()
            await stream.close()
