"""What ends waits and holds against, or without, their owner's word: time, administrators, stops.

What must not live here: sessions and their ends (machine.py), how lines move up (lines.py).
"""

from __future__ import annotations

from dss.core.locks import answers
from dss.core.locks.acquiring import LockAcquiring
from dss.core.locks.answers import OK, problem, session_expired
from dss.core.locks.commands import Break, Cancel, ExpireGrants, ExpireWaits, Withdraw
from dss.core.locks.history import BROKEN, UNCONFIRMED, Hold
from dss.core.locks.journal import LAPSED, NOT_ASKED_AGAIN
from dss.core.locks.places import Place, Waiter
from dss.core.locks.state import Lock
from dss.core.machine import Result, Wake


class LockEnding(LockAcquiring):
    """See the module."""

    def _cancel(self, command: Cancel, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        owner = command.owner or command.session
        waiter = session.waits.get(owner, {}).get(command.name)
        if waiter is None:
            self._forget_place(session, owner, (command.name,))
        if waiter is None or (command.before_ms and waiter.joined_ms > command.before_ms):
            return 200, {"cancelled": False}
        if command.before_ms and self.level >= 2:
            # A node says this, of a client that has gone from there; it may be back elsewhere.
            if waiter.also:
                return 200, {"cancelled": False}
            if waiter.seq or waiter.key:
                self._give_up(waiter, answers.client_gone(waiter.names))
                return 200, {"cancelled": True}
        self._give_up(waiter, answers.cancelled(waiter.names))
        return 200, {"cancelled": True}

    def _withdraw(self, command: Withdraw, position: int) -> Result:
        places = set(command.places)
        found = [
            each
            for each in self._waiters.values()
            if (each.index, each.position) in places
            or (each.also and not places.isdisjoint(each.also))
        ]
        found.sort(key=lambda each: each.ticket)
        for waiter in found:
            if self._waiters.get(waiter.ticket) is not waiter:
                continue  # granted, when another one left
            questions = waiter.questions
            left = [each for each in questions if each not in places]
            told = answers.stopping(waiter.names)
            if not left:
                self._give_up(waiter, told)
                self._keep_place(waiter)
                continue
            self._wakes += [Wake(*each, *told) for each in questions if each in places]
            waiter.index, waiter.position = left.pop()
            waiter.also = left or None
        return OK

    def _break(self, command: Break, position: int) -> Result:
        lock = self._locks.get(command.name)
        if lock is None or not lock.holders:
            return problem(404, "not_found", f'lock "{command.name}": nobody holds it')
        how = f"{BROKEN} by {command.by or 'an administrator'}"
        if command.reason:
            how += f": {command.reason}"
        broken = []
        for hold in sorted(lock.holders.values(), key=lambda each: each.token):
            label = self.label(hold.session, hold.owner)
            held_ms = self._now_ms - hold.since_ms
            broken.append({"holder": label, "token": hold.token, "held_ms": held_ms})
            self._lose(hold, how)
        self._settle(lock)
        return 200, {"broken": broken}

    def _lose(self, hold: Hold, how: str) -> Lock:
        """Against its owner's will: whoever listens for the session is told."""
        self.journal.lost((hold.session, hold.name, hold.token, hold.owner, how))
        return self._take_back(hold, self._sessions[hold.session], how)

    def _expire_waits(self, command: ExpireWaits, position: int) -> Result:
        for ticket in command.tickets:
            waiter = self._waiters.get(ticket)
            if waiter is None and (place := self._places.get(ticket)) is not None:
                self._lapse(place)
            if waiter is None or waiter.deadline_ms > self._now_ms:
                continue
            lock = self._held_up_at(waiter)
            self.timeouts += 1
            self._give_up(waiter, answers.lock_timeout(self, lock, waiter, self._now_ms))
        return OK

    def _lapse(self, place: Place) -> None:
        """Nobody has asked for it again in time."""
        if place.until_ms > self._now_ms:
            return
        session = self._sessions[place.session]
        self._forget_place(session, place.owner, place.names)
        self.lapses += 1
        for name in place.names:
            self.journal.note(
                (
                    LAPSED, name, session.id, session.name, place.owner, NOT_ASKED_AGAIN,
                    self._now_ms,
                )
            )  # fmt: skip

    def _held_up_at(self, waiter: Waiter) -> Lock:
        """The lock that it would name: the first of its names that it could not have."""
        me = (waiter.session, waiter.owner)
        locks = [self._locks[name] for name in waiter.names]
        for lock in locks:
            line = lock.waiters
            others = lock.holders and me not in lock.holders
            if others or (line is not None and line[0] is not waiter):
                return lock
        return locks[0]

    def _expire_grants(self, command: ExpireGrants, position: int) -> Result:
        for token in command.tokens:
            hold = self._unconfirmed.get(token)
            if hold is not None and hold.confirm_by_ms <= self._now_ms:
                self._settle(self._lose(hold, UNCONFIRMED))
        return OK
