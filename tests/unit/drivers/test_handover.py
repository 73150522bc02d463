"""Planned stops: whom a node waits for, and whom it need not wait for."""

import asyncio
import time

import pytest
from driver_world import GROUP, SETTINGS, Process, Sink, run, specs, until

from dss.core.raft.messages import Configuration, Member
from dss.drivers import handover

SOON_S = 0.13
"""Less than DRAIN_QUIET_MS, and than SETTINGS.election_max_ms."""


async def hand_over(member):
    began = time.monotonic()
    await member.host.hand_over()
    return time.monotonic() - began


def test_all_stop_at_once__nobody_waits_for_anybody():
    async def scenario(world):
        took = await asyncio.gather(*map(hand_over, world.members.values()))
        assert max(took) < SOON_S < SETTINGS.election_max_ms / 1_000

    run(scenario)


def test_the_only_node_stops__it_waits_for_nobody():
    async def within():
        async with asyncio.timeout(10):
            alone = Process("a", specs("a"))
            await alone.start(Configuration((Member("a", "inc-a"),)))
            await until(lambda: alone.host.is_leader(GROUP))
            sink = Sink()
            alone.submit(sink, 1)
            assert await hand_over(alone) < SOON_S
            assert sink.statuses == {1: 200}
            await alone.stop()

    asyncio.run(within())


def test_leader_and_another_go__the_one_that_stays_leads():
    async def scenario(world):
        leader = world.leader
        going, staying = world.followers
        # Of two with the same log the first that answered is asked: let it be the one that goes.
        await asyncio.gather(hand_over(going), asyncio.sleep(0.03))
        await hand_over(leader)
        await until(lambda: staying.host.is_leader(GROUP))
        assert not going.host.is_leader(GROUP)

    run(scenario)


def test_one_goes_and_comes_back__it_may_lead_again():
    async def scenario(world):
        leader = world.leader
        one, two = world.followers
        await hand_over(one)
        await until(lambda: leader.host._hand_over._leaving)
        for listener in leader.links._on_link:
            listener(one.name, True, "")  # its new process
        assert set(leader.host._hand_over._heirs(GROUP)) == {one.name, two.name}

    run(scenario)


def test_nothing_can_be_committed_any_more__the_drain_ends():
    async def scenario(world):
        leader = world.leader
        for member in world.followers:
            await world.drop(member)
        await until(lambda: not any(map(leader.links.peer, ("a", "b", "c"))))
        sink = Sink()
        leader.submit(sink, 1)
        took = await hand_over(leader)
        assert took < handover.DRAIN_MS / 1_000 / 4
        await leader.stop()
        del world.members[leader.name]
        assert sink.statuses[1] in (503, 504)

    run(scenario)


@pytest.mark.parametrize("all_go", [False, True])
def test_answers_are_owed_and_a_quorum_is_there__they_are_waited_for(all_go):
    async def scenario(world):
        sinks = [Sink() for _ in world.members]
        leader = world.leader
        going = list(world.members.values()) if all_go else [leader]
        for member in world.members.values():
            member.host._syncing = True  # a slow disk: nothing is committed meanwhile
        for sink, member in zip(sinks, world.members.values(), strict=True):
            member.submit(sink, 1)

        def go_on():
            for member in world.members.values():
                member.host._syncing = False
                member.host.wake()

        asyncio.get_running_loop().call_later(0.06, go_on)
        await asyncio.gather(*map(hand_over, going))
        assert [sink.statuses for sink in sinks] == [{1: 200}] * 3

    run(scenario)
