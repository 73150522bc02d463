"""The simulation itself: some seeds, determinism, and the planted bugs it must find."""

from __future__ import annotations

import pytest

from dss.base.levels import FEATURE_LEVEL
from dss.testing.raftsim import Simulation
from dss.testing.zoo import SECONDS, ZOO, finds, search

RECORDED = {
    "acknowledge_before_fsync": 13,
    "acknowledges_what_it_did_not_check": 1,
    "any_member_is_let_in": 8,
    "answers_lost_in_a_snapshot": 23,
    "applies_while_a_snapshot_is_cut": 27,
    "broken_lock_passes_to_nobody": 3,
    "confirmation_lost_in_a_snapshot": 44,
    "deadlock_is_not_found": 28,
    "double_vote": 1,
    "expiry_is_unconditional": 3,
    "gathering_counts_as_acknowledged": 1,
    "grant_after_the_session_ended": 7,
    "keepalive_acknowledged_at_once": 98,
    "key_is_not_looked_up": 3,
    "late_answer_confirms_a_read": 92,
    "level_changes_at_a_restart": 2,
    "lease_by_a_local_clock": 8,
    "many_takes_a_part": 7,
    "new_leader_gives_no_full_ttl": 3,
    "old_terms_count_as_committed": 35,
    "oldest_is_the_victim": 28,
    "one_release_is_enough": 7,
    "priority_without_ageing": 60,
    "quorum_raises_the_level": 9,
    "readers_pass_a_waiting_writer": 7,
    "repeat_takes_the_answer_alone": 48,
    "semaphore_off_by_one": 3,
    "snapshot_loses_the_last_command": 10,
    "stale_read": 53,
    "token_lost_in_a_snapshot": 5,
    "torn_tail_drops_what_was_durable": 61,
    "unconfirmed_never_passes_on": 7,
    "upgrade_beside_another_reader": 7,
    "upgrade_keeps_its_token": 5,
    "vote_not_persisted": 1,
    "window_drops_an_answer": 30,
    "wiped_voter_votes_again": 8,
}
"""Bug -> the seed on which `make zoo` found it."""
NEIGHBOURS = 40
"""A change of the code changes what a seed does: then so many seeds after the recorded one are
tried, before the search must be made anew (`make zoo`)."""


@pytest.mark.parametrize("seed", range(1001, 1013))
def test_a_seed__keeps_every_invariant_and_converges(seed: int):
    simulation = Simulation(seed, seconds=SECONDS)
    simulation.run()
    assert simulation.checks > 100
    assert simulation.acknowledged > 0


def test_the_same_seed_twice__gives_the_same_trace():
    hashes = []
    for seed in (7, 7, 8):
        simulation = Simulation(seed, seconds=SECONDS)
        simulation.run()
        hashes.append(simulation.world.trace_hash)
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


@pytest.mark.parametrize("story", ["old", "new", "rolling"])
def test_an_upgrade_in_every_story__ends_at_its_level(story: str):
    simulation = Simulation(1013, seconds=SECONDS)
    simulation.upgrades.story = story
    simulation.run()
    if story != "new":  # where replaced nodes may come with the old release
        upgraded = simulation.chaos.counts["upgraded"]
        assert upgraded >= len(simulation.nodes) if story == "rolling" else upgraded == 0
    assert simulation.upgrades.level == (1 if story == "old" else FEATURE_LEVEL)


@pytest.mark.parametrize("bug", sorted(RECORDED))
def test_a_planted_bug__is_found_on_its_recorded_seed(bug: str):
    seed = RECORDED[bug]
    if finds(bug, seed) is None:
        assert search(bug, first=seed + 1, seeds=NEIGHBOURS) is not None


@pytest.mark.parametrize("seed", sorted(set(RECORDED.values())))
def test_the_recorded_seeds__are_clean_without_the_bug(seed: int):
    Simulation(seed, seconds=SECONDS).run()


def test_the_zoo__is_recorded():
    assert set(RECORDED) == set(ZOO)
