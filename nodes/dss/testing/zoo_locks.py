"""Planted bugs of the lock group and of what it needs from its leader (see zoo.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from unittest import mock

from dss.core.locks.commands import ExpireSessions, SessionKeepalive
from dss.core.locks.machine import LockMachine
from dss.core.locks.state import Session
from dss.core.raft.leadership import Leadership
from dss.drivers.engine import Engine
from dss.drivers.ports import Sink


class _Haunted(dict[str, Session]):
    """Sessions that have ended are not in it any more, but can still be looked up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ghosts: dict[str, Session] = {}

    def __missing__(self, key: str) -> Session:
        return self.ghosts[key]


@contextlib.contextmanager
def grant_after_the_session_ended() -> Iterator[None]:
    """The end of a session leaves its waiters in the line."""
    original = LockMachine._end_session

    def broken(self: LockMachine, session: Session, *args: Any) -> None:
        haunted = self._sessions
        assert isinstance(haunted, _Haunted)
        waits = [each for mine in session.waits.values() for each in mine.values()]
        if any(each.kind != "one" for each in waits):
            original(self, session, *args)
            return
        haunted.ghosts[session.id] = session
        with mock.patch.object(self, "_end_wait"):
            original(self, session, *args)

    def get(self: LockMachine) -> dict[str, Session]:
        return vars(self)["haunted"]  # type: ignore[no-any-return]

    def put(self: LockMachine, sessions: dict[str, Session]) -> None:
        vars(self)["haunted"] = _Haunted(sessions)

    with (
        mock.patch.object(LockMachine, "_end_session", broken),
        mock.patch.object(LockMachine, "_sessions", property(get, put), create=True),
    ):
        yield


@contextlib.contextmanager
def expiry_is_unconditional() -> Iterator[None]:
    """An expiry that a leader proposed earlier ends a session that was renewed meanwhile."""
    original = LockMachine._expire_sessions

    def broken(self: LockMachine, command: ExpireSessions, position: int) -> Any:
        floor_ms, self._floor_ms = self._floor_ms, -(10**9)
        for name, renewals in command.sessions:
            session = self._sessions.get(name)
            if session is not None:
                session.renewals, session.deadline_ms = renewals, 0
        result = original(self, command, position)
        self._floor_ms = floor_ms
        return result

    with mock.patch.object(LockMachine, "_expire_sessions", broken):
        yield


@contextlib.contextmanager
def new_leader_gives_no_full_ttl() -> Iterator[None]:
    """Time in which there was no leader counts against the sessions."""
    original = LockMachine.leader_changed

    def broken(self: LockMachine, index: int, log_ms: int) -> None:
        floor_ms = self._floor_ms
        original(self, index, log_ms)
        self._floor_ms = floor_ms

    with mock.patch.object(LockMachine, "leader_changed", broken):
        yield


@contextlib.contextmanager
def lease_by_a_local_clock() -> Iterator[None]:
    """Log time is the leader's own clock: it jumps with every change of the leader."""

    def broken(self: Leadership, now_ms: int) -> int:
        return max(now_ms, self._log.last_log_ms)

    with mock.patch.object(Leadership, "log_ms", broken):
        yield


@contextlib.contextmanager
def token_lost_in_a_snapshot() -> Iterator[None]:
    """After a snapshot tokens go on from those that are held, not from the last one granted."""
    original = LockMachine.restore

    def broken(self: LockMachine, data: bytes) -> None:
        original(self, data)
        held = [token for session in self._sessions.values() for token in session.holds]
        self._token = max(held, default=0)

    with mock.patch.object(LockMachine, "restore", broken):
        yield


class _Deaf:
    """Where the second answer to a keepalive goes."""

    def answer(self, request_id: int, status: int, body: Any) -> None: ...

    def flush(self) -> None: ...


@contextlib.contextmanager
def keepalive_acknowledged_at_once() -> Iterator[None]:
    """Whoever believes that it leads acknowledges keepalives without asking a quorum."""
    original = Engine.propose

    def broken(
        self: Engine,
        gid: int,
        rids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
    ) -> None:
        group = self.groups[gid]
        if isinstance(commands[0], SessionKeepalive) and group.raft.role == "leader":
            sink.answer(rids[0], 200, {})
            sink = _Deaf()
        original(self, gid, rids, items, commands, sink)

    with mock.patch.object(Engine, "propose", broken):
        yield


BUGS: Final[tuple[Callable[[], contextlib.AbstractContextManager[None]], ...]] = (
    grant_after_the_session_ended,
    expiry_is_unconditional,
    new_leader_gives_no_full_ttl,
    lease_by_a_local_clock,
    token_lost_in_a_snapshot,
    keepalive_acknowledged_at_once,
)
