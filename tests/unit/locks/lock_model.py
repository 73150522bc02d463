"""The lock rules once more, as naively as possible: flat lists, everything scanned.

An oracle for `test_lock_random.py`: it shares no code with the machine but the command structs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dss.core.locks.commands import Acquire, Release, SessionCreate, SessionEnd, SessionKeepalive

Answer = tuple[int, Any]
"""(status, code or token or None)."""


@dataclass
class Grant:
    name: str
    who: tuple[str, str]
    mode: str
    token: int
    count: int = 1


@dataclass
class Wait:
    name: str
    who: tuple[str, str]
    mode: str
    deadline_ms: int
    request: tuple[int, int]


@dataclass
class Model:
    sessions: dict[str, list[int]] = field(default_factory=dict)  # id -> [ttl, deadline]
    grants: list[Grant] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    late: dict[tuple[int, int], Answer] = field(default_factory=dict)
    token: int = 0

    def apply(self, request: tuple[int, int], now_ms: int, command: Any) -> Answer | None:
        """The answer; None: it waits."""
        if isinstance(command, SessionCreate):
            if command.session in self.sessions:
                return 409, "session_exists"
            self.sessions[command.session] = [command.ttl_ms, now_ms + command.ttl_ms]
            return 201, None
        if command.session not in self.sessions:
            return 409, "session_expired"
        if isinstance(command, SessionKeepalive):
            session = self.sessions[command.session]
            session[1] = now_ms + session[0]
            return 200, None
        if isinstance(command, SessionEnd):
            self.end(command.session)
            return 200, None
        who = (command.session, command.owner or command.session)
        if isinstance(command, Release):
            return self.release(command, who)
        assert isinstance(command, Acquire)
        return self.acquire(request, now_ms, command, who)

    def acquire(
        self, request: tuple[int, int], now_ms: int, command: Acquire, who: tuple[str, str]
    ) -> Answer | None:
        for grant in self.grants:
            if grant.name == command.name and grant.who == who:
                if grant.mode != command.mode:
                    return 409, "deadlock"
                grant.count += 1
                return 200, grant.token
        wait = Wait(command.name, who, command.mode, now_ms + command.wait_ms, request)
        for place, older in enumerate(self.waits):
            if older.name == command.name and older.who == who:
                self.late[older.request] = (409, "superseded")
                if command.wait_ms and older.mode == command.mode:
                    self.waits[place] = wait
                    return None
                del self.waits[place]
                self.hand_out()
                break
        self.waits.append(wait)
        self.hand_out()
        if wait not in self.waits:
            return self.late.pop(request)
        if command.wait_ms == 0:
            self.waits.remove(wait)
            return 409, "lock_timeout"
        return None

    def release(self, command: Release, who: tuple[str, str]) -> Answer:
        for grant in self.grants:
            if (grant.name, grant.who, grant.token) == (command.name, who, command.token):
                grant.count -= 1
                if grant.count == 0:
                    self.grants.remove(grant)
                    self.hand_out()
                return 200, None
        return 409, "not_holder"

    def end(self, session: str) -> None:
        del self.sessions[session]
        touched = [wait.name for wait in self.waits if wait.who[0] == session]
        for wait in [wait for wait in self.waits if wait.who[0] == session]:
            self.waits.remove(wait)
            self.late[wait.request] = (409, "session_expired")
        mine = sorted((g for g in self.grants if g.who[0] == session), key=lambda g: g.token)
        for grant in mine:
            self.grants.remove(grant)
        for name in dict.fromkeys(touched + [grant.name for grant in mine]):
            self.hand_out(name)

    def hand_out(self, only: str | None = None) -> None:
        """Per lock: the first in the line gets it while nobody stands in the way."""
        for name in dict.fromkeys(wait.name for wait in self.waits):
            while only in (None, name):
                line = [wait for wait in self.waits if wait.name == name]
                holders = [grant for grant in self.grants if grant.name == name]
                if not line:
                    break
                first = line[0]
                both_shared = first.mode == "shared" and all(h.mode == "shared" for h in holders)
                if holders and not both_shared:
                    break
                self.waits.remove(first)
                self.token += 1
                self.grants.append(Grant(name, first.who, first.mode, self.token))
                self.late[first.request] = (200, self.token)

    def leader_changed(self, now_ms: int) -> None:
        for session in self.sessions.values():
            session[1] = max(session[1], now_ms + session[0])

    def expire_sessions(self, now_ms: int, due_first: list[str]) -> None:
        for session in due_first:
            assert self.sessions[session][1] <= now_ms, "ended before its time"
            self.end(session)

    def expire_waits(self, now_ms: int, requests: list[tuple[int, int]]) -> None:
        for request in requests:
            if request in self.late:
                continue  # one before it in this batch made room: it was granted
            [wait] = [wait for wait in self.waits if wait.request == request]
            assert wait.deadline_ms <= now_ms, "timed out before its time"
            self.waits.remove(wait)
            self.late[request] = (409, "lock_timeout")
            self.hand_out(wait.name)

    def overdue(self, now_ms: int) -> bool:
        return any(session[1] <= now_ms for session in self.sessions.values()) or any(
            wait.deadline_ms <= now_ms for wait in self.waits
        )
