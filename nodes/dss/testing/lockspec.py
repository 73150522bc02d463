"""One lock as a sequential object, for linearize.py: what its clients' answers may be.

The end of a session is an operation of every lock that it used. A holder whose token nobody heard
(its acquire's outcome is unknown) has the token 0 here, which matches any.
"""

from __future__ import annotations

from typing import Final

import msgspec

Hold = tuple[str, str, int, int]
"""(session, owner, token, count)."""
State = tuple[bool, tuple[Hold, ...], frozenset[str]]
"""(shared, holders in order, sessions that have ended)."""

GRANTED: Final = "granted"
RELEASED: Final = "released"
BUSY: Final = "lock_timeout"
NOT_HOLDER: Final = "not_holder"
EXPIRED: Final = "session_expired"


class AcquireOp(msgspec.Struct, frozen=True):
    """`answer` is GRANTED, BUSY or EXPIRED; `token` is 0 when nobody heard it."""

    session: str
    owner: str
    shared: bool
    answer: str
    token: int = 0


class ReleaseOp(msgspec.Struct, frozen=True):
    """`answer` is RELEASED, NOT_HOLDER or EXPIRED."""

    session: str
    owner: str
    token: int
    answer: str


class ReadOp(msgspec.Struct, frozen=True):
    """Somebody looked: who holds it, in any order."""

    shared: bool
    holders: tuple[Hold, ...]


class EndOp(msgspec.Struct, frozen=True):
    """The session ended, by request or by expiry."""

    session: str


What = AcquireOp | ReleaseOp | ReadOp | EndOp


class LockSpecification:
    """Implements linearize.Specification."""

    def initial(self) -> State:
        return False, (), frozenset()

    def step(self, state: State, what: What) -> State | None:
        shared, holders, ended = state
        if isinstance(what, EndOp):
            if what.session in ended:
                return state
            left = tuple(hold for hold in holders if hold[0] != what.session)
            return shared, left, ended | {what.session}
        if isinstance(what, ReadOp):
            return self._read(state, what)
        if what.answer == EXPIRED:
            return state if what.session in ended else None
        if what.session in ended:
            return None
        mine = next((h for h in holders if h[0] == what.session and h[1] == what.owner), None)
        if isinstance(what, AcquireOp):
            return self._acquire(state, what, mine)
        return self._release(state, what, mine)

    def _acquire(self, state: State, what: AcquireOp, mine: Hold | None) -> State | None:
        shared, holders, ended = state
        if what.answer == BUSY:
            return state if holders and mine is None else None
        if mine is not None:
            if shared != what.shared or not _same(mine[2], what.token):
                return None
            again = (mine[0], mine[1], mine[2] or what.token, mine[3] + 1)
            return shared, _replaced(holders, mine, again), ended
        if holders and not (shared and what.shared):
            return None
        hold = (what.session, what.owner, what.token, 1)
        return what.shared, tuple(sorted((*holders, hold))), ended

    def _release(self, state: State, what: ReleaseOp, mine: Hold | None) -> State | None:
        shared, holders, ended = state
        holds = mine is not None and _same(mine[2], what.token)
        if what.answer == NOT_HOLDER:
            # A hold of unknown token may be another one's than the one that was named.
            return state if mine is None or mine[2] != what.token else None
        if mine is None or not holds:
            return None
        less = None if mine[3] == 1 else (mine[0], mine[1], what.token, mine[3] - 1)
        return shared, _replaced(holders, mine, less), ended

    def _read(self, state: State, what: ReadOp) -> State | None:
        shared, holders, ended = state
        if len(holders) != len(what.holders) or (holders and shared != what.shared):
            return None
        seen = tuple(sorted(what.holders))
        for mine, theirs in zip(holders, seen, strict=True):
            if mine[:2] != theirs[:2] or mine[3] != theirs[3] or not _same(mine[2], theirs[2]):
                return None
        return shared, seen, ended


def _same(one: int, other: int) -> bool:
    return one == other or not one or not other


def _replaced(holders: tuple[Hold, ...], old: Hold, new: Hold | None) -> tuple[Hold, ...]:
    left = [hold for hold in holders if hold != old]
    if new is not None:
        left.append(new)
    return tuple(sorted(left))
