"""The lock group's promises, checked in the order of its log: an own, naive account of everything.

* Tokens strictly increase, per lock and in the group, for ever; a token names one holder.
* Never two holders that exclude each other, never more permits than there are, at any index; a
  grant of several locks is a grant of all of them, in one entry.
* A grant goes to a live session only; a session ends by request, or after its time (a new leader
  gives it a full TTL), never otherwise; whoever is told `session_expired` has lost it.
* By age, priority and then first come: nobody is overtaken, so nobody starves; nobody waits for
  what it could have.
* A wait ends by grant, by its timeout (not before it), by a cancel, with its session, or as the
  youngest of a real deadlock; no deadlock outlives the entry that closed it.
* A numbered or keyed command is carried out once and has one answer (lockonce.py).
* An unconfirmed grant passes on after its time, not before, and a confirmed one does not.

Shares no code with the machine but the command structs. What must not live here: real time (the
clients' view: lockload.py) and what one client may conclude from its answers (lockspec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dss.core.locks.commands import (
    KEYED_CODEC,
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
from dss.core.machine import Result, Wake
from dss.testing.lockaccount import Hold, Wait, Who
from dss.testing.lockasking import PLACE_MS, Asks, Effect, LockAsking, LockSession, Watcher
from dss.testing.lockonce import Name

REPEATS_MAX: Final = 8
"""Questions of one name that are answered together."""


class LockRules(LockAsking):
    """Implements observed.Rules."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher)
        self._expired = False
        self._carry_out: dict[type, Callable[[Any, Result], None]] = {
            SessionCreate: self._create,
            SessionKeepalive: self._keepalive,
            SessionEnd: self._end_session,
            ExpireSessions: self._expire_sessions,
            ExpireWaits: self._expire_waits,
            ExpireGrants: self._expire_grants,
            Withdraw: lambda command, result: None,
            Release: self._release,
            Downgrade: self._downgrade,
            Confirm: self._confirm,
            Cancel: self._cancel,
            Break: self._break,
            Acquire: self._asked,
            AcquireMany: self._asked,
            Upgrade: self._asked,
        }

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # --- the log ---

    def leader_changed(self, index: int, log_ms: int) -> None:
        assert log_ms >= self._log_ms, f"log time went back at {index}"
        self._floor_ms = self._log_ms = log_ms

    def level_raised(self, index: int, log_ms: int, level: int) -> None:
        assert log_ms >= self._log_ms, f"log time went back at {index}"
        self._log_ms = log_ms
        self._level = level
        for session in self._sessions.values():
            for key, (number, since_ms, _) in session.ages.items():
                session.ages[key] = (number, since_ms, log_ms + PLACE_MS)

    def applied(
        self, index: int, log_ms: int, steps: Sequence[tuple[Any, Result, Sequence[Wake]]]
    ) -> None:
        assert log_ms >= self._log_ms, f"log time went back at {index}"
        self._log_ms = log_ms
        self._moved = False
        for position, (command, result, wakes) in enumerate(steps):
            try:
                self._one((index, position), command, result, wakes)
            except AssertionError as error:
                raise AssertionError(f"index {index}, {command}: {error}") from error
        if self._moved and len(self.account.waits) > 1:
            stuck = self.account.stuck()
            assert not stuck, f"index {index}: a deadlock stays: {stuck}"

    def _one(
        self, at: tuple[int, int], command: Any, result: Result, wakes: Sequence[Wake]
    ) -> None:
        self._dying, self._touched, self._key = {}, {}, ""
        inner, name, joined = self._named(command, result)
        self.counts[type(inner).__name__] += 1
        if joined is None:
            self._carry_out[type(inner)](inner, result)
            asked = inner if isinstance(inner, Asks) else None
            self._late_answers(at, command, inner, asked, result, wakes)
            if name is not None and result[0]:
                self.once.answered(name, result)
        elif isinstance(joined, Wait):
            assert result[0] == 0, f"a repeat of a command that waits was answered {result}"
            self._join(joined, at, wakes)
        else:
            assert not wakes, f"a repeat did something: {wakes}"
            code = joined[1].get("code")
            same = result == joined or (set(joined[1]) == {"code"} and result[1]["code"] == code)
            assert same, f"a repeat was answered {result}, the one true answer is {joined}"
        assert not self._echoes, f"not answered as the others: {list(self._echoes)}"
        self._bury()
        for each in self._touched:
            self._settled(each)

    def _join(self, wait: Wait, at: tuple[int, int], wakes: Sequence[Wake]) -> None:
        """Both questions wait on; below level 2, and of too many, the oldest is superseded."""
        if self._level >= 2:
            wait.also.append(wait.at)
        told = wait.at if self._level < 2 else None
        if len(wait.also) >= REPEATS_MAX:
            told = wait.also.pop(0)
        assert [(wake.index, wake.position) for wake in wakes] == ([told] if told else []), wakes
        for wake in wakes:
            assert wake.body["code"] == "superseded", f"a repeat ended the wait: {wake}"
        wait.joined_ms = self._log_ms
        self.account.move(wait, at)

    def _named(self, command: Any, result: Result) -> tuple[Any, Name | None, Any]:
        """(the command itself, what it is called, what it comes to without being carried out)."""
        digest: bytes = b""
        name: Name
        if isinstance(command, Keyed):
            name, digest, self._key = ("", command.key), command.digest, command.key
            command = KEYED_CODEC.decode_args(command.op, command.args)
            joined = self.once.begin(name, digest, 0, self._log_ms)
            if joined is not None:
                self._key = ""
            return command, name, joined
        seq = getattr(command, "seq", 0)
        if seq and command.session in self._sessions:
            name = (command.session, seq)
            return command, name, self.once.begin(name, b"", command.ack, self._log_ms)
        return command, None, None

    # --- holding ---

    def _held(self, command: Release | Downgrade | Confirm, result: Result) -> Hold | None:
        """What it names; None: it was refused, and rightly."""
        if self._answered(command.session, result):
            return self._check_holder(command, held=True)
        if result[1]["code"] == "not_holder":
            self._check_holder(command, held=False)
        return None

    def _name_of(self, command: Release | Downgrade) -> tuple[Name, ...]:
        if self._key:
            return (("", self._key),)
        return ((command.session, command.seq),) if command.seq else ()

    def _release(self, command: Release, result: Result) -> None:
        hold = self._held(command, result)
        if hold is None:
            return
        who = (command.session, command.owner or command.session)
        name_of = self._name_of(command)
        hold.count -= 1
        if not hold.count:
            self._drop(command.name, who)
        effect = Effect("release", command.name, *who, token=command.token, name_of=name_of)
        self._watcher.done(effect, command.token)

    def _downgrade(self, command: Downgrade, result: Result) -> None:
        hold = self._held(command, result)
        if hold is None:
            return
        assert hold.mode != "semaphore", "a share of a semaphore was downgraded"
        who = (command.session, command.owner or command.session)
        name_of = self._name_of(command)
        hold.mode = "shared"
        self._touch(command.name)
        effect = Effect("downgrade", command.name, *who, token=command.token, name_of=name_of)
        self._watcher.done(effect, command.token)

    def _confirm(self, command: Confirm, result: Result) -> None:
        hold = self._held(command, result)
        if hold is not None:
            hold.confirm_by_ms = 0

    def _cancel(self, command: Cancel, result: Result) -> None:
        if self._answered(command.session, result) and not result[1]["cancelled"]:
            who = (command.session, command.owner or command.session)
            waits = self.account.waits_of(who, [command.name])
            left = [each for each in waits if each.joined_ms <= (command.before_ms or self._log_ms)]
            back = [each for each in left if each.also and command.before_ms and self._level >= 2]
            assert left == back, f"not cancelled: {left}"
            if not waits:
                self._sessions[who[0]].ages.pop((who[1], (command.name,)), None)

    def _break(self, command: Break, result: Result) -> None:
        holders = dict(self.account.lock(command.name).holders)
        assert (result[0] == 200) == bool(holders), f"{result}, held by {holders}"
        tokens = sorted(each["token"] for each in result[1].get("broken", ()))
        assert tokens == sorted(hold.token for hold in holders.values()), "broke something else"
        self._touch(command.name)
        for who, hold in holders.items():
            self._drop(command.name, who)
            self._watcher.lost(command.name, who, hold.token, broken=True)

    def _expire_waits(self, command: ExpireWaits, result: Result) -> None:
        """Their answers tell; of kept places nobody is told."""
        for session in self._sessions.values():
            for key, (number, _, until_ms) in list(session.ages.items()):
                if number in command.tickets and until_ms <= self._log_ms:
                    self.counts["lapsed"] += 1
                    del session.ages[key]

    def _expire_grants(self, command: ExpireGrants, result: Result) -> None:
        for name, lock in list(self.account.locks.items()):
            for who, hold in list(lock.holders.items()):
                if hold.token in command.tokens and 0 < hold.confirm_by_ms <= self._log_ms:
                    self.counts["unconfirmed"] += 1
                    self._drop(name, who)
                    self._watcher.lost(name, who, hold.token, broken=False)

    def _drop(self, name: str, who: Who) -> None:
        del self.account.locks[name].holders[who]
        self._touch(name)

    def _touch(self, name: str) -> None:
        self._moved = True
        self._touched[name] = None

    def _settled(self, name: str) -> None:
        lock = self.account.lock(name)
        if lock.waits:
            for wait in lock.waits:
                assert wait.who[0] in self._sessions, f"{wait} waits, its session has ended"
            assert not self.account.ready(lock.first), f"waits for what it could have: {lock.first}"
        elif not lock.holders:
            del self.account.locks[name]

    # --- sessions ---

    def _create(self, command: SessionCreate, result: Result) -> None:
        if result[0] == 201:
            assert command.session is not None
            assert command.session not in self._sessions, "made twice"
            ttl_ms = command.ttl_ms
            self._sessions[command.session] = LockSession(ttl_ms, self._log_ms + ttl_ms, ages={})

    def _keepalive(self, command: SessionKeepalive, result: Result) -> None:
        if self._answered(command.session, result):
            session = self._sessions[command.session]
            session.renewals += 1
            session.deadline_ms = self._log_ms + session.ttl_ms

    def _end_session(self, command: SessionEnd, result: Result) -> None:
        if self._answered(command.session, result):
            self._dying[command.session] = None
            self._expired = False

    def _expire_sessions(self, command: ExpireSessions, result: Result) -> None:
        self._expired = True
        for name, renewals in command.sessions:
            session = self._sessions.get(name)
            if session is None or session.renewals != renewals:
                continue
            if max(session.deadline_ms, self._floor_ms + session.ttl_ms) <= self._log_ms:
                self._dying[name] = None

    def _bury(self) -> None:
        """Those that end in this command are gone, and all that they held."""
        dying, self._dying = self._dying, {}
        for session in dying:
            for name, lock in self.account.locks.items():
                mine = [who for who in lock.holders if who[0] == session]
                for who in mine:
                    del lock.holders[who]
                if mine or any(wait.who[0] == session for wait in lock.waits):
                    self._touch(name)
            del self._sessions[session]
            self.once.ended(session)
            self._watcher.ended(session, expired=self._expired)
