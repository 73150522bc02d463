"""Thrifty replication: voters that the quorum does not need get their entries gathered."""

from __future__ import annotations

import pytest
from raft_cluster import Cluster

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import NEVER_MS
from dss.core.raft.thrift import RACE_MS

LAZY_MS = 5


def leading(size: int = 3, **settings: object) -> Cluster:
    """n1 leads; for nobody anything gathers."""
    cluster = Cluster(size, lazy_ms=LAZY_MS, **settings)
    cluster.elect("n1")
    cluster.tick(50)
    cluster.settle()
    return cluster


def thrift(cluster: Cluster):
    leading = cluster["n1"].raft._leading
    assert leading is not None
    return leading.thrift


def the_lazy_one(cluster: Cluster) -> str:
    (name,) = (n for n, peer in cluster["n1"].raft.status()["peers"].items() if peer["lazy"])
    return name


def propose(cluster: Cluster, *payloads: bytes, settle: bool = True) -> dict[str, list[int]]:
    """Propose at the leader; who is sent which entries, in this one step."""
    effects = cluster["n1"].step(*(fx.Propose(i, p) for i, p in enumerate(payloads or (b"x",))))
    if settle:
        cluster.settle()
    return sent(effects)


def sent(effects: list[fx.Effect]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for effect in effects:
        if isinstance(effect, fx.Send) and isinstance(effect.message, msg.AppendRequest):
            indexes = [entry.index for entry in effect.message.entries]
            found.setdefault(effect.peer, []).extend(indexes)
    return found


def after(cluster: Cluster, ms: int) -> dict[str, list[int]]:
    """Only the leader's clock goes on; what it then sends."""
    cluster.now += ms
    leader = cluster["n1"]
    due = leader.raft.next_deadline_ms <= cluster.now
    return sent(leader.step(fx.Tick())) if due else {}


@pytest.mark.parametrize(("size", "eager"), [(3, 1), (4, 2), (5, 2), (6, 3), (7, 3)])
def test_group__as_many_are_served_at_once_as_a_quorum_needs(size: int, eager: int):
    cluster = leading(size)
    served = propose(cluster)
    assert len(served) == eager
    assert tuple(served) == thrift(cluster).eager
    assert cluster["n1"].raft.commit_index == 2


@pytest.mark.parametrize("size", [1, 2])
def test_everybody_is_needed__everybody_is_served_at_once(size: int):
    cluster = leading(size)
    for _ in range(3):
        assert len(propose(cluster)) == size - 1
        assert thrift(cluster).due_ms == NEVER_MS


def test_first_entry_of_a_term__goes_to_everybody_and_the_quickest_is_chosen():
    cluster = Cluster(3, lazy_ms=LAZY_MS)
    cluster.isolate("n2")
    cluster.elect("n1")
    assert thrift(cluster).eager == ("n3",)
    assert the_lazy_one(cluster) == "n2"


def test_entries__gather_and_leave_in_one_request_of_which_all_are_applied():
    cluster = leading()
    lazy = the_lazy_one(cluster)
    for _ in range(4):
        assert lazy not in propose(cluster)
        cluster.now += 1
    assert cluster["n1"].raft.commit_index == 5
    assert cluster[lazy].raft.last_index == 1
    served = after(cluster, LAZY_MS - 4)
    assert served == {lazy: [2, 3, 4, 5]}
    cluster.settle()
    # It hears of the commit in the same request.
    assert cluster[lazy].raft.commit_index == cluster[lazy].raft.last_index == 5


def test_otherwise_idle_group__everybody_has_everything_after_lazy_ms():
    cluster = leading(5)
    propose(cluster)
    leader = cluster["n1"].raft
    assert leader.next_deadline_ms == cluster.now + LAZY_MS
    assert after(cluster, LAZY_MS - 1) == {}
    assert len(after(cluster, 1)) == 2
    cluster.settle()
    assert {node.raft.last_index for node in cluster.nodes.values()} == {2}
    assert leader.next_deadline_ms == leader._leading.heartbeat_due_ms


def test_much_gathers__it_leaves_before_lazy_ms():
    cluster = leading(lazy_bytes=1_000)
    lazy = the_lazy_one(cluster)
    assert lazy not in propose(cluster, b"x" * 800)
    assert propose(cluster, b"x" * 200)[lazy] == [2, 3]
    assert lazy not in propose(cluster)  # and the next begins to gather
    assert thrift(cluster).due_ms == cluster.now + LAZY_MS


def test_eager_one_is_slow__everybody_is_served_and_the_quicker_one_takes_its_place():
    cluster = leading()
    (slow,), lazy = thrift(cluster).eager, the_lazy_one(cluster)
    cluster[slow].auto_sync = False
    assert list(propose(cluster)) == [slow]
    assert cluster["n1"].raft.commit_index == 1
    assert after(cluster, LAZY_MS) == {lazy: [2]}
    assert set(propose(cluster)) == {slow, lazy}  # in doubt
    assert cluster["n1"].raft.commit_index == 3
    assert thrift(cluster).eager == (lazy,)
    cluster[slow].sync()
    cluster.settle()
    assert thrift(cluster).eager == (lazy,)  # no way back for one good answer
    assert list(propose(cluster)) == [lazy]


@pytest.mark.parametrize("how", ["link", "refusal"])
def test_eager_one_leaves_the_pipeline__everybody_is_served_at_once(how: str):
    cluster = leading()
    (eager,), lazy = thrift(cluster).eager, the_lazy_one(cluster)
    propose(cluster)
    if how == "link":
        effects = cluster["n1"].step(fx.LinkChanged(eager, False), fx.Propose(1, b"y"))
    else:
        refusal = msg.AppendResponse(7, cluster["n1"].raft.term, False, 2, 1, 1)
        cluster["n1"].raft._leading.peers[eager].match = 1  # what it has lost since
        effects = cluster["n1"].step(fx.Receive(eager, refusal), fx.Propose(1, b"y"))
    assert sent(effects)[lazy] == [2, 3]
    cluster.settle()
    assert cluster["n1"].raft.commit_index == 3


def test_lazy_one_has_a_backlog__it_is_pumped_without_waiting():
    cluster = leading(max_inflight=1, max_append_bytes=1)
    lazy = the_lazy_one(cluster)
    propose(cluster, b"a", b"b", b"c")
    assert cluster[lazy].raft.last_index == 1
    assert after(cluster, LAZY_MS) == {lazy: [2]}
    cluster.settle()
    assert cluster[lazy].raft.last_index == 4


def test_learner__waits_for_nothing():
    cluster = leading(3, promote_learners=False)
    cluster.join("n4")
    cluster.change("n1", "n4")
    cluster.settle()
    for _ in range(10):
        assert "n4" in propose(cluster)
    assert cluster["n4"].raft.last_index == cluster["n1"].raft.last_index


def test_members_change__the_lazy_one_is_served_at_once_and_may_become_eager():
    cluster = leading(4)
    lazy = the_lazy_one(cluster)
    propose(cluster)
    assert cluster[lazy].raft.last_index == 1
    cluster.change("n1", thrift(cluster).eager[0], remove=True)
    cluster.settle()
    assert cluster[lazy].raft.last_index == cluster["n1"].raft.last_index == 3
    assert len(thrift(cluster).eager) == 1


def test_hand_over__nothing_gathers_any_more():
    cluster = leading()
    lazy = the_lazy_one(cluster)
    propose(cluster)
    assert cluster[lazy].raft.last_index == 1
    effects = cluster["n1"].step(fx.Transfer(lazy))
    assert sent(effects) == {lazy: [2]}
    cluster.settle()
    assert cluster[lazy].raft.role == "leader"


def test_now_and_then__everybody_gets_one_entry_at_once_to_see_who_is_quick():
    cluster = leading()
    (eager,), lazy = thrift(cluster).eager, the_lazy_one(cluster)
    assert list(propose(cluster)) == [eager]
    cluster.run(RACE_MS)
    assert set(propose(cluster, settle=False)) == {eager, lazy}
    cluster.wire.sort(key=lambda message: message[1] != lazy)  # now it is the nearer one
    cluster.settle()
    assert thrift(cluster).eager == (lazy,)


def test_idle_group__rests_once_everybody_has_everything():
    cluster = leading(quiesce_after=2)
    propose(cluster)
    cluster.run(300)
    for node in cluster.nodes.values():
        assert node.raft.quiescent
        assert node.raft.next_deadline_ms == NEVER_MS
        assert node.raft.commit_index == 2


def leader_dies_behind_a_lazy_one(size: int = 3) -> tuple[Cluster, list[str]]:
    """What is committed, some do not have. Returns also who has it."""
    cluster = leading(size)
    eager = list(thrift(cluster).eager)
    propose(cluster)
    assert cluster["n1"].raft.commit_index == 2
    cluster.isolate("n1")
    cluster["n1"].up = False
    for name, node in cluster.nodes.items():
        if name != "n1":
            node.step(fx.LinkChanged("n1", False))
    return cluster, eager


def test_lazy_one_asks_for_a_pre_vote__the_one_that_has_more_stands_at_once():
    cluster, (eager,) = leader_dies_behind_a_lazy_one()
    (lazy,) = (name for name in cluster.nodes if name not in ("n1", eager))
    cluster.now = cluster[lazy].raft.next_deadline_ms
    cluster[lazy].step(fx.Tick())
    cluster.settle()
    assert cluster[eager].raft.role == "leader"
    assert cluster[eager].machine == [b"x"]
    assert cluster[lazy].raft.counters["started"] == 0


@pytest.mark.parametrize("size", [3, 5])
def test_leader_dies__service_is_back_as_quickly_as_ever(size: int):
    cluster, eager = leader_dies_behind_a_lazy_one(size)
    died_ms = cluster.now
    for _ in range(200):
        cluster.tick(1)
        cluster.settle()
        if any(node.up and node.raft.role == "leader" for node in cluster.nodes.values()):
            break
    found = cluster.leader()
    assert found is not None
    assert found.name in eager
    assert cluster.now - died_ms <= 101  # link_lost_max_ms, and one round


def test_pre_vote_of_one_that_is_behind__is_no_reason_to_stand_while_a_leader_lives():
    cluster = leading()
    (eager,), lazy = thrift(cluster).eager, the_lazy_one(cluster)
    propose(cluster)
    cluster[lazy].step(fx.LinkChanged("n1", False))
    cluster.now = cluster[lazy].raft.next_deadline_ms
    cluster[lazy].step(fx.Tick())
    cluster.settle()
    assert cluster[eager].raft.role == "follower"
    assert cluster[eager].raft.counters["pre_votes"] == 0
    assert cluster["n1"].raft.role == "leader"
