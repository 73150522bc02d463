"""Acquiring: one lock, several, an upgrade; at once, in line, or instead of an older request.

What must not live here: how lines are served (lines.py), what ends a hold (machine.py).
"""

from __future__ import annotations

from dss.base.limits import LOCKS_MAX, SESSION_HOLDS_MAX
from dss.core.locks import answers
from dss.core.locks.answers import session_expired
from dss.core.locks.commands import Acquire, AcquireMany, Confirm, Downgrade, Upgrade
from dss.core.locks.history import Hold
from dss.core.locks.once import LockOnce
from dss.core.locks.places import Waiter
from dss.core.locks.state import Lock, Session
from dss.core.machine import Result


class LockAcquiring(LockOnce):
    """See the module."""

    def _acquire(self, command: Acquire, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        if command.seq:
            return self._once(session, command, position, self._acquire_one)
        return self._acquire_one(command, session, position)

    def _acquire_one(self, command: Acquire, session: Session, position: int) -> Result:
        name = command.name
        owner = command.owner or session.id
        mode = command.mode
        lock = self._locks.get(name)
        if lock is None:
            if len(self._locks) >= LOCKS_MAX:
                return answers.too_many_locks()
            if len(session.holds) + session.wait_count >= SESSION_HOLDS_MAX:
                return answers.too_many_holds()
            if session.places:
                self._forget_place(session, owner, (name,))
            lock = Lock(name, mode, {}, None, command.limit)
            self._locks[name] = lock
            return self._grant(lock, session, owner, command.permits, command.confirm_ms)
        hold = lock.holders.get((session.id, owner))
        if hold is not None:
            return self._acquire_again(lock, hold, session, command)
        if session.waits:
            older = session.waits.get(owner, {}).get(name)
            if older is not None:
                return self._acquire_instead(older, session, command, position)
        shares = mode == "semaphore" and lock.mode == mode and lock.holders
        if shares and lock.limit != command.limit:
            return answers.other_limit(lock, command.limit)
        first = not lock.waiters or self._outranks(
            lock, self._place(session, owner, (name,), command.priority)
        )
        if first and self._has_room(lock, mode, command.permits, command.limit):
            if full := self._no_hold(session, 1):
                return full
            if not lock.holders:
                self._open(lock, mode, command.limit)
            if lock.waiters:
                self._suspects.append(lock.waiters[0])
            self._forget_place(session, owner, (name,))
            return self._grant(lock, session, owner, command.permits, command.confirm_ms)
        if command.wait_ms == 0:
            self.timeouts += 1
            return answers.lock_timeout(self, lock, None, self._now_ms)
        if full := self._no_room(session, (name,)):
            return full
        return self._wait(self._new_waiter("one", (name,), owner, command, position), session)

    def _new_waiter(
        self,
        kind: str,
        names: tuple[str, ...],
        owner: str,
        command: Acquire | AcquireMany | Upgrade,
        position: int,
    ) -> Waiter:
        """Without a ticket yet."""
        plain = command if isinstance(command, Acquire) else None
        return Waiter(
            0,
            names,
            command.session,
            owner,
            kind,
            plain.mode if plain else "exclusive",
            plain.permits if plain else 1,
            plain.limit if plain else 0,
            0 if isinstance(command, Upgrade) else command.priority,
            self._now_ms,
            self._now_ms + command.wait_ms,
            self._now_ms,
            plain.confirm_ms if plain else 0,
            self._index,
            position,
            command.seq,
            self._key,
        )

    def _acquire_again(self, lock: Lock, hold: Hold, session: Session, command: Acquire) -> Result:
        if lock.mode != command.mode:
            return answers.self_deadlock(lock, hold)
        if lock.mode == "semaphore":
            if lock.limit != command.limit:
                return answers.other_limit(lock, command.limit)
            if hold.permits != command.permits:
                return answers.other_permits(lock, hold)
        hold.count += 1
        return self._granted(hold, lock, session)

    def _acquire_instead(
        self, older: Waiter, session: Session, command: Acquire, position: int
    ) -> Result:
        """The owner's newer request takes the wait over, with its place, or ends it."""
        same = (
            older.kind == "one"
            and (older.mode, older.permits, older.limit, older.priority)
            == (command.mode, command.permits, command.limit, command.priority)
        )  # fmt: skip
        if same and command.wait_ms:
            return self._prolong(older, session, command, position)
        # Not waiting any longer, or for something else: the place in the line is given up.
        self._give_up(older, answers.superseded(older.names))
        return self._acquire_one(command, session, position)

    def _prolong(
        self,
        waiter: Waiter,
        session: Session,
        command: Acquire | AcquireMany | Upgrade,
        position: int,
    ) -> Result:
        """The same wait for a newer question, with its time limit, under its numbers."""
        if waiter.seq != command.seq or waiter.key != self._key:
            # Whoever repeats the older one by its number is told that it was superseded.
            self._remember(waiter, session, answers.superseded(waiter.names))
            waiter.seq = command.seq
            waiter.key = self._key
        waiter.deadline_ms = self._now_ms + command.wait_ms
        if isinstance(command, Acquire):
            waiter.confirm_ms = command.confirm_ms
        self._schedule(waiter.deadline_ms, waiter)
        return self._take_over(waiter, position)

    def _acquire_many(self, command: AcquireMany, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        if command.seq:
            return self._once(session, command, position, self._acquire_all)
        return self._acquire_all(command, session, position)

    def _acquire_all(self, command: AcquireMany, session: Session, position: int) -> Result:
        names = tuple(command.locks)
        owner = command.owner or session.id
        me = (session.id, owner)
        for name in names:
            older = session.waits.get(owner, {}).get(name)
            if older is None:
                continue
            same = (older.names, older.kind, older.priority) == (names, "many", command.priority)
            if same and command.wait_ms:
                return self._prolong(older, session, command, position)
            self._give_up(older, answers.superseded(older.names))
        place = self._place(session, owner, names, command.priority)
        busy = None
        new = 0
        for name in names:
            lock = self._locks.get(name)
            if lock is None:
                new += 1
                continue
            if me in lock.holders and lock.mode != "exclusive":
                return answers.self_deadlock(lock, lock.holders[me])
            free = not lock.holders or me in lock.holders
            if busy is None and not (free and self._outranks(lock, place)):
                busy = lock
        if len(self._locks) + new > LOCKS_MAX:
            return answers.too_many_locks()
        if busy is not None and command.wait_ms == 0:
            self.timeouts += 1
            return answers.lock_timeout(self, busy, None, self._now_ms)
        room = self._no_hold(session, len(names)) if not busy else self._no_room(session, names)
        if room is not None:
            return room
        for name in names:
            if name not in self._locks:
                self._locks[name] = Lock(name, "exclusive", {})
            elif busy is None and (waiters := self._locks[name].waiters):
                self._suspects.append(waiters[0])
        if busy is None:
            self._forget_place(session, owner, names)
            return self._grant_all(session, owner, names)
        return self._wait(self._new_waiter("many", names, owner, command, position), session)

    def _hold_of(self, session: Session, command: Upgrade | Downgrade | Confirm) -> Hold | None:
        hold = session.holds.get(command.token)
        owner = command.owner or session.id
        if hold is None or hold.name != command.name or hold.owner != owner:
            return None
        return hold

    def _upgrade(self, command: Upgrade, position: int) -> Result:
        session = self._sessions.get(command.session)
        if session is None:
            return session_expired(command.session)
        if command.seq:
            return self._once(session, command, position, self._upgrade_one)
        return self._upgrade_one(command, session, position)

    def _upgrade_one(self, command: Upgrade, session: Session, position: int) -> Result:
        hold = self._hold_of(session, command)
        if hold is None:
            return answers.not_holder(command.name, command.token)
        lock = self._locks[hold.name]
        if lock.mode == "exclusive":
            return self._granted(hold, lock, session)
        if lock.mode != "shared":
            return answers.wrong_mode(lock, "a shared hold")
        older = session.waits.get(hold.owner, {}).get(hold.name)
        if older is not None:
            if older.kind == "upgrade" and command.wait_ms:
                return self._prolong(older, session, command, position)
            self._give_up(older, answers.superseded(older.names))
        if len(lock.holders) == 1:
            return self._upgrade_now(lock, hold, session)
        if command.wait_ms == 0:
            self.timeouts += 1
            return answers.lock_timeout(self, lock, None, self._now_ms)
        names = (hold.name,)
        if full := self._no_room(session, names):
            return full
        return self._wait(
            self._new_waiter("upgrade", names, hold.owner, command, position), session
        )
