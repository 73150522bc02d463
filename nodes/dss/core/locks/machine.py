"""The lock group's state machine: sessions, locks, waiters, fencing tokens.

What lives here: who holds what, who waits for what, and when either ends, as a deterministic
function of the log. What must not: HTTP, who may ask, anything that differs between nodes.

The rules (docs/guarantees: locks):

* A holder is `(session, owner)`. Shared holders exclude exclusive ones; owners of one session
  exclude each other. The same holder acquiring again in the same mode gets the same token and
  needs one more release. In the other mode it would wait for itself for ever: 409 `deadlock`.
* Waiting is first come, first served: whoever finds anybody waiting stands behind them, so a
  stream of readers cannot starve a writer.
* Tokens come from one counter of the group that only grows: per lock they strictly increase,
  also after the lock was deleted (a lock that nobody holds has no state at all).
* A session ends by `session.end` or by an expiry that is conditional on its renewal count and
  on its deadline; its waits end first, then its locks are released.
* A new leader gives every session its full TTL again: `_floor_ms` stands for all of them.

Seams: a semaphore is a third mode with a permit count in `Hold`; upgrade and downgrade change
`Lock.shared`; wait-for edges are (lock.waiters, lock.holders) and are looked at where
`_wait` appends. Source: Gray & Reuter 1992 ch. 7-8 (lock queues); Burrows 2006 (Chubby:
sessions, sequencers).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heappop
from typing import Any, Final

from dss.base.limits import (
    EXPIRY_BATCH_MAX,
    EXPIRY_RETRY_MS,
    LOCKS_MAX,
    SESSION_HOLDS_MAX,
    SESSIONS_MAX,
    TOKEN_MAX,
    WAITERS_MAX,
    WAITERS_PER_LOCK_MAX,
)
from dss.core.locks import views
from dss.core.locks.answers import (
    lock_timeout,
    problem,
    self_deadlock,
    session_expired,
    too_many_holds,
)
from dss.core.locks.commands import (
    LOG_CODEC,
    Acquire,
    ExpireSessions,
    ExpireWaits,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
)
from dss.core.locks.state import Hold, Lock, LockState, Session, Waiter
from dss.core.machine import PENDING, CommandCodec, Result, Wake

_OK: Final[Result] = (200, {})


class LockMachine(LockState):
    """See the module. Implements core.machine.Machine.

    Attributes (plain ints, for metrics): `grants`, `releases`, `timeouts`, `expirations` count
    what this process applied since it started; `held`, `waiting`, `sessions`, `locks` are now's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.codec: CommandCodec = LOG_CODEC
        self._index = 0
        self._now_ms = 0
        self._wakes: list[Wake] = []
        self.grants = 0
        self.releases = 0
        self.timeouts = 0
        self.expirations = 0
        self._handlers: dict[type, Callable[[Any, int], Result]] = {
            Acquire: self._acquire,
            Release: self._release,
            SessionCreate: self._create,
            SessionKeepalive: self._keepalive,
            SessionEnd: self._end,
            ExpireSessions: self._expire_sessions,
            ExpireWaits: self._expire_waits,
        }

    # --- the contract -------------------------------------------------------------------

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        """See core.machine.Machine.apply."""
        self._index = index
        self._now_ms = log_ms
        handlers = self._handlers
        return [
            handlers[type(command)](command, position) for position, command in enumerate(commands)
        ]

    def take_wakes(self) -> list[Wake]:
        """See core.machine.Machine.take_wakes."""
        wakes = self._wakes
        if wakes:
            self._wakes = []
        return wakes

    def leader_changed(self, index: int, log_ms: int) -> None:
        """Every session has its full TTL from here; O(1), whatever their number."""
        self._index = index
        self._now_ms = log_ms
        self._floor_ms = log_ms

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
        self._end_session(session)
        return _OK

    def _expire_sessions(self, command: ExpireSessions, position: int) -> Result:
        for session_id, renewals in command.sessions:
            session = self._sessions.get(session_id)
            if (
                session is not None
                and session.renewals == renewals
                and self.session_deadline_ms(session) <= self._now_ms
            ):
                self.expirations += 1
                self._end_session(session)
        return _OK

    def _end_session(self, session: Session) -> None:
        """Its waits end first, so that none is granted by its own releases.

        Order is by ticket and by token, so that it survives a snapshot.
        """
        del self._sessions[session.id]
        touched: dict[str, Lock] = {}
        for waiter in sorted(session.waits.values(), key=_ticket_of):
            touched[waiter.name] = self._drop_waiter(waiter)
            status, body = session_expired(session.id)
            self._wakes.append(Wake(waiter.index, waiter.position, status, body))
        for token in sorted(session.holds):
            hold = session.holds[token]
            lock = self._locks[hold.name]
            del lock.holders[session.id, hold.owner]
            self.held -= 1
            self.releases += 1
            touched[hold.name] = lock
        for lock in touched.values():
            self._settle(lock)

    # --- locks --------------------------------------------------------------------------

    def _acquire(self, command: Acquire, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        name = command.name
        owner = command.owner or command.session
        shared = command.mode == "shared"
        lock = self._locks.get(name)
        if lock is None:
            if len(self._locks) >= LOCKS_MAX:
                return problem(429, "overloaded", f"{LOCKS_MAX} locks are held: release some")
            if len(session.holds) + len(session.waits) >= SESSION_HOLDS_MAX:
                return too_many_holds()
            lock = Lock(name, shared, {})
            self._locks[name] = lock
            return self._grant(lock, session, owner)
        hold = lock.holders.get((session.id, owner))
        if hold is not None:
            if lock.shared is shared:
                hold.count += 1
                return self._granted(hold, lock, session)
            return self_deadlock(lock, hold)
        if session.waits:
            waiter = session.waits.get((name, owner))
            if waiter is not None:
                return self._supersede(lock, session, waiter, command, position)
        if shared and lock.shared and not lock.waiters:
            if len(session.holds) + len(session.waits) >= SESSION_HOLDS_MAX:
                return too_many_holds()
            return self._grant(lock, session, owner)
        return self._wait(lock, session, owner, command, position)

    def _grant(self, lock: Lock, session: Session, owner: str) -> Result:
        token = self._token + 1
        assert token <= TOKEN_MAX, "the grant counter is exhausted"
        self._token = token
        self.grants += 1
        self.held += 1
        hold = Hold(lock.name, session.id, owner, token, self._now_ms)
        lock.holders[session.id, owner] = hold
        session.holds[token] = hold
        return self._granted(hold, lock, session)

    def _granted(self, hold: Hold, lock: Lock, session: Session) -> Result:
        left_ms = self.session_deadline_ms(session) - self._now_ms
        return 200, {
            "token": hold.token,
            "mode": "shared" if lock.shared else "exclusive",
            "expires_in_ms": left_ms if left_ms > 0 else 0,
        }

    def _release(self, command: Release, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        hold = session.holds.get(command.token)
        owner = command.owner or command.session
        if hold is None or hold.name != command.name or hold.owner != owner:
            return problem(
                409,
                "not_holder",
                f'lock "{command.name}": not held by this session and owner with token '
                f"{command.token}; it was released, or its session ended.",
            )
        hold.count -= 1
        if hold.count:
            return _OK
        del session.holds[command.token]
        lock = self._locks[hold.name]
        del lock.holders[session.id, owner]
        self.held -= 1
        self.releases += 1
        self._settle(lock)
        return _OK

    def _settle(self, lock: Lock) -> None:
        """After a change: grant to the first waiters as far as the modes allow."""
        holders = lock.holders
        waiters = lock.waiters
        while waiters:
            waiter = next(iter(waiters.values()))
            if holders and not (waiter.shared and lock.shared):
                return
            session = self._sessions[waiter.session]
            self._drop_waiter(waiter)
            del session.waits[waiter.name, waiter.owner]
            lock.shared = waiter.shared
            status, body = self._grant(lock, session, waiter.owner)
            self._wakes.append(Wake(waiter.index, waiter.position, status, body))
        if not holders:
            del self._locks[lock.name]

    # --- waiting ------------------------------------------------------------------------

    def _wait(
        self, lock: Lock, session: Session, owner: str, command: Acquire, position: int
    ) -> Result:
        if command.wait_ms == 0:
            self.timeouts += 1
            return lock_timeout(self, lock, None, self._now_ms)
        waiters = lock.waiters or OrderedDict()
        if len(waiters) >= WAITERS_PER_LOCK_MAX or len(self._waiters) >= WAITERS_MAX:
            return problem(
                429,
                "overloaded",
                f'lock "{lock.name}": too many wait ({len(waiters)} here, {self.waiting} in all)',
            )
        if len(session.holds) + len(session.waits) >= SESSION_HOLDS_MAX:
            return too_many_holds()
        self._ticket += 1
        waiter = Waiter(
            self._ticket,
            lock.name,
            session.id,
            owner,
            command.mode == "shared",
            self._now_ms,
            self._now_ms + command.wait_ms,
            self._index,
            position,
        )
        waiters[waiter.ticket] = waiter
        lock.waiters = waiters
        self._waiters[waiter.ticket] = waiter
        session.waits[lock.name, owner] = waiter
        self._schedule(waiter.deadline_ms, waiter)
        return PENDING

    def _supersede(
        self, lock: Lock, session: Session, waiter: Waiter, command: Acquire, position: int
    ) -> Result:
        """The owner's newer request takes the wait over, with its place, or ends it."""
        self._wakes.append(
            Wake(
                waiter.index,
                waiter.position,
                409,
                {
                    "code": "superseded",
                    "message": f'lock "{lock.name}": a newer acquire of the same owner took '
                    "this wait over.",
                },
            )
        )
        if command.wait_ms and waiter.shared == (command.mode == "shared"):
            waiter.index = self._index
            waiter.position = position
            waiter.deadline_ms = self._now_ms + command.wait_ms
            self._schedule(waiter.deadline_ms, waiter)
            return PENDING
        # Not waiting any longer, or for another mode: the place in the line is given up.
        self._drop_waiter(waiter)
        del session.waits[waiter.name, waiter.owner]
        self._settle(lock)
        return self._acquire(command, position)

    def _expire_waits(self, command: ExpireWaits, position: int) -> Result:
        for ticket in command.tickets:
            waiter = self._waiters.get(ticket)
            if waiter is None or waiter.deadline_ms > self._now_ms:
                continue
            lock = self._locks[waiter.name]
            session = self._sessions[waiter.session]
            status, body = lock_timeout(self, lock, waiter, self._now_ms)
            self._drop_waiter(waiter)
            del session.waits[waiter.name, waiter.owner]
            self.timeouts += 1
            self._wakes.append(Wake(waiter.index, waiter.position, status, body))
            self._settle(lock)
        return _OK

    def _drop_waiter(self, waiter: Waiter) -> Lock:
        """Out of the line and the index; its session's `waits` is the caller's."""
        lock = self._locks[waiter.name]
        assert lock.waiters is not None
        del lock.waiters[waiter.ticket]
        if not lock.waiters:
            lock.waiters = None
        del self._waiters[waiter.ticket]
        return lock

    # --- time ---------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """The head of the heap: it may be early (a renewed session), never late."""
        heap = self._due
        while heap and self._when(heap[0][2]) is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, log_ms: int) -> list[Any]:
        """At most one ExpireSessions and one ExpireWaits.

        What is proposed stays in the heap a little later, in case the proposal gets lost.
        """
        heap = self._due
        sessions: list[tuple[str, int]] = []
        tickets: list[int] = []
        again: list[tuple[int, Session | Waiter]] = []
        while heap and heap[0][0] <= log_ms and len(again) < EXPIRY_BATCH_MAX:
            _, _, what = heappop(heap)
            when = self._when(what)
            if when is None:
                continue
            if when > log_ms:
                if isinstance(what, Session):
                    self._push_due(when, what)
                # A waiter whose deadline moved has a second entry, from when it moved.
                continue
            if isinstance(what, Session):
                sessions.append((what.id, what.renewals))
            else:
                tickets.append(what.ticket)
            again.append((log_ms + EXPIRY_RETRY_MS, what))
        for at_ms, what in again:
            self._push_due(at_ms, what)
        commands: list[Any] = []
        if sessions:
            commands.append(ExpireSessions(sessions))
        if tickets:
            commands.append(ExpireWaits(tickets))
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

    def restore(self, data: bytes) -> None:
        """See core.machine.Machine.restore."""
        super().restore(data)
        self._wakes = []


def _ticket_of(waiter: Waiter) -> int:
    return waiter.ticket
