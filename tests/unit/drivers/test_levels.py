"""Feature levels between real hosts: when a group is raised, who is refused, what stops a node."""

import asyncio
from contextlib import asynccontextmanager
from typing import ClassVar

import msgspec
import pytest
from driver_world import GROUP, Process, Sink, Trio, specs, until
from lock_world import run, serves

from dss.base.errors import ConfigProblem, DssError
from dss.base.ids import LOCK_GROUP
from dss.base.levels import FEATURE_LEVEL
from dss.core.locks.commands import KEYED_CODEC, LOG_CODEC, Keyed, Release, SessionCreate
from dss.core.machine import CommandCodec, join_items
from dss.core.raft import messages as msg
from dss.core.raft.membership import encode_level
from dss.core.raft.messages import Configuration, Entry, Member
from dss.drivers import levels
from dss.drivers.founding import GROUPS
from dss.drivers.levels import LevelKeeper, check_recovered
from dss.storage.grouplog import GroupState
from dss.storage.wal import Wal
from dss.testing.tally import Add, Tally

NODES = ("n1", "n2", "n3")
NEWER = FEATURE_LEVEL + 1


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(levels, "LOOK_EVERY_S", 0.01)


class Fresh(msgspec.Struct, frozen=True):
    """A command that only level 2 knows."""

    since_level: ClassVar[int] = 2
    ident: int


