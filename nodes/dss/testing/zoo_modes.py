"""Planted bugs of the modes, waits and exactly-once commands of locks (see zoo.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

from dss.core.locks import snapshots
from dss.core.locks.acquiring import LockAcquiring
from dss.core.locks.answers import OK
from dss.core.locks.commands import AcquireMany, ExpireGrants, Release
from dss.core.locks.ending import LockEnding
from dss.core.locks.history import Hold
from dss.core.locks.keys import KeyEntry, Keys
from dss.core.locks.lines import LockLines
from dss.core.locks.machine import LockMachine
from dss.core.locks.once import LockOnce
from dss.core.locks.places import Waiter
from dss.core.locks.state import Lock, LockState, Session, joins
from dss.core.machine import Result, Wake


@contextlib.contextmanager
def semaphore_off_by_one() -> Iterator[None]:
    """A semaphore has one permit more than its limit says."""

    def broken(lock: Lock, mode: str, permits: int, limit: int) -> bool:
        return joins(lock, mode, permits - 1 if mode == "semaphore" else permits, limit)

    with (
        mock.patch("dss.core.locks.state.joins", broken),
        mock.patch("dss.core.locks.lines.joins", broken),
    ):
        yield


@contextlib.contextmanager
def upgrade_beside_another_reader() -> Iterator[None]:
    """An upgrade at the front of its line is granted although others still read."""
    original = LockState._ready

    def broken(self: LockState, waiter: Waiter) -> bool:
        return waiter.kind == "upgrade" or original(self, waiter)

    with mock.patch.object(LockState, "_ready", broken):
        yield


@contextlib.contextmanager
def upgrade_keeps_its_token() -> Iterator[None]:
    """An upgraded hold goes on under its old token: a reader that came later has a larger one."""

    def broken(self: LockLines, lock: Lock, hold: Hold, session: Session) -> Result:
        self._confirmed(hold)
        lock.mode = "exclusive"
        return self._granted(hold, lock, session)

    with mock.patch.object(LockLines, "_upgrade_now", broken):
        yield


@contextlib.contextmanager
def many_takes_a_part() -> Iterator[None]:
    """A request for several locks takes what is free at once, and waits for the rest."""
    original = LockAcquiring._acquire_all

    def broken(self: LockAcquiring, command: AcquireMany, session: Session, at: int) -> Result:
        result = original(self, command, session, at)
        if result[0] == 0:
            for lock in [self._locks[name] for name in command.locks]:
                if not lock.holders:
                    self._open(lock, "exclusive", 0)
                    self._grant(lock, session, command.owner or command.session)
        return result

    with mock.patch.object(LockAcquiring, "_acquire_all", broken):
        yield


@contextlib.contextmanager
def priority_without_ageing() -> Iterator[None]:
    """Whoever is more urgent passes everybody, however long they have waited."""

    def broken(since_ms: int, priority: int) -> int:
        return since_ms - priority * 10**12

    with (
        mock.patch("dss.core.locks.places.rank", broken),
        mock.patch("dss.core.locks.lines.rank", broken),
    ):
        yield


@contextlib.contextmanager
def readers_pass_a_waiting_writer() -> Iterator[None]:
    """Who fits beside the holders is let in, whoever waits."""
    original = LockLines._outranks

    def broken(self: LockLines, lock: Lock, place: tuple[int, int]) -> bool:
        return lock.mode == "shared" or original(self, lock, place)

    with mock.patch.object(LockLines, "_outranks", broken):
        yield


@contextlib.contextmanager
def unconfirmed_never_passes_on() -> Iterator[None]:
    """A grant that nobody confirms stays with who does not know of it."""

    def broken(self: LockEnding, command: ExpireGrants, position: int) -> Result:
        return OK

    with mock.patch.object(LockEnding, "_expire_grants", broken):
        yield


@contextlib.contextmanager
def confirmation_lost_in_a_snapshot() -> Iterator[None]:
    """A replica that was restored takes every grant for a confirmed one."""
    original = snapshots._fill_lock

    def broken(state: LockState, lock: Lock, holds: list[Hold]) -> None:
        for hold in holds:
            hold.confirm_by_ms = 0
        original(state, lock, holds)

    with mock.patch("dss.core.locks.snapshots._fill_lock", broken):
        yield


@contextlib.contextmanager
def window_drops_an_answer() -> Iterator[None]:
    """A numbered command's answer is forgotten before its client has acknowledged it."""
    original = LockOnce._once

    def broken(self: LockOnce, session: Session, command: Any, *args: Any) -> Result:
        result = original(self, session, command, *args)
        kept = session.answers or {}
        for seq in [seq for seq, answer in kept.items() if answer[0] and seq < command.seq]:
            del kept[seq]
        return result

    with mock.patch.object(LockOnce, "_once", broken):
        yield


