"""One lock as a sequential object, for linearize.py: what its clients' answers may be.

The end of a session is an operation of every lock that it used; a request for several locks is one
operation of each. A holder whose token nobody heard (its acquire's outcome is unknown) has the
token 0 here, which matches any. Every grant's token is larger than all that were heard of before.
Both the simulator and the tests of real nodes under faults (tests/processes) judge by it.
What must not live here: lines and waits, which lockrules.py checks in the order of the log.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

Mine = tuple[str, str, int, int, int]
"""(session, owner, token, count, permits)."""


class State(NamedTuple):
    """`holders` in order; `ended`: sessions; `newest`: the largest token that was heard of.

    Without a holder, `mode` is "" and `limit` 0.
    """

    mode: str
    limit: int
    holders: tuple[Mine, ...]
    ended: frozenset[str]
    newest: int = 0


GRANTED: Final = "granted"
DONE: Final = "done"
BUSY: Final = "lock_timeout"
NOT_HOLDER: Final = "not_holder"
EXPIRED: Final = "session_expired"


class AcquireOp(msgspec.Struct, frozen=True):
    """`answer` is GRANTED, BUSY or EXPIRED; `token` is 0 when nobody heard it.

    `lines`: a request for several locks may have stood before it, so that BUSY says nothing.
    """

    session: str
    owner: str
    mode: str
    answer: str
    token: int = 0
    permits: int = 1
    limit: int = 0
    lines: bool = False


class ReleaseOp(msgspec.Struct, frozen=True):
    """`answer` is DONE, NOT_HOLDER or EXPIRED."""

    session: str
    owner: str
    token: int
    answer: str


class UpgradeOp(msgspec.Struct, frozen=True):
    """`answer` is DONE (with the token after it), NOT_HOLDER, BUSY or EXPIRED."""

    session: str
    owner: str
    token: int
    answer: str
    after: int = 0


class DowngradeOp(msgspec.Struct, frozen=True):
    """`answer` is DONE, NOT_HOLDER or EXPIRED."""

    session: str
    owner: str
    token: int
    answer: str


class ReadOp(msgspec.Struct, frozen=True):
    """Somebody looked: who holds it, in any order."""

    mode: str
    holders: tuple[Mine, ...]


class VerifyOp(msgspec.Struct, frozen=True):
    """Somebody asked whether a token is good.

    `own`: it was granted to who asks, so that a holder of unknown token is another one.
    `newest`: the lock's largest token, by this answer.
    """

    token: int
    valid: bool
    own: bool = False
    newest: int | None = None


class LossOp(msgspec.Struct, frozen=True):
    """It was taken away: by an administrator, or unconfirmed."""

    session: str
    owner: str
    token: int


class EndOp(msgspec.Struct, frozen=True):
    """The session ended, by request or by expiry."""

    session: str


Named = AcquireOp | ReleaseOp | UpgradeOp | DowngradeOp
What = Named | ReadOp | VerifyOp | LossOp | EndOp


class LockSpecification:
    """Implements linearize.Specification.

    Args:
        reentrant: a holder may be granted the lock once more, under its token.
    """

    def __init__(self, *, reentrant: bool = True) -> None:
        self._reentrant = reentrant

    def initial(self) -> State:
        return State("", 0, (), frozenset())

    def step(self, state: State, what: What) -> State | None:
        if isinstance(what, EndOp):
            left = tuple(hold for hold in state.holders if hold[0] != what.session)
            return _held(state._replace(ended=state.ended | {what.session}), left)
        if isinstance(what, ReadOp):
            return self._read(state, what)
        if isinstance(what, VerifyOp):
            return self._verify(state, what)
        mine = next((h for h in state.holders if h[0] == what.session and h[1] == what.owner), None)
        if isinstance(what, LossOp):
            holds = mine is not None and _same(mine[2], what.token)
            return _held(state, _replaced(state.holders, mine, None)) if holds else None
        if what.answer == EXPIRED:
            return state if what.session in state.ended else None
        if what.session in state.ended:
            return None
        if isinstance(what, AcquireOp):
            return self._acquire(state, what, mine)
        if what.answer == NOT_HOLDER:
            # A hold of unknown token may be another one's than the one that was named.
            return state if mine is None or mine[2] != what.token else None
        if mine is None or not _same(mine[2], what.token):
            return None
        if isinstance(what, UpgradeOp):
            return self._upgrade(state, what, mine)
        if what.answer != DONE:
            return None
        if isinstance(what, ReleaseOp):
            token, count = what.token, mine[3] - 1
            less = (mine[0], mine[1], token, count, mine[4]) if count else None
            return _held(state, _replaced(state.holders, mine, less))
        return None if state.mode == "semaphore" else state._replace(mode="shared")

    def _acquire(self, state: State, what: AcquireOp, mine: Mine | None) -> State | None:
        if what.answer == BUSY:
            return state if mine is None and (what.lines or state.holders) else None
        if what.answer != GRANTED:
            return None
        if mine is not None:
            alike = (state.mode, mine[4]) == (what.mode, what.permits)
            if not self._reentrant or not alike or not _same(mine[2], what.token):
                return None
            again = (mine[0], mine[1], mine[2] or what.token, mine[3] + 1, mine[4])
            return _held(state, _replaced(state.holders, mine, again))
        if state.holders and not self._fits(state, what):
            return None
        if what.token and what.token <= state.newest:
            return None
        hold = (what.session, what.owner, what.token, 1, what.permits)
        mixed = state._replace(mode=what.mode, limit=what.limit)
        return _held(mixed, tuple(sorted((*state.holders, hold))))

    @staticmethod
    def _fits(state: State, what: AcquireOp) -> bool:
        if what.mode != state.mode or what.mode == "exclusive":
            return False
        if what.mode == "shared":
            return True
        used = sum(hold[4] for hold in state.holders)
        return state.limit == what.limit and used + what.permits <= what.limit

    @staticmethod
    def _upgrade(state: State, what: UpgradeOp, mine: Mine) -> State | None:
        if what.answer == BUSY:
            return state if state.mode == "shared" and len(state.holders) > 1 else None
        if what.answer != DONE:
            return None
        if state.mode == "exclusive":
            return state if _same(what.token, what.after) else None
        if state.mode != "shared" or len(state.holders) > 1:
            return None
        if what.after and what.after <= max(state.newest, what.token):
            return None
        up = (mine[0], mine[1], what.after, mine[3], mine[4])
        return _held(state._replace(mode="exclusive"), (up,))

    @staticmethod
    def _read(state: State, what: ReadOp) -> State | None:
        if len(state.holders) != len(what.holders) or (state.holders and state.mode != what.mode):
            return None
        seen = tuple(sorted(what.holders))
        for mine, theirs in zip(state.holders, seen, strict=True):
            if mine[:2] != theirs[:2] or mine[3:] != theirs[3:] or not _same(mine[2], theirs[2]):
                return None
        return _held(state, seen)

    @staticmethod
    def _verify(state: State, what: VerifyOp) -> State | None:
        if what.newest is not None and what.newest < state.newest:
            return None
        known = any(hold[2] == what.token for hold in state.holders)
        maybe = not what.own and any(hold[2] == 0 for hold in state.holders)
        return state if known == what.valid or maybe else None


def read_op(body: dict[str, Any]) -> ReadOp:
    """By the answer to GetLock."""
    holders = ((h["session"], h["owner"], h["token"], h["count"], h["permits"])
               for h in body["holders"])  # fmt: skip
    return ReadOp(body.get("mode") or "", tuple(sorted(holders)))


def _held(state: State, holders: tuple[Mine, ...]) -> State:
    """By these, whose tokens are heard of by now."""
    if not holders:
        return State("", 0, (), state.ended, state.newest)
    newest = max(state.newest, *(hold[2] for hold in holders))
    return state._replace(holders=holders, newest=newest)


def _same(one: int, other: int) -> bool:
    return one == other or not one or not other


def _replaced(holders: tuple[Mine, ...], old: Mine | None, new: Mine | None) -> tuple[Mine, ...]:
    left = [hold for hold in holders if hold != old]
    if new is not None:
        left.append(new)
    return tuple(sorted(left))
