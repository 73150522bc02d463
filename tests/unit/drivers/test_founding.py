"""Founding over real links and real directories: all or nobody, and never twice."""

import asyncio
import random
import shutil

import msgspec
import pytest
from driver_world import until
from lock_world import run, serves

from dss.base.errors import NoQuorum
from dss.base.ids import LOCK_GROUP
from dss.core.raft.messages import Configuration, Member
from dss.drivers.founding import GROUPS
from dss.storage.identity import DataDir
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles
from dss.testing.tally import Add


def test_one_node_is_missing__nobody_founds_until_it_comes(tmp_path):
    async def scenario(cluster, start, stop):
        first, second, third = cluster
        await start(first, second)
        await until(lambda: first.links.peer("lock-2") is not None)
        await asyncio.sleep(0.4)
        assert not first.founded
        assert not second.founded
        assert "lock-3" in first.founding.readiness()
        assert "waiting for lock-1" in second.founding.readiness()
        await start(third)
        await until(lambda: all(node.founded for node in cluster))
        await until(lambda: all(map(serves, cluster)))
        assert first.members() == {node.name: node.incarnation for node in cluster}
        assert second.members() == third.members() == first.members()
        assert all(node.founding.readiness() is None for node in cluster)
        assert (await second.host.call(LOCK_GROUP, Add(1)))[0] == 200

    run(tmp_path, scenario)


def test_restart_of_all__the_same_groups_without_the_founder(tmp_path):
    async def scenario(cluster, start, stop):
        await start(*cluster)
        await until(lambda: all(node.founded for node in cluster))
        await until(lambda: all(map(serves, cluster)))
        members = cluster[0].members()
        assert (await cluster[0].host.call(LOCK_GROUP, Add(7)))[0] == 200
        await stop(*cluster)
        await start(*cluster[1:])
        assert all(node.founded for node in cluster[1:])
        await until(lambda: all(map(serves, cluster[1:])))
        assert cluster[1].members() == members
        assert (await cluster[2].host.call(LOCK_GROUP, Add(8)))[0] == 200
        assert cluster[1].host.machine(LOCK_GROUP).idents[0] == 7

    run(tmp_path, scenario)


def test_wiped_member__not_readmitted_and_says_so(tmp_path, caplog):
    async def scenario(cluster, start, stop):
        first, _, third = cluster
        await start(*cluster)
        await until(lambda: all(node.founded for node in cluster))
        await stop(first, third)
        before = third.incarnation
        shutil.rmtree(third.folder)
        await start(third, first)
        assert third.incarnation != before
        await until(lambda: "its data directory was lost" in caplog.text)
        await until(lambda: serves(first))
        assert not third.founded
        assert third.host.engine.groups == {}
        assert "re-admitted" in third.founding.readiness()
        assert first.members()["lock-3"] == before
        with pytest.raises(NoQuorum):
            await third.host.call(LOCK_GROUP, Add(1))
        assert (await first.host.call(LOCK_GROUP, Add(1)))[0] == 200

    run(tmp_path, scenario)


def test_wiped_founder__founds_nothing_beside_the_living_cluster(tmp_path):
    async def scenario(cluster, start, stop):
        first, second, third = cluster
        await start(*cluster)
        await until(lambda: all(node.founded for node in cluster))
        await stop(first)
        shutil.rmtree(first.folder)
        await start(first)
        await until(lambda: "re-admission" in (first.founding.readiness() or ""))
        assert not first.founded
        await until(lambda: serves(second))
        assert (await third.host.call(LOCK_GROUP, Add(1)))[0] == 200

    run(tmp_path, scenario)


def test_record_with_another_incarnation__not_adopted(tmp_path):
    async def scenario(cluster, start, stop):
        first, second, _ = cluster
        await start(first, second)
        await until(lambda: first.links.peer("lock-2") is not None)
        for told, adopted in (("another", False), (second.incarnation, True)):
            voters = (Member("lock-1", first.incarnation), Member("lock-2", told))
            body = Configuration(voters)
            await _offer(first, "lock-2", body)
            assert second.founded is adopted
        _, recovered = _disk_of(second)
        assert sorted(recovered) == sorted(GROUPS)

    run(tmp_path, scenario)


def test_offer_of_a_node_that_is_not_the_founder__not_adopted(tmp_path):
    async def scenario(cluster, start, stop):
        _, second, third = cluster
        await start(second, third)
        await until(lambda: third.links.peer("lock-2") is not None)
        voters = (Member("lock-2", second.incarnation), Member("lock-3", third.incarnation))
        await _offer(third, "lock-2", Configuration(voters))
        assert not second.founded

    run(tmp_path, scenario)


async def _offer(node, to, configuration):
    await node.links.call(to, "found.adopt", msgspec.msgpack.encode(configuration), 1_000)


def _disk_of(node):
    """What a restart of `node` would recover, read from copies of its files."""
    files = SimFiles(random.Random(1))
    source = node.data.files("wal")
    for name in source.list():
        read = source.open(name, create=False)
        written = files.open(name, create=True)
        written.pwrite(read.pread(read.size(), 0), 0)
        read.close()
    files.sync_dir()
    return Wal.open(files, segment_bytes=65_536)


def test_power_fails_within_the_founding_write__finished_at_the_next_start(tmp_path):
    """One write founds both groups, but a disk may keep only the first record of it."""

    async def scenario(cluster, start, stop):
        second = cluster[1]
        data = DataDir.open(second.folder, "test", second.name)
        configuration = Configuration((Member(second.name, data.incarnation),))
        wal, _ = Wal.open(data.files("wal"), segment_bytes=65_536)
        wal.create_group(GROUPS[0], configuration)
        wal.write()
        wal.sync()
        wal.close()
        data.close()
        await start(second)
        assert second.founded
        await until(lambda: all(second.host.is_leader(gid) for gid in GROUPS))
        await stop(second)
        await start(second)
        assert second.founded

    run(tmp_path, scenario)
