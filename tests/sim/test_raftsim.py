"""The Raft simulation itself: some seeds, determinism, and the planted bugs it must find."""

from __future__ import annotations

import pytest

from dss.testing.raftsim import Simulation
from dss.testing.zoo import ZOO, finds

SECONDS = 20.0
RECORDED = {
    "acknowledge_before_fsync": 6,
    "acknowledges_what_it_did_not_check": 7,
    "double_vote": 1,
    "snapshot_loses_the_last_command": 1,
    "stale_read": 256,
    "vote_not_persisted": 1,
}
"""Bug -> the seed on which `make zoo` found it."""


@pytest.mark.parametrize("seed", range(1001, 1009))
def test_a_seed__keeps_every_invariant_and_converges(seed: int):
    simulation = Simulation(seed, seconds=SECONDS)
    simulation.run()
    assert simulation.invariants.checks > 100
    assert simulation.acknowledged > 0


def test_the_same_seed_twice__gives_the_same_trace():
    hashes = []
    for seed in (7, 7, 8):
        simulation = Simulation(seed, seconds=SECONDS)
        simulation.run()
        hashes.append(simulation.world.trace_hash)
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


@pytest.mark.parametrize("bug", sorted(ZOO))
def test_a_planted_bug__is_found_on_its_recorded_seed(bug: str):
    assert finds(bug, RECORDED[bug], SECONDS) is not None


@pytest.mark.parametrize("seed", sorted(set(RECORDED.values())))
def test_the_recorded_seeds__are_clean_without_the_bug(seed: int):
    Simulation(seed, seconds=SECONDS).run()
