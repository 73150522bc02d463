"""A session of the client: kept alive, its commands numbered, its end told to what it holds.

What must not live here: acquiring (locks.py), connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, Final, Protocol

from dss.base.errors import DssError, Indeterminate
from dss.base.handles import handle_of
from dss.client.errors import REPEATABLE
from dss.client.lock_calls import PAUSE_S, LockCalls, clock_s

KEEPALIVES_PER_TTL: Final = 3
"""Two lost keepalives in a row still leave the session alive."""
SILENT_S_MIN: Final = 0.5
"""A node that lives says something in this time, if only that there is no leader."""
SILENT_S_MAX: Final = 2.0
HURRY_S_MAX: Final = 0.3
"""After a lost connection: within this time the session is known at another node."""
LOOKED_AT_MAX: Final = 1_000
"""Holds of one session that are looked at together; over HTTP, at each keepalive."""
DRIFT: Final = 0.001
"""Clocks may run apart by 1,000 ppm: a holder stops trusting its lock that much early."""
RESOLVE_S: Final = 5.0
"""How long an unknown outcome is asked for: several elections."""
END_S: Final = 5.0
"""How long the end of a session is tried: beyond, it ends by its TTL."""


class Holder(Protocol):
    """What a session tells of a loss."""

    changing: bool
    """Its token may be another one already, by an upgrade whose answer is on its way."""

    def lose(self, reason: str) -> None: ...


class Session:
    """A live session; get one from `client.session(ttl)`.

    Attributes:
        id: what the server calls it; whoever knows it may act for it.
        ttl_ms: it ends when no keepalive has come for so long.
        safe_until_s: on `clock_s()`; until then no node can have ended it.
        lost: it has ended, and all that it held with it.

    Example:
        async with client.session(ttl=30) as session:
            async with client.lock("a", session=session):
                assert session.is_safe
    """

    def __init__(self, calls: LockCalls, session_id: str, ttl_ms: int, sent_s: float) -> None:
        self.id = session_id
        self.ttl_ms = ttl_ms
        self.safe_until_s = sent_s + ttl_ms / 1_000 * (1 - DRIFT)
        self.lost = False
        self.holders: dict[tuple[str, int], Holder] = {}
        """By name and token: whom to tell when they are lost."""
        self._calls = calls
        self._floor = 0
        self._newest = 0
        self._answered: set[int] = set()
        self._connection = calls.connection
        self._unlooked: list[tuple[str, int]] = []
        """Holds that are still to be looked for since the connection is another one."""
        self._hurried = asyncio.Event()
        self._task = asyncio.create_task(self._keep_alive(), name=f"dss-keepalive-{ttl_ms}")

    def __repr__(self) -> str:
        state = "lost" if self.lost else f"ttl {self.ttl_ms / 1_000:g} s"
        return f"<Session {handle_of(self.id)}…, {state}>"  # whoever knows all of the id may use it

    @property
    def is_safe(self) -> bool:
        """What it holds is certainly still held."""
        return not self.lost and clock_s() < self.safe_until_s

    async def do(self, op: str, args: dict[str, Any], until_s: float) -> Any:
        """Carry out `op` exactly once; its answer.

        Args:
            until_s: on `clock_s()`: how long to repeat it while it is refused for now.

        Raises:
            Indeterminate: no answer for RESOLVE_S after that.
            NoQuorum, Unavailable, Overloaded: this time nothing was done.
                Of both the number stays open: do it again with the same `args`, or `skip` it.
        """
        if "seq" not in args:
            self._newest = args["seq"] = self._newest + 1
            args["session"], args["ack"] = self.id, self._floor
        try:
            body = await self._calls.settle(
                op,
                args,
                lambda unknown: 0.0 if self.lost else until_s + (RESOLVE_S if unknown else 0.0),
            )
        except (*REPEATABLE, Indeterminate):
            raise
        except Exception:  # nobody asks for it again, also when it could not even be sent
            self._done(args["seq"])
            raise
        self._done(args["seq"])
        return body

    def skip(self, args: dict[str, Any]) -> None:
        """Nobody will ask for its answer; should it still be on its way, it is refused."""
        self._done(args["seq"])

    def _done(self, seq: int) -> None:
        if seq <= self._floor:
            return
        self._calls.forget(self.id, seq)
        self._answered.add(seq)
        while self._floor + 1 in self._answered:
            self._floor += 1
            self._answered.remove(self._floor)

    def lose(self, reason: str) -> None:
        """It has ended."""
        if self.lost:
            return
        self.lost = True
        self._task.cancel()
        self._calls.forget_session(self.id)
        holders, self.holders = list(self.holders.values()), {}
        for holder in holders:
            holder.lose(reason)

    def hurry(self) -> None:
        """Be kept alive soon: until then no node tells of its losses."""
        self._hurried.set()

    async def end(self) -> None:
        """Give back everything it holds. It ends by itself when this cannot be said."""
        if self.lost:
            return
        self.lose("its session was ended")
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(DssError, TimeoutError):
            async with asyncio.timeout(END_S):
                await self._calls.ask("session.end", {"session": self.id})

    async def _keep_alive(self) -> None:
        pause_s = self.ttl_ms / 1_000 / KEEPALIVES_PER_TTL
        silent_s = min(SILENT_S_MAX, max(SILENT_S_MIN, pause_s / 2))
        wait_s = pause_s
        while True:
            await self._pause(wait_s)
            sent_s = clock_s()
            wait_s = min(pause_s, PAUSE_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._calls.keep_alive(self.id, silent_s)
            except (*REPEATABLE, Indeterminate, TimeoutError):
                continue
            except DssError as error:
                self.lose(error.message)
                return
            self.safe_until_s = sent_s + self.ttl_ms / 1_000 * (1 - DRIFT)
            with contextlib.suppress(DssError, TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_at_holds()
            wait_s = max(0.0, sent_s + pause_s - clock_s())

    async def _pause(self, wait_s: float) -> None:
        """Shorter when hurried, but not for all clients of a lost node at the same moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurried.wait()
                self._hurried.clear()
                await asyncio.sleep(HURRY_S_MAX * random.random())  # noqa: S311 (no secret)

    async def _look_at_holds(self) -> None:
        """A node tells of locks that are broken from this session's first keepalive on it: what
        was broken before, and over HTTP, is looked for."""
        before, self._connection = self._connection, self._calls.connection
        told = self._connection is not None
        if self._connection is not before or (not told and not self._unlooked):
            self._unlooked = list(self.holders)
        while self._unlooked:  # what fails or comes too late stays for the next time
            keys = self._unlooked[:LOOKED_AT_MAX]
            looks = [self._calls.ask("verify", {"name": n, "token": t}) for n, t in keys]
            found = await asyncio.gather(*looks)
            del self._unlooked[: len(keys)]
            for key, view in zip(keys, found, strict=True):
                holder = self.holders.get(key)
                if holder is not None and not view["valid"] and not holder.changing:
                    del self.holders[key]
                    holder.lose("it was taken away: see its history")
            if not told:
                return
