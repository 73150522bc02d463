"""Members are added and removed one at a time, through the log (Raft thesis §4.1, §4.2)."""

from __future__ import annotations

import pytest
from raft_cluster import Cluster, members_of

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import NEVER_MS


def led(size: int = 3, **settings: object) -> Cluster:
    cluster = Cluster(size, **settings)
    cluster.elect("n1")
    return cluster


def propose(cluster: Cluster, name: str, count: int) -> None:
    for number in range(count):
        cluster[name].step(fx.Propose(number, b"c%d" % number))
    cluster.settle()


def test_addition_4_2_1__learner_then_voter_by_itself():
    cluster = led()
    propose(cluster, "n1", 20)
    new = cluster.join("n4")
    assert cluster.change("n1", "n4") == ""
    assert list(cluster["n1"].raft.membership.learners) == ["n4"]
    cluster.settle()
    cluster.run(200)
    assert cluster.voters("n1") == cluster.voters("n4") == ["n1", "n2", "n3", "n4"]
    assert new.raft.role == "follower"
    assert new.machine == cluster["n1"].machine
    # It counts: with two of the four gone there is no quorum, with one gone there is.
    cluster.isolate("n2", "n3")
    before = cluster["n1"].raft.commit_index
    propose(cluster, "n1", 1)
    assert cluster["n1"].raft.commit_index == before
    cluster.heal()
    cluster.isolate("n3")
    cluster.run(200)
    assert cluster["n1"].raft.commit_index > before


def test_new_voter_4_2_1__may_lead():
    cluster = led()
    cluster.join("n4")
    cluster.change("n1", "n4")
    cluster.settle()
    cluster.run(200)
    cluster["n1"].step(fx.Transfer("n4"))
    cluster.settle()
    assert cluster["n4"].raft.role == "leader"
    propose(cluster, "n4", 2)
    cluster.run(100)
    assert cluster["n2"].machine == cluster["n4"].machine == [b"c0", b"c1"]


def test_learner_4_2_1__what_it_has_counts_for_no_quorum():
    cluster = led()
    cluster.join("n4")
    assert cluster.change("n1", "n4") == ""
    assert list(cluster["n1"].raft.membership.learners) == ["n4"]
    cluster.isolate("n2", "n3")
    before = cluster["n1"].raft.commit_index
    cluster["n1"].step(fx.Propose(1, b"c"))
    committed = []
    for _ in range(20):
        cluster.tick()
        cluster.settle()
        committed.append(cluster["n1"].raft.commit_index)
    assert cluster["n4"].raft.log.last_index > before, "the learner has the entry"
    assert set(committed) == {before}


def test_learner_that_cannot_be_reached__stays_one():
    cluster = led()
    cluster.join("n4")
    cluster.isolate("n4")
    assert cluster.change("n1", "n4") == ""
    cluster.settle()
    cluster.run(3_000)
    assert list(cluster["n1"].raft.membership.learners) == ["n4"]
    cluster.heal()
    cluster.run(1_000)
    assert "n4" in cluster["n1"].raft.membership.voters


def test_slow_round_4_2_1__another_one_must_be_quick():
    """§4.2.1: promoted too early, a learner that lags would hold every commit up."""
    cluster = led()
    leader = cluster["n1"]
    cluster.join("n4")
    cluster.isolate("n4")
    cluster.change("n1", "n4")
    cluster.settle()
    cluster.run(cluster.settings.election_min_ms + 100)
    propose(cluster, "n1", 1)
    target = leader.raft.last_index
    cluster.heal()
    cluster.tick(50)
    cluster.settle()
    progress = leader.raft._leading.peers["n4"]
    assert progress.round_target >= target
    cluster.run(200)
    assert "n4" in leader.raft.membership.voters