class Grown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command that got a field with level 3."""

    field_levels: ClassVar[dict[str, int]] = {"fair": 3}
    ident: int
    fair: bool = False


CODEC = CommandCodec({"add": Add, "fresh": Fresh, "grown": Grown})


class FreshTally(Tally):
    def __init__(self):
        super().__init__()
        self.codec = CODEC


@asynccontextmanager
async def members(**of):
    """Processes of one group with what each supports: n1=2, n2=2, n3=1."""
    nodes = specs(*of)
    configuration = Configuration(tuple(Member(n.id, f"inc-{n.id}") for n in nodes))
    processes = {name: Process(name, nodes, level=level) for name, level in of.items()}
    world = Trio(processes)
    world.nodes, world.configuration = nodes, configuration
    world.keepers = [LevelKeeper(process.host) for process in processes.values()]
    try:
        for process in processes.values():
            await process.start(configuration)
        for keeper in world.keepers:
            await keeper.start()
        yield world
    finally:
        for keeper in world.keepers:
            await keeper.stop()
        await asyncio.gather(*(process.stop() for process in world.members.values()))


def levels_of(world):
    return [process.host.machine(GROUP).level for process in world.members.values()]


async def restarted(world, name, level):
    """The same disk under another release."""
    old = world.members[name]
    await world.drop(old)
    process = world.members[name] = Process(name, world.nodes, disk=old.disk.kill(), level=level)
    keeper = LevelKeeper(process.host)
    world.keepers.append(keeper)
    await process.links.start()
    process.host.start()
    process.host.open_group(GROUP, process.machine)
    await keeper.start()
    return process


# --- raising --------------------------------------------------------------------------------


def test_all_members_support_it__group_is_raised_in_one_entry():
    async def scenario():
        async with members(n1=3, n2=3, n3=3) as world:
            await until(lambda: levels_of(world) == [3, 3, 3])
            log = world.leader.host.engine.groups[GROUP].raft.log
            raises = [e for e in log.slice(1, log.last_index) if e.kind == msg.LEVEL]
            assert len(raises) == 1, "one entry, not one for each level"
            status = world.leader.host.group_status()[0]
            assert status["feature_level"] == 3

    asyncio.run(scenario())


def test_one_member_is_older__group_stays_until_it_is_upgraded():
    async def scenario():
        async with members(n1=2, n2=2, n3=1) as world:
            await world.settled()
            await asyncio.sleep(0.3)
            assert levels_of(world) == [1, 1, 1]
            await restarted(world, "n3", level=2)
            await until(lambda: levels_of(world) == [2, 2, 2])

    asyncio.run(scenario())


def test_one_member_is_away__group_stays_until_it_is_back():
    async def scenario():
        async with members(n1=1, n2=2, n3=2) as world:
            await world.settled()
            gone = world.members["n1"]
            await world.drop(gone)
            await until(lambda: world.leader is not None)
            await asyncio.sleep(0.3)
            assert levels_of(world) == [1, 1], "who is away may be older"
            world.members["n1"] = gone
            await restarted_from(world, gone)
            await until(lambda: levels_of(world) == [2, 2, 2])

    async def restarted_from(world, gone):
        process = Process("n1", world.nodes, disk=gone.disk.kill(), level=2)
        world.members["n1"] = process
        await process.links.start()
        process.host.start()
        process.host.open_group(GROUP, process.machine)

    asyncio.run(scenario())


def test_member_with_another_disk__is_not_the_member_that_was_asked():
    async def scenario():
        async with members(n1=2, n2=2, n3=2) as world:
            keeper = world.keepers[0]
            await until(lambda: world.members["n1"].links.peer("n2") is not None)
            assert keeper._supports(Member("n2", "inc-n2")) == 2
            assert keeper._supports(Member("n2", "inc-other")) == 0
            assert keeper._supports(Member("n9", "inc-n9")) == 0

    asyncio.run(scenario())


# --- what stops a node ------------------------------------------------------------------------


def state(level=1, entries=()):
    configuration = Configuration((Member("a", "inc-a"),), feature_level=level)
    return {GROUP: GroupState(GROUP, configuration, 1, None, 0, 0, 0, list(entries))}


def entry(kind, payload=b""):
    return Entry(1, 1, kind, 0, payload)


def test_recovered_data__within_what_is_supported_is_read():
    check_recovered(state(2, [entry(msg.NOOP), entry(msg.LEVEL, encode_level(3))]), 3)


@pytest.mark.parametrize(
    ("recovered", "supported", "said"),
    [
        (state(2), 1, "group 1 is at feature level 2, this node supports up to 1"),
        (state(1, [entry(msg.LEVEL, encode_level(2))]), 1, "FEATURE_LEVEL_MAX to 2 or more"),
        (state(NEWER), FEATURE_LEVEL, "start the release that raised it, or a newer one"),
        (state(1, [entry(9)]), FEATURE_LEVEL, "an entry of kind 9 at index 1"),
    ],
)
def test_recovered_data_of_a_newer_release__is_refused_in_words(recovered, supported, said):
    with pytest.raises(ConfigProblem, match=said):
        check_recovered(recovered, supported)


def test_node_held_back_below_its_own_log__does_not_start():
    async def scenario():
        async with members(n1=2, n2=2, n3=2) as world:
            await until(lambda: levels_of(world) == [2, 2, 2])
            disk = world.members["n3"].disk
            await world.drop(world.members["n3"])
            with pytest.raises(ConfigProblem, match="at feature level 2, this node supports up to"):
                Process("n3", world.nodes, disk=disk.kill(), level=1)

    asyncio.run(scenario())


def test_node_held_back_that_is_sent_a_raised_log__stops_and_writes_nothing():
    async def scenario():
        async with members(n1=1, n2=2, n3=2) as world:
            await world.settled()
            held_back = world.members["n1"]
            # As if its answer had come from another release: the guard behind the first one.
            for process in (world.members["n2"], world.members["n3"]):
                peer = msgspec.structs.replace(process.links.peer("n1"), feature_level=2)
                process.links._up["n1"].peer = peer
            if world.leader is held_back:
                held_back.host.transfer(GROUP, "n2")
            await until(lambda: held_back.reasons)
            assert (
                "group 1 is at feature level 2, this node supports up to 1"
                in (held_back.reasons[0])
            )
            assert held_back.host.unsupported
            _, recovered = Wal.open(held_back.disk.kill(), segment_bytes=65_536)
            check_recovered(recovered, 1)

    asyncio.run(scenario())


def test_entry_of_an_unknown_kind__stops_whoever_would_apply_it_and_its_next_start():
    async def scenario():
        async with members(n1=1, n2=1, n3=1) as world:
            await world.settled()
            leader = world.leader
            group = leader.host.engine.groups[GROUP]
            group.raft._leading._append(9, b"?", group.raft.log.last_log_ms)
            leader.host.engine.touch(group)
            leader.host.wake()
            await until(lambda: leader.reasons)
            assert leader.host.unsupported
            assert "kind 9" in leader.reasons[0]
            assert leader.machine.idents == []
            _, recovered = Wal.open(leader.disk.kill(), segment_bytes=65_536)
            with pytest.raises(ConfigProblem, match="kind 9"):
                check_recovered(recovered, FEATURE_LEVEL)

    asyncio.run(scenario())


def test_group_made_with_raised_members__begins_at_the_base_level():
    """The founder spreads its members as they are by now; the log is read from its start."""

    async def scenario():
        process = Process("n1", specs("n1"))
        raised = Configuration((Member("n1", "inc-n1"),), feature_level=2)
        process.host.create_group(GROUP, raised, process.machine)
        group = process.host.engine.groups[GROUP]
        assert (group.level, group.configuration.feature_level) == (1, 1)
        await process.host.durable()
        await process.stop()
        _, recovered = Wal.open(process.disk, segment_bytes=65_536)
        assert recovered[GROUP].configuration.feature_level == 1

    asyncio.run(scenario())


# --- commands ---------------------------------------------------------------------------------


def test_codec__knows_what_a_command_needs():
    assert CODEC.newest_level == 3
    assert CommandCodec({"add": Add}).newest_level == 1
    needs = [CODEC.level_of(each) for each in (Add(1), Fresh(1), Grown(1), Grown(1, fair=True))]
    assert needs == [1, 2, 1, 3]


def test_keyed_command__needs_the_level_of_what_it_carries(monkeypatch):
    needs = {Release: 7}
    monkeypatch.setattr(
        CommandCodec, "level_of", lambda codec, command: needs.get(type(command), 1)
    )
    release = Release("0" * 32, "a", 1)
    [(_, op, args)] = KEYED_CODEC.split(join_items(1, [KEYED_CODEC.encode_item(0, release)]))
    assert LOG_CODEC.level_of(Keyed("k", b"d", op, args)) == 7
    assert LOG_CODEC.level_of(release) == 7
    assert LOG_CODEC.level_of(SessionCreate(ttl_ms=1_000)) == 1


class RaisedGroup:
    """What `admitted` looks at."""

    gid, machine = 4, FreshTally()

    def __init__(self, level):
        self.level = level


@pytest.mark.parametrize(("level", "refused"), [(1, {2: 2, 4: 3}), (2, {4: 3}), (3, {})])
def test_batch_below_a_command__only_that_command_is_refused(level, refused):
    commands = [Add(1), Fresh(2), Grown(3), Grown(4, fair=True)]
    rids = [1, 2, 3, 4]
    items = b"".join(map(CODEC.encode_item, rids, commands))
    sink = Sink()
    kept_rids, kept_items, kept = levels.admitted(RaisedGroup(level), rids, items, commands, sink)
    assert [(rid, status, body["code"]) for rid, status, body in sink.answers] == [
        (rid, 409, "feature_level") for rid in refused
    ]
    assert [body["needed_level"] for _, _, body in sink.answers] == list(refused.values())
    assert {body["feature_level"] for _, _, body in sink.answers} <= {level}
    assert list(kept_rids) == [rid for rid in rids if rid not in refused]
    assert kept_items == b"".join(map(CODEC.encode_item, kept_rids, kept))


def test_command_above_the_group__is_refused_at_any_node_and_goes_through_once_raised():
    async def scenario():
        async with members(n1=2, n2=2, n3=1) as world:
            for process in world.members.values():
                process.host.engine.groups[GROUP].machine.codec = CODEC
            await world.settled()
            for process in world.members.values():
                status, body = await process.host.call(GROUP, Fresh(7))
                assert (status, body["code"]) == (409, "feature_level")
                assert "group 1 is at 1" in body["message"]
                # A batch that came from elsewhere: its leader looks as well.
                sink = Sink()
                process.host.forwarder.submit(
                    GROUP, (5,), CODEC.encode_item(5, Fresh(8)), (Fresh(8),), sink
                )
                await until(lambda sink=sink: sink.answers)
                assert sink.answers[0][1] == 409
            log = world.leader.host.engine.groups[GROUP].raft.log
            assert not [e for e in log.slice(1, log.last_index) if e.kind == msg.COMMAND]
            raised = await restarted(world, "n3", level=2)
            raised.machine.codec = CODEC
            await until(lambda: levels_of(world) == [2, 2, 2])
            status, _ = await raised.host.call(GROUP, Fresh(7))
            assert status == 200
            await until(
                lambda: all(p.host.machine(GROUP).idents == [7] for p in world.members.values())
            )
            chains = {process.host.machine(GROUP).chain for process in world.members.values()}
            assert len(chains) == 1

    asyncio.run(scenario())


# --- members ----------------------------------------------------------------------------------


def test_joiner_that_supports_less_than_the_group__is_refused_with_both_levels(tmp_path):
    async def scenario(cluster, start, stop):
        await start(*cluster)
        await until(lambda: all(node.founded for node in cluster))
        await until(lambda: all(map(serves, cluster)))
        gone = next(n for n in cluster if not any(n.host.is_leader(g) for g in GROUPS))
        service = next(n for n in cluster if n is not gone).members_service
        await service.remove(gone.name)
        keepers = [LevelKeeper(node.host) for node in cluster if node is not gone]
        for keeper in keepers:
            await keeper.start()
        rest = [node for node in cluster if node is not gone]
        await until(lambda: all(n.host.machine(g).level == 2 for n in rest for g in GROUPS))
        for keeper in keepers:
            await keeper.stop()
        await stop(gone)
        gone.level = 1
        await start(gone)
        await until(lambda: all(n.links.peer(gone.name) is not None for n in rest))
        with pytest.raises(DssError, match=f"{gone.name} supports up to 1") as refused:
            await service.add(gone.name)
        assert refused.value.code == "feature_level"
        assert "at feature level 2" in refused.value.message
        view = await service.view()
        assert all(gone.name not in {m["node_id"] for m in g["members"]} for g in view["groups"])
        assert {g["feature_level"] for g in view["groups"]} == {2}
        assert {m["supports_level"] for g in view["groups"] for m in g["members"]} == {2}
        await stop(gone)
        gone.level = 2
        await start(gone)
        await until(lambda: all(n.links.peer(gone.name) is not None for n in rest))
        await service.add(gone.name)
        await until(lambda: gone.host.machine(LOCK_GROUP).level == 2)

    run(tmp_path, scenario)