@contextlib.contextmanager
def answers_lost_in_a_snapshot() -> Iterator[None]:
    """The answers of numbered commands do not survive a snapshot."""
    original = snapshots._session_row

    def broken(levelled: bool, session: Session) -> Any:
        row = original(levelled, session)
        return (*row[:6], [], *row[7:])

    with mock.patch("dss.core.locks.snapshots._session_row", broken):
        yield


@contextlib.contextmanager
def key_is_not_looked_up() -> Iterator[None]:
    """A request that is repeated under its Idempotency-Key is carried out once more."""

    def broken(self: Keys, key: str, now_ms: int) -> KeyEntry | None:
        entry = original(self, key, now_ms)
        return None if entry is not None and entry.answer[0] else entry

    original = Keys.find
    with mock.patch.object(Keys, "find", broken):
        yield


@contextlib.contextmanager
def deadlock_is_not_found() -> Iterator[None]:
    """Nobody looks whether a wait closes a cycle."""

    def broken(self: LockLines) -> None:
        self._suspects.clear()

    with mock.patch.object(LockLines, "_resolve", broken):
        yield


@contextlib.contextmanager
def oldest_is_the_victim() -> Iterator[None]:
    """Of a deadlock the wait that came first is ended: two can starve each other for ever."""

    def broken(self: LockLines) -> None:
        with mock.patch("dss.core.locks.lines.max", min, create=True):
            original(self)

    original = LockLines._resolve
    with mock.patch.object(LockLines, "_resolve", broken):
        yield


@contextlib.contextmanager
def one_release_is_enough() -> Iterator[None]:
    """A re-entrant hold ends with its first release."""

    def broken(self: LockMachine, command: Release, session: Session, position: int) -> Result:
        hold = session.holds.get(command.token)
        if hold is not None:
            hold.count = 1
        return original(self, command, session, position)

    original = LockMachine._release_one
    with mock.patch.object(LockMachine, "_release_one", broken):
        yield


@contextlib.contextmanager
def broken_lock_passes_to_nobody() -> Iterator[None]:
    """An administrator's break tells the holder, and keeps the lock."""

    def broken(self: LockEnding, hold: Hold, how: str) -> Lock:
        return self._locks[hold.name]

    with mock.patch.object(LockEnding, "_lose", broken):
        yield


@contextlib.contextmanager
def repeat_takes_the_answer_alone() -> Iterator[None]:
    """Of several questions of one request that wait, only the newest is answered."""

    def broken(self: LockLines, waiter: Waiter, result: Result) -> None:
        self._wakes.append(Wake(waiter.index, waiter.position, *result))

    with mock.patch.object(LockLines, "_tell", broken):
        yield


BUGS: Final[tuple[Callable[[], contextlib.AbstractContextManager[None]], ...]] = (
    semaphore_off_by_one,
    upgrade_beside_another_reader,
    upgrade_keeps_its_token,
    many_takes_a_part,
    priority_without_ageing,
    readers_pass_a_waiting_writer,
    unconfirmed_never_passes_on,
    confirmation_lost_in_a_snapshot,
    window_drops_an_answer,
    answers_lost_in_a_snapshot,
    key_is_not_looked_up,
    deadlock_is_not_found,
    oldest_is_the_victim,
    one_release_is_enough,
    broken_lock_passes_to_nobody,
    repeat_takes_the_answer_alone,
)
