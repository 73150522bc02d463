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
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp

from dss.base.errors import DssError
from dss.base.limits import SESSION_TTL_MS_DEFAULT
from dss.client.caches import Cache
from dss.client.calls import Calls
from dss.client.checks import (
    check_names,
    check_owner,
    check_permits,
    check_priority,
    check_ttl,
    check_wait,
)
from dss.client.election import Election
from dss.client.events import LockNews
from dss.client.handles import LockHandle, RwLock
from dss.client.lock_calls import LockCalls
from dss.client.locks import Locks
from dss.client.nodes import Nodes, endpoints_of
from dss.client.queues import Queue
from dss.client.requests import Requests
from dss.client.sessions import Session
from dss.client.stream import LockStream
from dss.client.waits import Want

DEFAULT_TTL_S = SESSION_TTL_MS_DEFAULT / 1_000


class Client:
    """A connected client; get one from `connect`. It belongs to one event loop.

    Example:
        async with connect() as client, client.lock("orders/42") as held:
            print(held.token)
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        nodes: Nodes,
        requests: Requests,
        locks: Locks,
        stack: AsyncExitStack,
    ) -> None:
        self._locks = locks
        self._stack = stack
        self._requests = requests
        self._queues = Calls(http, nodes, "queue", "/v1/queues:stream")
        self._caches = Calls(http, nodes, "cache", "/v1/cache:stream")
        self.cache = Cache(self._caches, self._requests)

    async def aclose(self) -> None:
        """Give back all that is held, and disconnect. `async with connect(…)` does it."""
        await self._stack.aclose()

    def lock(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL_S,
        wait: float | None = 5.0,
        shared: bool = False,
        priority: int = 0,
        confirm: float = 0.0,
        session: Session | None = None,
        owner: str = "",
    ) -> LockHandle:
        """A lock, held inside `async with client.lock(name) as held`.

        Args:
            name: up to 256 bytes of UTF-8.
            ttl: seconds after which it is free when this process dies; kept alive until then. Locks
                with the same ttl share one session.
            wait: seconds to wait for it; 0 tries once, None waits for ever.
            shared: together with other shared holders.
            priority: 0 to 9: each level counts as having come one second earlier.
            confirm: the grant counts only once this client has said within so many seconds that it
                knows of it.
            session: hold it with this session instead of the one for `ttl`.
            owner: the same owner of the same session may hold it several times, and a deadlock
                over its locks is found; default: each handle is an owner of its own.
        """
        args: dict[str, Any] = {"name": name}
        if shared:
            args["mode"] = "shared"
        if confirm:
            args["confirm_ms"] = round(confirm * 1_000)
        mode = "shared" if shared else "exclusive"
        want = _want("acquire", (name,), args, ttl, wait, priority, session, mode, confirm)
        return LockHandle(self._locks, want, check_owner(owner))

    def locks(
        self,
        names: Sequence[str],
        *,
        ttl: float = DEFAULT_TTL_S,
        wait: float | None = 5.0,
        priority: int = 0,
        session: Session | None = None,
        owner: str = "",
    ) -> LockHandle:
        """All of these locks, or none: `held.tokens` by name. Their order does not matter."""
        args = {"locks": list(check_names(names))}
        want = _want("acquire_many", tuple(names), args, ttl, wait, priority, session)
        return LockHandle(self._locks, want, check_owner(owner))

    def rwlock(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL_S,
        wait: float | None = 5.0,
        priority: int = 0,
        session: Session | None = None,
        owner: str = "",
    ) -> RwLock:
        """`async with client.rwlock(name).read() as held`, or `.write()`."""
        writer = _want("acquire", (name,), {"name": name}, ttl, wait, priority, session)
        shared = {**writer.args, "mode": "shared"}
        reader = _want("acquire", (name,), shared, ttl, wait, priority, session, "shared")
        return RwLock(self._locks, reader, writer, check_owner(owner))

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        permits: int = 1,
        ttl: float = DEFAULT_TTL_S,
        wait: float | None = 5.0,
        priority: int = 0,
        session: Session | None = None,
        owner: str = "",
    ) -> LockHandle:
        """`permits` of `limit`, which all who use it must name alike (409 `limit_mismatch`)."""
        permits, limit = check_permits(permits, limit)
        args = {"name": name, "mode": "semaphore", "limit": limit, "permits": permits}
        want = _want("acquire", (name,), args, ttl, wait, priority, session, "semaphore")
        return LockHandle(self._locks, want, check_owner(owner))

    def election(
        self, name: str, *, ttl: float = DEFAULT_TTL_S, wait: float | None = None, priority: int = 0
    ) -> Election:
        """One leader among all that campaign under `name`; nobody leads longer than `ttl` dead."""
        want = _want("acquire", (name,), {"name": name}, ttl, wait, priority, None)
        return Election(self._locks, want)

    @asynccontextmanager
    async def session(self, ttl: float = DEFAULT_TTL_S) -> AsyncIterator[Session]:
        """A session of one's own, kept alive inside the block and ended after it."""
        session = await self._locks.open_session(check_ttl(ttl))
        try:
            yield session
        finally:
            await self._locks.end_session(session)

    def queue(self, name: str) -> Queue:
        """A queue by name; nothing is sent until it is used."""
        return Queue(self._queues, self._requests, name)


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    token: str | None = None,
    name: str = "",
    headers: Mapping[str, str] | None = None,
) -> Connection:
    """A client for the cluster behind `endpoints`; nodes may start later than it.

    Args:
        endpoints: base URLs of any nodes, or of an ingress; comma-separated or a sequence. One is
            enough: it tells of the others. Default: DSS_ENDPOINTS, else the local ports.
        token: bearer token; default: DSS_TOKEN.
        name: what people see in messages about this client's sessions.
        headers: sent with every request; for an ingress that wants a certain Host.

    Example:
        async with connect(name="worker-7") as client:
            async with client.lock("orders/42", ttl=10, wait=5) as held:
                held.check()
        client = await connect()  # for as long as a program runs
        await client.aclose()
    """
    sent = dict(headers or {})
    token = token or os.environ.get("DSS_TOKEN") or None
    if token:
        sent["Authorization"] = f"Bearer {token}"
    return Connection(endpoints_of(endpoints), sent, name)


