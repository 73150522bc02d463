"""Two or three CacheServices in one process, over real peer links and a real main memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from free_ports import free_port

from dss.core.ring.ring import Ring
from dss.drivers.caches import CacheService
from dss.memory import open_memory
from dss.topology.nodes import NodeConfig, NodeSpec
from dss.transport.handshake import Identity
from dss.transport.links import Links

LEASE_MS = 300


class Node:
    """One cache node, without HTTP."""

    def __init__(self, config: NodeConfig, boots: int) -> None:
        name = config.node_id
        self.name = name
        boot = f"{name}-boot-{boots}"
        identity = Identity("test", name, f"{name}-disk", boot, b"secret")
        self.links = Links(identity, config.me, "127.0.0.1", config.peers)
        self.memory = open_memory(config.memory_url, "test")
        self.service = CacheService(self.links, self.memory, config, boot)

    async def start(self) -> None:
        await self.service.start()
        await self.links.start()

    async def stop(self) -> None:
        await self.links.stop()
        await self.service.stop()


class Cluster:
    """All nodes; `restart` gives one a new process."""

    def __init__(self, count: int, memory_url: str, capacity_mib: int = 64) -> None:
        specs = tuple(
            NodeSpec(f"cache-{n}", "127.0.0.1", 0, free_port()) for n in range(1, count + 1)
        )
        self.configs = {
            spec.id: NodeConfig(
                node_id=spec.id,
                role="cache",
                data_dir="/nowhere",
                cache_peers=specs,
                memory_url=memory_url,
                cache_lease_ms=LEASE_MS,
                cache_capacity_mib=capacity_mib,
            )
            for spec in specs
        }
        self.ring = Ring(self.configs)
        self.nodes: dict[str, Node] = {}
        self.boots = 0

    async def start(self, name: str) -> Node:
        self.boots += 1
        node = self.nodes[name] = Node(self.configs[name], self.boots)
        await node.start()
        return node

    async def stop(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    def key_at(self, home: str) -> str:
        """A key whose home is `home`."""
        return next(k for k in (f"key/{n}" for n in range(1_000)) if self.ring.home(k) == home)

    async def ready(self) -> None:
        await until(
            lambda: all(
                node.service.readiness() is None
                and all(link["up"] for link in node.links.links().values())
                for node in self.nodes.values()
            )
        )


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def cluster(folder: Path, count: int = 2) -> AsyncIterator[Cluster]:
    """A ready cluster over SQLite in `folder`."""
    made = Cluster(count, f"sqlite://{folder}/memory.db")
    try:
        for name in made.configs:
            await made.start(name)
        await made.ready()
        yield made
    finally:
        for name in list(made.nodes):
            await made.stop(name)
