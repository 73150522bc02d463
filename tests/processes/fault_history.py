"""One lock under faults as a sequential object (for dss.testing.linearize), in all its modes.

Clients here never hold one lock twice, so there is no re-entrancy. The newest token is part of the
state: a grant with a token that is not larger than every one before has no place in any order.

What must not live here: how the answers were got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from dss.testing.linearize import Operation, is_linearizable

SEMAPHORE_LIMIT = 3
GRANTED, RELEASED, BUSY = "granted", "released", "lock_timeout"

Hold = tuple[str, int, int]
"""(session, token or 0 when nobody heard it, permits)."""
State = tuple[str, tuple[Hold, ...], frozenset[str], int]
"""(mode, holders, sessions that have ended, newest token that was heard of)."""


class Acquired(msgspec.Struct, frozen=True):
    """`answer` is GRANTED or BUSY; `token` 0 when nobody heard it."""

    session: str
    mode: str
    permits: int
    answer: str
    token: int = 0


class Released(msgspec.Struct, frozen=True):
    session: str
    token: int
    answer: str = RELEASED


class Ended(msgspec.Struct, frozen=True):
    session: str


class Verified(msgspec.Struct, frozen=True):
    """Is `token` held; the newest one that the node told."""

    token: int
    valid: bool
    newest: int


class Read(msgspec.Struct, frozen=True):
    mode: str
    holders: tuple[Hold, ...]


What = Acquired | Released | Ended | Verified | Read


class FaultSpecification:
    """Implements linearize.Specification."""

    def initial(self) -> State:
        return "", (), frozenset(), 0

    def step(self, state: State, what: What) -> State | None:
        mode, holders, ended, newest = state
        if isinstance(what, Acquired):
            return self._acquired(state, what)
        if isinstance(what, Ended):
            if what.session in ended:
                return state
            left = tuple(hold for hold in holders if hold[0] != what.session)
            return mode if left else "", left, ended | {what.session}, newest
        if isinstance(what, Released):
            mine = next((hold for hold in holders if hold[0] == what.session), None)
            if what.answer != RELEASED or mine is None or mine[1] not in (0, what.token):
                return None
            left = tuple(hold for hold in holders if hold is not mine)
            return mode if left else "", left, ended, newest
        if isinstance(what, Verified):
            held = any(hold[1] == what.token for hold in holders)
            return state if held == what.valid and what.newest >= newest else None
        return self._read(state, what)

    def _acquired(self, state: State, what: Acquired) -> State | None:
        mode, holders, ended, newest = state
        if what.session in ended or any(hold[0] == what.session for hold in holders):
            return None
        if what.answer == BUSY:
            return state if holders else None
        if what.answer != GRANTED or (what.token and what.token <= newest):
            return None
        used = sum(hold[2] for hold in holders)
        fits = not holders or (
            mode == what.mode
            and (
                mode == "shared" or (mode == "semaphore" and used + what.permits <= SEMAPHORE_LIMIT)
            )
        )
        if not fits:
            return None
        hold = (what.session, what.token, what.permits)
        return what.mode, tuple(sorted((*holders, hold))), ended, max(newest, what.token)

    def _read(self, state: State, what: Read) -> State | None:
        mode, holders, ended, newest = state
        seen = tuple(sorted(what.holders))
        if len(seen) != len(holders) or (holders and mode != what.mode):
            return None
        for mine, theirs in zip(holders, seen, strict=True):
            if mine[0] != theirs[0] or mine[2] != theirs[2] or mine[1] not in (0, theirs[1]):
                return None
        return mode, seen, ended, max(newest, *(hold[1] for hold in seen), 0)


def check(name: str, operations: Sequence[Operation]) -> None:
    """The history of one lock is linearizable, and the checker would notice a wrong one."""
    specification = FaultSpecification()
    assert is_linearizable(specification, operations), f"{name} is not linearizable"
    first = min(operation.called for operation in operations)
    stranger = Acquired("stranger", "exclusive", 1, GRANTED, 1)  # who never gives it back
    before = Operation(first - 2, first - 1, stranger)
    assert not is_linearizable(specification, [before, *operations])


def tokens_increase(operations: Sequence[Operation]) -> bool:
    """Over all grants that were heard of: each is newer than all that ended before it was asked."""
    grants = [
        operation
        for operation in operations
        if isinstance(operation.what, Acquired) and operation.what.token
    ]
    tokens = [grant.what.token for grant in grants]
    if len(set(tokens)) != len(tokens):
        return False
    newest, ended = 0, sorted(grants, key=lambda grant: grant.returned)
    index = 0
    for grant in sorted(grants, key=lambda grant: grant.called):
        while index < len(ended) and ended[index].returned < grant.called:
            newest = max(newest, ended[index].what.token)
            index += 1
        if grant.what.token <= newest:
            return False
    return True


def unknown(operations: Sequence[Operation]) -> int:
    return sum(math.isinf(operation.returned) for operation in operations)
