"""What an administrator asks of one node's groups: status, backoff, transfer."""

import asyncio

import pytest
from driver_world import GROUP, SETTINGS, run, until

from dss.base.errors import Conflict, Invalid, NotFound
from dss.drivers.raft_admin import RaftAdmin


def admin_of(member, **flags):
    return RaftAdmin(
        node_id=member.name,
        role="lock",
        boot_id=member.links.identity.boot_id,
        links=member.links,
        host=member.host,
        **flags,
    )


def test_status__names_the_process_its_links_and_each_group():
    async def scenario(world):
        leader = world.leader
        await until(lambda: len([1 for i in leader.links.links().values() if i["up"]]) == 2)
        status = admin_of(leader).status()
        assert status["node_id"] == leader.name
        assert status["boot_id"] == leader.links.identity.boot_id
        assert status["role"] == "lock"
        assert set(status["links"]) == {"n1", "n2", "n3"} - {leader.name}
        assert all(link["up"] and link["since_ms"] >= 0 for link in status["links"].values())
        [group] = status["groups"]
        assert group["group_id"] == GROUP
        assert (group["role"], group["leader"], group["voted_for"]) == (
            ("leader", leader.name, leader.name)
        )
        assert group["voters"] == ["n1", "n2", "n3"]
        assert group["last_log_index"] >= 1
        assert group["last_log_term"] == group["term"]
        assert set(group["elections"]) == {"started", "won", "lost", "split", "pre_votes"}

    run(scenario)


def test_transfer_to_a_named_voter__it_leads_when_the_answer_comes():
    async def scenario(world):
        old, target = world.leader, world.followers[0]
        answer = await admin_of(old).transfer(GROUP, target.name)
        assert answer["leader"] == target.name
        assert target.host.is_leader(GROUP)
        assert answer["term"] == target.host.engine.groups[GROUP].raft.term

    run(scenario)


def test_transfer_refusals__say_why():
    async def scenario(world):
        leader, follower = world.leader, world.followers[0]
        with pytest.raises(Conflict) as conflict:
            await admin_of(follower).transfer(GROUP, None)
        assert conflict.value.code == "not_leader"
        assert conflict.value.extra == {"leader": leader.name}
        for wrong in (leader.name, "n9"):
            with pytest.raises(Invalid, match="another voter"):
                await admin_of(leader).transfer(GROUP, wrong)
        with pytest.raises(NotFound):
            await admin_of(leader).transfer(99, None)
        assert leader.host.is_leader(GROUP)

    run(scenario)


def test_backoff_without_a_leader__does_not_campaign_meanwhile():
    async def scenario(world):
        survivor = world.followers[0]
        for member in list(world.members.values()):
            if member is not survivor:
                await world.drop(member)
        raft = survivor.host.engine.groups[GROUP].raft
        await until(lambda: raft.role == "pre_candidate")
        answer = admin_of(survivor).backoff(GROUP, None, survivor.links.identity.boot_id)
        assert answer["wait_ms"] == 2 * SETTINGS.election_max_ms
        assert answer["role"] == "pre_candidate"
        await until(lambda: raft.role == "follower")
        asked, started = raft.counters["pre_votes"], asyncio.get_running_loop().time()
        await until(lambda: raft.counters["pre_votes"] > asked)
        waited_ms = (asyncio.get_running_loop().time() - started) * 1000
        assert waited_ms > 1.8 * SETTINGS.election_max_ms

    run(scenario)


def test_backoff_refusals__wrong_process_and_no_candidate():
    async def scenario(world):
        for member in world.members.values():
            with pytest.raises(Conflict) as conflict:
                admin_of(member).backoff(GROUP, 100, None)
            assert conflict.value.code == "not_candidate"
            assert conflict.value.extra == {"leader": world.leader.name}
            with pytest.raises(Conflict) as conflict:
                admin_of(member).backoff(GROUP, 100, "boot-of-another")
            assert conflict.value.code == "boot_mismatch"
        with pytest.raises(NotFound):
            admin_of(world.leader).backoff(99, 100, None)

    run(scenario)


def test_backoff_ignored_for_tests__answers_and_does_nothing():
    async def scenario(world):
        leader = world.leader
        answer = admin_of(leader, ignores_backoff=True).backoff(GROUP, 100, None)
        assert answer["group_id"] == GROUP
        assert leader.host.is_leader(GROUP)

    run(scenario)


def test_node_without_groups__has_none():
    async def scenario(world):
        member = world.leader
        admin = RaftAdmin(node_id="c", role="cache", boot_id="b", links=member.links, host=None)
        assert admin.status()["groups"] == []
        with pytest.raises(NotFound):
            admin.backoff(1, 100, None)

    run(scenario)
