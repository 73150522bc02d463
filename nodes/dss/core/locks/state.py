"""What the lock group remembers, when each of it ends, and what must always be true of it.

What lives here: the values and their bookkeeping. What must not: the rules (lines.py, machine.py),
the snapshot format (snapshots.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from heapq import heapify, heappush
from typing import Any

import msgspec

from dss.base.handles import handle_of
from dss.base.levels import BASE_LEVEL
from dss.core.locks.history import History, Hold
from dss.core.locks.journal import Journal
from dss.core.locks.kept import size_of_place
from dss.core.locks.keys import Keys
from dss.core.locks.places import Place, Waiter, place_in, place_of


class Lock(msgspec.Struct, eq=False, gc=False):
    """Exists while somebody holds it or waits for it.

    `mode`, `limit` and `used` (permits) describe its holders; without one they mean nothing.
    """

    name: str
    mode: str
    holders: dict[tuple[str, str], Hold]
    waiters: list[Waiter] | None = None
    """By (rank, ticket)."""
    limit: int = 0
    used: int = 0


class Session(msgspec.Struct, eq=False, gc=False):
    """`holds` by token, `waits` by owner and lock name (one waiter may stand at several)."""

    id: str
    name: str
    ttl_ms: int
    deadline_ms: int
    renewals: int
    holds: dict[int, Hold]
    waits: dict[str, dict[str, Waiter]]
    wait_count: int = 0
    floor: int = 0
    """The client has the answers of all its sequenced commands up to here."""
    answers: dict[int, tuple[int, Any]] | None = None
    """By sequence number, above `floor`; while its waiter waits (0, what its answer may take)."""
    places: dict[tuple[str, tuple[str, ...]], Place] | None = None
    """By (owner, names): the next try has its old place again."""
    answers_bytes: int = 0
    """Of `answers`, as kept.size_of counts: derived."""
    me: tuple[str, str] = ("", "")
    """(session, owner) of its default owner: one for all that it holds."""

    def __post_init__(self) -> None:
        self.me = (self.id, self.id)


Due = Session | Waiter | Hold | Place


class LockState:
    """All sessions, locks and waits, and when each ends.

    `held` and `waiting` count holders and waiters of all locks together. `level` is the feature
    level: whatever changed with one asks `self.level` (base/levels.py).
    """

    def __init__(self) -> None:
        self.level = BASE_LEVEL
        self._sessions: dict[str, Session] = {}
        self._locks: dict[str, Lock] = {}
        self._waiters: dict[int, Waiter] = {}
        self._unconfirmed: dict[int, Hold] = {}
        self._places: dict[int, Place] = {}  # those that lapse, by ticket
        self._token = 0
        self._ticket = 0
        self._floor_ms = 0
        # (when, ticket, what): derived from the state, cleaned lazily.
        self._due: list[tuple[int, int, Due]] = []
        self._due_ticket = 0
        # Locks whose first in line has left in the command being applied, others behind it.
        self._moved_up: dict[str, None] = {}
        self.held = 0
        self.answers_bytes = 0  # of all sessions
        self.waits_bytes = 0  # of all waiters and kept places, as kept.py counts: derived
        self.past = History()
        self.keys = Keys()
        self.journal = Journal()

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
        """The lock, for reading; None: nobody holds it or waits for it."""
        return self._locks.get(name)

    def find_session(self, session_id: str) -> Session | None:
        """The session, for reading."""
        return self._sessions.get(session_id)

    def is_held(self, name: str) -> bool:
        lock = self._locks.get(name)
        return lock is not None and bool(lock.holders)

    def lock_names(self) -> Iterable[str]:
        """Names of all locks, in no useful order."""
        return self._locks.keys()

    def session_deadline_ms(self, session: Session) -> int:
        """When it may end: a new leader gives every session its full TTL again."""
        floor = self._floor_ms + session.ttl_ms
        return floor if floor > session.deadline_ms else session.deadline_ms

    def label(self, session_id: str, owner: str) -> str:
        """A name for people. Never a whole session id: who knows it can end the session."""
        session = self._sessions.get(session_id)
        return label_of(session_id, session.name if session else "", owner)

    # --- lines --------------------------------------------------------------------------

    def _enter(self, waiter: Waiter, session: Session) -> None:
        """Into the line of each of its names (whose locks exist), and the indexes."""
        for name in waiter.names:
            lock = self._locks[name]
            line = lock.waiters
            if line is None:
                lock.waiters = [waiter]
            elif place_of(line[-1]) < place_of(waiter):
                line.append(waiter)
            else:
                line.insert(bisect_left(line, place_of(waiter), key=place_of), waiter)
        mine = session.waits.setdefault(waiter.owner, {})
        mine.update(dict.fromkeys(waiter.names, waiter))
        session.wait_count += len(waiter.names)
        self._waiters[waiter.ticket] = waiter
        waiter.size = size_of_place(waiter.names, waiter.owner)
        self.waits_bytes += waiter.size

    def _leave(self, waiter: Waiter, session: Session) -> None:
        """The inverse of `_enter`; the locks stay, for the caller to settle."""
        for name in waiter.names:
            lock = self._locks[name]
            line = lock.waiters
            assert line is not None
            if line[0] is waiter:
                del line[0]
                self._moved_up[name] = None
            else:
                del line[place_in(line, waiter)]
            if not line:
                lock.waiters = None
        mine = session.waits[waiter.owner]
        if len(mine) == len(waiter.names):
            del session.waits[waiter.owner]
        else:
            for name in waiter.names:
                del mine[name]
        session.wait_count -= len(waiter.names)
        del self._waiters[waiter.ticket]
        self.waits_bytes -= waiter.size

    def _keep(self, place: Place, session: Session) -> None:
        """Remember it, and schedule its end if it has one."""
        if session.places is None:
            session.places = {}
        session.places[place.owner, place.names] = place
        self.waits_bytes += size_of_place(place.names, place.owner)
        if place.until_ms:
            self._places[place.ticket] = place
            self._schedule(place.until_ms, place)

    def _forget_place(self, session: Session, owner: str, names: tuple[str, ...]) -> Place | None:
        """The inverse of `_keep`; None: none is kept."""
        place = session.places.pop((owner, names), None) if session.places else None
        if place is not None:
            self._places.pop(place.ticket, None)
            self.waits_bytes -= size_of_place(names, owner)
        return place

    # --- when things end ----------------------------------------------------------------

    def _push_due(self, at_ms: int, what: Due) -> None:
        self._due_ticket += 1
        heappush(self._due, (at_ms, self._due_ticket, what))

    def _schedule(self, at_ms: int, what: Due) -> None:
        self._push_due(at_ms, what)
        # Ended sessions and granted waits leave entries behind: rebuild when most are dead.
        alive = len(self._sessions) + len(self._waiters) + len(self._unconfirmed)
        alive += len(self._places)
        if len(self._due) > 1_024 + 2 * alive:
            self._rebuild_due()

    def _rebuild_due(self) -> None:
        entries: list[tuple[int, int, Due]] = []
        ends: list[tuple[int, Due]] = [
            *((self.session_deadline_ms(each), each) for each in self._sessions.values()),
            *((each.deadline_ms, each) for each in self._waiters.values()),
            *((each.confirm_by_ms, each) for each in self._unconfirmed.values()),
            *((each.until_ms, each) for each in self._places.values()),
        ]
        for at_ms, what in ends:
            self._due_ticket += 1
            entries.append((at_ms, self._due_ticket, what))
        heapify(entries)
        self._due = entries

    def _when(self, what: Due) -> int | None:
        """When `what` is really due; None when it is gone."""
        if isinstance(what, Session):
            alive = self._sessions.get(what.id) is what
            return self.session_deadline_ms(what) if alive else None
        if isinstance(what, Waiter):
            return what.deadline_ms if self._waiters.get(what.ticket) is what else None
        if isinstance(what, Place):
            return what.until_ms if self._places.get(what.ticket) is what else None
        return what.confirm_by_ms if self._unconfirmed.get(what.token) is what else None

    # --- what must be true --------------------------------------------------------------

    def check_invariants(self) -> None:
        """See core.machine.Machine.check_invariants."""
        tokens: dict[int, str] = {}
        standing = 0
        for name, lock in self._locks.items():
            assert lock.name == name, (name, lock)
            assert lock.holders or lock.waiters, f"lock {name!r} has state for nobody: {lock}"
            self._check_holders(lock, tokens)
            standing += self._check_line(lock)
        sessions = self._sessions.values()
        assert len(tokens) == self.held == sum(len(each.holds) for each in sessions)
        assert standing == sum(len(each.names) for each in self._waiters.values())
        assert standing == sum(each.wait_count for each in sessions)
        assert standing == sum(
            len(mine) for session in sessions for mine in session.waits.values()
        ), "an index of waits is wrong"
        self._check_places()
        scheduled = {id(what) for _, _, what in self._due}
        ends = (*sessions, *self._waiters.values(), *self._unconfirmed.values())
        for what in (*ends, *self._places.values()):
            assert id(what) in scheduled, f"would never expire: {what}"
        self.past.check_invariants()

    def _check_places(self) -> None:
        kept = [each for one in self._sessions.values() for each in (one.places or {}).values()]
        lapsing = {each.ticket: each for each in kept if each.until_ms}
        assert lapsing == self._places, "an index of kept places is wrong"
        for place in kept:
            assert place.ticket not in self._waiters, f"waits, and its place is kept: {place}"
        standing: list[Place | Waiter] = [*kept, *self._waiters.values()]
        size = sum(size_of_place(each.names, each.owner) for each in standing)
        assert size == self.waits_bytes, (size, self.waits_bytes)

    def _check_holders(self, lock: Lock, tokens: dict[int, str]) -> None:
        holders = lock.holders
        assert len(holders) <= 1 or lock.mode != "exclusive", f"two exclusive holders: {lock}"
        if holders and lock.mode == "semaphore":
            assert lock.used == sum(hold.permits for hold in holders.values()), lock
            assert lock.used <= lock.limit, f"more permits than there are: {lock}"
        for key, hold in holders.items():
            assert key == (hold.session, hold.owner), hold
            assert hold.name == lock.name, hold
            assert not hold.how, f"held after its end: {hold}"
            assert hold.count >= 1, hold
            assert 1 <= hold.token <= self._token, (hold, self._token)
            assert hold.token not in tokens, f"token of two holders: {hold}"
            tokens[hold.token] = lock.name
            assert hold.session in self._sessions, f"held by an ended session: {hold}"
            assert self._sessions[hold.session].holds.get(hold.token) is hold, hold
            waits_for_confirm = self._unconfirmed.get(hold.token) is hold
            assert waits_for_confirm == bool(hold.confirm_by_ms), hold

    def _check_line(self, lock: Lock) -> int:
        line = lock.waiters or []
        places = [place_of(waiter) for waiter in line]
        assert places == sorted(set(places)), f"not by rank, then first come: {line}"
        for waiter in line:
            assert waiter.ticket <= self._ticket, waiter
            assert lock.name in waiter.names, waiter
            assert self._waiters.get(waiter.ticket) is waiter, waiter
            assert waiter.session in self._sessions, f"an ended session waits: {waiter}"
            mine = self._sessions[waiter.session].waits[waiter.owner]
            assert mine.get(lock.name) is waiter, waiter
            if waiter.kind != "many":
                is_holder = (waiter.session, waiter.owner) in lock.holders
                assert is_holder == (waiter.kind == "upgrade"), waiter
        if line:
            assert not self._ready(line[0]), f"could be granted: {line[0]}"
        return len(line)

    def _ready(self, waiter: Waiter) -> bool:
        """Whether this waiter, first in a line, can have what it waits for now."""
        if waiter.kind == "upgrade":
            return len(self._locks[waiter.names[0]].holders) == 1
        if waiter.kind == "one":
            lock = self._locks[waiter.names[0]]
            return not lock.holders or joins(lock, waiter.mode, waiter.permits, waiter.limit)
        me = (waiter.session, waiter.owner)
        return all(
            (lock := self._locks[name]).waiters is not None
            and lock.waiters[0] is waiter
            and (not lock.holders or (lock.mode == "exclusive" and me in lock.holders))
            for name in waiter.names
        )


def joins(lock: Lock, mode: str, permits: int, limit: int) -> bool:
    """Whether another holder fits beside those that a held lock has."""
    if mode == "shared":
        return lock.mode == "shared"
    return (
        mode == "semaphore"
        and lock.mode == "semaphore"
        and lock.limit == limit
        and lock.used + permits <= limit
    )


def label_of(session_id: str, session_name: str, owner: str) -> str:
    """`worker-7`, `worker-7/task 3`, `session 0123abcd…`."""
    name = session_name or f"session {handle_of(session_id)}…"
    return name if owner == session_id else f"{name}/{owner}"
