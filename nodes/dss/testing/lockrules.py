"""The lock group's promises, checked in the order of its log: an own, naive account of everything.

* Tokens strictly increase, per lock and in the group, for ever; a token names one holder.
* No two exclusive holders, no exclusive beside shared ones, at any index.
* A grant goes to a live session only; a session ends by request, or after its time (a new leader
  gives it a full TTL), never otherwise; whoever is told `session_expired` has lost it.
* First come, first served among equal priorities; a lock that nobody holds has nobody waiting.
* A wait ends by grant, by its timeout (not before it), or with its session.

Shares no code with the machine but the command structs. What must not live here: real time (the
clients' view: lockload.py) and what one client may conclude from its answers (lockspec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss.core.locks.commands import (
    Acquire,
    ExpireSessions,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
)
from dss.core.machine import Result, Wake

Who = tuple[str, str]
"""(session, owner)."""


Effect = tuple[str, str, str, bool, int]
"""(lock, session, owner, shared, token); the token is 0 for an acquire, not for a release."""


def effect(command: Acquire | Release) -> Effect:
    """Equal for requests that do the same, such as a repeat."""
    owner = command.owner or command.session
    if isinstance(command, Release):
        return command.name, command.session, owner, False, command.token
    return command.name, command.session, owner, command.mode == "shared", 0


class _Hold(msgspec.Struct):
    token: int
    shared: bool
    count: int = 1


class _Wait(msgspec.Struct):
    name: str
    who: Who
    shared: bool
    priority: int
    deadline_ms: int


class _Lock(msgspec.Struct):
    holders: dict[Who, _Hold] = {}
    line: list[_Wait] = []


class _Session(msgspec.Struct):
    ttl_ms: int
    deadline_ms: int
    renewals: int = 0


class LockRules:
    """Implements observed.Rules.

    Args:
        granted: called with (lock, session, owner, shared, token) for every new holder.
        ended: called with the session for every session that ended, and whether by expiry.
        done: called with every acquire that was granted (or counted once more) and every release
            that was carried out, as `effect` describes it.
        due: called with the sessions whose end a leader proposes.
    """

    def __init__(
        self,
        granted: Callable[[str, Who, bool, int], None],
        ended: Callable[[str, bool], None],
        done: Callable[[Effect], None],
        due: Callable[[list[str]], None],
    ) -> None:
        self._granted = granted
        self._ended = ended
        self._done = done
        self._due = due
        self._sessions: dict[str, _Session] = {}
        self._locks: dict[str, _Lock] = {}
        self._waits: dict[tuple[int, int], _Wait] = {}
        self._last_token = 0
        self._floor_ms = 0
        self._log_ms = 0
        self._ending: dict[str, None] = {}
        self.grants = 0

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # --- the log ---

    def leader_changed(self, index: int, log_ms: int) -> None:
        assert log_ms >= self._log_ms, f"log time went back at {index}"
        self._floor_ms = self._log_ms = log_ms

    def due(self, log_ms: int, commands: Sequence[Any]) -> None:
        for command in commands:
            if isinstance(command, ExpireSessions):
                self._due([session for session, _ in command.sessions])

    def applied(
        self, index: int, log_ms: int, steps: Sequence[tuple[Any, Result, Sequence[Wake]]]
    ) -> None:
        assert log_ms >= self._log_ms, f"log time went back at {index}"
        self._log_ms = log_ms
        for position, (command, result, wakes) in enumerate(steps):
            try:
                self._one((index, position), command, result, wakes)
            except AssertionError as error:
                raise AssertionError(f"index {index}, {command}: {error}") from error

    def _one(
        self, at: tuple[int, int], command: Any, result: Result, wakes: Sequence[Wake]
    ) -> None:
        self._ending = {}
        touched: dict[str, None] = {}
        if isinstance(command, SessionCreate):
            self._create(command, result)
        elif isinstance(command, SessionKeepalive):
            self._keepalive(command, result)
        elif isinstance(command, SessionEnd):
            if self._answered(command.session, result):
                self._ending[command.session] = None
        elif isinstance(command, ExpireSessions):
            self._expire(command)
        elif isinstance(command, Release):
            self._release(command, result)
            touched[command.name] = None
        taken_over = self._taken_over(command, wakes) if isinstance(command, Acquire) else None
        for wake in wakes:
            wait = self._waits.pop((wake.index, wake.position), None)
            if wait is not None:
                touched[wait.name] = None
                self._woken(wait, wake)
        if isinstance(command, Acquire):
            self._acquire(at, command, result, taken_over)
            touched[command.name] = None
        for session in self._ending:
            touched.update(dict.fromkeys(self._end(session, expired=_is_expiry(command))))
        for name in touched:
            self._settled(name)

    # --- sessions ---

    def _create(self, command: SessionCreate, result: Result) -> None:
        if result[0] == 201:
            assert command.session is not None
            assert command.session not in self._sessions, "made twice"
            ttl_ms = command.ttl_ms
            self._sessions[command.session] = _Session(ttl_ms, self._log_ms + ttl_ms)

    def _answered(self, session: str, result: Result) -> bool:
        """Whether the command was carried out; a refusal must be for the right reason."""
        status, body = result
        known = session in self._sessions
        expired = status == 409 and body["code"] == "session_expired"
        assert known or expired, f"answered {result} for a session that has ended"
        assert not (known and expired), "told session_expired, but its time is not over"
        return bool(status == 200)

    def _keepalive(self, command: SessionKeepalive, result: Result) -> None:
        if self._answered(command.session, result):
            session = self._sessions[command.session]
            session.renewals += 1
            session.deadline_ms = self._log_ms + session.ttl_ms

    def _expire(self, command: ExpireSessions) -> None:
        for name, renewals in command.sessions:
            session = self._sessions.get(name)
            if session is None or session.renewals != renewals:
                continue
            if max(session.deadline_ms, self._floor_ms + session.ttl_ms) <= self._log_ms:
                self._ending[name] = None

    def _end(self, session: str, *, expired: bool) -> list[str]:
        """The session's holds and waits are over: the locks that this touches."""
        touched = []
        for name, lock in self._locks.items():
            mine = [who for who in lock.holders if who[0] == session]
            for who in mine:
                del lock.holders[who]
            if mine or any(wait.who[0] == session for wait in lock.line):
                touched.append(name)
        del self._sessions[session]
        self._ended(session, expired)
        return touched

    # --- locks ---

    def _lock(self, name: str) -> _Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = _Lock({}, [])
        return lock

    def _taken_over(self, command: Acquire, wakes: Sequence[Wake]) -> _Wait | None:
        """A newer acquire of the same holder takes its wait over, with the place in the line."""
        who = (command.session, command.owner or command.session)
        for wake in wakes:
            if wake.status == 409 and wake.body["code"] == "superseded":
                older = self._waits.pop((wake.index, wake.position))
                assert older.who == who, f"took over the wait of {older.who}"
                if command.wait_ms and older.shared == (command.mode == "shared"):
                    return older
                line = self._lock(command.name).line
                del line[_place(line, older)]
        return None

    def _acquire(
        self, at: tuple[int, int], command: Acquire, result: Result, taken_over: _Wait | None
    ) -> None:
        who = (command.session, command.owner or command.session)
        lock = self._lock(command.name)
        shared = command.mode == "shared"
        priority = getattr(command, "priority", 0)
        deadline_ms = self._log_ms + command.wait_ms
        wait = taken_over or _Wait(command.name, who, shared, priority, deadline_ms)
        if result[0] == 0:
            if taken_over is None:
                assert lock.holders or lock.line, "waits for a free lock"
                lock.line.append(wait)
            wait.deadline_ms = deadline_ms
            self._waits[at] = wait
            return
        assert taken_over is None, f"a wait was taken over and then answered {result}"
        self._answered(command.session, result)
        if result[0] == 200:
            hold = lock.holders.get(who)
            if hold is not None:
                assert hold.token == result[1]["token"], "a re-entrant acquire got another token"
                assert hold.shared == shared, "a re-entrant acquire in another mode"
                hold.count += 1
                self._done(effect(command))
                return
            ahead = [each for each in lock.line if each.priority >= priority]
            assert not ahead, f"overtook {ahead}"
            self._grant(lock, wait, result[1]["token"])
        elif result[1]["code"] == "lock_timeout":
            assert lock.holders, "told lock_timeout, but nobody holds it"
            assert command.wait_ms == 0, "did not wait at all"

    def _release(self, command: Release, result: Result) -> None:
        who = (command.session, command.owner or command.session)
        lock = self._lock(command.name)
        hold = lock.holders.get(who)
        holds = hold is not None and hold.token == command.token
        if self._answered(command.session, result):
            assert hold is not None, "released what it did not hold"
            assert holds, f"released with token {command.token}, holds {hold.token}"
            self._done(effect(command))
            hold.count -= 1
            if not hold.count:
                del lock.holders[who]
        elif result[1]["code"] == "not_holder":
            assert not holds, "told not_holder, but it holds it"

    def _woken(self, wait: _Wait, wake: Wake) -> None:
        lock = self._locks[wait.name]
        place = _place(lock.line, wait)
        del lock.line[place]
        if wake.status == 200:
            session = wait.who[0]
            assert session in self._sessions, f"granted to {session}, which has ended"
            ahead = [each for each in lock.line[:place] if each.priority >= wait.priority]
            ahead = [each for each in ahead if each.who[0] not in self._ending]
            assert not ahead, f"{wait} overtook {ahead}"
            self._grant(lock, wait, wake.body["token"])
        elif wake.body["code"] == "lock_timeout":
            assert wait.deadline_ms <= self._log_ms, "its time to wait is not over"
        elif wake.body["code"] == "session_expired":
            session = wait.who[0]
            ended = session in self._ending or session not in self._sessions
            assert ended, "told session_expired, but its time is not over"

    def _grant(self, lock: _Lock, wait: _Wait, token: int) -> None:
        assert token > self._last_token, f"token {token} after {self._last_token}"
        self._last_token = token
        for who, hold in list(lock.holders.items()):
            if not (hold.shared and wait.shared):
                # Sessions that end in the same command end one after the other.
                assert who[0] in self._ending, f"granted to {wait.who}, {who} holds it ({hold})"
                del lock.holders[who]
        lock.holders[wait.who] = _Hold(token, wait.shared)
        self.grants += 1
        self._done((wait.name, *wait.who, wait.shared, 0))
        self._granted(wait.name, wait.who, wait.shared, token)

    def _settled(self, name: str) -> None:
        lock = self._locks[name]
        for wait in lock.line:
            assert wait.who[0] in self._sessions, f"{wait} waits, its session has ended"
        if not lock.holders:
            assert not lock.line, f"nobody holds {name}, and {lock.line} wait"
            del self._locks[name]


def _is_expiry(command: Any) -> bool:
    return isinstance(command, ExpireSessions)


def _place(line: list[_Wait], wait: _Wait) -> int:
    """By identity: two waits may look alike."""
    for place, each in enumerate(line):
        if each is wait:
            return place
    raise AssertionError(f"{wait} is not in the line")
