"""Several nodes' links and hosts in one process, over real TCP and a simulated or real disk."""

import asyncio
import random
from contextlib import asynccontextmanager
from itertools import count

from free_ports import free_port

from dss.base.levels import FEATURE_LEVEL
from dss.core.raft.messages import Configuration, Member
from dss.core.raft.settings import RaftSettings
from dss.drivers.host import Host
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles
from dss.testing.tally import Add, Tally
from dss.topology.nodes import NodeSpec
from dss.transport.handshake import Identity
from dss.transport.links import Links

GROUP = 1
SETTINGS = RaftSettings(heartbeat_ms=20, election_min_ms=100, election_max_ms=300, lazy_ms=5)
_boots = count(1)


def specs(*names):
    return [NodeSpec(name, "127.0.0.1", free_port(), free_port()) for name in names]


def identity(name, *, cluster="test", incarnation="", secret=b"s" * 32, level=FEATURE_LEVEL):
    incarnation, boot = incarnation or f"inc-{name}", f"boot-{next(_boots)}"
    return Identity(cluster, name, incarnation, boot, secret, feature_level=level)


def make_links(name, nodes, **who):
    me = next(node for node in nodes if node.id == name)
    return Links(identity(name, **who), me, "127.0.0.1", nodes)


async def until(condition, timeout_s=5.0):
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "condition not met in time"
        await asyncio.sleep(0.005)


class Sink:
    """Remembers every answer, so that a doubled one is seen."""

    def __init__(self):
        self.answers = []
        self.flushed = 0

    def answer(self, request_id, status, body):
        self.answers.append((request_id, status, body))

    def flush(self):
        self.flushed = len(self.answers)

    @property
    def statuses(self):
        return {rid: status for rid, status, _ in self.answers}


class Process:
    """One node: links, host, a Tally machine, a simulated disk."""

    def __init__(self, name, nodes, *, disk=None, level=FEATURE_LEVEL):
        self.name = name
        self.reasons = []
        self.machine = Tally()
        self.disk = disk or SimFiles(random.Random(1))
        self.links = make_links(name, nodes, level=level)
        wal, recovered = Wal.open(self.disk, segment_bytes=65_536)
        self.host = Host(
            node_id=name,
            incarnation=f"inc-{name}",
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(SimFiles(random.Random(2))),
            settings=SETTINGS,
            links=self.links,
            stop_node=self.reasons.append,
            feature_level=level,
        )

    async def start(self, configuration):
        await self.links.start()
        self.host.start()
        self.host.create_group(GROUP, configuration, self.machine)

    async def stop(self):
        await self.host.stop()
        await self.links.stop()

    def submit(self, sink, *idents):
        codec = self.machine.codec
        commands = [Add(ident) for ident in idents]
        items = b"".join(map(codec.encode_item, idents, commands))
        self.host.submit(GROUP, idents, items, commands, sink)


class Trio:
    """Three members of one group."""

    def __init__(self, members):
        self.members = members

    @property
    def leader(self):
        return next((m for m in self.members.values() if m.host.is_leader(GROUP)), None)

    @property
    def followers(self):
        return [m for m in self.members.values() if not m.host.is_leader(GROUP)]

    async def settled(self):
        """One leader that everybody knows and reaches."""
        await until(
            lambda: (
                self.leader is not None
                and all(
                    m.host.leader_of(GROUP) == self.leader.name
                    and (m is self.leader or m.links.peer(self.leader.name))
                    for m in self.members.values()
                )
            )
        )

    async def drop(self, member):
        """End it without a hand-over, as a crash would."""
        del self.members[member.name]
        member.host._stopped = True
        member.host._abandon()
        await member.stop()


@asynccontextmanager
async def trio(*, start=("n1", "n2", "n3")):
    nodes = specs("n1", "n2", "n3")
    configuration = Configuration(tuple(Member(n.id, f"inc-{n.id}") for n in nodes))
    members = {name: Process(name, nodes) for name in start}
    world = Trio(dict(members))
    try:
        for member in members.values():
            await member.start(configuration)
        yield world
    finally:
        await asyncio.gather(*(member.stop() for member in world.members.values()))


def run(scenario):
    """`scenario(world)` with three settled processes."""

    async def within():
        async with asyncio.timeout(10), trio() as world:
            await world.settled()
            await scenario(world)

    asyncio.run(within())