def test_learner_behind_a_compacted_log__gets_the_snapshot_with_its_configuration():
    cluster = led(log_tail_entries=0)
    propose(cluster, "n1", 30)
    cluster["n1"].take_snapshot()
    new = cluster.join("n4")
    cluster.change("n1", "n4")
    cluster.settle()
    cluster.run(2_000)
    assert cluster.voters("n4") == ["n1", "n2", "n3", "n4"]
    assert new.machine == cluster["n1"].machine
    assert members_of(new.configuration) == {"n1": "i-n1", "n2": "i-n2", "n3": "i-n3"}
    new.restart()
    assert cluster.voters("n4") == ["n1", "n2", "n3", "n4"]


def test_follower_is_removed__it_hears_of_it_and_campaigns_no_more():
    cluster = led()
    assert cluster.change("n1", "n3", remove=True) == ""
    cluster.settle()
    cluster.run(5_000)
    assert cluster.voters("n1") == cluster.voters("n2") == ["n1", "n2"]
    assert cluster["n3"].raft.role == "learner"
    assert cluster["n1"].raft.role == "leader"
    assert cluster["n1"].raft.term == 1


def test_removed_voter_whose_vote_is_still_needed__has_not_heard_of_it_yet():
    """Of two voters one is removed, and the leader loses what it had not synced (seed 343)."""
    cluster = led(2)
    leader = cluster["n1"]
    leader.auto_sync = False
    assert cluster.change("n1", "n2", remove=True) == ""
    cluster.settle()
    assert cluster.voters("n2") == ["n1", "n2"]
    leader.restart()
    leader.auto_sync = True
    assert cluster.await_leader(5_000).name in ("n1", "n2")
    assert cluster.voters("n1") == ["n1", "n2"]


def removed_unheard(newer_term: bool = False) -> Cluster:
    """n3 is removed while it is cut off, so that no farewell reaches it."""
    cluster = led()
    cluster.isolate("n3")
    cluster.change("n1", "n3", remove=True)
    cluster.settle()
    if newer_term:
        cluster["n1"].step(fx.Transfer("n2"))
        cluster.settle()
    cluster.run(2_000)
    assert cluster["n3"].raft.counters["pre_votes"] > 1
    assert not cluster["n3"].raft.status()["removed"]
    cluster.heal()
    return cluster


@pytest.mark.parametrize("newer_term", [False, True])
def test_disruptive_server_4_2_3__deposes_nobody_is_told_and_asks_no_more(newer_term: bool):
    """§4.2.3: disruptive servers."""
    cluster = removed_unheard(newer_term)
    leader = cluster.leader()
    term = leader.raft.term
    cluster.run(2_000)
    removed = cluster["n3"].raft
    asked = removed.counters["pre_votes"]
    assert removed.status()["removed"]
    assert removed.next_deadline_ms == NEVER_MS
    cluster.run(10_000)
    assert removed.counters["pre_votes"] == asked
    assert removed.counters["started"] == 0
    assert cluster.leader() is leader
    assert leader.raft.term == term


def test_told_that_it_is_no_member__added_again_it_is_one():
    cluster = removed_unheard()
    cluster.run(2_000)
    assert cluster["n3"].raft.removed_at
    assert cluster.change("n1", "n3") == ""
    cluster.run(500)
    assert cluster.voters("n1") == cluster.voters("n3") == ["n1", "n2", "n3"]
    assert not cluster["n3"].raft.status()["removed"]
    cluster.isolate("n1")
    cluster.run(3_000)
    assert cluster.leader().name != "n1"


def test_member_that_lags__does_not_send_a_newer_member_away():
    """Who asks knows a configuration that the lagging one has not seen."""
    cluster = led()
    cluster.run(200)
    cluster.isolate("n3")
    cluster.join("n4")
    assert cluster.change("n1", "n4") == ""
    cluster.run(2_000)
    assert cluster.voters("n4") == ["n1", "n2", "n3", "n4"]
    cluster.heal()
    cluster.isolate("n3", "n4")
    newer = cluster["n4"]
    cluster.now += 5_000
    newer.step(fx.Tick())
    cluster.settle()
    answers = [
        e.message for e in cluster["n3"].effects if isinstance(e, (fx.Send, fx.SendAfterSync))
    ]
    outside = [m.outside for m in answers if isinstance(m, msg.VoteResponse)]
    assert any(outside), "as far as n3 knows, n4 is none"
    assert newer.raft.removed_at == 0


