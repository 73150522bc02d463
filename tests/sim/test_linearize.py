"""The linearizability checker, checked: by hand, by brute force, by mutated histories."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from dss.testing import lockspec as spec
from dss.testing.linearize import Operation, Specification, Unknown, is_linearizable


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
            shared = rng.random() < 0.5
            candidates += [
                spec.AcquireOp(session, owner, shared, spec.GRANTED, token + 1),
                spec.AcquireOp(session, owner, shared, spec.BUSY),
                spec.AcquireOp(session, owner, shared, spec.EXPIRED),
                spec.ReleaseOp(session, owner, rng.randint(0, token), spec.RELEASED),
                spec.ReleaseOp(session, owner, rng.randint(1, token + 1), spec.NOT_HOLDER),
            ]
        candidates += [spec.ReadOp(state[0] if state[1] else False, state[1])]
        rng.shuffle(candidates)
        what, after = next(
            (each, after) for each in candidates if (after := lock.step(state, each)) is not None
        )
        token += isinstance(what, spec.AcquireOp) and what.answer == spec.GRANTED
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
        answer = rng.choice([spec.GRANTED, spec.BUSY, spec.EXPIRED])
        what = spec.AcquireOp(what.session, what.owner, what.shared, answer, rng.randint(0, 4))
    elif dice < 0.6 and isinstance(what, spec.ReleaseOp):
        answer = rng.choice([spec.RELEASED, spec.NOT_HOLDER, spec.EXPIRED])
        what = spec.ReleaseOp(what.session, what.owner, rng.randint(1, 4), answer)
    elif dice < 0.8:
        what = spec.ReadOp(rng.random() < 0.5, ())
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
    first = spec.AcquireOp("a", "x", False, spec.GRANTED, 1)
    second = spec.AcquireOp("b", "y", False, spec.GRANTED, 2)
    history = [Operation(0, 1, first), Operation(2, 3, second)]
    assert not is_linearizable(spec.LockSpecification(), history)
    ended = [*history, Operation(1, 3, spec.EndOp("a"))]
    assert is_linearizable(spec.LockSpecification(), ended)


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
