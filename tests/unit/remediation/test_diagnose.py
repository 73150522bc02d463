"""Which diagnosis a scene gets: every guard has a scene in which it alone prevents the action."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from scenes import (
    NOW_MS,
    POLICY,
    TIMES_MS,
    VOTERS,
    Change,
    all_of,
    groups_of,
    led,
    look,
    only,
    same,
    samples_of,
    silent,
    split_vote,
    with_group,
    without,
)

from dss.remediation import Policy, Sample, SampleWindow, diagnose

FIVE = tuple(f"lock-{n}" for n in range(1, 6))


def test_split_vote__stuck_and_the_highest_ordinal_of_equal_logs_is_chosen() -> None:
    found = look(split_vote())
    assert (found.state, found.reason, found.candidates) == ("ElectionStuck", "SplitVote", VOTERS)
    assert (found.candidate, found.boot_id, found.term) == ("lock-3", "boot-lock-3", 16)
    assert found.leaderless_ms == 30_000
    assert "lock-1, lock-2 and lock-3 stood against each other" in found.message
    assert "the term rose by 6 in 30 s" in found.message


NOT_STUCK: list[tuple[str, Change, dict[str, Any], str, str]] = [
    # every voter answers
    ("silent now", silent("lock-2"), {}, "Uncertain", "Unreachable"),
    ("silent in the middle", silent("lock-2", 3), {}, "Uncertain", "Unreachable"),
    ("silent at the start", all_of(silent("lock-2", 0), silent("lock-2", 1)), {},
     "Electing", "Watching"),  # the run of its process begins at its first answer
    ("never asked", without(only("lock-1")), {}, "Uncertain", "Unreachable"),
    ("two silent", all_of(silent("lock-2"), silent("lock-3")), {}, "Uncertain", "Unreachable"),
    ("all silent", all_of(*(silent(v, at) for v in VOTERS for at in range(7))), {},
     "Uncertain", "Unreachable"),
    ("no samples at all", without(only()), {}, "Uncertain", "Unreachable"),
    ("one silent, its voters known of others", silent("lock-3", -1), {"members": VOTERS},
     "Uncertain", "Unreachable"),
    ("asking has stopped", same, {"now_ms": NOW_MS + 20_001}, "Uncertain", "Unreachable"),
    # every voter sees a quorum of peers
    ("no links now", samples_of(only("lock-1", -1), links_up=()), {}, "Uncertain", "LinksDown"),
    ("no links a while ago", samples_of(only("lock-1", 2), links_up=()), {},
     "Uncertain", "LinksDown"),
    ("links to others than voters", samples_of(only("lock-2"), links_up=("queue-1", "lock-9")), {},
     "Uncertain", "LinksDown"),
    ("nobody has links", samples_of(only(), links_up=()), {}, "Uncertain", "LinksDown"),
    # the members are settled
    ("not founded", groups_of(only(), voters=()), {}, "Uncertain", "NotFounded"),
    ("no groups yet", samples_of(only(), groups=()), {}, "Uncertain", "NotFounded"),
    ("one sees another voter", groups_of(only("lock-1"), voters=(*VOTERS, "lock-4")),
     {"members": (*VOTERS, "lock-4")}, "Uncertain", "Unreachable"),
    ("one has not learned of a removal", groups_of(only("lock-1", 0), voters=VOTERS[:2]), {},
     "Uncertain", "MembershipChanging"),
    ("one sees itself as no voter", groups_of(only("lock-3"), voters=VOTERS[:2]), {},
     "Uncertain", "MembershipChanging"),
    ("one knows no voters", groups_of(only("lock-2"), voters=()), {},
     "Uncertain", "MembershipChanging"),
    ("a voter that is not configured", same, {"members": VOTERS[:2]}, "Uncertain", "UnknownVoter"),
    ("one does not carry the group", samples_of(only("lock-2"), groups=()), {},
     "Uncertain", "GroupMissing"),
    ("one did not carry the group at first", samples_of(only("lock-2", 0), groups=()), {},
     "Uncertain", "GroupMissing"),
    # nobody follows a live leader
    ("a leader now, followed by nobody", lambda s: led(s, "lock-1"), {}, "Electing", "LeaderSeen"),
    ("one that leads without saying whom it follows", groups_of(only("lock-1", 3), role="leader"),
     {}, "Electing", "LeaderSeen"),
    ("two follow one that says it follows another",
     all_of(lambda s: led(s, "lock-1", "lock-2", "lock-3"),
            groups_of(only("lock-1", -1), role="follower", leader="lock-2")), {},
     "Electing", "LeaderSeen"),
    ("a leader in the middle", groups_of(only("lock-1", 3), role="leader", leader="lock-1"), {},
     "Electing", "LeaderSeen"),
    ("one follows a leader of an old term", groups_of(only("lock-2", -1), leader="lock-1"), {},
     "Electing", "LeaderSeen"),
    ("one followed a leader at the start", groups_of(only("lock-2", 0), leader="lock-1"), {},
     "Electing", "LeaderSeen"),
    ("a leader whose follower is in an older term",
     lambda s: groups_of(only("lock-2", -1), term=15)(led(s, "lock-1", "lock-2")), {},
     "Electing", "LeaderSeen"),
    # the whole window, and enough samples of each
    ("the window has not passed", same, {"now_ms": NOW_MS - 5_000}, "Electing", "Watching"),
    ("one was watched from later on", without(only("lock-2", 0)), {}, "Electing", "Watching"),
    ("two samples of one", without(lambda s: s.member == "lock-2" and s.at_ms in TIMES_MS[1:6]),
     {}, "Electing", "Watching"),
    ("two samples of each, evenly", without(lambda s: s.at_ms not in TIMES_MS[:4:3]), {},
     "Electing", "Watching"),
    ("a gap in the middle", without(lambda s: s.at_ms in TIMES_MS[1:5]), {},
     "Electing", "Watching"),
    ("a longer window is asked for", same, {"policy": Policy(window_ms=31_000)},
     "Electing", "Watching"),
    ("more samples are asked for", same, {"policy": Policy(min_samples=8)},
     "Electing", "Watching"),
    ("one was restarted in the window",
     samples_of(lambda s: s.member == "lock-2" and s.at_ms >= TIMES_MS[2], boot_id="boot-new"),
     {}, "Electing", "Watching"),
    ("one was restarted just now", samples_of(only("lock-3", -1), boot_id="boot-new"), {},
     "Electing", "Watching"),
    # the term rises
    ("the term stands still", groups_of(only(), term=12), {}, "Electing", "TermsNotRising"),
    ("the term rose by four", same, {"policy": Policy(min_term_rise=7)},
     "Electing", "TermsNotRising"),
    ("one lagged, the highest term stood still",
     all_of(groups_of(only(), term=16), groups_of(only("lock-1", 0), term=3)), {},
     "Electing", "TermsNotRising"),
    # at least two stand
    ("one stands, others refuse it",
     all_of(groups_of(only("lock-1"), role="follower", voted_for=None),
            groups_of(only("lock-2"), role="follower", voted_for=None)), {},
     "Electing", "OneCandidate"),
    ("nobody stands", groups_of(only(), role="follower", voted_for=None), {},
     "Electing", "OneCandidate"),
    ("others stood in the first term only",
     groups_of(lambda s: s.member != "lock-3" and s.at_ms > TIMES_MS[0], role="follower",
               voted_for="lock-3"), {}, "Electing", "OneCandidate"),
    ("pre-candidates in one term", groups_of(only(), role="pre_candidate", voted_for=None, term=16),
     {}, "Electing", "TermsNotRising"),
    # a leader
    ("all follow", lambda s: led(s, "lock-1", "lock-2", "lock-3"), {}, "Healthy", "HasLeader"),
    ("a quorum follows", lambda s: led(s, "lock-2", "lock-1"), {}, "Healthy", "HasLeader"),
    ("a quorum follows, one is away", lambda s: silent("lock-3")(led(s, "lock-2", "lock-1")), {},
     "Healthy", "HasLeader"),
    ("a quorum follows, one was away before",
     lambda s: silent("lock-3", 3)(led(s, "lock-2", "lock-1")), {}, "Healthy", "HasLeader"),
    ("a quorum follows, links are down",
     lambda s: samples_of(only("lock-3"), links_up=())(led(s, "lock-2", "lock-1")), {},
     "Healthy", "HasLeader"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options", "state", "reason"),
    [case[1:] for case in NOT_STUCK],
    ids=[case[0] for case in NOT_STUCK],
)
def test_one_change_to_a_split_vote__is_not_acted_upon(
    change: Change, options: dict[str, Any], state: str, reason: str
) -> None:
    found = look(change(split_vote()), **options)
    assert (found.state, found.reason) == (state, reason), found.message
    assert found.candidate is None
    assert not found.boot_id
    assert found.message


STILL_STUCK: list[tuple[str, Change, dict[str, Any], str | None]] = [
    ("a non-voter is silent", same, {"members": (*VOTERS, "lock-4")}, "lock-3"),
    ("two stand, the third votes for none",
     groups_of(only("lock-3"), role="follower", voted_for=None), {}, "lock-2"),
    ("one link of each is down",
     all_of(samples_of(only("lock-1"), links_up=("lock-2",)),
            samples_of(only("lock-2"), links_up=("lock-1",)),
            samples_of(only("lock-3"), links_up=("lock-1",))), {}, "lock-3"),
    ("samples that come a little late",
     all_of(without(lambda s: s.at_ms not in TIMES_MS[::3]),
            samples_of(only(at=3), at_ms=TIMES_MS[3] + 900)), {"now_ms": NOW_MS + 700}, "lock-3"),
    ("three samples of each", without(lambda s: s.at_ms not in TIMES_MS[::3]), {}, "lock-3"),
    ("restarted before the window",
     samples_of(only("lock-2", 0), at_ms=TIMES_MS[0] - 1), {}, "lock-3"),
    ("candidates are seen by their vote only", groups_of(only(), role="follower"), {}, "lock-3"),
    ("a rise of exactly five", groups_of(only(at=-1), term=15), {}, "lock-3"),
    # whom to act upon
    ("the shorter log", groups_of(only("lock-1"), last_log_index=99), {}, "lock-1"),
    ("the older log, though longer",
     groups_of(only("lock-2"), last_log_term=8, last_log_index=500), {}, "lock-2"),
    ("of two shorter logs the higher ordinal",
     all_of(groups_of(only("lock-1"), last_log_index=99),
            groups_of(only("lock-2"), last_log_index=99)), {}, "lock-2"),
    ("never who does not stand, though its log is the shortest",
     groups_of(only("lock-1"), last_log_index=9, role="follower", voted_for=None), {}, "lock-3"),
    ("never a volatile one", same, {"volatile": frozenset({"lock-3"})}, "lock-2"),
    ("never a volatile one, though its log is the shortest",
     groups_of(only("lock-1"), last_log_index=9), {"volatile": frozenset({"lock-1"})}, "lock-3"),
    ("all volatile: nobody", same, {"volatile": frozenset(VOTERS)}, None),
    ("strictly ahead of all others: nobody",
     groups_of(only("lock-3"), last_log_index=101),
     {"volatile": frozenset({"lock-1", "lock-2"})}, None),
    ("ahead, but not strictly", same, {"volatile": frozenset({"lock-1", "lock-2"})}, "lock-3"),
    ("a learner by its own word: nobody else is left",
     groups_of(only("lock-3", -1), role="learner"),
     {"volatile": frozenset({"lock-1", "lock-2"})}, None),
    ("the newest log counts", groups_of(only("lock-1", 0), last_log_index=1), {}, "lock-3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options", "candidate"),
    [case[1:] for case in STILL_STUCK],
    ids=[case[0] for case in STILL_STUCK],
)
def test_one_change_to_a_split_vote__still_stuck(
    change: Change, options: dict[str, Any], candidate: str | None
) -> None:
    found = look(change(split_vote()), **options)
    assert found.state == "ElectionStuck", found.message
    assert found.candidate == candidate
    assert found.reason == ("SplitVote" if candidate else "NoSafeCandidate")
    assert found.boot_id == (f"boot-{candidate}" if candidate else "")


def test_five_voters_two_stand__stuck_and_the_tenth_is_after_the_ninth() -> None:
    voters = ("lock-9", "lock-10", *FIVE[:3])
    scene = groups_of(lambda s: s.member in FIVE, role="follower", voted_for=None)(
        split_vote(voters)
    )
    assert look(scene, members=voters).candidate == "lock-10"


def test_five_voters_with_links_to_one_other__uncertain() -> None:
    scene = samples_of(only("lock-4"), links_up=("lock-1",))(split_vote(FIVE))
    found = look(scene, members=FIVE)
    assert (found.state, found.reason) == ("Uncertain", "LinksDown")
    assert "lock-4 had links to 1 of 4 other voters, a quorum needs 2" in found.message


def test_a_lone_voter__never_stuck() -> None:
    assert look(split_vote(("lock-1",)), members=("lock-1",)).reason == "OneCandidate"


def test_two_groups__diagnosed_one_by_one() -> None:
    def change(sample: Sample) -> Sample:
        leader = with_group(sample, role="follower", leader="lock-1", voted_for="lock-1")
        if sample.member == "lock-1":
            leader = with_group(leader, role="leader")
        return Sample(
            at_ms=sample.at_ms,
            member=sample.member,
            boot_id=sample.boot_id,
            links_up=sample.links_up,
            groups=(sample.groups[0], leader.groups[1]),
        )

    scene = [change(sample) for sample in split_vote(groups=(0, 1))]
    found = diagnose(scene, VOTERS, POLICY, NOW_MS)
    assert [(d.group_id, d.state) for d in found] == [(0, "ElectionStuck"), (1, "Healthy")]
    assert found[1].leaderless_ms == 0


def test_a_leader_lost_ten_seconds_ago__leaderless_for_as_long() -> None:
    scene = groups_of(lambda s: s.at_ms <= TIMES_MS[4], leader="lock-1")(split_vote())
    found = look(scene)
    assert (found.reason, found.leaderless_ms) == ("LeaderSeen", 10_000)
    assert "knew a leader 10 s ago" in found.message


def test_leaderless__counted_beyond_the_window_and_the_last_restart() -> None:
    scene = samples_of(only("lock-2", -1), boot_id="boot-new")(split_vote())
    earlier = groups_of(only(), term=9, leader="lock-1")(split_vote())
    earlier = [s for s in samples_of(only(), boot_id="old")(earlier) if s.at_ms == TIMES_MS[0]]
    before = [msgspec.structs.replace(s, at_ms=s.at_ms - 20_000) for s in earlier]
    found = look([*before, *scene])
    assert (found.reason, found.leaderless_ms) == ("Watching", 50_000)


def test_order_of_samples__does_not_matter() -> None:
    scene = split_vote()
    assert look(scene[::-1]) == look(scene)


def test_samples_through_the_window_class__the_same_diagnosis() -> None:
    window = SampleWindow(POLICY.window_ms)
    for sample in split_vote():
        window.add(sample)
    assert look(window.samples()) == look(split_vote())
