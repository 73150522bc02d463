"""Three hosts in one process: answers come once, whatever happens to the leader or the disk."""

import asyncio
import errno
import threading
import time

import pytest
from driver_world import GROUP, SETTINGS, Sink, run, until

from dss.base.errors import DssError, NoQuorum
from dss.core.raft.messages import Configuration, Member, SnapshotChunk
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles, _Inode
from dss.testing.tally import Add, Tally


def test_propose_through_a_follower__answered_and_applied_everywhere():
    async def scenario(world):
        sink = Sink()
        world.followers[0].submit(sink, 1, 2, 3)
        await until(lambda: len(sink.answers) == 3)
        assert sink.statuses == {1: 200, 2: 200, 3: 200}
        assert sink.flushed == 3
        await until(lambda: all(m.machine.idents == [1, 2, 3] for m in world.members.values()))
        assert not world.followers[0].host.forwarder.owed_groups()

    run(scenario)


def test_leader_stops__hands_over_and_everything_is_answered_once():
    async def scenario(world):
        sink, old = Sink(), world.leader
        follower = world.followers[0]
        stopping = asyncio.get_running_loop().create_task(old.stop())
        del world.members[old.name]
        for ident in range(1, 41):
            (follower if ident % 2 else old).submit(sink, ident)
            await asyncio.sleep(0.002)
        started = time.monotonic()
        await stopping
        assert time.monotonic() - started < 2.0
        await until(lambda: len(sink.answers) == 40)
        await world.settled()
        acknowledged = [rid for rid, status in sink.statuses.items() if status == 200]
        assert len(sink.statuses) == 40
        assert len(acknowledged) >= 20
        assert set(acknowledged) <= set(world.leader.machine.idents)
        assert set(sink.statuses.values()) <= {200, 503, 504}

    run(scenario)


def test_leader_dies_with_forwarded_requests__indeterminate_then_served_by_the_next():
    async def scenario(world):
        sink, old, follower = Sink(), world.leader, world.followers[0]
        old.host._stopped = True  # as a SIGSTOPped process: its link stays up, nothing answers
        follower.submit(sink, 1)
        await until(lambda: sink.answers)
        assert sink.statuses == {1: 504}
        await world.drop(old)
        await world.settled()
        world.leader.submit(sink, 2)
        await until(lambda: len(sink.answers) == 2)
        assert sink.statuses[2] == 200
        await asyncio.sleep(0.05)
        assert len(sink.answers) == 2

    run(scenario)


def test_no_quorum__503_within_about_one_election_timeout():
    async def scenario(world):
        survivor = world.followers[0]
        for member in list(world.members.values()):
            if member is not survivor:
                await world.drop(member)
        await until(lambda: survivor.host.leader_of(GROUP) is None)
        started = time.monotonic()
        status, body = await survivor.host.call(GROUP, Add(1))
        took_ms = (time.monotonic() - started) * 1000
        assert (status, body["code"]) == (503, "no_quorum")
        assert took_ms < 2 * SETTINGS.election_max_ms
        with pytest.raises(NoQuorum):
            await survivor.host.read(GROUP)

    run(scenario)


def test_deposed_leader_without_its_peers__its_proposals_and_reads_end():
    async def scenario(world):
        leader = world.leader
        for member in world.followers:
            await world.drop(member)
        sink = Sink()
        leader.submit(sink, 1)
        with pytest.raises(NoQuorum):
            await leader.host.read(GROUP)
        await until(lambda: sink.answers)
        assert sink.statuses == {1: 504}
        assert not leader.host.is_leader(GROUP)

    run(scenario)


def test_fsync_error__the_node_stops_and_nobody_waits():
    async def scenario(world):
        leader, sink = world.leader, Sink()
        leader.disk.fail["datasync"] = [errno.EIO]
        leader.submit(sink, 1)
        await until(lambda: leader.reasons)
        assert "log cannot be written" in leader.reasons[0]
        assert sink.statuses == {1: 504}
        leader.submit(sink, 2)
        assert sink.statuses[2] == 503
        with pytest.raises(DssError):
            await leader.host.read(GROUP)
        assert (await leader.host.call(GROUP, Add(3)))[0] == 503
        others = [m for m in world.members.values() if m is not leader]
        await until(lambda: any(m.host.is_leader(GROUP) for m in others))

    run(scenario)


