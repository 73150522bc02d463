"""The lock group's state machine: sessions, locks, waiters, fencing tokens.

What lives here: what each command does, as a deterministic function of the log (acquiring: in
acquiring.py; what ends waits and holds: in ending.py). What must not: HTTP, who may ask, anything
that differs between nodes.

The rules (docs/locks.md, docs/guarantees.md):

* A holder is `(session, owner)`; owners of one session exclude each other. The same holder
  acquiring again in the same mode gets the same token and needs one more release. In another
  mode it would wait for itself for ever: 409 `deadlock`.
* Shared holders exclude exclusive ones; holders of a semaphore share its limit.
* Waiting is first come, first served among equal priorities.
* Tokens come from one counter of the group that only grows: per lock they strictly increase,
  also after the lock was deleted (a lock that nobody holds or waits for has no state).
* A session ends by `session.end` or by an expiry that is conditional on its renewal count and
  on its deadline; its waits end first, then its locks are released.
* A new leader gives every session its full TTL again: `_floor_ms` stands for all of them.
* A sequenced or keyed command is carried out once; repeating it gives the same answer.

Source: Gray & Reuter 1992 ch. 7-8 (lock queues); Burrows 2006 (Chubby: sessions, sequencers);
Ongaro 2014 §6.3 (exactly once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop
from typing import Any, Final

from dss.base.limits import (
    DEADLOCK_EDGES_ENTRY_MAX,
    EXPIRY_BATCH_MAX,
    EXPIRY_RETRY_MS,
    PLACE_KEPT_MS,
    SESSIONS_MAX,
)
from dss.core.locks import answers, snapshots, views
from dss.core.locks.answers import OK, problem, session_expired
from dss.core.locks.commands import (
    LOG_CODEC,
    Acquire,
    AcquireMany,
    Break,
    Cancel,
    Confirm,
    Downgrade,
    ExpireGrants,
    ExpireSessions,
    ExpireWaits,
    Keyed,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
    Withdraw,
)
from dss.core.locks.ending import LockEnding
from dss.core.locks.history import ENDED, EXPIRED, RELEASED
from dss.core.locks.places import Place, Waiter
from dss.core.locks.state import Due, Session
from dss.core.machine import CommandCodec, Result, Wake

HOLDS_PER_EXPIRY: Final = 4
"""A session's end releases its locks: so many count as one of EXPIRY_BATCH_MAX."""


