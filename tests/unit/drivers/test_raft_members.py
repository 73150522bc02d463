"""Members of the lock nodes' groups: asked of any node, carried out at each group's leader."""

import asyncio
import shutil

import msgspec
import pytest
from driver_world import specs, until
from lock_world import LockNode, run, serves

from dss.base.errors import Conflict, DssError, Invalid, NotFound
from dss.base.ids import LOCK_GROUP
from dss.core.raft import effects as fx
from dss.core.raft.messages import Configuration
from dss.drivers.founding import GROUPS
from dss.testing.tally import Add


def by_group(view):
    return [{m["node_id"]: m["role"] for m in group["members"]} for group in view["groups"]]


def voters(node, group=LOCK_GROUP):
    return list(node.host.engine.groups[group].raft.membership.voters)


def leader_of(cluster, group=LOCK_GROUP):
    return next(node for node in cluster if node.host.is_leader(group))


def follower_of_all(cluster):
    return next(node for node in cluster if not any(node.host.is_leader(g) for g in GROUPS))


async def founded(cluster, start):
    await start(*cluster)
    await until(lambda: all(node.founded for node in cluster))
    await until(lambda: all(map(serves, cluster)))


async def voter_everywhere(node):
    await until(lambda: all(node.name in voters(node, group) for group in GROUPS))