class Connection:
    """What `connect` gives: `async with` connects, and disconnects at the end.

    `client = await connect(…)` is for a client that lives longer: end it by `client.aclose()`.
    """

    def __init__(self, endpoints: Sequence[str], headers: dict[str, str], name: str) -> None:
        self._endpoints = endpoints
        self._headers = headers
        self._name = name
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Client:
        if self._client is not None:
            raise DssError("this connection is in use: call connect() for another one")
        async with AsyncExitStack() as stack:
            # No limit: each request is bounded by its own time, and waits must not block others.
            connector = aiohttp.TCPConnector(limit=0)
            http = aiohttp.ClientSession(headers=self._headers, connector=connector)
            await stack.enter_async_context(http)
            nodes = Nodes(http, self._endpoints)
            requests = Requests(http, nodes)
            stream = LockStream(
                nodes.locks,
                http=http,
                on_push=lambda _, body: locks.pushed(body),
                on_broken=lambda: locks.disconnected(),
            )
            locks = Locks(LockCalls(stream, requests), partial(LockNews, http, nodes), self._name)
            kept = AsyncExitStack()
            client = self._client = Client(http, nodes, requests, locks, kept)
            for close in (stream.close, locks.close, client._queues.close, client._caches.close):
                stack.push_async_callback(close)
            kept.push_async_callback(stack.pop_all().aclose)
        return client

    async def __aexit__(self, *error: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"not connected yet, so there is no {name!r}: async with connect(…) as client"
        )


def _want(
    op: str,
    names: tuple[str, ...],
    args: dict[str, Any],
    ttl: float,
    wait: float | None,
    priority: int,
    session: Session | None,
    mode: str = "exclusive",
    confirm_s: float = 0.0,
) -> Want:
    check_names(names)
    priority = check_priority(priority)
    if priority:
        args["priority"] = priority
    return Want(op, names, args, mode, check_ttl(ttl), session, check_wait(wait), confirm_s)
