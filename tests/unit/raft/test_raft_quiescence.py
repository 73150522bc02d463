"""Idle groups rest: no heartbeats, no timers, until anything happens or a node falls silent."""

from __future__ import annotations

import pytest
from raft_cluster import Cluster

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import NEVER_MS


def resting(size: int = 3, **settings: object) -> Cluster:
    cluster = Cluster(size, quiesce_after=3, **settings)
    cluster.elect("n1")
    cluster.run(500)
    assert all(node.raft.quiescent for node in cluster.nodes.values())
    return cluster


def propose(cluster: Cluster, name: str = "n1") -> None:
    cluster[name].step(fx.Propose(1, b"x"))
    cluster.settle()


def test_idle_group__sends_nothing_and_wants_no_tick():
    cluster = resting()
    for node in cluster.nodes.values():
        assert node.raft.next_deadline_ms == NEVER_MS
        assert node.raft.status()["quiescent"]
        node.effects.clear()
    cluster.now += 3_600_000
    for node in cluster.nodes.values():
        assert node.step(fx.Tick()) == []
    assert cluster["n1"].raft.role == "leader"
    assert cluster["n2"].raft.hears_leader()


def test_busy_group__does_not_rest():
    cluster = Cluster(3, quiesce_after=3)
    cluster.elect("n1")
    for _ in range(20):
        propose(cluster)
        cluster.run(50)
        assert not any(node.raft.quiescent for node in cluster.nodes.values())


@pytest.mark.parametrize("why", ["cut off", "slow disk", "behind"])
def test_a_member_lacks_something__nobody_rests(why: str):
    cluster = Cluster(3, quiesce_after=3)
    cluster.elect("n1")
    if why == "slow disk":
        cluster["n3"].auto_sync = False
    else:
        cluster.isolate("n3")
    propose(cluster)
    cluster.run(250 if why == "behind" else 2_000)
    assert not cluster["n1"].raft.quiescent
    assert not cluster["n2"].raft.quiescent
    cluster.heal()
    cluster["n3"].auto_sync = True
    cluster["n3"].sync()
    cluster.run(1_000)
    assert all(node.raft.quiescent for node in cluster.nodes.values())
    assert cluster["n3"].machine == [b"x"]


def test_proposal__wakes_all_is_committed_and_they_rest_again():
    cluster = resting()
    propose(cluster)
    assert cluster["n1"].raft.commit_index == cluster["n1"].raft.last_index
    assert not any(node.raft.quiescent for node in cluster.nodes.values())
    cluster.run(500)
    assert all(node.machine == [b"x"] for node in cluster.nodes.values())
    assert all(node.raft.quiescent for node in cluster.nodes.values())
    assert cluster["n1"].raft.term == 1


def test_read_after_a_long_rest__asks_a_quorum_first():
    cluster = resting()
    cluster.now += 60_000
    cluster["n1"].step(fx.Read(1))
    assert not [e for e in cluster["n1"].effects if isinstance(e, fx.ReadReady)]
    cluster.settle()
    assert [e for e in cluster["n1"].effects if isinstance(e, fx.ReadReady)]
    cluster.run(10)
    assert cluster["n1"].raft.role == "leader", "a long rest is no lost quorum"


def test_leader_node_falls_silent__followers_elect_staggered():
    drawn = []
    for seed in range(20):
        cluster = resting(seed=seed)
        cluster.isolate("n1")
        cluster.tick(10)
        waits = [cluster[n].raft.next_deadline_ms - cluster.now for n in ("n2", "n3")]
        assert all(0 < wait <= 600 for wait in waits)
        drawn += waits
        cluster.run(2_000)
        leader = max(cluster.nodes.values(), key=lambda n: n.raft.term)
        assert leader.name != "n1"
        propose(cluster, next(n for n in ("n2", "n3") if cluster[n].raft.role == "leader"))
        assert cluster["n1"].raft.role == "pre_candidate", "it lost its quorum, and knows it"
        cluster.heal()
        cluster.run(2_000)
        assert all(node.machine == [b"x"] for node in cluster.nodes.values())
    assert len(set(drawn)) > 20


def test_link_to_the_leader_breaks__quick_failover_as_ever():
    cluster = resting()
    cluster.isolate("n1")
    cluster["n2"].step(fx.LinkChanged("n1", False))
    assert not cluster["n2"].raft.quiescent
    assert cluster["n2"].raft.next_deadline_ms <= cluster.now + 100
    cluster["n3"].step(fx.LinkChanged("n2", False))
    assert cluster["n3"].raft.quiescent, "not its leader's"


def test_last_heartbeat_is_lost__its_timer_asks_and_the_leader_wakes():
    cluster = Cluster(3, quiesce_after=3)
    leader = cluster.elect("n1")
    while not leader.raft.quiescent:
        cluster.tick(10)
        if leader.raft.quiescent:
            cluster.wire = [m for m in cluster.wire if m[1] != "n3"]
        cluster.settle()
    assert cluster["n2"].raft.quiescent
    assert not cluster["n3"].raft.quiescent
    cluster.run(2_000)
    assert cluster["n3"].raft.counters["started"] == 0, "a pre-vote, which is refused"
    assert cluster["n3"].raft.leader == "n1"
    assert leader.raft.term == 1
    assert all(node.raft.quiescent for node in cluster.nodes.values())


def test_hand_over_of_a_resting_group__works():
    cluster = resting()
    cluster.now += 60_000
    cluster["n1"].step(fx.Transfer("n3"))
    cluster.settle()
    assert cluster["n3"].raft.role == "leader"
    cluster.run(500)
    assert all(node.raft.quiescent for node in cluster.nodes.values())


def test_newer_leader_is_heard__the_old_one_sleeps_no_more():
    cluster = resting()
    newer = msg.HeartbeatResponse(7, 9)
    cluster["n1"].step(fx.Receive("n2", newer))
    assert cluster["n1"].raft.role == "follower"
    assert not cluster["n1"].raft.quiescent
