"""Seeded runs of the coherence protocol in a faulty world (cache_world.py says which faults)."""

from __future__ import annotations

import pytest
from cache_world import INFINITY, Operation, World, linearizable

from dss.core.mesi.states import State

SEEDS = 240
BATCH = 24


def run(seed: int) -> World:
    """150 operations and some faults, then quiet; checks the history."""
    world = World(seed)
    world.run_until(world.now + 500)
    faulty = world.random.random() < 0.7
    for _ in range(150):
        world.operate(world.random.choice(list(world.nodes.values())))
        if faulty and world.random.random() < 0.03:
            world.disturb()
        world.run_until(world.now + world.random.choice([0, 1, 3, 10, 40]))
    world.memory_faults = 0
    world.run_until(world.now + 12_000)
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_random_faults__coherent_at_every_step_and_linearizable(first: int) -> None:
    seen: dict[State, int] = {}
    for seed in range(first, first + BATCH):
        try:
            world = run(seed)
            for key in world.keys:
                history = [op for op in world.history if op.key == key]
                assert linearizable(history), f"{key}: not linearizable"
            for node in world.nodes.values():
                assert not node.answers, "an operation never ended"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        for state, count in world.states.items():
            seen[state] = seen.get(state, 0) + count
    assert all(seen.get(state, 0) > 0 for state in (State.S, State.E, State.M)), seen


@pytest.mark.parametrize("seed", [223, 1462])
def test_seed_that_once_failed__linearizable(seed: int) -> None:
    """223: a refused write's copy outlived its lease. 1462: a home answered a restarted node's
    request 1 with what it owed to request 1 of the process before."""
    world = run(seed)
    assert all(linearizable([op for op in world.history if op.key == k]) for k in world.keys)


def test_same_seed__same_history() -> None:
    one, two = run(7), run(7)
    assert one.steps == two.steps
    assert one.history == two.history


def test_checker__refuses_a_stale_read_and_a_lost_write() -> None:
    put = Operation("k", "put", b"x", start=0, end=1, status=200)
    stale = Operation("k", "get", start=2, end=3, status=404)
    assert not linearizable([put, stale])
    fresh = Operation("k", "get", start=2, end=3, status=200, value=b"x")
    assert linearizable([put, fresh])
    maybe = Operation("k", "put", b"y", start=0, end=INFINITY, maybe=True)
    assert linearizable([put, maybe, fresh])
    late = Operation("k", "get", start=9, end=10, status=200, value=b"y")
    again = Operation("k", "get", start=11, end=12, status=200, value=b"x")
    assert linearizable([put, maybe, fresh, late])
    assert not linearizable([put, maybe, fresh, late, again])
