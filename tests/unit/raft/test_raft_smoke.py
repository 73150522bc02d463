from raft_cluster import Cluster

from dss.core.raft import effects as fx


def test_three_nodes__elect_replicate_commit():
    cluster = Cluster(3)
    leader = cluster.await_leader()
    out = leader.step(fx.Propose(1, b"a"), fx.Propose(2, b"b"))
    assert [e for e in out if isinstance(e, fx.Proposed)] == [
        fx.Proposed(1, 2),
        fx.Proposed(2, 3),
    ]
    cluster.settle()
    assert leader.machine == [b"a", b"b"]
    cluster.run(100)
    assert all(n.machine == [b"a", b"b"] for n in cluster.nodes.values())
    cluster.check_log_matching()


def test_single_voter__elects_itself_at_once_and_commits_after_its_own_sync():
    cluster = Cluster(1)
    node = cluster["n1"]
    node.auto_sync = False
    node.step(fx.Tick())
    assert node.raft.role == "leader"
    node.step(fx.Propose(1, b"a"))
    assert node.raft.commit_index == 0
    node.sync()
    assert node.raft.commit_index == 2
    assert node.machine == [b"a"]
