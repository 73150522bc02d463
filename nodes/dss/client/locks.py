"""`client.lock(...)` and `client.session(...)`: sessions kept alive, locks held and given back.

A holder is `(session, owner)`: each lock handle is its own owner, so two tasks of one client
exclude each other. When the outcome of an acquire or a release is unknown, its session is
retired: it takes no further locks and ends with its last one, which frees whatever the lost
request may have left. What must not live here: connections (stream), HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from dss.base.errors import Conflict, DssError, Indeterminate, Unavailable
from dss.base.limits import WAIT_MS_MAX
from dss.client.errors import REPEATABLE, error_of
from dss.client.stream import LockStream

KEEPALIVES_PER_TTL: Final = 3
"""Two lost keepalives in a row still leave the session alive."""
DRIFT: Final = 0.001
"""Clocks may run apart by 1,000 ppm: a holder stops trusting its lock that much early."""
PAUSE_S: Final = 0.1
"""Between repeated requests when the node does not say how long."""
RELEASE_S: Final = 5.0
"""How long a release is repeated while there is no quorum."""

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """Seconds that go on while the machine is suspended: leases elsewhere do, too."""
    return time.clock_gettime(_CLOCK)


class Session:
    """A live session; get one from `client.session(ttl)`."""

    def __init__(self, locks: Locks, session_id: str, ttl_ms: int, safe_until_s: float) -> None:
        self.id = session_id
        self.ttl_ms = ttl_ms
        self.safe_until_s = safe_until_s
        """On `clock_s()`: until then no node can have ended it."""
        self.lost = False
        self.made_by: asyncio.Task[Session] | None = None
        """For a session shared by TTL: the task that made it."""
        self.retired = False
        self.holds = 0
        self._locks = locks
        self._task = asyncio.create_task(self._keep_alive(), name=f"dss-keepalive-{ttl_ms}")

    @property
    def is_safe(self) -> bool:
        """What it holds is certainly still held."""
        return not self.lost and clock_s() < self.safe_until_s

    async def end(self) -> None:
        """Give back everything it holds. It ends by itself when this cannot be said."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if not self.lost:
            self.lost = True
            with contextlib.suppress(DssError, TimeoutError):
                async with asyncio.timeout(RELEASE_S):
                    await self._locks.ask("session.end", {"session": self.id})

    async def _keep_alive(self) -> None:
        pause_s = self.ttl_ms / 1_000 / KEEPALIVES_PER_TTL
        wait_s = pause_s
        while True:
            await asyncio.sleep(wait_s)
            sent_s = clock_s()
            wait_s = min(pause_s, PAUSE_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._locks.ask("session.keepalive", {"session": self.id})
            except (*REPEATABLE, Indeterminate, TimeoutError):
                continue
            except DssError:
                self.lost = True
                self._locks.forget(self)
                return
            self.safe_until_s = sent_s + self.ttl_ms / 1_000 * (1 - DRIFT)
            wait_s = pause_s


class Held:
    """A lock that is held: pass `token` to what the lock protects."""

    def __init__(self, name: str, token: int, session: Session, owner: str) -> None:
        self.name = name
        self.token = token
        """Grows with every grant: what refuses smaller ones is safe from late holders."""
        self.session = session
        self.owner = owner

    @property
    def is_safe(self) -> bool:
        """The lock is certainly still held (its session's TTL has not run out unrenewed)."""
        return self.session.is_safe


class LockHandle:
    """`async with client.lock(...) as held`: acquired on entry, released on exit."""

    def __init__(
        self, locks: Locks, name: str, ttl_ms: int, wait_s: float, shared: bool, own: Session | None
    ) -> None:
        self._locks = locks
        self._name = name
        self._ttl_ms = ttl_ms
        self._wait_s = wait_s
        self._shared = shared
        self._own = own
        self._held: Held | None = None

    async def __aenter__(self) -> Held:
        if self._held is not None:
            raise Conflict("in_use", f"this handle of lock {self._name!r} is in use: make another")
        self._held = await self._locks.acquire(
            self._name, self._ttl_ms, self._wait_s, self._shared, self._own
        )
        return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        held, self._held = self._held, None
        assert held is not None, "exit without entry"
        try:
            await self._locks.release(held)
        except DssError:
            if error is None:  # else the body's own failure is the one to see
                raise


class Locks:
    """Sessions and locks of one client over one stream."""

    def __init__(self, stream: LockStream, name: str = "") -> None:
        self._stream = stream
        self._name = name
        self._owners = itertools.count(1)
        self._shared: dict[int, asyncio.Task[Session]] = {}
        self._all: set[Session] = set()
        self._endings: set[asyncio.Task[None]] = set()

    async def ask(self, op: str, args: dict[str, Any]) -> Any:
        """One request's body; statuses from 400 on raise their error."""
        status, body = await self._stream.request(op, args)
        if status >= 400:
            raise error_of(status, body)
        return body

    # --- sessions -------------------------------------------------------------------------

    async def open_session(self, ttl_ms: int) -> Session:
        """A session of one's own."""
        args: dict[str, Any] = {"ttl_ms": ttl_ms}
        if self._name:
            args["name"] = self._name
        sent_s = clock_s()
        try:
            body = await self.ask("session.create", args)
        except Indeterminate as error:
            # Nobody knows its id, so it can only run out: asking again does no harm.
            raise Unavailable(error.message) from error
        safe_until_s = sent_s + ttl_ms / 1_000 * (1 - DRIFT)
        session = Session(self, body["session"], ttl_ms, safe_until_s)
        self._all.add(session)
        return session

    async def shared_session(self, ttl_ms: int) -> Session:
        """The client's session with this TTL: one for all locks."""
        task = self._shared.get(ttl_ms)
        if task is None:
            task = asyncio.create_task(self.open_session(ttl_ms), name="dss-session")
            self._shared[ttl_ms] = task
        try:
            session = await asyncio.shield(task)
        except DssError:
            if self._shared.get(ttl_ms) is task:
                del self._shared[ttl_ms]
            raise
        session.made_by = task
        return session

    async def end_session(self, session: Session) -> None:
        self.forget(session)
        self._all.discard(session)
        await session.end()

    def forget(self, session: Session) -> None:
        """No new lock is taken with it."""
        session.retired = True
        if self._shared.get(session.ttl_ms) is session.made_by:
            self._shared.pop(session.ttl_ms, None)
        if session.lost:
            self._all.discard(session)

    def _retire(self, session: Session) -> None:
        """Some request's outcome is unknown: end it as soon as nothing known is held."""
        self.forget(session)
        if session.holds == 0 and session in self._all:
            self._all.discard(session)
            task = asyncio.create_task(session.end(), name="dss-session-end")
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)

    # --- locks ----------------------------------------------------------------------------

    async def acquire(
        self, name: str, ttl_ms: int, wait_s: float, shared: bool, own: Session | None
    ) -> Held:
        """Wait up to `wait_s`.

        Raises:
            Conflict: `lock_timeout`, `deadlock`, `session_expired` (of a session of one's own).
            Indeterminate: the lock may be held by a session that is being ended.
        """
        until_s = clock_s() + wait_s
        renewed = False
        while True:
            try:
                session = own or await self.shared_session(ttl_ms)
                return await self._try_acquire(name, session, until_s, shared)
            except Conflict as error:
                late = clock_s() >= until_s
                if error.code == "session_expired" and own is None and not renewed:
                    renewed = True
                    self.forget(session)
                elif error.code != "lock_timeout" or late:
                    raise
            except REPEATABLE as error:
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S
                if clock_s() + pause_s > until_s:
                    raise
                await asyncio.sleep(pause_s)

    async def _try_acquire(self, name: str, session: Session, until_s: float, shared: bool) -> Held:
        owner = str(next(self._owners))
        wait_ms = max(0, min(WAIT_MS_MAX, round((until_s - clock_s()) * 1_000)))
        args: dict[str, Any] = {"session": session.id, "name": name, "owner": owner}
        if wait_ms:
            args["wait_ms"] = wait_ms
        if shared:
            args["mode"] = "shared"
        future = self._stream.request("acquire", args)
        session.holds += 1  # also while it waits: a retired session must not end under it
        try:
            status, body = await asyncio.shield(future)
            if status >= 400:
                raise error_of(status, body)
        except asyncio.CancelledError:
            future.add_done_callback(self._give_back(name, session, owner))
            raise
        except Indeterminate:
            self._outcome_unknown(session)
            self._dropped(session)
            raise
        except DssError:
            self._dropped(session)
            raise
        return Held(name, int(body["token"]), session, owner)

    async def release(self, held: Held) -> None:
        """Give it back.

        Raises:
            Conflict: `not_holder` or `session_expired`: it was lost before.
        """
        until_s = clock_s() + RELEASE_S
        args = {
            "session": held.session.id, "name": held.name, "token": held.token, "owner": held.owner,
        }  # fmt: skip
        unknown = False
        try:
            while True:
                try:
                    await self.ask("release", args)
                    return
                except (*REPEATABLE, Indeterminate) as error:
                    unknown = unknown or isinstance(error, Indeterminate)
                    pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S
                    if clock_s() + pause_s > until_s:
                        self._outcome_unknown(held.session)
                        raise
                    await asyncio.sleep(pause_s)
                except Conflict as error:
                    if unknown and error.code == "not_holder":
                        return  # the release whose answer was lost had happened
                    raise
        except asyncio.CancelledError:
            self._outcome_unknown(held.session)
            raise
        finally:
            self._dropped(held.session)

    @staticmethod
    def _outcome_unknown(session: Session) -> None:
        """A session of the user's own is not ours to end: its user was told, and decides."""
        if session.made_by is not None:
            session.retired = True

    def _dropped(self, session: Session) -> None:
        session.holds -= 1
        if session.retired and session.made_by is not None:
            self._retire(session)

    def _give_back(
        self, name: str, session: Session, owner: str
    ) -> Callable[[asyncio.Future[tuple[int, Any]]], None]:
        """For a cancelled wait: when the grant comes after all, release it."""

        def settled(future: asyncio.Future[tuple[int, Any]]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._outcome_unknown(session)
            elif future.result()[0] < 400:
                held = Held(name, int(future.result()[1]["token"]), session, owner)
                task = asyncio.create_task(self._release_quietly(held), name="dss-give-back")
                self._endings.add(task)
                task.add_done_callback(self._endings.discard)
                return
            self._dropped(session)

        return settled

    async def _release_quietly(self, held: Held) -> None:
        with contextlib.suppress(DssError):
            await self.release(held)

    async def close(self) -> None:
        """End all sessions: whatever is held is given back."""
        tasks = [task for task in self._shared.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sessions, self._all = list(self._all), set()
        await asyncio.gather(*(session.end() for session in sessions))
        await asyncio.gather(*self._endings, return_exceptions=True)
