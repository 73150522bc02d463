"""Acquiring and releasing for the handles, exactly once; the client's sessions by TTL.

Commands carry sequence numbers: a lost answer is asked for again. What a caller has given up
(cancelled, or no answer) is undone in the background: its wait is ended, and what was granted
after all is released. What must not live here: connections, one wait (waits.py), what users call
(handles.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dss.base.errors import Conflict, DssError, Indeterminate, Unavailable
from dss.client.errors import REPEATABLE
from dss.client.events import LockNews
from dss.client.held import Held
from dss.client.lock_calls import PAUSE_S, LockCalls, clock_s
from dss.client.owners import Owners
from dss.client.sessions import Session
from dss.client.waits import Wait, Want, tokens_of

RELEASE_S: Final = 5.0
"""How long a release is repeated while there is no quorum."""
CLOSE_S: Final = 5.0
"""For what is being undone when the client closes: sessions end, so nothing stays held."""


@dataclass(slots=True)
class Sessions:
    """The sessions of a client."""

    by_ttl: dict[int, asyncio.Task[Session]] = field(default_factory=dict)
    shared: set[Session] = field(default_factory=set)
    """Those that locks of one TTL share; the client ends them."""
    retired: set[Session] = field(default_factory=set)
    """They take no new locks and end with their last one."""
    holds: dict[Session, int] = field(default_factory=dict)
    live: dict[str, Session] = field(default_factory=dict)


class Locks:
    """Sessions and locks of one client."""

    def __init__(self, calls: LockCalls, news: Callable[[str], LockNews], name: str = "") -> None:
        self.calls = calls
        self.news = news
        self._name = name
        self.owners = Owners()
        self._sessions = Sessions()
        self._chores: set[asyncio.Task[None]] = set()

    def pushed(self, body: Any) -> None:
        """A message the node sends unasked: sessions and locks that were lost."""
        if not isinstance(body, dict):
            return
        session = self._sessions.live.get(str(body.get("session")))
        if session is None:
            return
        reason = str(body.get("reason") or "unknown")
        if body.get("event") == "session_lost":
            session.lose(f"its session has ended ({reason})")
            self.forget(session)
        elif body.get("event") == "lock_lost":
            holder = session.holders.pop((str(body["name"]), int(body["token"])), None)
            if holder is not None:
                holder.lose(reason)

    def disconnected(self) -> None:
        """The stream broke: no losses are told until sessions are kept alive over another."""
        for session in self._sessions.live.values():
            session.hurry()

    # --- sessions -------------------------------------------------------------------------

    async def open_session(self, ttl_ms: int) -> Session:
        """A session of one's own."""
        args: dict[str, Any] = {"ttl_ms": ttl_ms}
        if self._name:
            args["name"] = self._name
        sent_s = clock_s()
        try:
            body = await self.calls.ask("session.create", args)
        except Indeterminate as error:
            # Nobody knows its id, so it can only run out: asking again does no harm.
            raise Unavailable(error.message) from error
        session = Session(self.calls, body["session"], ttl_ms, sent_s)
        self._sessions.live[session.id] = session
        return session

    def _known_session(self, ttl_ms: int) -> Session | None:
        """The client's session with this TTL, if it is there and lives."""
        task = self._sessions.by_ttl.get(ttl_ms)
        session = _result(task) if task is not None else None
        return session if session in self._sessions.shared and not session.lost else None

    async def _shared_session(self, ttl_ms: int) -> Session:
        """The client's session with this TTL: one for all locks."""
        by_ttl = self._sessions.by_ttl
        while True:
            task = by_ttl.get(ttl_ms)
            if task is None:
                task = asyncio.create_task(self.open_session(ttl_ms), name="dss-session")
                by_ttl[ttl_ms] = task
            try:
                session = await asyncio.shield(task)
            except DssError:
                if by_ttl.get(ttl_ms) is task:
                    del by_ttl[ttl_ms]
                raise
            if not session.lost:
                self._sessions.shared.add(session)
                return session
            self.forget(session)

    async def end_session(self, session: Session) -> None:
        """End it and all that it holds."""
        self.forget(session)
        self._sessions.live.pop(session.id, None)
        await session.end()

    def forget(self, session: Session) -> None:
        """No new lock is taken with it."""
        task = self._sessions.by_ttl.get(session.ttl_ms)
        if task is not None and _result(task) is session:
            del self._sessions.by_ttl[session.ttl_ms]
        if session.lost:
            self._sessions.live.pop(session.id, None)
            self._sessions.shared.discard(session)
            self._sessions.retired.discard(session)

    def _hold(self, session: Session, change: int) -> None:
        holds = self._sessions.holds
        holds[session] = holds.get(session, 0) + change
        if holds[session] == 0:
            del holds[session]
            if session in self._sessions.retired:
                self._sessions.retired.discard(session)
                self._sessions.shared.discard(session)
                self._chore(self.end_session(session))

    def _retire(self, session: Session) -> None:
        """A release whose outcome is unknown: its session ends when nothing known is held.

        A session of the user's own is not ours to end: its user is told, and decides.
        """
        if session in self._sessions.shared:
            self.forget(session)
            self._sessions.retired.add(session)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="dss-chore")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # --- locks ----------------------------------------------------------------------------

    async def acquire(self, want: Want, owner: str) -> Held:
        """Wait up to `want.wait_s`.

        Raises:
            LockTimeout, DeadlockError.
            Conflict: `session_expired` (of a session of one's own).
            Indeterminate: nobody could say whether it was granted; it is undone when one can.
        """
        until_s = clock_s() + want.wait_s
        renewed = False
        while True:
            try:
                session = want.own or self._known_session(want.ttl_ms)
                if session is None:
                    session = await self._shared_session(want.ttl_ms)
            except REPEATABLE as error:
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S
                if clock_s() + pause_s > until_s:
                    self.owners.free(owner, want.names)
                    raise
                await asyncio.sleep(pause_s)
                continue
            except (Exception, asyncio.CancelledError):
                self.owners.free(owner, want.names)
                raise
            try:
                return await self._try_acquire(want, session, owner, until_s)
            except (asyncio.CancelledError, Indeterminate, *REPEATABLE):
                raise  # its undoing frees the owner
            except DssError as error:
                expired = error.code == "session_expired" and want.own is None
                if not expired or renewed:
                    self.owners.free(owner, want.names)
                    raise
                renewed = True

    async def _try_acquire(self, want: Want, session: Session, owner: str, until_s: float) -> Held:
        async def unwanted(body: Any) -> None:
            await self._give_back(session, owner, tokens_of(want, body))

        args = {**want.args, "owner": owner}
        wait = Wait(self.calls, session, want.op, args, want.names[0], until_s, unwanted)
        self._hold(session, 1)  # also while it waits: a retired session must not end under it
        try:
            body = await wait.answer()
            if want.confirm_s:
                await self._confirm(want, session, owner, body)
            tokens = tokens_of(want, body)
        except (asyncio.CancelledError, Indeterminate, *REPEATABLE):
            self._chore(self._undo(wait, want, session, owner))
            raise
        except DssError as error:
            self._hold(session, -1)
            if isinstance(error, Conflict) and error.code == "session_expired":
                session.lose(error.message)
                self.forget(session)
            raise
        except Exception:  # an argument or an answer that nobody foresaw
            self._retire(session)
            self._hold(session, -1)
            self.owners.free(owner, want.names)
            raise
        held = Held(self, session, owner, tokens, want.mode)
        self.owners.holds(held)
        return held

    async def _confirm(self, want: Want, session: Session, owner: str, body: Any) -> None:
        args = {
            "session": session.id, "name": want.names[0], "token": body["token"], "owner": owner,
        }  # fmt: skip
        until_s = clock_s() + want.confirm_s
        await self.calls.settle("confirm", args, lambda _: until_s)

    async def _undo(self, wait: Wait, want: Want, session: Session, owner: str) -> None:
        try:
            await wait.undo()
            self.owners.free(owner, want.names)
        finally:
            self._hold(session, -1)

    async def _give_back(self, session: Session, owner: str, tokens: Mapping[str, int]) -> None:
        """What nobody has in hand. When it cannot be said, the session ends with its last hold."""
        for name, token in tokens.items():
            args = {"name": name, "token": token, "owner": owner}
            try:
                await session.do("release", args, clock_s() + RELEASE_S)
            except (Indeterminate, *REPEATABLE, asyncio.CancelledError) as error:
                session.skip(args)
                self._retire(session)
                if isinstance(error, asyncio.CancelledError):
                    raise
            except DssError:
                continue  # it is not held: lost, or never more than once

    async def release(self, held: Held) -> None:
        """Give it back, each of several.

        Raises:
            Conflict: `not_holder` or `session_expired`: it was lost before.
        """
        held.unwatch()
        certain = True
        try:
            for name, token in held.tokens.items():
                args = {"name": name, "token": token, "owner": held.owner}
                try:
                    await held.session.do("release", args, clock_s() + RELEASE_S)
                except (Indeterminate, *REPEATABLE, asyncio.CancelledError):
                    certain = False
                    held.session.skip(args)
                    self._retire(held.session)
                    raise
        finally:
            self._hold(held.session, -1)
            if certain or held.session.lost:
                self.owners.free(held.owner, held.tokens)

    async def change(self, held: Held, op: str, wait_s: float) -> int:
        """Upgrade or downgrade; the token from now on."""
        mode = "exclusive" if op == "upgrade" else "shared"

        async def changed(body: Any) -> None:
            held.became(mode, int(body["token"]))

        args: dict[str, Any] = {"name": held.name, "token": held.token, "owner": held.owner}
        until_s = clock_s() + wait_s
        wait = Wait(self.calls, held.session, op, args, held.name, until_s, changed)
        held.changing = True
        try:
            body = await wait.answer()
        except (asyncio.CancelledError, Indeterminate, *REPEATABLE):
            # The caller gives up, but what is held must be known.
            self._chore(self._undo_change(wait, held))
            raise
        except DssError:
            held.changing = False
            raise
        await changed(body)
        held.changing = False
        return held.token

    async def _undo_change(self, wait: Wait, held: Held) -> None:
        await wait.undo()
        held.changing = False

    async def close(self) -> None:
        """End all sessions: whatever is held is given back."""
        tasks = [task for task in self._sessions.by_ttl.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        live, self._sessions.live = list(self._sessions.live.values()), {}
        await asyncio.gather(*(session.end() for session in live))
        if self._chores:
            _, late = await asyncio.wait(self._chores, timeout=CLOSE_S)
            for chore in late:
                chore.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _result(task: asyncio.Task[Session]) -> Session | None:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()
