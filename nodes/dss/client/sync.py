"""`dss.client.sync`: the same client for code that blocks.

    from dss.client.sync import connect

    with connect() as client, client.lock("orders/42", ttl=10, wait=5) as held:
        update(..., token=held.token)

One thread runs the async client, so leases are kept alive while the caller computes. All methods
may be called from any thread. A thread cannot be cancelled: ask `held.check()`, or give
`held.guard(on_lost=…)` something to stop. What must not live here: anything but blocking.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from dss.base.errors import DssError
from dss.client import client as aio
from dss.client import election, handles, held, sessions
from dss.client.client import DEFAULT_TTL_S
from dss.client.election import Leader
from dss.client.errors import Closed, DeadlockError, LockTimeout
from dss.client.held import LockLost
from dss.client.loop_thread import LoopThread
from dss.client.queues import Message
from dss.client.sync_services import Cache, Queue

__all__ = [
    "Cache", "Client", "DeadlockError", "Election", "Held", "Leader", "LockHandle", "LockLost",
    "LockTimeout", "Message", "Queue", "RwLock", "Session", "connect",
]  # fmt: skip


class Session:
    """A live session; get one from `client.session(ttl)`.

    Example:
        with client.session(ttl=30) as session, client.lock("a", session=session):
            assert session.is_safe
    """

    def __init__(self, session: sessions.Session) -> None:
        self.inner = session
        self.id = session.id

    @property
    def is_safe(self) -> bool:
        """What it holds is certainly still held."""
        return self.inner.is_safe


class Held:
    """A lock that is held; see `dss.client.Held`.

    Example:
        with client.lock("orders/42") as held, held.guard(on_lost=lambda: print("lost")):
            held.check()
    """

    def __init__(self, loop: LoopThread, inner: held.Held) -> None:
        self._loop = loop
        self._inner = inner
        self.name = inner.name

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def token(self) -> int:
        """Pass it to what the lock protects."""
        return self._inner.token

    @property
    def tokens(self) -> dict[str, int]:
        """Of several locks, by name."""
        return dict(self._inner.tokens)

    @property
    def mode(self) -> str:
        """`exclusive`, `shared` or `semaphore`."""
        return self._inner.mode

    @property
    def safe_until(self) -> float:
        """On `dss.client.clock_s()`: until then nobody else can have it."""
        return self._inner.safe_until

    @property
    def is_safe(self) -> bool:
        """The lock is certainly still held."""
        return self._inner.is_safe

    @property
    def session_id(self) -> str:
        """Of the session that holds it: whoever knows it may act for it."""
        return self._inner.session.id

    def check(self) -> None:
        """Raises LockLost unless `is_safe`."""
        self._inner.check()

    def loss(self) -> LockLost:
        """The error that says why it is not safe."""
        return self._inner.loss()

    @contextmanager
    def guard(self, on_lost: Callable[[], None] | None = None) -> Iterator[Held]:
        """Raises LockLost after the block when the lock was lost meanwhile.

        Args:
            on_lost: called once, in another thread, as soon as it is lost: to stop the work.
        """
        self.check()

        async def watch() -> None:
            await self._inner.until_lost()
            if on_lost is not None:
                await asyncio.to_thread(on_lost)

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(watch(), name="dss-guard")

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        task = self._loop.run(start())
        try:
            yield self
        finally:
            self._loop.run(stop())
        self.check()

    def upgrade(self, *, wait: float = 5.0) -> int:
        """A shared hold becomes exclusive; the new token."""
        return self._loop.run(self._inner.upgrade(wait=wait))

    def downgrade(self) -> None:
        """An exclusive hold becomes shared."""
        self._loop.run(self._inner.downgrade())


class _Entered:
    """`with` takes and gives back."""

    def _take(self) -> Held:
        raise NotImplementedError

    def _give_back(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Held:
        return self._take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self._give_back()
        except DssError:
            if error is None:  # else the body's own failure is the one to see
                raise


class LockHandle(_Entered):
    """`with client.lock(...) as held`; see `dss.client.LockHandle`.

    Example:
        with client.lock("orders/42", wait=5) as held:
            print(held.token)
    """

    def __init__(self, loop: LoopThread, inner: handles.LockHandle) -> None:
        self._loop = loop
        self._inner = inner

    def acquire(self) -> Held:
        """Without `with`: give it back with `release`, from any thread."""
        return Held(self._loop, self._loop.run(self._inner.acquire()))

    def release(self) -> None:
        """Give back what `acquire` took."""
        self._loop.run(self._inner.release())

    def _take(self) -> Held:
        doer = threading.current_thread()
        return Held(self._loop, self._loop.run(self._inner.acquire_as(doer)))

    _give_back = release


class Election(_Entered):
    """See `dss.client.Election`.

    Example:
        election = client.election("scheduler", ttl=5)
        with election as leading:
            assert election.leader().token == leading.token
    """

    def __init__(self, loop: LoopThread, inner: election.Election) -> None:
        self._loop = loop
        self._inner = inner

    def campaign(self) -> Held:
        """Wait until elected; give it up with `resign`."""
        return Held(self._loop, self._loop.run(self._inner.campaign()))

    def resign(self) -> None:
        """Let the next one lead."""
        self._loop.run(self._inner.resign())

    def leader(self) -> Leader | None:
        """Who leads now, or None."""
        return self._loop.run(self._inner.leader())

    def observe(self, *, every: float = 0.5) -> Iterator[Leader | None]:
        """The leader now, and each other one that is seen, for ever."""
        seen = self._inner.observe(every=every)

        async def following() -> Leader | None:
            return await anext(seen)

        while True:
            yield self._loop.run(following())

    _take = campaign
    _give_back = resign


class RwLock:
    """`client.rwlock(name)`: any number of readers, or one writer.

    Example:
        with client.rwlock("catalogue").read() as held:
            held.upgrade(wait=5)
    """

    def __init__(self, loop: LoopThread, inner: handles.RwLock) -> None:
        self._loop = loop
        self._inner = inner

    def read(self) -> LockHandle:
        """Held together with other readers."""
        return LockHandle(self._loop, self._inner.read())

    def write(self) -> LockHandle:
        """Held alone."""
        return LockHandle(self._loop, self._inner.write())


class Client:
    """A connected client; get one from `connect`. Arguments are those of `dss.client.Client`.

    `with` closes it at the end; without, call `close`. One that is left open closes with the
    process. It does not survive a fork: connect in the child.

    Example:
        client = connect(name="worker-7")
        with client.lock("orders/42"):
            pass
        client.close()
    """

    def __init__(self, loop: LoopThread, inner: aio.Client) -> None:
        self._loop = loop
        self._inner = inner
        self.cache = Cache(loop, inner)
        atexit.register(self.close)

    def close(self) -> None:
        """Give back all that is held, and disconnect."""
        atexit.unregister(self.close)
        try:
            self._loop.run(self._inner.aclose())
        except Closed:
            return  # closed before, or the parent's
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        """A lock, held inside `with client.lock(name) as held`."""
        inner = self._inner.lock(
            name, ttl=ttl, wait=wait, shared=shared, priority=priority, confirm=confirm,
            session=_inner(session), owner=owner,
        )  # fmt: skip
        return LockHandle(self._loop, inner)

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
        """All of these locks, or none."""
        inner = self._inner.locks(
            names, ttl=ttl, wait=wait, priority=priority, session=_inner(session), owner=owner
        )
        return LockHandle(self._loop, inner)

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
        """`with client.rwlock(name).read() as held`, or `.write()`."""
        inner = self._inner.rwlock(
            name, ttl=ttl, wait=wait, priority=priority, session=_inner(session), owner=owner
        )
        return RwLock(self._loop, inner)

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
        """`permits` of `limit`, which all who use it must name alike."""
        inner = self._inner.semaphore(
            name, limit=limit, permits=permits, ttl=ttl, wait=wait, priority=priority,
            session=_inner(session), owner=owner,
        )  # fmt: skip
        return LockHandle(self._loop, inner)

    def election(
        self, name: str, *, ttl: float = DEFAULT_TTL_S, wait: float | None = None, priority: int = 0
    ) -> Election:
        """One leader among all that campaign under `name`."""
        inner = self._inner.election(name, ttl=ttl, wait=wait, priority=priority)
        return Election(self._loop, inner)

    @contextmanager
    def session(self, ttl: float = DEFAULT_TTL_S) -> Iterator[Session]:
        """A session of one's own, kept alive inside the block and ended after it."""
        opened = self._inner.session(ttl)
        session = self._loop.run(_enter(opened))
        try:
            yield Session(session)
        finally:
            self._loop.run(_leave(opened))

    def queue(self, name: str) -> Queue:
        """A queue by name; nothing is sent until it is used."""
        return Queue(self._loop, self._inner.queue(name))


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    token: str | None = None,
    name: str = "",
    headers: Mapping[str, str] | None = None,
) -> Client:
    """A client for the cluster behind `endpoints`; arguments as of `dss.client.connect`.

    Example:
        with connect() as client, client.lock("orders/42") as held:
            print(held.token)
    """
    opened = aio.connect(endpoints, token=token, name=name, headers=headers)
    loop = LoopThread()
    return Client(loop, loop.run(_enter(opened)))


def _inner(session: Session | None) -> sessions.Session | None:
    return None if session is None else session.inner


async def _enter(manager: Any) -> Any:
    return await manager.__aenter__()


async def _leave(manager: Any) -> None:
    await manager.__aexit__(None, None, None)
