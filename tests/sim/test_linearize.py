"""The linearizability checker, checked: by hand, by brute force, by mutated histories."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
import pytest

from dss.testing import lockspec as spec
from dss.testing.linearize import Operation, Specification, Unknown, is_linearizable

MODES = ["exclusive", "shared", "semaphore"]


class Register:
    """One value: ("write", v) and ("read", v)."""

    def initial(self) -> Hashable:
        return 0

    def step(self, state: Any, what: Any) -> Hashable | None:
        kind, value = what
        if kind == "write":
            return value
        return state if state == value else None


def brute_force(specification: Specification, history: Sequence[Operation]) -> bool:
    """Every order of every set that holds all operations with a known outcome."""
    sure = [each for each in history if not each.optional]
    maybe = [each for each in history if each.optional]
    for count in range(len(maybe) + 1):
        for some in itertools.combinations(maybe, count):
            for order in itertools.permutations([*sure, *some]):
                if _in_time(order) and _allowed(specification, order):
                    return True
    return False


def _in_time(order: Sequence[Operation]) -> bool:
    return all(
        later.returned >= earlier.called for earlier, later in itertools.combinations(order, 2)
    )


def _allowed(specification: Specification, order: Sequence[Operation]) -> bool:
    state: Hashable | None = specification.initial()
    for operation in order:
        state = specification.step(state, operation.what)
        if state is None:
            return False
    return True


def lock_history(rng: random.Random, count: int) -> list[Operation]:
    """What a lock would answer, at moments inside each operation's interval; few know all."""
    lock = spec.LockSpecification()
    state = lock.initial()
    token = 0
    history = []
    for number in range(count):
        candidates: list[spec.What] = [spec.EndOp(rng.choice("ab"))]
        for session, owner in itertools.product("ab", "xy"):
            who = (session, owner)
            mode, permits = rng.choice(MODES), rng.randint(1, 2)
            if mode != "semaphore":
                permits = 1
            limit = 2 if mode == "semaphore" else 0
            mine = rng.randint(0, token)
            candidates += [
                spec.AcquireOp(*who, mode, spec.GRANTED, token + 1, permits, limit),
                spec.AcquireOp(*who, mode, spec.BUSY),
                spec.AcquireOp(*who, mode, spec.EXPIRED),
                spec.ReleaseOp(*who, mine, spec.DONE),
                spec.ReleaseOp(*who, rng.randint(1, token + 1), spec.NOT_HOLDER),
                spec.UpgradeOp(*who, mine, spec.DONE, token + 1),
                spec.UpgradeOp(*who, mine, spec.BUSY),
                spec.DowngradeOp(*who, mine, spec.DONE),
                spec.LossOp(*who, mine),
            ]
        candidates += [spec.ReadOp(state.mode, state.holders)]
        candidates += [spec.VerifyOp(token, rng.random() < 0.5)]
        rng.shuffle(candidates)
        what, after = next(
            (each, after) for each in candidates if (after := lock.step(state, each)) is not None
        )
        granted = isinstance(what, spec.AcquireOp) and what.answer == spec.GRANTED
        token += granted or (isinstance(what, spec.UpgradeOp) and what.answer == spec.DONE)
        state = after
        called = number - rng.choice([0.0, 0.4, 2.5])
        returned = number + rng.choice([0.0, 0.4, 2.5])
        if isinstance(what, spec.AcquireOp | spec.ReleaseOp) and rng.random() < 0.1:
            returned = math.inf
        history.append(Operation(called, returned, what))
    return history


