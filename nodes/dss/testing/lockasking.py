"""Asking for locks, in the order of the log: waits, grants, deadlocks; for lockrules.py.

What must not live here: sessions, and what holders do (lockrules.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from dss.core.locks.commands import (
    Acquire,
    AcquireMany,
    Cancel,
    Confirm,
    Downgrade,
    ExpireWaits,
    Release,
    Upgrade,
    Withdraw,
)
from dss.core.machine import Result, Wake
from dss.testing.lockaccount import Account, Hold, Wait, Who, conflicts, wanted
from dss.testing.lockonce import OnceAccount, names_of

AGES_MAX: Final = 64
"""Places of deadlock victims that are kept for one session."""
PLACE_MS: Final = 30_000
"""For so long, from level 2 on."""
CYCLE_SHOWN_MAX: Final = 10
"""Longer cycles may be cut in an answer."""


class Effect(NamedTuple):
    """What a command did to one lock. Equal for requests that do the same, such as a repeat.

    `token`: of the hold it was about, 0 for an acquire. `name_of`: what the command was called
    (lockonce.py), so that a repeat of it counts once; () when it has no name.
    """

    kind: str
    lock: str
    session: str
    owner: str
    mode: str = ""
    permits: int = 1
    limit: int = 0
    token: int = 0
    name_of: tuple[Any, ...] = ()


class Watcher(Protocol):
    """Who is told what the log did (lockload.py)."""

    def granted(self, lock: str, who: Who, hold: Hold) -> None:
        """A new holder, or a holder under a new token."""

    def ended(self, session: str, *, expired: bool) -> None: ...

    def done(self, effect: Effect, token: int) -> None:
        """Something was carried out; `token` is the hold's after it."""

    def lost(self, lock: str, who: Who, token: int, *, broken: bool) -> None:
        """Taken away: by an administrator, or because nobody confirmed it."""


class LockSession(msgspec.Struct):
    ttl_ms: int
    deadline_ms: int
    renewals: int = 0
    ages: dict[tuple[str, tuple[str, ...]], tuple[int, int, float]] = {}
    """(owner, names) -> (number, since_ms, until_ms)"""


Asks = Acquire | AcquireMany | Upgrade