def test_no_room_for_a_snapshot_that_begins_to_arrive__the_node_stops():
    async def scenario(world):
        leader = world.leader
        follower = next(m for m in world.members.values() if m is not leader)

        def full(*of):
            raise OSError(errno.ENOSPC, "No space left on device")

        follower.host.engine.snapshotting.keeps_back = full
        term = leader.host.engine.groups[GROUP].raft.term
        chunk = SnapshotChunk(GROUP, term, 9, 1, 5, Configuration(()), 1, 0, b"x")
        leader.links.send(follower.name, chunk)
        leader.links.flush()
        await until(lambda: follower.reasons)
        assert "No space left on device" in follower.reasons[0]

    run(scenario)


def test_fsync_error_in_the_thread__the_node_stops():
    async def scenario(world):
        leader, sink = world.leader, Sink()
        leader.host.sync_policy.threaded = True
        leader.submit(sink, 1)
        await until(lambda: sink.statuses == {1: 200})
        leader.disk.fail["datasync"] = [errno.EIO]
        leader.submit(sink, 2)
        await until(lambda: leader.reasons)
        assert sink.statuses[2] == 504

    run(scenario)


@pytest.mark.parametrize("threaded", [False, True])
def test_broken_invariant_in_a_cycle__the_node_stops_loudly(caplog, threaded):
    async def scenario(world):
        leader, sink = world.leader, Sink()
        leader.host.sync_policy.threaded = threaded

        def broken(*_):
            raise AssertionError("the impossible happened")

        leader.machine.apply = broken
        leader.submit(sink, 1)
        await until(lambda: leader.reasons)
        assert "the impossible happened" in leader.reasons[0]
        assert "this node stops" in caplog.text
        assert "Traceback" in caplog.text
        assert len(leader.reasons) == 1

    run(scenario)


def test_broken_invariant_in_a_tick__the_node_stops():
    async def scenario(world):
        follower = world.followers[0]

        def broken():
            raise AssertionError("no such deadline")

        follower.host.engine.tick = broken
        await until(lambda: follower.reasons)
        assert "no such deadline" in follower.reasons[0]

    run(scenario)


def test_waiting_requests_when_the_node_stops__answered():
    async def scenario(world):
        leader = world.leader
        for member in world.followers:
            await world.drop(member)
        calls = [asyncio.ensure_future(leader.host.call(GROUP, Add(n))) for n in range(3)]
        reading = asyncio.ensure_future(leader.host.read(GROUP))
        await asyncio.sleep(0.01)
        del world.members[leader.name]
        await leader.stop()
        assert {status for status, _ in await asyncio.gather(*calls)} <= {503, 504}
        with pytest.raises(NoQuorum):
            await reading

    run(scenario)


def test_threaded_sync__a_group_founded_beside_it_is_durable_when_said():
    """`durable()` must not trust the fsync that was already running."""

    async def scenario(world):
        leader, sink = world.leader, Sink()
        leader.host.sync_policy.threaded = True
        gate, real = threading.Event(), leader.host.engine.sync

        def slow():
            gate.wait(2)
            real()

        leader.host.engine.sync = slow
        leader.submit(sink, 1)
        await until(lambda: leader.host._syncing)
        configuration = Configuration((Member(leader.name, f"inc-{leader.name}"),))
        leader.host.create_group(9, configuration, Tally())
        durable = asyncio.ensure_future(leader.host.durable())
        await asyncio.sleep(0.01)
        assert not durable.done()
        gate.set()
        await durable
        _, recovered = Wal.open(_durable(leader.disk), segment_bytes=65_536)
        assert 9 in recovered

    run(scenario)


def _durable(disk):
    """Only what was synced."""
    after = SimFiles(disk.rng)
    after._names = {n: _Inode(bytes(i.durable)) for n, i in disk._durable_names.items()}
    after._durable_names = dict(after._names)
    return after


def test_reads_on_the_leader__see_what_was_acknowledged_before():
    async def scenario(world):
        leader = world.leader
        for ident in range(5):
            assert (await leader.host.call(GROUP, Add(ident)))[0] == 200
            await leader.host.read(GROUP)
            assert leader.machine.idents[-1] == ident
        with pytest.raises(NoQuorum):
            await world.followers[0].host.read(GROUP)

    run(scenario)
