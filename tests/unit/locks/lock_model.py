"""The lock rules once more, as naively as possible: flat lists, everything scanned.

An oracle for `test_lock_random.py`: it shares no code with the machine but the command structs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dss.core.locks.commands import (
    KEYED_CODEC,
    Acquire,
    AcquireMany,
    Break,
    Cancel,
    Confirm,
    Downgrade,
    Keyed,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
)

Answer = tuple[int, Any]
"""(status, code or token or tokens or None)."""
Who = tuple[str, str]
Request = tuple[int, int]

KEY_MS = 3_000
WINDOW = 6
PLACE_MS = 700
TOGETHER = 3


@dataclass
class Grant:
    name: str
    who: Who
    mode: str
    token: int
    permits: int = 1
    limit: int = 0
    confirm_by_ms: int = 0
    count: int = 1


@dataclass
class Wait:
    ticket: int
    names: tuple[str, ...]
    who: Who
    kind: str
    mode: str
    permits: int
    limit: int
    priority: int
    since_ms: int
    joined_ms: int
    deadline_ms: int
    confirm_ms: int
    request: Request
    seq: int = 0
    key: str = ""
    also: list[Request] = field(default_factory=list)

    def place(self) -> tuple[int, int]:
        early = -(10**12) if self.kind == "upgrade" else self.since_ms - 1_000 * self.priority
        return early, self.ticket


@dataclass
class Client:
    ttl_ms: int
    deadline_ms: int
    floor: int = 0
    answers: dict[int, Answer | None] = field(default_factory=dict)
    ages: dict[Any, tuple[int, int, float]] = field(default_factory=dict)  # ticket, since, until


@dataclass
class Model:
    sessions: dict[str, Client] = field(default_factory=dict)
    grants: list[Grant] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    late: dict[Request, Answer] = field(default_factory=dict)
    cycles: dict[Request, set[Any]] = field(default_factory=dict)
    keys: dict[str, list[Any]] = field(default_factory=dict)  # [digest, until, answer or None]
    token: int = 0
    ticket: int = 0
    key: str = ""
    now_ms: int = 0
    level: int = 1

    # --- commands -----------------------------------------------------------------------

    def apply(self, request: Request, now_ms: int, command: Any) -> Answer | None:
        """The answer; None: it waits."""
        self.now_ms = now_ms
        answer = self.carry_out(request, command)
        self.break_deadlocks()
        return answer

    def carry_out(self, request: Request, command: Any) -> Answer | None:
        if isinstance(command, Keyed):
            return self.keyed(request, command)
        if isinstance(command, Break):
            return self.break_lock(command)
        if isinstance(command, SessionCreate):
            if command.session in self.sessions:
                return 409, "session_exists"
            ttl = command.ttl_ms
            self.sessions[command.session] = Client(ttl, self.now_ms + ttl)
            return 201, None
        if command.session not in self.sessions:
            return 409, "session_expired"
        if isinstance(command, SessionKeepalive):
            session = self.sessions[command.session]
            session.deadline_ms = self.now_ms + session.ttl_ms
            return 200, None
        if isinstance(command, SessionEnd):
            self.end(command.session)
            return 200, None
        who = (command.session, command.owner or command.session)
        if isinstance(command, Cancel):
            for wait in self.waits:
                if wait.who == who and command.name in wait.names:
                    node = command.before_ms and self.level >= 2
                    if command.before_ms and wait.joined_ms > command.before_ms:
                        break
                    if node and wait.also:
                        break
                    if node and (wait.seq or wait.key):
                        self.give_up(wait, (503, "client_gone"))
                    else:
                        self.give_up(wait, (409, "cancelled"))
                    return 200, True
            else:
                self.sessions[who[0]].ages.pop((who[1], (command.name,)), None)
            return 200, False
        if isinstance(command, Confirm):
            grant = self.grant_of(command, who)
            if grant is None:
                return 409, "not_holder"
            grant.confirm_by_ms = 0
            return 200, grant.token
        if command.seq:
            return self.sequenced(request, command, who)
        return self.once(request, command, who)

    def once(self, request: Request, command: Any, who: Who) -> Answer | None:
        if isinstance(command, Acquire):
            return self.acquire(request, command, who)
        if isinstance(command, AcquireMany):
            return self.acquire_many(request, command, who)
        if isinstance(command, Release):
            return self.release(command, who)
        if isinstance(command, Upgrade):
            return self.upgrade(request, command, who)
        assert isinstance(command, Downgrade)
        grant = self.grant_of(command, who)
        if grant is None:
            return 409, "not_holder"
        if grant.mode == "semaphore":
            return 409, "wrong_mode"
        grant.mode = "shared"
        self.hand_out([grant.name])
        return 200, grant.token

    def sequenced(self, request: Request, command: Any, who: Who) -> Answer | None:
        session = self.sessions[command.session]
        if command.ack > session.floor:
            session.floor = command.ack
            session.answers = {s: a for s, a in session.answers.items() if s > command.ack}
        if command.seq in session.answers:
            answer = session.answers[command.seq]
            if answer is not None:
                return answer
            name = command.locks[0] if isinstance(command, AcquireMany) else command.name
            for wait in self.waits:
                if wait.seq == command.seq and wait.who == who and name in wait.names:
                    return self.join(wait, request)
            return 409, "sequence_reused"
        if command.seq <= session.floor:
            return 409, "sequence_too_old"
        if command.seq > session.floor + WINDOW:
            return 429, "overloaded"
        answer = self.once(request, command, who)
        session.answers[command.seq] = answer
        return answer

    def keyed(self, request: Request, command: Keyed) -> Answer | None:
        self.keys = {k: row for k, row in self.keys.items() if row[1] > self.now_ms}
        row = self.keys.get(command.key)
        if row is not None:
            if row[0] != command.digest:
                return 422, "idempotency_key_reused"
            if row[2] is not None:
                return row[2]
            [wait] = [wait for wait in self.waits if wait.key == command.key]
            return self.join(wait, request)
        row = self.keys[command.key] = [command.digest, self.now_ms + KEY_MS, None]
        self.key = command.key
        row[2] = self.carry_out(request, KEYED_CODEC.decode_args(command.op, command.args))
        self.key = ""
        if row[2] is not None and row[2][0] == 429:
            del self.keys[command.key]
        return row[2]

    def join(self, wait: Wait, request: Request) -> None:
        if self.level < 2:
            self.take_over(wait, request)
            return
        wait.also.append(wait.request)
        if len(wait.also) == TOGETHER:
            self.late[wait.also.pop(0)] = (409, "superseded")
        wait.request = request
        wait.joined_ms = self.now_ms

    def take_over(self, wait: Wait, request: Request) -> None:
        for each in (wait.request, *wait.also):
            self.late[each] = (409, "superseded")
        wait.also = []
        wait.request = request
        wait.joined_ms = self.now_ms

    def prolong(self, wait: Wait, request: Request, command: Any) -> None:
        if (wait.seq, wait.key) != (command.seq, self.key):
            self.remember(wait, (409, "superseded"))
            wait.seq, wait.key = command.seq, self.key
        wait.deadline_ms = self.now_ms + command.wait_ms
        if isinstance(command, Acquire):
            wait.confirm_ms = command.confirm_ms
        self.take_over(wait, request)

    def acquire(self, request: Request, command: Acquire, who: Who) -> Answer | None:
        holders = [grant for grant in self.grants if grant.name == command.name]
        for grant in holders:
            if grant.who != who:
                continue
            if grant.mode != command.mode:
                return 409, "deadlock"
            if grant.mode == "semaphore" and grant.limit != command.limit:
                return 409, "limit_mismatch"
            if grant.mode == "semaphore" and grant.permits != command.permits:
                return 409, "already_held"
            grant.count += 1
            return 200, grant.token
        for older in self.waits:
            if older.who != who or command.name not in older.names:
                continue
            asks = (command.mode, command.permits, command.limit, command.priority)
            asked = (older.mode, older.permits, older.limit, older.priority)
            if older.kind == "one" and asks == asked and command.wait_ms:
                return self.prolong(older, request, command)
            self.give_up(older, (409, "superseded"))
            return self.acquire(request, command, who)
        if command.mode == "semaphore":
            for grant in holders:
                if grant.mode == "semaphore" and grant.limit != command.limit:
                    return 409, "limit_mismatch"
        wait = self.new_wait("one", (command.name,), who, command, request)
        return self.try_then_wait(wait, command)

    def new_wait(
        self, kind: str, names: tuple[str, ...], who: Who, command: Any, request: Request
    ) -> Wait:
        """As the last who came; `try_then_wait` gives a victim of a deadlock its place again."""
        return Wait(
            self.ticket + 1,
            names,
            who,
            kind,
            getattr(command, "mode", "exclusive"),
            getattr(command, "permits", 1),
            getattr(command, "limit", 0),
            getattr(command, "priority", 0),
            self.now_ms,
            self.now_ms,
            self.now_ms + command.wait_ms,
            getattr(command, "confirm_ms", 0),
            request,
            command.seq,
            self.key,
        )

    def try_then_wait(self, wait: Wait, command: Any) -> Answer | None:
        ages = self.sessions[wait.who[0]].ages
        age = ages.get((wait.who[1], wait.names))
        if age is not None:
            wait.ticket, wait.since_ms, _ = age
        self.waits.append(wait)
        if not (granted := self.ready(wait)) and command.wait_ms == 0:
            self.waits.remove(wait)
            return 409, "lock_timeout"
        if age is not None:
            del ages[wait.who[1], wait.names]
        elif not granted:
            self.ticket += 1
        if granted:
            self.waits.remove(wait)
            return self.hand_over(wait)
        return None

    def acquire_many(self, request: Request, command: AcquireMany, who: Who) -> Answer | None:
        names = tuple(command.locks)
        for name in names:
            for older in [w for w in self.waits if w.who == who and name in w.names]:
                same = (older.kind, older.names, older.priority) == (
                    "many",
                    names,
                    command.priority,
                )
                if same and command.wait_ms:
                    return self.prolong(older, request, command)
                self.give_up(older, (409, "superseded"))
        for grant in self.grants:
            if grant.who == who and grant.name in names and grant.mode != "exclusive":
                return 409, "deadlock"
        return self.try_then_wait(self.new_wait("many", names, who, command, request), command)

    def grant_of(self, command: Any, who: Who) -> Grant | None:
        for grant in self.grants:
            if (grant.name, grant.who, grant.token) == (command.name, who, command.token):
                return grant
        return None

    def upgrade(self, request: Request, command: Upgrade, who: Who) -> Answer | None:
        grant = self.grant_of(command, who)
        if grant is None:
            return 409, "not_holder"
        if grant.mode == "exclusive":
            return 200, grant.token
        if grant.mode == "semaphore":
            return 409, "wrong_mode"
        for older in [w for w in self.waits if w.who == who and grant.name in w.names]:
            if older.kind == "upgrade" and command.wait_ms:
                return self.prolong(older, request, command)
            self.give_up(older, (409, "superseded"))
        wait = self.new_wait("upgrade", (grant.name,), who, command, request)
        if len([g for g in self.grants if g.name == grant.name]) == 1:
            return self.hand_over(wait)
        return self.try_then_wait(wait, command)

    def release(self, command: Release, who: Who) -> Answer:
        grant = self.grant_of(command, who)
        if grant is None:
            return 409, "not_holder"
        grant.count -= 1
        if grant.count == 0:
            self.take_back(grant)
            self.hand_out([grant.name])
        return 200, None

    def take_back(self, grant: Grant) -> None:
        self.grants.remove(grant)
        for wait in list(self.waits):
            if (wait.kind, wait.who, wait.names) == ("upgrade", grant.who, (grant.name,)):
                self.waits.remove(wait)
                self.answer(wait, (409, "not_holder"))

    def break_lock(self, command: Break) -> Answer:
        mine = [grant for grant in self.grants if grant.name == command.name]
        for grant in sorted(mine, key=lambda each: each.token):
            self.take_back(grant)
        self.hand_out([command.name])
        return (200, None) if mine else (404, "not_found")

    def end(self, session: str) -> None:
        touched: list[str] = []
        mine = sorted((w for w in self.waits if w.who[0] == session), key=lambda w: w.ticket)
        for wait in mine:
            touched += wait.names
            self.waits.remove(wait)
            self.answer(wait, (409, "session_expired"))
        for grant in sorted((g for g in self.grants if g.who[0] == session), key=_token):
            self.take_back(grant)
            touched.append(grant.name)
        del self.sessions[session]
        self.hand_out(touched)

    # --- lines --------------------------------------------------------------------------

    def line(self, name: str) -> list[Wait]:
        return sorted((wait for wait in self.waits if name in wait.names), key=Wait.place)

    def ready(self, wait: Wait) -> bool:
        for name in wait.names:
            others = [g for g in self.grants if g.name == name and g.who != wait.who]
            own = [g for g in self.grants if g.name == name and g.who == wait.who]
            if self.line(name)[0] is not wait:
                return False
            if wait.kind == "many" and any(grant.mode != "exclusive" for grant in own):
                return False
            if others and wait.mode == "exclusive":
                return False
            if wait.mode == "shared" and any(grant.mode != "shared" for grant in others):
                return False
            if wait.mode == "semaphore":
                if any((g.mode, g.limit) != ("semaphore", wait.limit) for g in others):
                    return False
                if sum(grant.permits for grant in others) + wait.permits > wait.limit:
                    return False
        return True

    def hand_out(self, names: list[str]) -> None:
        """Per lock: the first in the line gets what it waits for while it can."""
        for name in dict.fromkeys(names):
            while (line := self.line(name)) and self.ready(line[0]):
                self.waits.remove(line[0])
                self.answer(line[0], self.hand_over(line[0]))

    def hand_over(self, wait: Wait) -> Answer:
        if wait.kind == "upgrade":
            [grant] = [g for g in self.grants if (g.name, g.who) == (wait.names[0], wait.who)]
            self.token += 1
            grant.token, grant.mode, grant.confirm_by_ms = self.token, "exclusive", 0
            return 200, grant.token
        tokens = []
        for name in wait.names:
            own = [g for g in self.grants if (g.name, g.who) == (name, wait.who)]
            if own:
                own[0].count += 1
                tokens.append(own[0].token)
                continue
            self.token += 1
            by_ms = self.now_ms + wait.confirm_ms if wait.confirm_ms else 0
            self.grants.append(
                Grant(name, wait.who, wait.mode, self.token, wait.permits, wait.limit, by_ms)
            )
            tokens.append(self.token)
        return (200, tokens) if wait.kind == "many" else (200, tokens[0])

    def give_up(self, wait: Wait, answer: Answer) -> None:
        self.waits.remove(wait)
        self.answer(wait, answer)
        self.hand_out(list(wait.names))

    def answer(self, wait: Wait, answer: Answer) -> None:
        for each in (wait.request, *wait.also):
            self.late[each] = answer
        self.remember(wait, answer)

    def remember(self, wait: Wait, answer: Answer) -> None:
        session = self.sessions[wait.who[0]]
        if wait.seq in session.answers:
            session.answers[wait.seq] = answer
            if answer[0] == 503:
                del session.answers[wait.seq]
        if wait.key in self.keys:
            self.keys[wait.key][2] = answer
            if answer[0] == 503:
                del self.keys[wait.key]

    # --- deadlocks ----------------------------------------------------------------------

    def break_deadlocks(self) -> None:
        """While there is one, the youngest wait of all that are in one gets the error."""
        while cyclic := self.cyclic_waits():
            victim = max(cyclic, key=lambda wait: wait.ticket)
            self.cycles[victim.request] = {(*wait.who, wait.names) for wait in cyclic}
            until = self.now_ms + PLACE_MS if self.level >= 2 else float("inf")
            age = (victim.ticket, victim.since_ms, until)
            self.sessions[victim.who[0]].ages[victim.who[1], victim.names] = age
            self.give_up(victim, (409, "deadlock"))

    def cyclic_waits(self) -> list[Wait]:
        edges: dict[Any, list[Any]] = {}
        some: dict[Any, tuple[list[Grant], int]] = {}
        for wait in self.waits:
            edges.setdefault(wait.who, []).append(wait.ticket)
            edges[wait.ticket] = self.blockers(wait, some)
        stuck = set(edges)
        while True:
            moves = {node for node in stuck if self.moves(node, edges[node], some, stuck)}
            if not moves:
                break
            stuck -= moves
        return [w for w in self.waits if w.ticket in stuck and _reaches(w.ticket, edges, stuck)]

    def moves(self, node: Any, after: list[Any], some: Any, stuck: set[Any]) -> bool:
        if node not in some:
            return not any(each in stuck for each in after)
        grants, missing = some[node]
        others = [each for each in after if each not in {grant.who for grant in grants}]
        given_back = sum(grant.permits for grant in grants if grant.who not in stuck)
        return given_back >= missing and not any(each in stuck for each in others)

    def blockers(self, wait: Wait, some: dict[Any, Any]) -> list[Any]:
        found: list[Any] = []
        for name in wait.names:
            line = self.line(name)
            at = line.index(wait)
            if at:
                before = line[at - 1]
                together = before.mode == wait.mode and (
                    wait.mode == "shared"
                    or (wait.mode == "semaphore" and before.limit == wait.limit)
                )
                found += [before.ticket] if together else [before.ticket, before.who]
                continue
            for grant in (grants := [g for g in self.grants if g.name == name]):
                if wait.kind == "upgrade" or (wait.kind == "many" and grant.mode == "exclusive"):
                    if grant.who != wait.who:
                        found.append(grant.who)
                elif grant.mode == wait.mode == "semaphore" and grant.limit == wait.limit:
                    missing = sum(g.permits for g in grants) + wait.permits - wait.limit
                    if missing > 0:
                        some[wait.ticket] = (grants, missing)
                        found.append(grant.who)
                elif not grant.mode == wait.mode == "shared":
                    found.append(grant.who)
        return found

    # --- time ---------------------------------------------------------------------------

    def set_level(self, now_ms: int, level: int) -> None:
        self.level = level
        for session in self.sessions.values():
            for key, (ticket, since_ms, _) in list(session.ages.items()):
                session.ages[key] = (ticket, since_ms, now_ms + PLACE_MS)

    def leader_changed(self, now_ms: int) -> None:
        for session in self.sessions.values():
            session.deadline_ms = max(session.deadline_ms, now_ms + session.ttl_ms)

    def expire_sessions(self, now_ms: int, due_first: list[str]) -> None:
        self.now_ms = now_ms
        for session in due_first:
            assert self.sessions[session].deadline_ms <= now_ms, "ended before its time"
            self.end(session)
        self.break_deadlocks()

    def expire_waits(self, now_ms: int, tickets: list[int]) -> None:
        self.now_ms = now_ms
        for ticket in tickets:
            for session in self.sessions.values():
                for key, age in list(session.ages.items()):
                    if age[0] == ticket:
                        assert age[2] <= now_ms, "a place lapsed before its time"
                        del session.ages[key]
            for wait in [wait for wait in self.waits if wait.ticket == ticket]:
                assert wait.deadline_ms <= now_ms, "timed out before its time"
                self.give_up(wait, (409, "lock_timeout"))
        self.break_deadlocks()

    def expire_grants(self, now_ms: int, tokens: list[int]) -> None:
        self.now_ms = now_ms
        for token in tokens:
            for grant in [g for g in self.grants if g.token == token and g.confirm_by_ms]:
                assert grant.confirm_by_ms <= now_ms, "taken back before its time"
                self.take_back(grant)
                self.hand_out([grant.name])
        self.break_deadlocks()

    def overdue(self, now_ms: int) -> bool:
        return (
            any(session.deadline_ms <= now_ms for session in self.sessions.values())
            or any(wait.deadline_ms <= now_ms for wait in self.waits)
            or any(0 < grant.confirm_by_ms <= now_ms for grant in self.grants)
            or any(age[2] <= now_ms for one in self.sessions.values() for age in one.ages.values())
        )


def _token(grant: Grant) -> int:
    return grant.token


def _reaches(start: Any, edges: dict[Any, list[Any]], stuck: set[Any]) -> bool:
    seen: set[Any] = set()
    todo = [start]
    while todo:
        for after in edges[todo.pop()]:
            if after == start:
                return True
            if after in stuck and after not in seen:
                seen.add(after)
                todo.append(after)
    return False