def mutated(rng: random.Random, history: list[Operation]) -> list[Operation]:
    """One answer, one token or one moment is another."""
    at = rng.randrange(len(history))
    old = history[at]
    what = old.what
    dice = rng.random()
    if dice < 0.4 and isinstance(what, spec.AcquireOp):
        changed = {
            "answer": rng.choice([spec.GRANTED, spec.BUSY, spec.EXPIRED]),
            "token": rng.randint(0, 4),
        }
        what = msgspec.structs.replace(what, **changed)
    elif dice < 0.6 and isinstance(what, spec.ReleaseOp | spec.UpgradeOp | spec.DowngradeOp):
        answer = rng.choice([spec.DONE, spec.NOT_HOLDER, spec.EXPIRED])
        what = msgspec.structs.replace(what, token=rng.randint(1, 4), answer=answer)
    elif dice < 0.8:
        what = spec.ReadOp(rng.choice(MODES), ())
    moment = rng.uniform(-1.0, len(history))
    return [*history[:at], Operation(moment, moment + 0.1, what), *history[at + 1 :]]


def test_a_read_of_an_overwritten_value__is_not_linearizable():
    history = [
        Operation(0, 1, ("write", 1)),
        Operation(2, 3, ("write", 2)),
        Operation(4, 5, ("read", 1)),
    ]
    assert not is_linearizable(Register(), history)
    overlapping = [*history[:1], Operation(2, 4.5, ("write", 2)), history[2]]
    assert is_linearizable(Register(), overlapping)


def test_a_write_of_unknown_outcome__may_have_happened_or_not_but_not_before_its_call():
    write = Operation(2, math.inf, ("write", 1))
    assert is_linearizable(Register(), [write, Operation(3, 4, ("read", 1))])
    assert is_linearizable(Register(), [write, Operation(3, 4, ("read", 0))])
    assert not is_linearizable(Register(), [write, Operation(0, 1, ("read", 1))])
    seen_then_gone = [write, Operation(3, 4, ("read", 1)), Operation(5, 6, ("read", 0))]
    assert not is_linearizable(Register(), seen_then_gone)


def test_too_long_a_search__gives_no_verdict():
    history = [Operation(0, 100, ("write", value)) for value in range(12)]
    history.append(Operation(200, 201, ("read", 99)))
    with pytest.raises(Unknown):
        is_linearizable(Register(), history, steps_max=1_000)


def test_two_exclusive_holders__are_not_linearizable():
    first = spec.AcquireOp("a", "x", "exclusive", spec.GRANTED, 1)
    second = spec.AcquireOp("b", "y", "exclusive", spec.GRANTED, 2)
    history = [Operation(0, 1, first), Operation(2, 3, second)]
    assert not is_linearizable(spec.LockSpecification(), history)
    ended = [*history, Operation(1, 3, spec.EndOp("a"))]
    assert is_linearizable(spec.LockSpecification(), ended)


def test_more_permits_than_there_are__are_not_linearizable():
    some = [
        Operation(at, at + 0.5, spec.AcquireOp(name, "x", "semaphore", spec.GRANTED, at, 1, 2))
        for at, name in enumerate("abc", start=1)
    ]
    assert is_linearizable(spec.LockSpecification(), some[:2])
    assert not is_linearizable(spec.LockSpecification(), some)
    released = [*some, Operation(2.6, 2.7, spec.ReleaseOp("a", "x", 1, spec.DONE))]
    assert is_linearizable(spec.LockSpecification(), released)


def test_an_upgrade_beside_another_reader__is_not_linearizable():
    history = [
        Operation(0, 1, spec.AcquireOp("a", "x", "shared", spec.GRANTED, 1)),
        Operation(2, 3, spec.AcquireOp("b", "y", "shared", spec.GRANTED, 2)),
        Operation(4, 6, spec.UpgradeOp("a", "x", 1, spec.DONE, 3)),
    ]
    assert not is_linearizable(spec.LockSpecification(), history)
    lost = [*history, Operation(5, 6, spec.LossOp("b", "y", 2))]
    assert is_linearizable(spec.LockSpecification(), lost)


def acquired(who: str, token: int, mode: str = "exclusive", permits: int = 1) -> spec.AcquireOp:
    limit = 3 if mode == "semaphore" else 0
    return spec.AcquireOp(who, who, mode, spec.GRANTED, token, permits, limit)


