"""The feature level of a group: raised by an entry, kept by log, snapshot and configuration."""

from __future__ import annotations

from raft_cluster import Cluster

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg


def led(size: int = 3, **settings: object) -> Cluster:
    cluster = Cluster(size, **settings)
    cluster.elect("n1")
    return cluster


def level_of(cluster: Cluster, name: str) -> int:
    return cluster[name].raft.membership.configuration.feature_level


def levels(cluster: Cluster) -> list[int]:
    return [level_of(cluster, name) for name in sorted(cluster.nodes)]


def raise_level(
    cluster: Cluster, name: str, level: int = 2, members: tuple[msg.Member, ...] | None = None
) -> str:
    """Ask `name`; the refusal's code, or "" when it was proposed."""
    configuration = cluster[name].raft.membership.configuration
    asked = configuration.voters + configuration.learners if members is None else members
    effects = cluster[name].step(fx.RaiseLevel(1, level, asked))
    refused = [e.code for e in effects if isinstance(e, fx.ChangeRefused)]
    assert refused or any(isinstance(e, fx.ChangeProposed) for e in effects)
    return refused[0] if refused else ""


def add(cluster: Cluster, name: str, member: str, level: int) -> str:
    event = fx.ChangeMembers(1, msg.Member(member, "i-" + member), feature_level=level)
    effects = cluster[name].step(event)
    return next((e.code for e in effects if isinstance(e, fx.ChangeRefused)), "")


def test_raise__is_one_entry_that_every_member_applies():
    cluster = led()
    assert levels(cluster) == [1, 1, 1]
    assert raise_level(cluster, "n1") == ""
    cluster.settle()
    cluster.run(100)
    assert levels(cluster) == [2, 2, 2]
    assert [entry.kind for entry in cluster.applied.values()].count(msg.LEVEL) == 1
    assert [node.applied_configuration.feature_level for node in cluster.nodes.values()] == [2] * 3


def test_raise_with_other_members_than_were_asked__is_refused():
    cluster = led()
    members = cluster.configuration.voters
    cluster.join("n4")
    assert add(cluster, "n1", "n4", level=2) == ""
    cluster.settle()
    cluster.run(200)
    assert raise_level(cluster, "n1", members=members) == "other_members"
    assert raise_level(cluster, "n1", members=members[:2]) == "other_members"
    assert levels(cluster) == [1, 1, 1, 1]


def test_raise_to_what_it_is__is_refused():
    cluster = led()
    assert raise_level(cluster, "n1", 1) == "already_raised"
    raise_level(cluster, "n1", 3)
    cluster.settle()
    assert raise_level(cluster, "n1", 2) == "already_raised"
    assert raise_level(cluster, "n1", 3) == "already_raised"
    assert raise_level(cluster, "n2", 4) == "not_leader"


def test_raise_and_change_of_members__one_at_a_time():
    cluster = led()
    cluster.join("n4")
    cluster.isolate("n1", "n4")
    assert raise_level(cluster, "n1") == ""
    assert add(cluster, "n1", "n4", level=2) == "change_under_way"
    assert raise_level(cluster, "n1", 3) == "change_under_way"


def test_raise_before_the_first_commit_of_a_term__is_refused():
    cluster = led()
    cluster["n1"].step(fx.Transfer("n3"))
    while cluster["n3"].raft.role != "leader":
        cluster.deliver(*cluster.wire.pop(0))
    assert raise_level(cluster, "n3") == "not_ready"
    cluster.settle()
    assert raise_level(cluster, "n3") == ""


def test_raise_that_another_leader_overwrites__never_was():
    cluster = led()
    cluster.isolate("n1")
    assert raise_level(cluster, "n1") == ""
    assert levels(cluster) == [2, 1, 1]
    cluster["n1"].restart()
    assert level_of(cluster, "n1") == 2
    cluster.elect("n2")
    cluster["n2"].step(fx.Propose(1, b"c"))
    cluster.settle()
    cluster.heal()
    cluster.run(500)
    assert levels(cluster) == [1, 1, 1]
    assert cluster["n1"].applied_configuration.feature_level == 1


def test_level__survives_restart_snapshot_and_every_change_of_members():
    cluster = led(log_tail_entries=0)
    raise_level(cluster, "n1")
    cluster.settle()
    cluster["n1"].step(fx.Propose(1, b"c"))
    cluster.settle()
    cluster["n1"].take_snapshot()
    cluster.join("n4")
    assert add(cluster, "n1", "n4", level=2) == ""
    cluster.settle()
    cluster.run(300)
    assert cluster.voters("n4") == ["n1", "n2", "n3", "n4"]
    assert levels(cluster) == [2, 2, 2, 2]
    assert cluster["n4"].snapshot is not None, "it came by a snapshot"
    assert cluster.change("n1", "n2", remove=True) == ""
    cluster.settle()
    cluster["n4"].restart()
    cluster["n1"].restart()
    assert level_of(cluster, "n1") == level_of(cluster, "n4") == 2


def test_joiner_that_supports_less__is_refused():
    cluster = led()
    raise_level(cluster, "n1")
    cluster.settle()
    cluster.join("n4")
    assert add(cluster, "n1", "n4", level=1) == "feature_level"
    assert cluster.voters("n1") == ["n1", "n2", "n3"]
    assert add(cluster, "n1", "n4", level=3) == ""


def test_joiner_that_is_asked_while_a_raise_is_under_way__is_refused():
    """Its level was looked at before: what counts is what the log says when it is added."""
    cluster = led()
    cluster.join("n4")
    cluster.isolate("n1")
    raise_level(cluster, "n1")
    assert add(cluster, "n1", "n4", level=1) == "feature_level"
