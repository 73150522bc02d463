"""Backoff: how one competing candidate is taken out of a split vote."""

from __future__ import annotations

import random

from raft_cluster import GROUP, Cluster, configuration

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings

MAX_MS = RaftSettings().election_max_ms


def make() -> Raft:
    return Raft(
        group=GROUP,
        node_id="a",
        configuration=configuration("abc"),
        settings=RaftSettings(pre_vote=False),
        rng=random.Random(5),
        now_ms=0,
    )


def campaign(raft: Raft) -> None:
    raft.step([fx.Tick()], raft.next_deadline_ms)
    assert raft.role == "candidate"


def test_candidate__gives_up_and_does_not_campaign_before_the_wait_is_over():
    raft = make()
    campaign(raft)
    term, now = raft.term, raft.now_ms
    effects = raft.step([fx.Backoff(5_000), fx.Tick()], now + 1)
    assert raft.role == "follower"
    assert (raft.term, raft.voted_for) == (term, "a"), "the vote of this term stays given"
    assert not [e for e in effects if isinstance(e, fx.SaveState)]
    assert raft.next_deadline_ms >= now + 5_001
    assert raft.status()["backoff_ms"] == 5_000
    raft.step([fx.Tick()], now + 5_000)
    assert raft.role == "follower"
    raft.step([fx.Tick()], raft.next_deadline_ms)
    assert raft.role == "candidate"


def test_votes_during_the_wait__granted_and_it_still_waits():
    raft = make()
    campaign(raft)
    now = raft.now_ms
    raft.step([fx.Backoff(5_000)], now)
    effects = raft.step([fx.Receive("b", msg.VoteRequest(GROUP, raft.term + 1, 0, 0))], now + 10)
    answers = [e.message for e in effects if isinstance(e, fx.SendAfterSync)]
    assert [a.granted for a in answers] == [True]
    assert raft.next_deadline_ms >= now + 5_000


def test_a_leader_is_heard__the_wait_is_over():
    raft = make()
    campaign(raft)
    now = raft.now_ms
    raft.step([fx.Backoff(50_000)], now)
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, raft.term + 1, 0))], now + 10)
    assert raft.leader == "b"
    assert raft.status()["backoff_ms"] == 0
    assert raft.next_deadline_ms <= now + 10 + MAX_MS


def test_leader_and_its_follower__ignore_it():
    cluster = Cluster()
    leader = cluster.elect("n1")
    for name in ("n1", "n2"):
        raft = cluster[name].raft
        assert not raft.stands_for_election
        before = (raft.role, raft.leader, raft.next_deadline_ms)
        cluster[name].step(fx.Backoff(60_000))
        assert (raft.role, raft.leader, raft.next_deadline_ms) == before
    cluster.run(1_000)
    assert cluster.leader() is leader


def test_learner__never_stands():
    cluster = Cluster(logs={"a": [], "b": [], "c": [], "d": []}, learners=["d"])
    assert not cluster["d"].raft.stands_for_election
    cluster["d"].step(fx.Backoff(1_000))
    assert cluster["d"].raft.role == "learner"


def test_three_candidates_of_one_term__after_a_backoff_of_one_another_is_elected():
    cluster = Cluster(pre_vote=False)
    for _ in range(6):  # a split vote, round after round: all campaign before any request arrives
        cluster.now += MAX_MS + 1
        for node in cluster.nodes.values():
            node.step(fx.Tick())
        cluster.settle()
        assert cluster.leader() is None
        # Two refusals of two others: nobody remains a candidate, all have voted for themselves.
        assert {n.raft.role for n in cluster.nodes.values()} == {"follower"}
        assert all(n.raft.voted_for == n.name for n in cluster.nodes.values())
    # The sixth is still open: a leader of that term could be heard of.
    assert {n.raft.counters["split"] for n in cluster.nodes.values()} == {5}
    cluster["n2"].step(fx.Backoff(2 * MAX_MS))
    cluster.now += MAX_MS + 1
    for node in cluster.nodes.values():
        node.step(fx.Tick())
    cluster.settle()
    leader = cluster.leader()
    assert leader is not None
    assert leader.name in ("n1", "n3")
    assert cluster["n2"].raft.leader == leader.name
    for node in cluster.nodes.values():
        counters = node.raft.counters
        assert counters["split"] == 6
        ended = counters["won"] + counters["lost"] + counters["split"]
        assert ended == counters["started"]