def released(who: str, token: int) -> spec.ReleaseOp:
    return spec.ReleaseOp(who, who, token, spec.DONE)


BUSY = spec.AcquireOp("b", "b", "exclusive", spec.BUSY)
FREE = spec.ReadOp("", ())
WRONG: dict[str, list[spec.What]] = {
    "a second exclusive holder": [acquired("a", 1), acquired("b", 2)],
    "a writer beside a reader": [acquired("a", 1, "shared"), acquired("b", 2)],
    "more permits than there are": [acquired("a", 1, "semaphore", 2),
                                    acquired("b", 2, "semaphore", 2)],
    "a holder of unknown token is overlooked": [acquired("a", 0), acquired("b", 2)],
    "an older token": [acquired("a", 2), released("a", 2), acquired("b", 1)],
    "the same token twice": [acquired("a", 1), released("a", 1), acquired("b", 1)],
    "a token older than one that was read": [
        acquired("a", 0), spec.ReadOp("exclusive", (("a", "a", 7, 1, 1),)),
        released("a", 7), acquired("b", 6)],
    "busy although free": [acquired("a", 1), released("a", 1), BUSY],
    "read as free while held": [acquired("a", 1), FREE],
    "read as held by another": [acquired("a", 1),
                                spec.ReadOp("exclusive", (("b", "b", 1, 1, 1),))],
    "a good token is refused": [acquired("a", 1), spec.VerifyOp(1, valid=False, own=True)],
    "a released token is good": [acquired("a", 1), released("a", 1),
                                 spec.VerifyOp(1, valid=True, own=True)],
    "an older newest token": [acquired("a", 5), released("a", 5), acquired("a", 6),
                              spec.VerifyOp(6, valid=True, own=True, newest=5)],
    "an ended session is granted": [acquired("a", 1), spec.EndOp("a"), acquired("a", 2)],
    "a session's end is forgotten": [acquired("a", 1), spec.EndOp("a"), BUSY],
    "given back with another's token": [acquired("a", 1), released("a", 2)],
    "given back by an ended session": [acquired("a", 1), spec.EndOp("a"), released("a", 1)],
    "an answer that there is not": [acquired("a", 1),
                                    spec.ReleaseOp("a", "a", 1, "unheard_of")],
}  # fmt: skip
"""What each shows, one operation after the other; without its last one, each is right."""


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", WRONG)
def test_planted_wrong_histories__are_refused_in_the_simulator_and_for_real_nodes(
    what: str, reentrant: bool
):
    lock = spec.LockSpecification(reentrant=reentrant)
    history = [Operation(at, at + 0.5, each) for at, each in enumerate(WRONG[what])]
    assert not is_linearizable(lock, history)
    assert is_linearizable(lock, history[:-1])


def test_a_second_grant_to_the_holder__is_right_only_where_locks_are_reentrant():
    again = [acquired("a", 1), acquired("a", 1), released("a", 1), released("a", 1), FREE]
    history = [Operation(at, at + 0.5, each) for at, each in enumerate(again)]
    assert is_linearizable(spec.LockSpecification(), history)
    assert not is_linearizable(spec.LockSpecification(reentrant=False), history[:2])
    other = [history[0], Operation(1, 1.5, acquired("a", 2))]
    assert not is_linearizable(spec.LockSpecification(), other)


def test_histories_of_a_lock__are_accepted():
    for seed in range(300):
        rng = random.Random(seed)
        history = lock_history(rng, rng.randint(1, 40))
        assert is_linearizable(spec.LockSpecification(), history), seed


def test_small_and_mutated_histories__get_the_verdict_of_brute_force():
    verdicts = {True: 0, False: 0}
    for seed in range(1_500):
        rng = random.Random(seed)
        history = lock_history(rng, rng.randint(1, 6))
        if rng.random() < 0.8:
            history = mutated(rng, history)
        verdict = is_linearizable(spec.LockSpecification(), history)
        assert verdict == brute_force(spec.LockSpecification(), history), (seed, history)
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 100, verdicts