class LockMachine(LockEnding):
    """See the module. Implements core.machine.Machine.

    Attributes (plain ints, for metrics): `grants`, `releases`, `timeouts`, `expirations`,
    `deadlocks`, `lapses` (of kept places) count what this process applied since it started;
    `held`, `waiting`, `sessions`, `locks` are now's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.codec: CommandCodec = LOG_CODEC
        self.expirations = 0
        self._put_off: dict[int, Due] = {}
        self._handlers: dict[type, Callable[[Any, int], Result]] = {
            Acquire: self._acquire,
            AcquireMany: self._acquire_many,
            Release: self._release,
            Upgrade: self._upgrade,
            Downgrade: self._downgrade,
            Confirm: self._confirm,
            Cancel: self._cancel,
            Break: self._break,
            Keyed: self._keyed,
            SessionCreate: self._create,
            SessionKeepalive: self._keepalive,
            SessionEnd: self._end,
            ExpireSessions: self._expire_sessions,
            ExpireWaits: self._expire_waits,
            ExpireGrants: self._expire_grants,
            Withdraw: self._withdraw,
        }

    # --- the contract -------------------------------------------------------------------

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        """See core.machine.Machine.apply."""
        self._index = index
        self._now_ms = log_ms
        handlers = self._handlers
        suspects = self._suspects
        self._edges_left = DEADLOCK_EDGES_ENTRY_MAX
        results = []
        for position, command in enumerate(commands):
            results.append(handlers[type(command)](command, position))
            if suspects:
                self._resolve()
            if self._moved_up:
                self._moved_up.clear()
        self.journal.trim()
        self.past.thin()
        return results

    def take_wakes(self) -> list[Wake]:
        """See core.machine.Machine.take_wakes."""
        wakes = self._wakes
        if not wakes:
            return []  # never the list itself: it goes on
        self._wakes = []
        return wakes

    def leader_changed(self, index: int, log_ms: int) -> None:
        """Every session has its full TTL from here, whatever their number."""
        self._index = index
        self._now_ms = log_ms
        self._floor_ms = log_ms
        # A deposed leader's log time may have run ahead: what it put off by it is due as it was.
        for what in self._put_off.values():
            when = self._when(what)
            if when is not None:
                self._push_due(when, what)
        self._put_off.clear()

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        """See core.machine.Machine.set_level."""
        self._index = index
        self._now_ms = log_ms
        self.level = level
        for session in self._sessions.values():
            for place in (session.places or {}).values():
                if not place.until_ms:
                    place.until_ms = log_ms + PLACE_KEPT_MS
                    self._places[place.ticket] = place
                    self._schedule(place.until_ms, place)

    def snapshot(self) -> bytes:
        """See core.machine.Machine.snapshot. Equal states give equal bytes."""
        return snapshots.encode(self)

    def snapshot_rows(self) -> int:
        """See core.machine.PiecewiseMachine."""
        kept = self.past.size + len(self.keys)
        return len(self._sessions) + len(self._locks) + len(self._waiters) + kept

    def snapshot_pieces(self) -> Iterator[bytes]:
        """See core.machine.PiecewiseMachine."""
        return snapshots.pieces(self)

    def restore(self, data: bytes) -> None:
        """See core.machine.Machine.restore. Raises CorruptData for anything else's bytes."""
        self.prepare(data)()

    def prepare(self, data: bytes) -> Callable[[], None]:
        """See core.machine.PreparedMachine."""
        fresh = snapshots.decode(data)

        def replace() -> None:
            snapshots.take_over(self, fresh)
            self._wakes = []
            self._put_off.clear()

        return replace

    # --- sessions -----------------------------------------------------------------------

    def _create(self, command: SessionCreate, position: int) -> Result:
        session_id = command.session
        if session_id is None:
            return problem(422, "invalid", "session.create in the log must name its session")
        if session_id in self._sessions:
            return problem(409, "session_exists", "this session exists: use a fresh random id")
        if len(self._sessions) >= SESSIONS_MAX:
            return problem(429, "overloaded", f"there are {SESSIONS_MAX} sessions: end some")
        ttl_ms = command.ttl_ms
        session = Session(session_id, command.name, ttl_ms, self._now_ms + ttl_ms, 0, {}, {})
        self._sessions[session_id] = session
        self._schedule(session.deadline_ms, session)
        return 201, {"session": session_id, "ttl_ms": ttl_ms}

    def _keepalive(self, command: SessionKeepalive, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        session.renewals += 1
        # The entry in `_due` stays where it is; `due` moves it when its old time comes.
        session.deadline_ms = self._now_ms + session.ttl_ms
        return 200, {"session": session.id, "ttl_ms": session.ttl_ms}

    def _end(self, command: SessionEnd, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        self._end_session(session, ENDED)
        return OK

    def _expire_sessions(self, command: ExpireSessions, position: int) -> Result:
        for session_id, renewals in command.sessions:
            session = self._sessions.get(session_id)
            if (
                session is not None
                and session.renewals == renewals
                and self.session_deadline_ms(session) <= self._now_ms
            ):
                self.expirations += 1
                self._end_session(session, EXPIRED)
        return OK

    def _end_session(self, session: Session, how: str) -> None:
        """Its waits end first, so that none is granted by its own releases.

        Order is by ticket and by token, so that it survives a snapshot.
        """
        touched: dict[str, None] = {}
        waits = {each.ticket: each for mine in session.waits.values() for each in mine.values()}
        for ticket in sorted(waits):
            touched.update(dict.fromkeys(waits[ticket].names))
            self._end_wait(waits[ticket], session, session_expired(session.id))
        for token in sorted(session.holds):
            touched[self._take_back(session.holds[token], session, how).name] = None
        for owner, names in list(session.places or ()):
            self._forget_place(session, owner, names)
        del self._sessions[session.id]
        self.answers_bytes -= session.answers_bytes
        self.journal.lost((session.id, "", 0, "", how))
        for name in touched:
            self._settle_named(name)

    def _settle_named(self, name: str) -> None:
        lock = self._locks.get(name)
        if lock is not None:
            self._settle(lock)

    # --- holding ------------------------------------------------------------------------

    def _release(self, command: Release, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        if command.seq:
            return self._once(session, command, position, self._release_one)
        return self._release_one(command, session, position)

    def _release_one(self, command: Release, session: Session, position: int) -> Result:
        hold = session.holds.get(command.token)
        owner = command.owner or command.session
        if hold is None or hold.name != command.name or hold.owner != owner:
            return answers.not_holder(command.name, command.token)
        hold.count -= 1
        if hold.count == 0:
            lock = self._take_back(hold, session, RELEASED)
            if lock.waiters:
                self._settle(lock)
            elif not lock.holders:
                del self._locks[lock.name]
        return OK

    def _downgrade(self, command: Downgrade, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        if command.seq:
            return self._once(session, command, position, self._downgrade_one)
        return self._downgrade_one(command, session, position)

    def _downgrade_one(self, command: Downgrade, session: Session, position: int) -> Result:
        hold = self._hold_of(session, command)
        if hold is None:
            return answers.not_holder(command.name, command.token)
        lock = self._locks[hold.name]
        if lock.mode == "semaphore":
            return answers.wrong_mode(lock, "an exclusive hold")
        lock.mode = "shared"
        self._settle(lock)
        if lock.waiters:
            # One that wants several locks, this one among them, would now wait for itself.
            self._suspects.append(lock.waiters[0])
        return self._granted(hold, lock, session)

    def _confirm(self, command: Confirm, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        hold = self._hold_of(session, command)
        if hold is None:
            return answers.not_holder(command.name, command.token)
        self._confirmed(hold)
        return self._granted(hold, self._locks[hold.name], session)

    # --- time ---------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """The head of the heap: it may be early (a renewed session), never late."""
        heap = self._due
        while heap and self._when(heap[0][2]) is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, log_ms: int) -> list[Any]:
        """At most one ExpireSessions, one ExpireWaits and one ExpireGrants.

        What is proposed stays in the heap a little later, in case the proposal gets lost.
        """
        heap = self._due
        sessions: list[tuple[str, int]] = []
        tickets: list[int] = []
        tokens: list[int] = []
        again: list[tuple[int, Due]] = []
        room = EXPIRY_BATCH_MAX
        while heap and heap[0][0] <= log_ms and room > 0:
            _, _, what = heappop(heap)
            when = self._when(what)
            if when is None:
                continue
            if when > log_ms:
                if isinstance(what, Session):
                    self._push_due(when, what)
                # A waiter whose deadline moved has a second entry, from when it moved.
                continue
            room -= 1
            if isinstance(what, Session):
                room -= (len(what.holds) + what.wait_count) // HOLDS_PER_EXPIRY
                sessions.append((what.id, what.renewals))
            elif isinstance(what, Waiter | Place):
                tickets.append(what.ticket)
            else:
                tokens.append(what.token)
            again.append((log_ms + EXPIRY_RETRY_MS, what))
        for at_ms, what in again:
            self._push_due(at_ms, what)
            self._put_off[self._due_ticket] = what
        if len(self._put_off) > 2 * EXPIRY_BATCH_MAX:
            self._put_off = {
                number: what
                for number, what in self._put_off.items()
                if (when := self._when(what)) is not None and when <= log_ms
            }
        commands: list[Any] = []
        if sessions:
            commands.append(ExpireSessions(sessions))
        if tickets:
            commands.append(ExpireWaits(tickets))
        if tokens:
            commands.append(ExpireGrants(tokens))
        return commands

    # --- reads --------------------------------------------------------------------------

    def describe(self, name: str, log_ms: int) -> dict[str, Any]:
        """One lock: see views.describe."""
        return views.describe(self, name, log_ms)

    def list(self, prefix: str, limit: int, cursor: str, log_ms: int) -> dict[str, Any]:
        """Held locks by name: see views.list_held."""
        return views.list_held(self, prefix, limit, cursor, log_ms)

    def describe_session(self, session_id: str, log_ms: int) -> dict[str, Any] | None:
        """One session, None when there is none: see views.describe_session."""
        return views.describe_session(self, session_id, log_ms)

    def explain(self, name: str, log_ms: int) -> dict[str, Any]:
        """One lock, and why nobody gets it: see views.explain."""
        return views.explain(self, name, log_ms)

    def history(self, name: str, log_ms: int) -> dict[str, Any]:
        """Who held one lock: see views.history."""
        return views.history(self, name, log_ms)

    def verify(self, name: str, token: int) -> dict[str, Any]:
        """Whether a token is good: see views.verify."""
        return views.verify(self, name, token)