def test_view__the_same_of_every_node(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        views = [await node.members_service.view() for node in cluster]
        assert [by_group(view) for view in views] == [
            [{"lock-1": "voter", "lock-2": "voter", "lock-3": "voter"}] * 2
        ] * 3
        for group in views[0]["groups"]:
            assert group["leader"] == leader_of(cluster, group["group_id"]).name
            assert not group["change_under_way"]
            assert [m["up"] for m in group["members"]] == [True] * 3
            assert [m["leader"] for m in group["members"]].count(True) == 1

    run(tmp_path, scenario)


def test_lost_disk__old_incarnation_removed_new_one_added_and_it_catches_up(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        wiped = follower_of_all(cluster)
        others = [node for node in cluster if node is not wiped]
        assert (await others[0].host.call(LOCK_GROUP, Add(1)))[0] == 200
        await stop(wiped)
        old = wiped.incarnation
        shutil.rmtree(wiped.folder)
        await start(wiped)
        await until(lambda: all(node.links.peer(wiped.name) for node in others))
        with pytest.raises(DssError) as refused:
            await others[0].members_service.add(wiped.name)
        assert refused.value.code == "other_incarnation"
        seen = (await others[1].members_service.view())["groups"]
        assert [m["lost_disk"] for g in seen for m in g["members"]].count(True) == 2
        # The empty node itself can be asked too: it passes the order on.
        assert wiped.name not in by_group(await wiped.members_service.remove(wiped.name))[0]
        await wiped.members_service.add(wiped.name)
        await voter_everywhere(wiped)
        await until(lambda: wiped.founding.readiness() is None)
        await until(lambda: wiped.host.machine(LOCK_GROUP).idents == [1])
        listed = others[0].host.engine.groups[LOCK_GROUP].members[wiped.name]
        assert listed == wiped.incarnation != old
        await stop(others[0])
        await until(lambda: any(n.host.is_leader(LOCK_GROUP) for n in (wiped, others[1])))
        assert (await wiped.host.call(LOCK_GROUP, Add(2)))[0] == 200
        # Its membership is on its disk.
        await stop(wiped)
        await start(wiped)
        assert wiped.name in voters(wiped)

    run(tmp_path, scenario)


def test_add_and_remove_again__nothing_changes(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        service = cluster[0].members_service
        index = leader_of(cluster).host.engine.groups[LOCK_GROUP].raft.last_index
        await service.add("lock-2")
        assert leader_of(cluster).host.engine.groups[LOCK_GROUP].raft.last_index == index
        gone = follower_of_all(cluster)
        await service.remove(gone.name)
        with pytest.raises(NotFound):
            await service.remove(gone.name)
        await until(lambda: "no member" in (gone.founding.readiness() or ""))
        await service.add(gone.name)
        await voter_everywhere(gone)
        assert gone.founding.readiness() is None

    run(tmp_path, scenario)


def test_leader_removes_itself__another_leads_and_does_it(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        leader = leader_of(cluster)
        view = await leader.members_service.remove(leader.name)
        assert all(leader.name not in group for group in by_group(view))
        assert not leader.host.is_leader(LOCK_GROUP)
        await until(lambda: "no member" in (leader.founding.readiness() or ""))

    run(tmp_path, scenario)


def test_refusals__name_the_rule(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        service = cluster[0].members_service
        with pytest.raises(Invalid, match="RAFT_PEERS of lock-1 does not list lock-9"):
            await service.add("lock-9")
        with pytest.raises(NotFound):
            await service.remove("lock-9")
        service._config = msgspec.structs.replace(
            service._config, queue_nodes=tuple(specs("queue-1")), cache_peers=tuple(specs("c-1"))
        )
        for change in (service.add, service.remove):
            with pytest.raises(Invalid, match="queue-1 is a queue node"):
                await change("queue-1")
            with pytest.raises(Invalid, match="c-1 is a cache node"):
                await change("c-1")
        leader = leader_of(cluster)
        dead, alive = (node for node in cluster if node is not leader)
        await stop(dead)
        raft = leader.host.engine.groups[LOCK_GROUP].raft
        silence_ms = leader.host.settings.election_max_ms
        await until(
            lambda: (
                raft.status()["peers"][dead.name]["last_contact_ms"] > silence_ms + 100
                if leader.host.is_leader(LOCK_GROUP)
                else False
            )
        )
        before = list(raft.membership.voters)
        with pytest.raises(Conflict, match="would have no quorum") as refused:
            await leader.members_service._remove(LOCK_GROUP, alive.name)
        assert refused.value.code == "breaks_quorum"
        assert list(raft.membership.voters) == before

    run(tmp_path, scenario)


def test_joined_node_without_its_log__takes_no_snapshot_and_is_not_ready(tmp_path):
    async def scenario(cluster, start, stop):
        first = cluster[0]
        await start(first)
        await first.founding._create(Configuration(()))
        assert "waiting for its log" in first.founding.readiness()
        for group in GROUPS:
            first.host.engine.take_snapshot(first.host.engine.groups[group])
        await asyncio.sleep(0.05)
        assert first.host.engine.snapshotting.taken == 0
        first.host.engine.event(LOCK_GROUP, fx.Tick())
        await asyncio.sleep(0.5)
        assert first.host.engine.groups[LOCK_GROUP].raft.role == "learner"

    run(tmp_path, scenario)


def test_join_of_another_incarnation_or_from_no_lock_node__is_not_obeyed(tmp_path):
    async def scenario(cluster, start, stop):
        first, second, _ = cluster
        await start(first, second)
        await until(lambda: first.links.peer("lock-2") is not None)
        answer = await first.links.call("lock-2", "found.join", msgspec.msgpack.encode("x"), 1_000)
        assert answer == msgspec.msgpack.encode((second.incarnation, True))
        assert not second.founded

    run(tmp_path, scenario)


def test_new_id__listed_everywhere_by_a_rolling_restart_then_added(tmp_path):
    async def scenario(cluster, start, stop):
        await founded(cluster, start)
        # An id before all others: it would be the founder of a new cluster.
        (extra,) = specs("lock-0")
        nodes = [extra, *cluster[0].nodes]
        fourth = LockNode("lock-0", nodes, tmp_path)
        for node in cluster:
            await stop(node)
            node.__init__(node.name, nodes, tmp_path)
            await start(node)
            await until(lambda: all(map(serves, cluster)))
        await start(fourth)
        assert voters(cluster[0]) == ["lock-1", "lock-2", "lock-3"]
        await until(lambda: "dss members replace" in (fourth.founding.readiness() or ""))
        await until(lambda: all(node.links.peer("lock-0") for node in cluster))
        await cluster[1].members_service.add("lock-0")
        await voter_everywhere(fourth)
        await until(lambda: fourth.founding.readiness() is None)
        assert voters(fourth) == ["lock-0", "lock-1", "lock-2", "lock-3"]
        await stop(fourth)
        await start(fourth)
        assert (await fourth.host.call(LOCK_GROUP, Add(1)))[0] == 200

    run(tmp_path, scenario)
