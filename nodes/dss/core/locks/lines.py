"""Grants, waits and how they end: the rules of the lines. machine.py has the commands.

A line is sorted by rank and served from its first place: while that one cannot have what it waits
for, nobody behind it gets anything. So nobody starves: not a writer behind readers, not a big
share of a semaphore behind small ones, not a request for several locks. A waiter for several
locks stands in all of their lines with one rank, and is granted all of them in the entry that
brings it to the front of the last one: while it waits it holds nothing
(docs/decisions/0007-several-locks-by-atomic-grant.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dss.base.limits import (
    HOLDS_MAX,
    PLACE_KEPT_MS,
    PLACES_KEPT_MAX,
    SESSION_HOLDS_MAX,
    TOKEN_MAX,
    WAITERS_MAX,
    WAITERS_PER_LOCK_MAX,
    WAITS_BYTES_MAX,
)
from dss.core.locks import answers
from dss.core.locks.history import UPGRADED, Hold
from dss.core.locks.journal import GAVE_UP, WAITING
from dss.core.locks.kept import size_of
from dss.core.locks.places import Place, Waiter, place_in, place_of, rank
from dss.core.locks.state import Lock, LockState, Session, joins
from dss.core.locks.waits import cost_of_asking, find_deadlock, is_waited_for
from dss.core.machine import PENDING, Result, Wake

NO_KEY: Final = ""
TRY_LATER: Final = (429, 503)
"""Answers that say "nothing was done, come again" are not kept: coming again must help."""


class LockLines(LockState):
    """See the module. `_index`, `_now_ms`, `_key` belong to the command being applied."""

    def __init__(self) -> None:
        super().__init__()
        self._index = 0
        self._now_ms = 0
        self._key = NO_KEY
        self._wakes: list[Wake] = []
        self._suspects: list[Waiter] = []
        self._asked: Waiter | None = None
        self._edges_left = 0
        self.grants = 0
        self.releases = 0
        self.timeouts = 0
        self.deadlocks = 0
        self.lapses = 0

    # --- grants -------------------------------------------------------------------------

    def _grant(
        self, lock: Lock, session: Session, owner: str, permits: int = 1, confirm_ms: int = 0
    ) -> Result:
        """To a holder that `lock` has room for; its mode is set already."""
        token = self._token + 1
        assert token <= TOKEN_MAX, "the grant counter is exhausted"
        self._token = token
        self.grants += 1
        self.held += 1
        session_id, mode, now_ms = session.id, lock.mode, self._now_ms
        hold = Hold(lock.name, session_id, session.name, owner, mode, token, now_ms)
        lock.holders[session.me if owner == session_id else (session_id, owner)] = hold
        session.holds[token] = hold
        if mode == "semaphore":
            hold.permits = permits
            lock.used += permits
        if confirm_ms:
            hold.confirm_by_ms = now_ms + confirm_ms
            self._unconfirmed[token] = hold
            self._schedule(hold.confirm_by_ms, hold)
        self.journal.note(hold)
        return self._granted(hold, lock, session)

    def _granted(self, hold: Hold, lock: Lock, session: Session) -> Result:
        floor_ms, deadline_ms = self._floor_ms + session.ttl_ms, session.deadline_ms
        left_ms = (floor_ms if floor_ms > deadline_ms else deadline_ms) - self._now_ms
        body = {
            "token": hold.token,
            "mode": lock.mode,
            "expires_in_ms": left_ms if left_ms > 0 else 0,
        }
        if hold.confirm_by_ms:
            body["confirm_in_ms"] = hold.confirm_by_ms - self._now_ms
        return 200, body

    def _grant_all(self, session: Session, owner: str, names: Iterable[str]) -> Result:
        """All of them exclusive: each is free, or this owner's already."""
        found = []
        for name in names:
            lock = self._locks[name]
            hold = lock.holders.get((session.id, owner))
            if hold is None:
                self._open(lock, "exclusive", 0)
                self._grant(lock, session, owner)
                hold = lock.holders[session.id, owner]
            else:
                hold.count += 1
            found.append({"name": name, "token": hold.token})
        left_ms = max(0, self.session_deadline_ms(session) - self._now_ms)
        return 200, {"locks": found, "expires_in_ms": left_ms}

    def _upgrade_now(self, lock: Lock, hold: Hold, session: Session) -> Result:
        """Exclusive under a new token: a reader that came later may have shown a larger one."""
        self._confirmed(hold)
        del session.holds[hold.token]
        del lock.holders[session.id, hold.owner]
        self.held -= 1
        self._note_end(hold, UPGRADED)
        self._open(lock, "exclusive", 0)
        result = self._grant(lock, session, hold.owner)
        lock.holders[session.id, hold.owner].count = hold.count
        return result

    def _take_back(self, hold: Hold, session: Session, how: str) -> Lock:
        """The end of a hold, however it came; the lock is the caller's to settle."""
        lock = self._locks[hold.name]
        del session.holds[hold.token]
        del lock.holders[session.id, hold.owner]
        self.held -= 1
        self.releases += 1
        if lock.mode == "semaphore":
            lock.used -= hold.permits
        if hold.confirm_by_ms:
            self._confirmed(hold)
        self._note_end(hold, how)
        if session.waits:
            upgrade = session.waits.get(hold.owner, {}).get(hold.name)
            if upgrade is not None and upgrade.kind == "upgrade":
                self._end_wait(upgrade, session, answers.not_holder(lock.name, hold.token))
        return lock

    def _confirmed(self, hold: Hold) -> None:
        """Its client knows of it (whoever upgrades or releases does), or it is over."""
        if hold.confirm_by_ms:
            hold.confirm_by_ms = 0
            del self._unconfirmed[hold.token]

    def _note_end(self, hold: Hold, how: str) -> None:
        hold.until_ms = self._now_ms
        hold.how = how
        self.past.note(hold)
        self.journal.note((hold,))

    def _settle(self, lock: Lock) -> None:
        """After a change: grant from the front of the line as far as it goes."""
        while lock.waiters:
            waiter = lock.waiters[0]
            if not self._ready(waiter):
                if lock.mode != "exclusive" and lock.name in self._moved_up:
                    # It may wait for holders now whom nobody looked at while it stood further
                    # back. (One that stood first before waits for less than it did: a holder that
                    # goes takes its own permits out of what is missing.)
                    self._suspects.append(waiter)
                return
            session = self._sessions[waiter.session]
            self._leave(waiter, session)
            self._answer(waiter, session, self._hand_over(waiter, session))
        if not lock.holders:
            del self._locks[lock.name]

    def _hand_over(self, waiter: Waiter, session: Session) -> Result:
        """What a waiter waited for."""
        if waiter.kind == "many":
            return self._grant_all(session, waiter.owner, waiter.names)
        lock = self._locks[waiter.names[0]]
        if waiter.kind == "upgrade":
            hold = lock.holders[session.id, waiter.owner]
            return self._upgrade_now(lock, hold, session)
        if not lock.holders:
            self._open(lock, waiter.mode, waiter.limit)
        return self._grant(lock, session, waiter.owner, waiter.permits, waiter.confirm_ms)

    @staticmethod
    def _open(lock: Lock, mode: str, limit: int) -> None:
        """Its first holder decides what a lock is."""
        lock.mode = mode
        lock.limit = limit
        lock.used = 0

    # --- waits --------------------------------------------------------------------------

    def _no_room(self, session: Session, names: tuple[str, ...]) -> Result | None:
        """Why no further waiter can stand in these lines; None: it can."""
        for name in names:
            lock = self._locks.get(name)
            here = len(lock.waiters or ()) if lock is not None else 0
            if here >= WAITERS_PER_LOCK_MAX or len(self._waiters) >= WAITERS_MAX:
                return answers.too_many_waiters(name, here, self.waiting)
        if self.level >= 2 and self.waits_bytes >= WAITS_BYTES_MAX:
            return answers.waits_full()
        return self._no_hold(session, len(names))

    def _no_hold(self, session: Session, count: int) -> Result | None:
        if len(session.holds) + session.wait_count + count > SESSION_HOLDS_MAX:
            return answers.too_many_holds()
        if self.level >= 2 and self.held + count > HOLDS_MAX:
            return answers.too_many_holders()
        return None

    def _wait(self, waiter: Waiter, session: Session) -> Result:
        """Stand in line; the place that was kept for it is its own again."""
        place = self._forget_place(session, waiter.owner, waiter.names)
        if place is None:
            self._ticket += 1
            waiter.ticket = self._ticket
        else:
            waiter.ticket, waiter.since_ms = place.ticket, place.since_ms
            waiter.__post_init__()
        self._enter(waiter, session)
        self._schedule(waiter.deadline_ms, waiter)
        self._asked = waiter
        if self._edges_left > 0:
            self._edges_left -= cost_of_asking(session)
            if is_waited_for(self, waiter):
                self._suspects.append(waiter)
                # Whoever it passed waits for it from now on.
                self._suspects += self._behind(waiter)
        for name in waiter.names:
            self.journal.note(
                (
                    WAITING, name, session.id, session.name, waiter.owner, waiter.mode,
                    self._now_ms,
                )
            )  # fmt: skip
        return PENDING

    def _end_wait(self, waiter: Waiter, session: Session, result: Result) -> None:
        """Without a grant. The locks of its lines are the caller's to settle."""
        if waiter.mode != "exclusive":
            self._suspects += self._behind(waiter)
        self._leave(waiter, session)
        self._answer(waiter, session, result)
        why = result[1]["code"]
        for name in waiter.names:
            self.journal.note(
                (GAVE_UP, name, session.id, session.name, waiter.owner, why, self._now_ms)
            )

    def _give_up(self, waiter: Waiter, result: Result) -> None:
        """End a wait and let those behind it move up."""
        self._end_wait(waiter, self._sessions[waiter.session], result)
        for name in waiter.names:
            lock = self._locks.get(name)
            if lock is not None:
                self._settle(lock)

    def _behind(self, waiter: Waiter) -> list[Waiter]:
        """The next one in each of its lines."""
        lines = [self._locks[name].waiters or [] for name in waiter.names]
        return [line[place_in(line, waiter) + 1] for line in lines if line[-1] is not waiter]

    def _answer(self, waiter: Waiter, session: Session, result: Result) -> None:
        """To whoever asked; and kept for whoever repeats the question."""
        if waiter.seq or waiter.key:
            self._remember(waiter, session, result)
        self._tell(waiter, result)

    def _tell(self, waiter: Waiter, result: Result) -> None:
        """Everybody who waits for its answer."""
        self._wakes.append(Wake(waiter.index, waiter.position, *result))
        if waiter.also:
            self._wakes += [Wake(*question, *result) for question in waiter.also]

    def _remember(self, waiter: Waiter, session: Session, result: Result) -> None:
        """The late answer, for a sequenced or keyed command that is repeated."""
        kept = session.answers
        if waiter.seq and kept is not None and waiter.seq in kept:
            more = -size_of(kept[waiter.seq])
            if result[0] in TRY_LATER:
                del kept[waiter.seq]
            else:
                kept[waiter.seq] = result
                more += size_of(result)
            session.answers_bytes += more
            self.answers_bytes += more
        if waiter.key and result[0] in TRY_LATER:
            self.keys.forget(waiter.key)
        elif waiter.key:
            self.keys.settle(waiter.key, result, size_of(result))

    def _place(
        self, session: Session, owner: str, names: tuple[str, ...], priority: int
    ) -> tuple[int, int]:
        """Where a newcomer would stand: where it stood, if that place is kept."""
        place = session.places.get((owner, names)) if session.places else None
        if place is not None:
            return rank(place.since_ms, priority), place.ticket
        return rank(self._now_ms, priority), self._ticket + 1

    def _outranks(self, lock: Lock, place: tuple[int, int]) -> bool:
        """Whether a newcomer would be first in line."""
        return not lock.waiters or place < place_of(lock.waiters[0])

    def _has_room(self, lock: Lock, mode: str, permits: int, limit: int) -> bool:
        return not lock.holders or joins(lock, mode, permits, limit)

    # --- deadlocks ----------------------------------------------------------------------

    def _resolve(self) -> None:
        """As long as some suspect is in a deadlock: its wait that came last gets the error."""
        suspects: dict[int, Waiter] = {}
        while True:
            suspects |= {waiter.ticket: waiter for waiter in self._suspects}
            self._suspects.clear()
            suspects = {
                ticket: waiter
                for ticket, waiter in suspects.items()
                if self._waiters.get(ticket) is waiter
            }
            deadlocks = []
            for waiter in suspects.values():
                if self._edges_left <= 0:
                    break
                found, looked = find_deadlock(self, waiter, self._edges_left)
                self._edges_left -= looked
                if found is not None:
                    deadlocks.append(found)
            if not deadlocks:
                return
            # One victim may not be enough for all that are in a cycle with it.
            involved = {ticket: each for each in deadlocks for ticket in each.tickets}
            suspects |= {ticket: self._waiters[ticket] for ticket in involved}
            ticket = max(involved)
            cycle = involved[ticket].cycle(ticket)
            victim = self._waiters[ticket]
            result = answers.deadlock(self, [self._waiters[each] for each in cycle])
            self.deadlocks += 1
            self._give_up(victim, result)
            self._keep_place(victim)

    def _keep_place(self, waiter: Waiter) -> None:
        """Of a wait that has just ended."""
        session = self._sessions[waiter.session]
        if session.places and len(session.places) >= PLACES_KEPT_MAX:
            self._forget_place(session, *next(iter(session.places)))
        until_ms = self._now_ms + PLACE_KEPT_MS if self.level >= 2 else 0
        self._keep(
            Place(
                waiter.ticket, session.id, waiter.owner, waiter.names, waiter.since_ms, until_ms
            ),
            session,
        )  # fmt: skip
