"""One lock as a sequential object, for linearize.py: what its clients' answers may be.

The end of a session is an operation of every lock that it used; a request for several locks is one
operation of each. A holder whose token nobody heard (its acquire's outcome is unknown) has the
token 0 here, which matches any. What must not live here: lines and waits, which lockrules.py
checks in the order of the log.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

Mine = tuple[str, str, int, int, int]
"""(session, owner, token, count, permits)."""


class State(NamedTuple):
    """`holders` in order; `ended`: sessions. `mode` and `limit` mean nothing without a holder."""

    mode: str
    limit: int
    holders: tuple[Mine, ...]
    ended: frozenset[str]


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
    """Somebody asked whether a token is good."""

    token: int
    valid: bool


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
    """Implements linearize.Specification."""

    def initial(self) -> State:
        return State("", 0, (), frozenset())

    def step(self, state: State, what: What) -> State | None:
        if isinstance(what, EndOp):
            left = tuple(hold for hold in state.holders if hold[0] != what.session)
            return state._replace(holders=left, ended=state.ended | {what.session})
        if isinstance(what, ReadOp):
            return self._read(state, what)
        if isinstance(what, VerifyOp):
            known = any(hold[2] == what.token for hold in state.holders)
            maybe = any(hold[2] == 0 for hold in state.holders)
            return state if known == what.valid or maybe else None
        mine = next((h for h in state.holders if h[0] == what.session and h[1] == what.owner), None)
        if isinstance(what, LossOp):
            holds = mine is not None and _same(mine[2], what.token)
            return state._replace(holders=_replaced(state.holders, mine, None)) if holds else None
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
        if isinstance(what, ReleaseOp):
            token, count = what.token, mine[3] - 1
            less = (mine[0], mine[1], token, count, mine[4]) if count else None
            return state._replace(holders=_replaced(state.holders, mine, less))
        if isinstance(what, UpgradeOp):
            return self._upgrade(state, what, mine)
        return None if state.mode == "semaphore" else state._replace(mode="shared")

    def _acquire(self, state: State, what: AcquireOp, mine: Mine | None) -> State | None:
        if what.answer == BUSY:
            return state if mine is None and (what.lines or state.holders) else None
        if mine is not None:
            alike = (state.mode, mine[4]) == (what.mode, what.permits)
            if not alike or not _same(mine[2], what.token):
                return None
            again = (mine[0], mine[1], mine[2] or what.token, mine[3] + 1, mine[4])
            return state._replace(holders=_replaced(state.holders, mine, again))
        if state.holders and not self._fits(state, what):
            return None
        hold = (what.session, what.owner, what.token, 1, what.permits)
        return State(what.mode, what.limit, tuple(sorted((*state.holders, hold))), state.ended)

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
        if state.mode == "exclusive":
            return state if _same(what.token, what.after) else None
        if state.mode != "shared" or len(state.holders) > 1 or what.after == what.token:
            return None
        up = (mine[0], mine[1], what.after, mine[3], mine[4])
        return state._replace(mode="exclusive", holders=(up,))

    @staticmethod
    def _read(state: State, what: ReadOp) -> State | None:
        if len(state.holders) != len(what.holders) or (state.holders and state.mode != what.mode):
            return None
        seen = tuple(sorted(what.holders))
        for mine, theirs in zip(state.holders, seen, strict=True):
            if mine[:2] != theirs[:2] or mine[3:] != theirs[3:] or not _same(mine[2], theirs[2]):
                return None
        return state._replace(holders=seen)


def _same(one: int, other: int) -> bool:
    return one == other or not one or not other


def _replaced(holders: tuple[Mine, ...], old: Mine | None, new: Mine | None) -> tuple[Mine, ...]:
    left = [hold for hold in holders if hold != old]
    if new is not None:
        left.append(new)
    return tuple(sorted(left))