def test_uncommitted_removal__is_told_to_nobody():
    cluster = led(3)
    cluster.isolate("n1", "n3")
    cluster["n1"].auto_sync = False
    cluster.change("n1", "n3", remove=True)
    assert cluster["n1"].raft.membership.index > cluster["n1"].raft.commit_index
    assert cluster["n1"].raft._outside("n3") == 0


@pytest.mark.parametrize("name", ["n2", "n3"])
def test_removed_and_added_again_with_the_same_disk__is_a_voter_again(name: str):
    cluster = led()
    cluster.change("n1", name, remove=True)
    cluster.run(200)
    propose(cluster, "n1", 5)
    assert cluster.change("n1", name) == ""
    cluster.run(500)
    assert cluster.voters("n1") == ["n1", "n2", "n3"]
    assert cluster[name].machine == cluster["n1"].machine


def test_lost_disk__removed_and_added_under_its_new_incarnation():
    cluster = led()
    propose(cluster, "n1", 10)
    cluster.wipe("n3")
    cluster.run(200)
    assert cluster.change("n1", "n3", incarnation="i-new") == "other_incarnation"
    assert cluster.change("n1", "n3", remove=True) == ""
    cluster.run(200)
    new = cluster.join("n3", "i-new")
    assert cluster.change("n1", "n3", incarnation="i-new") == ""
    cluster.run(500)
    assert cluster["n1"].raft.membership.voters["n3"].incarnation == "i-new"
    assert new.machine == cluster["n1"].machine
    # A removal of the old one, repeated, does not hit the new one.
    assert cluster.change("n1", "n3", remove=True) == "not_member"
    cluster.isolate("n2")
    propose(cluster, "n1", 1)
    assert cluster["n1"].raft.commit_index == cluster["n1"].raft.last_index


def test_wiped_node_under_its_old_name__neither_votes_nor_acknowledges_nor_campaigns():
    cluster = led()
    cluster.wipe("n2")
    wiped = cluster.join("n2", "i-new")  # the group lists n2 with another incarnation
    cluster.isolate("n3")
    before = cluster["n1"].raft.commit_index
    propose(cluster, "n1", 3)
    cluster.run(200)
    assert cluster["n1"].raft.commit_index == before
    assert wiped.raft.role == "learner", "it holds the log, but is not the member of that name"
    cluster.run(10_000)
    assert cluster.leader() is None
    assert wiped.raft.counters == dict.fromkeys(wiped.raft.counters, 0)


def test_one_change_at_a_time_4_1__is_refused():
    cluster = led(5)
    cluster.isolate("n3", "n4", "n5")
    assert cluster.change("n1", "n6") == ""
    cluster.settle()
    assert cluster.change("n1", "n7") == "change_under_way"
    assert cluster.change("n1", "n5", remove=True) == "change_under_way"
    cluster.heal()
    cluster.run(200)
    assert cluster.change("n1", "n7") == ""


def test_change_before_the_noop_is_committed_4_1__is_refused():
    """The rule that §4.1 lacked at first: else two leaders' changes may have disjoint quorums."""
    cluster = Cluster(3)
    leader = cluster["n1"]
    cluster.now += 1_000
    leader.step(fx.Tick())
    for _ in range(2):  # pre-votes, votes
        for _ in range(len(cluster.wire)):
            cluster.deliver(*cluster.wire.pop(0))
        for _ in range(len(cluster.wire)):
            cluster.deliver(*cluster.wire.pop(0))
    assert leader.raft.role == "leader"
    cluster.wire.clear()
    assert cluster.change("n1", "n4") == "not_ready"
    cluster.run(200)
    assert cluster.change("n1", "n4") == ""


