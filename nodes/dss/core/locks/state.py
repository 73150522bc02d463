"""What the lock group remembers, its snapshot format, and what must always be true of it.

What lives here: the values and their bookkeeping. What must not: the rules (machine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappush
from typing import Final

import msgspec

from dss.base.errors import CorruptData

SNAPSHOT_VERSION: Final = 1


class Hold(msgspec.Struct, eq=False, gc=False):
    """One holder of one lock. `count` acquires need as many releases."""

    name: str
    session: str
    owner: str
    token: int
    since_ms: int
    count: int = 1


class Waiter(msgspec.Struct, eq=False, gc=False):
    """One wait. `index` and `position` name the command that will get the answer."""

    ticket: int
    name: str
    session: str
    owner: str
    shared: bool
    since_ms: int
    deadline_ms: int
    index: int
    position: int


class Lock(msgspec.Struct, eq=False, gc=False):
    """Exists while somebody holds it. `shared` is the mode of all its holders."""

    name: str
    shared: bool
    holders: dict[tuple[str, str], Hold]
    waiters: OrderedDict[int, Waiter] | None = None


class Session(msgspec.Struct, eq=False, gc=False):
    """`holds` by token, `waits` by (lock name, owner)."""

    id: str
    name: str
    ttl_ms: int
    deadline_ms: int
    renewals: int
    holds: dict[int, Hold]
    waits: dict[tuple[str, str], Waiter]


SessionRow = tuple[str, str, int, int, int]
HoldRow = tuple[str, str, int, int, int]
WaiterRow = tuple[int, str, str, bool, int, int, int, int]


class _State(msgspec.Struct, array_like=True, frozen=True):
    """The snapshot format, version 1: msgpack, by position."""

    version: int
    token: int
    ticket: int
    floor_ms: int
    sessions: list[SessionRow]
    locks: list[tuple[str, bool, list[HoldRow], list[WaiterRow]]]


class LockState:
    """All sessions, locks and waits, and when each ends.

    `held` and `waiting` count holders and waiters of all locks together.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._locks: dict[str, Lock] = {}
        self._waiters: dict[int, Waiter] = {}
        self._token = 0
        self._ticket = 0
        self._floor_ms = 0
        # (when, ticket, session or waiter): derived from the state, cleaned lazily.
        self._due: list[tuple[int, int, Session | Waiter]] = []
        self._due_ticket = 0
        self.held = 0

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def locks(self) -> int:
        return len(self._locks)

    def find_lock(self, name: str) -> Lock | None:
        """The lock, for reading; None: nobody holds it."""
        return self._locks.get(name)

    def find_session(self, session_id: str) -> Session | None:
        """The session, for reading."""
        return self._sessions.get(session_id)

    def lock_names(self) -> Iterable[str]:
        """Names of all held locks, in no useful order."""
        return self._locks.keys()

    def session_deadline_ms(self, session: Session) -> int:
        """When it may end: a new leader gives every session its full TTL again."""
        floor = self._floor_ms + session.ttl_ms
        return floor if floor > session.deadline_ms else session.deadline_ms

    def label(self, session_id: str, owner: str) -> str:
        """A name for people. Never a whole session id: who knows it can end the session."""
        session = self._sessions.get(session_id)
        name = (session.name if session else "") or f"session {session_id[:8]}…"
        return name if owner == session_id else f"{name}/{owner}"

    # --- when things end ----------------------------------------------------------------

    def _push_due(self, at_ms: int, what: Session | Waiter) -> None:
        self._due_ticket += 1
        heappush(self._due, (at_ms, self._due_ticket, what))

    def _schedule(self, at_ms: int, what: Session | Waiter) -> None:
        self._push_due(at_ms, what)
        # Ended sessions and granted waits leave entries behind: rebuild when most are dead.
        if len(self._due) > 1_024 + 2 * (len(self._sessions) + len(self._waiters)):
            self._rebuild_due()

    def _rebuild_due(self) -> None:
        entries: list[tuple[int, int, Session | Waiter]] = []
        for session in self._sessions.values():
            self._due_ticket += 1
            entries.append((self.session_deadline_ms(session), self._due_ticket, session))
        for waiter in self._waiters.values():
            self._due_ticket += 1
            entries.append((waiter.deadline_ms, self._due_ticket, waiter))
        heapify(entries)
        self._due = entries

    def _when(self, what: Session | Waiter) -> int | None:
        """When `what` is really due; None when it is gone."""
        if isinstance(what, Session):
            alive = self._sessions.get(what.id) is what
            return self.session_deadline_ms(what) if alive else None
        return what.deadline_ms if self._waiters.get(what.ticket) is what else None

    # --- snapshots ----------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """See core.machine.Machine.snapshot. Equal states give equal bytes."""
        return msgspec.msgpack.encode(
            _State(
                SNAPSHOT_VERSION,
                self._token,
                self._ticket,
                self._floor_ms,
                [
                    (each.id, each.name, each.ttl_ms, each.deadline_ms, each.renewals)
                    for each in self._sessions.values()
                ],
                [
                    (
                        lock.name,
                        lock.shared,
                        [
                            (hold.session, hold.owner, hold.token, hold.since_ms, hold.count)
                            for hold in lock.holders.values()
                        ],
                        [
                            (
                                waiter.ticket,
                                waiter.session,
                                waiter.owner,
                                waiter.shared,
                                waiter.since_ms,
                                waiter.deadline_ms,
                                waiter.index,
                                waiter.position,
                            )
                            for waiter in (lock.waiters or {}).values()
                        ],
                    )
                    for lock in self._locks.values()
                ],
            )
        )

    def restore(self, data: bytes) -> None:
        """See core.machine.Machine.restore. Raises CorruptData for anything else's bytes."""
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptData(f"this is not a snapshot of the lock group: {error}") from error
        if state.version != SNAPSHOT_VERSION:
            raise CorruptData(
                f"the lock group's snapshot has version {state.version}, "
                f"this node reads {SNAPSHOT_VERSION}: run the newer release"
            )
        self._token = state.token
        self._ticket = state.ticket
        self._floor_ms = state.floor_ms
        self._sessions = {
            row[0]: Session(row[0], row[1], row[2], row[3], row[4], {}, {})
            for row in state.sessions
        }
        self._locks = {}
        self._waiters = {}
        self.held = 0
        for name, shared, holds, waiters in state.locks:
            self._restore_lock(Lock(name, shared, {}), holds, waiters)
        self._rebuild_due()

    def _restore_lock(
        self, lock: Lock, holds: Sequence[HoldRow], waiters: Sequence[WaiterRow]
    ) -> None:
        self._locks[lock.name] = lock
        self.held += len(holds)
        for session, owner, token, since_ms, count in holds:
            hold = Hold(lock.name, session, owner, token, since_ms, count)
            lock.holders[session, owner] = hold
            self._sessions[session].holds[token] = hold
        if not waiters:
            return
        line: OrderedDict[int, Waiter] = OrderedDict()
        lock.waiters = line
        for ticket, session, owner, shared, since_ms, deadline_ms, index, position in waiters:
            waiter = Waiter(
                ticket, lock.name, session, owner, shared, since_ms, deadline_ms, index, position
            )
            line[ticket] = waiter
            self._waiters[ticket] = waiter
            self._sessions[session].waits[lock.name, owner] = waiter

    def check_invariants(self) -> None:
        """See core.machine.Machine.check_invariants."""
        held = waiting = 0
        tokens: dict[int, str] = {}
        for name, lock in self._locks.items():
            assert lock.name == name, (name, lock)
            assert lock.holders, f"lock {name!r} has state but no holder: {lock}"
            assert lock.shared or len(lock.holders) == 1, f"two exclusive holders: {lock}"
            for key, hold in lock.holders.items():
                assert key == (hold.session, hold.owner), hold
                assert hold.name == name, hold
                assert hold.count >= 1, hold
                assert 1 <= hold.token <= self._token, (hold, self._token)
                assert hold.token not in tokens, f"token of two holders: {hold}"
                tokens[hold.token] = name
                assert hold.session in self._sessions, f"held by an ended session: {hold}"
                assert self._sessions[hold.session].holds.get(hold.token) is hold, hold
                held += 1
            last = 0
            for place, (ticket, waiter) in enumerate((lock.waiters or {}).items()):
                assert ticket == waiter.ticket, waiter
                assert last < ticket <= self._ticket, f"not first come, first served: {waiter}"
                last = ticket
                assert self._waiters.get(ticket) is waiter, waiter
                assert waiter.session in self._sessions, f"an ended session waits: {waiter}"
                session = self._sessions[waiter.session]
                assert session.waits.get((name, waiter.owner)) is waiter, waiter
                assert (waiter.session, waiter.owner) not in lock.holders, waiter
                if place == 0:
                    assert not (waiter.shared and lock.shared), f"could be granted: {waiter}"
                waiting += 1
        assert held == self.held == sum(len(each.holds) for each in self._sessions.values())
        assert waiting == self.waiting == sum(len(each.waits) for each in self._sessions.values())
        scheduled = {id(what): at for at, _, what in sorted(self._due, reverse=True)}
        for what in (*self._sessions.values(), *self._waiters.values()):
            assert id(what) in scheduled, f"would never expire: {what}"