class LockAsking:
    """See the module. What begins with `_` belongs to the entry being applied."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.account = Account()
        self.once = OnceAccount()
        self.counts: Counter[str] = Counter()
        self._sessions: dict[str, LockSession] = {}
        self._last_token = 0
        self._number = 0
        self._floor_ms = 0
        self._log_ms = 0
        self._key = ""
        self._dying: dict[str, None] = {}
        """Sessions that end in this command: one after the other, so their holds may go first."""
        self._touched: dict[str, None] = {}
        self._moved = False
        self._level = 1
        self._echoes: dict[tuple[int, int], Result] = {}
        """Questions that wait with one that has its answer: theirs must be the same."""

    # --- late answers ---

    def _late_answers(
        self,
        at: tuple[int, int],
        command: Any,
        inner: Any,
        asked: Asks | None,
        result: Result,
        wakes: Sequence[Wake],
    ) -> None:
        """In the order in which they came about, the command's own grant or wait among them."""
        todo = asked is not None
        for wake in wakes:
            code = wake.body.get("code", "") if wake.status != 200 else ""
            place = (wake.index, wake.position)
            echo = self._echoes.pop(place, None)
            if echo is not None:
                assert echo == (wake.status, wake.body), f"answered {wake}, not {echo}"
                continue
            if code == "stopping" and self._node_stops(place, inner):
                continue
            if todo and asked is not None:
                older = self.account.waits.get(place)
                mine = code == "superseded" and older is not None and older.who == _who(asked)
                if mine and older is not None and self._goes_on(older, asked, result):
                    self._take_over(older, asked, at, (wake.status, wake.body))
                    todo = False
                    continue
                later = code == "deadlock" or (
                    result[0] == 200 and wake.status == 200 and _top(wake.body) > _top(result[1])
                )
                if later:
                    self._own(at, asked, result)
                    todo = False
            wait = self.account.waits.get(place)
            assert wait is not None, f"nobody waits at {place}: {wake}"
            if code == "deadlock":
                self._bury()
            self._woken(wait, wake, code, inner)
        if todo and asked is not None:
            self._own(at, asked, result)

    def _node_stops(self, place: tuple[int, int], inner: Any) -> bool:
        """Whether one of several questions of a wait is told so, and the wait goes on."""
        assert isinstance(inner, Withdraw), "no node stops"
        wait = self.account.joined_at(place)
        assert wait is not None, f"nobody waits at {place}"
        assert place in inner.places, "its node does not stop"
        left = [each for each in (*wait.also, wait.at) if each not in inner.places]
        if not left:
            return False
        if place == wait.at:
            self.account.move(wait, left[-1])
            wait.also.remove(left[-1])
        else:
            wait.also.remove(place)
        return True

    def _goes_on(self, wait: Wait, asked: Asks, result: Result) -> bool:
        """Whether a newer question of the same owner takes this wait over."""
        if result[0] or not asked.wait_ms:
            return False
        new = self._wait_of(asked, wait.at)
        return (wait.kind, wait.names, wait.mode, wait.permits, wait.limit, wait.priority) == (
            new.kind, new.names, new.mode, new.permits, new.limit, new.priority,
        )  # fmt: skip

    def _take_over(self, wait: Wait, asked: Asks, at: tuple[int, int], told: Result) -> None:
        self._echo(wait, told)
        if (wait.seq, wait.key) != (asked.seq, self._key):
            self.once.woken(wait, told)
            wait.seq, wait.key = asked.seq, self._key
        wait.deadline_ms = self._log_ms + asked.wait_ms
        wait.joined_ms = self._log_ms
        if isinstance(asked, Acquire):
            wait.confirm_ms = asked.confirm_ms
        self.account.move(wait, at)
        for name in names_of(wait):
            self.once.waits(name, wait)

    def _echo(self, wait: Wait, told: Result) -> None:
        self._echoes.update(dict.fromkeys(wait.also, told))
        wait.also = []

    def _woken(self, wait: Wait, wake: Wake, code: str, inner: Any) -> None:
        self._moved = True
        self._touched.update(dict.fromkeys(wait.names))
        self.counts[code or "granted_late"] += 1
        if code == "deadlock":
            self._check_deadlock(wait, wake.body["cycle"])
            self._keep_age(wait)
        elif code == "stopping":
            places = inner.places if isinstance(inner, Withdraw) else []
            assert wait.at in places, "its node does not stop"
            self._keep_age(wait)
        elif code:
            self._check_end(wait, code, inner)
        else:
            assert wait.who[0] in self._sessions, f"granted to {wait.who}, which has ended"
            self._check_turn(wait)
        self._echo(wait, (wake.status, wake.body))
        self.account.leave(wait)
        self.once.woken(wait, (wake.status, wake.body))
        if not code:
            self._grant(wait, wake.body)

    def _check_end(self, wait: Wait, code: str, inner: Any) -> None:
        session, owner = wait.who
        if code == "lock_timeout":
            assert isinstance(inner, ExpireWaits), "nobody asked to end it"
            assert wait.deadline_ms <= self._log_ms, "its time to wait is not over"
        elif code == "session_expired":
            ended = session in self._dying or session not in self._sessions
            assert ended, "told session_expired, but its time is not over"
        elif code == "superseded":
            assert isinstance(inner, Asks), "no newer request"
            assert _who(inner) == wait.who, f"superseded by {inner}"
        elif code == "cancelled":
            assert isinstance(inner, Cancel), "nobody cancelled it"
            assert (inner.session, inner.owner or inner.session) == (session, owner)
            assert inner.name in wait.names, "another lock's wait was cancelled"
            assert not inner.before_ms or wait.joined_ms <= inner.before_ms, "it had come back"
        elif code == "client_gone":
            assert isinstance(inner, Cancel), "nobody said so"
            assert inner.before_ms >= wait.joined_ms, "it had come back"
            assert self._level >= 2, "told client_gone below level 2"
            assert names_of(wait), f"it has no name to come back by: {wait}"
            assert not wait.also, f"it had come back: {wait}"
        else:
            assert code == "not_holder", f"a wait ended as {code}"
            assert wait.kind == "upgrade", "told not_holder, but it is no upgrade"
            gone = self.account.hold(wait.names[0], wait.who) is None
            assert gone or session in self._dying, "told not_holder, but it holds it"

    def _check_turn(self, wait: Wait) -> None:
        ahead = [each for each in self.account.ahead(wait) if each.who[0] not in self._dying]
        assert not ahead, f"{wait} overtook {ahead}"

    def _check_deadlock(self, victim: Wait, cycle: Sequence[dict[str, Any]]) -> None:
        """The error names a real cycle, the victim first, who came last of all in it."""
        stuck = self.account.stuck()
        assert any(each is victim for each in stuck), f"{victim} was in no deadlock"
        if len(cycle) >= CYCLE_SHOWN_MAX:
            return
        waits = []
        for step in cycle:
            who, names = (step["session"], step["owner"]), tuple(step["names"])
            found = [w for w in self.account.waits.values() if (w.who, w.names) == (who, names)]
            assert found, f"the cycle names {step}, which does not wait"
            waits += found
        assert waits[0] is victim, "the victim is not the first of its cycle"
        assert victim.number == max(wait.number for wait in waits), "the victim came not last"
        for wait, after in zip(waits, [*waits[1:], waits[0]], strict=True):
            nodes = self.account.blockers(wait)[0]
            assert after.number in nodes or after.who in nodes, f"{wait} waits not for {after}"

    def _keep_age(self, wait: Wait) -> None:
        ages = self._sessions[wait.who[0]].ages
        if len(ages) >= AGES_MAX:
            del ages[next(iter(ages))]
        until_ms = self._log_ms + PLACE_MS if self._level >= 2 else math.inf
        ages[wait.who[1], wait.names] = (wait.number, wait.since_ms, until_ms)

    # --- asking for locks ---

    def _asked(self, command: Asks, result: Result) -> None:
        self._answered(command.session, result)
        self._moved = True
        self._touched.update(dict.fromkeys(_names(command)))

    def _wait_of(self, command: Asks, at: tuple[int, int]) -> Wait:
        """The wait that it is, if it waits; a deadlock's victim has its old place."""
        names = _names(command)
        who = _who(command)
        kind = {Acquire: "one", AcquireMany: "many", Upgrade: "upgrade"}[type(command)]
        number, since_ms, _ = self._sessions[who[0]].ages.get(
            (who[1], names), (self._number + 1, self._log_ms, 0)
        )
        plain = command if isinstance(command, Acquire) else None
        return Wait(
            number, names, who, kind,
            plain.mode if plain else "exclusive",
            plain.permits if plain else 1,
            plain.limit if plain else 0,
            0 if isinstance(command, Upgrade) else command.priority,
            since_ms, self._log_ms + command.wait_ms, self._log_ms,
            plain.confirm_ms if plain else 0, at, command.seq, self._key,
        )  # fmt: skip

    def _own(self, at: tuple[int, int], command: Asks, result: Result) -> None:
        """Its immediate grant, or the wait that begins with it."""
        status, body = result
        if command.session not in self._sessions:
            return
        wait = self._wait_of(command, at)
        ages = self._sessions[command.session].ages
        age = (wait.who[1], wait.names)
        if status == 0:
            self._number = max(self._number, wait.number)
            ages.pop(age, None)
            self.account.enter(wait)
            assert not self.account.ready(wait), "waits for what it could have"
            for name in names_of(wait):
                self.once.waits(name, wait)
        elif status == 200:
            if wait.kind == "many" or (wait.kind == "one" and not self._has(command)):
                ages.pop(age, None)
                self._check_turn(wait)
            self._grant(wait, body)
        elif body["code"] == "lock_timeout":
            assert command.wait_ms == 0, "did not wait at all"
            free = not any(
                conflicts(self.account.lock(name).holders, wait.who, wanted(wait))
                for name in wait.names
            )
            assert not free or self.account.ahead(wait), "told lock_timeout, but it is free"
        elif body["code"] == "deadlock":
            held = [self.account.hold(name, wait.who) for name in wait.names]
            other = any(hold is not None and hold.mode != wait.mode for hold in held)
            assert other, "told deadlock at once, but it holds it in no other mode"
        elif body["code"] == "not_holder":
            assert isinstance(command, Upgrade), "told not_holder"
            self._check_holder(command, held=False)

    def _has(self, command: Asks) -> bool:
        """Whether it asks once more for what it has."""
        return all(self.account.hold(name, _who(command)) is not None for name in _names(command))

    def _grant(self, wait: Wait, body: Any) -> None:
        """What a command or a wait is answered 200 for: all of its locks."""
        tokens = {each["name"]: each["token"] for each in body.get("locks", ())}
        if not tokens:
            tokens = {wait.names[0]: body["token"]}
        assert list(tokens) == list(wait.names), f"granted {list(tokens)}, not {wait.names}"
        for name, token in tokens.items():
            self._grant_one(name, wait, token)

    def _grant_one(self, name: str, wait: Wait, token: int) -> None:
        lock = self.account.lock(name)
        who, name_of = wait.who, tuple(names_of(wait))
        if wait.kind != "upgrade":
            done = Effect(
                "acquire", name, *who, wait.mode, wait.permits, wait.limit, 0, name_of
            )  # fmt: skip
            hold = lock.holders.get(who)
            if hold is not None:
                assert hold.token == token, "a re-entrant acquire got another token"
                asked = (wait.mode, wait.permits, wait.limit)
                same = (hold.mode, hold.permits, hold.limit) == asked
                assert same, f"a re-entrant acquire of {asked}, it holds {hold}"
                hold.count += 1
                self._watcher.done(done, token)
                return
            by_ms = self._log_ms + wait.confirm_ms if wait.confirm_ms else 0
            hold = wanted(wait, token, by_ms)
        else:
            older = lock.holders.get(who)
            assert older is not None, f"{who} does not hold what it upgrades"
            done = Effect("upgrade", name, *who, token=older.token, name_of=name_of)
            if older.mode == "exclusive":
                assert older.token == token, "an upgrade of an exclusive hold changed its token"
                self._watcher.done(done, token)
                return
            hold = Hold(token, "exclusive", count=older.count)
        assert token > self._last_token, f"token {token} after {self._last_token}"
        self._last_token = token
        for other in conflicts(lock.holders, who, hold):
            # Sessions that end in the same command end one after the other.
            if other[0] in self._dying:
                del lock.holders[other]
        left = conflicts(lock.holders, who, hold)
        assert not left, f"granted to {who}, {[(each, lock.holders[each]) for each in left]}"
        lock.holders[who] = hold
        self.counts["grants"] += 1
        self.counts[f"grants_{wait.kind if wait.kind != 'one' else wait.mode}"] += 1
        self._watcher.done(done, token)
        self._watcher.granted(name, who, hold)

    # --- shared ---

    def _check_holder(
        self, command: Release | Upgrade | Downgrade | Confirm, *, held: bool
    ) -> Hold:
        who = (command.session, command.owner or command.session)
        hold = self.account.hold(command.name, who)
        holds = hold is not None and hold.token == command.token
        assert holds == held, f"answered as if it held it: {held}, but it holds {hold}"
        return hold or Hold(0, "")

    def _answered(self, session: str, result: Result) -> bool:
        """Whether the command was carried out; a refusal must be for the right reason."""
        status, body = result
        known = session in self._sessions
        expired = status == 409 and body["code"] == "session_expired"
        assert known or expired, f"answered {result} for a session that has ended"
        assert not (known and expired), "told session_expired, but its time is not over"
        return bool(status == 200)

    def _bury(self) -> None:
        """Those that end in this command are gone, and all that they held."""
        raise NotImplementedError


def _who(command: Asks) -> Who:
    return command.session, command.owner or command.session


def _names(command: Asks) -> tuple[str, ...]:
    return tuple(command.locks) if isinstance(command, AcquireMany) else (command.name,)


def _top(body: Any) -> int:
    """The newest token in an answer."""
    tokens = [each["token"] for each in body.get("locks", ())]
    return int(max(tokens, default=body.get("token", 0)))