def test_a_leader_just_elected__does_not_take_a_silent_voter_for_one_that_is_there():
    cluster = led()
    cluster.isolate("n3")
    cluster["n1"].step(fx.Transfer("n2"))
    cluster.settle()
    assert cluster["n2"].raft.role == "leader"
    assert cluster.change("n2", "n1", remove=True) == "not_ready"
    cluster.run(2_000)
    assert cluster["n2"].raft.role == "leader"
    assert cluster.change("n2", "n1", remove=True) == "breaks_quorum"


def test_refusals__name_the_rule():
    cluster = led()
    assert cluster.change("n2", "n4") == "not_leader"
    assert cluster.change("n1", "n2") == "already_member"
    assert cluster.change("n1", "n9", remove=True) == "not_member"
    assert cluster.change("n1", "n1", remove=True) == "is_leader"
    cluster.isolate("n3")
    cluster.run(2_000)
    # n1 and n2 are the quorum of three; without n2, n1 and a dead n3 would be none of two.
    assert cluster.change("n1", "n2", remove=True) == "breaks_quorum"
    assert cluster.change("n1", "n3", remove=True) == ""
    cluster.settle()
    cluster.now += 1
    cluster["n1"].step(fx.Transfer("n2"))
    assert cluster.change("n1", "n3") in ("not_leader", "transferring")


def test_down_to_one_voter_and_up_again__serves_all_the_way():
    cluster = led(2)
    cluster.change("n1", "n2", remove=True)
    cluster.run(100)
    propose(cluster, "n1", 1)
    assert cluster["n1"].raft.commit_index == cluster["n1"].raft.last_index
    cluster["n1"].restart()
    cluster.run(100)
    assert cluster["n1"].raft.role == "leader"
    cluster.join("n3")
    cluster.change("n1", "n3")
    cluster.run(500)
    assert cluster.voters("n3") == ["n1", "n3"]
    # A lone voter's timeout is 0: among several it must be a real one again.
    cluster["n1"].restart()
    assert cluster["n1"].raft.next_deadline_ms >= cluster.now + cluster.settings.election_min_ms


def test_uncommitted_change_is_truncated_4_1__the_former_members_count_again():
    cluster = led(5)
    cluster.isolate("n1", "n2")
    cluster.change("n1", "n5", remove=True)
    cluster.settle()
    assert cluster.voters("n2") == ["n1", "n2", "n3", "n4"]
    cluster.run(3_000)
    new = cluster.leader()
    assert new is not None
    assert new.name in ("n3", "n4", "n5")
    propose(cluster, new.name, 1)
    cluster.heal()
    cluster.run(2_000)
    for name in cluster.nodes:
        assert cluster.voters(name) == ["n1", "n2", "n3", "n4", "n5"]
        assert cluster[name].members == members_of(cluster.configuration)


def test_lagging_follower_4_1__votes_for_and_follows_a_member_it_has_never_heard_of():
    """§4.1: a server looks at requests whatever its own configuration says."""
    cluster = led()
    cluster.isolate("n3")
    cluster.join("n4")
    cluster.isolate("n3")
    cluster.change("n1", "n4")
    cluster.run(500)
    assert cluster.voters("n4") == ["n1", "n2", "n3", "n4"]
    assert cluster.voters("n3") == ["n1", "n2", "n3"]
    cluster.heal()
    cluster.isolate("n1")
    cluster.isolate("n2")
    # n4 and n3 alone are two of four; n2 comes back with an old log and cannot win itself.
    cluster.heal()
    cluster.isolate("n1")
    cluster.now += cluster.settings.election_max_ms + 1
    cluster["n4"].step(fx.Tick())
    cluster.settle()
    assert cluster["n4"].raft.role == "leader"
    cluster.run(200)
    assert cluster.voters("n3") == ["n1", "n2", "n3", "n4"]
    assert cluster["n3"].raft.leader == "n4"


def test_answer_of_another_incarnation__is_no_request_and_is_not_counted():
    assert isinstance(msg.VoteResponse(7, 1, True), msg.ANSWERS)
    assert not isinstance(msg.VoteRequest(7, 1, 0, 0), msg.ANSWERS)
