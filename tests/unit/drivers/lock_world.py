"""Three lock nodes in one process: real links, real directories, founding and members."""

import asyncio

from driver_world import SETTINGS, make_links, specs

from dss.base.ids import LOCK_GROUP, META_GROUP
from dss.base.levels import FEATURE_LEVEL
from dss.drivers.founding import Founding
from dss.drivers.host import Host
from dss.drivers.raft_members import RaftMembers
from dss.storage.identity import DataDir
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.tally import Tally
from dss.topology.nodes import NodeConfig

NAMES = ("lock-1", "lock-2", "lock-3")


class LockNode:
    def __init__(self, name, nodes, folder):
        self.name = name
        self.folder = folder / name
        self.config = NodeConfig(
            node_id=name, role="lock", data_dir=str(self.folder), raft_peers=tuple(nodes)
        )
        self.nodes = nodes
        self.level = FEATURE_LEVEL

    async def start(self):
        self.data = DataDir.open(self.folder, "test", self.name)
        self.incarnation = self.data.incarnation
        self.links = make_links(
            self.name, self.nodes, incarnation=self.incarnation, level=self.level
        )
        wal, recovered = Wal.open(self.data.files("wal"), segment_bytes=65_536)
        self.host = Host(
            node_id=self.name,
            incarnation=self.incarnation,
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(self.data.files("snapshots")),
            settings=SETTINGS,
            links=self.links,
            stop_node=lambda reason: None,
            feature_level=self.level,
        )
        self.founding = Founding(
            self.config, self.host, self.links, {META_GROUP: Tally, LOCK_GROUP: Tally}
        )
        self.members_service = RaftMembers(self.config, self.host, self.links)
        await self.links.start()
        self.host.start()
        await self.founding.start()

    async def stop(self):
        await self.members_service.stop()
        await self.founding.stop()
        await self.host.stop()
        await self.links.stop()
        self.data.close()

    @property
    def founded(self):
        return self.founding.founded.is_set()

    def members(self):
        voters = self.host.engine.groups[LOCK_GROUP].configuration.voters
        return {member.node_id: member.incarnation for member in voters}


def run(folder, scenario):
    nodes = specs(*NAMES)
    cluster = [LockNode(name, nodes, folder) for name in NAMES]
    running = {}

    async def start(*which):
        for node in which:
            await node.start()
            running[node.name] = node

    async def stop(*which):
        for node in which:
            del running[node.name]
            await node.stop()

    async def within():
        try:
            async with asyncio.timeout(15):
                await scenario(cluster, start, stop)
        finally:
            for node in list(running.values()):
                await node.stop()

    asyncio.run(within())


def serves(node):
    return node.host.leader_of(LOCK_GROUP) is not None
