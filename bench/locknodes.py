"""Lock nodes alone, as processes that the benchmark starts, kills and starts again itself.

`dss up` would restart a killed node by its own clock. What must not live here: measuring.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from bench.processes import Started, free_base_port, wait_ready
from dss.topology.model import cluster_of
from dss.topology.render_local import LocalNode, render_local

LEADER_S = 20.0
_OFFSETS = [extra + n for extra in (0, 1_000) for n in range(1, 30)]
_SETTINGS = (
    "ALLOW_", "AUTH_", "CACHE_", "CLUSTER_", "DATA_", "DSS_", "ELECTION_", "HEARTBEAT_",
    "MEMORY_", "NODE_", "QUEUE_", "RAFT_", "TEST_",
)  # fmt: skip
"""Settings of this shell that must not reach the measured nodes."""


class LockNodes:
    """`count` lock nodes with their data under `folder` and the default timings."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        cluster = cluster_of(lock=count, queue=1, cache=1)
        nodes = render_local(
            cluster,
            folder,
            base_port=free_base_port(_OFFSETS),
            cluster_secret=secrets.token_hex(32),
        )
        self.nodes: dict[str, LocalNode] = {node.id: node for node in nodes if node.role == "lock"}
        self.running: dict[str, Started] = {}
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes.values()]

    def start(self, node_id: str) -> None:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        self.running[node_id] = Started(
            [sys.executable, "-m", "dss.cli.main", "node"],
            self.folder / f"{node_id}.log",
            env={**mine, **self.nodes[node_id].env},
        )

    async def ready(self, node_id: str) -> None:
        await wait_ready([f"{self.nodes[node_id].url}/readyz"], self.running[node_id])

    async def start_all(self) -> None:
        for node_id in self.nodes:
            self.start(node_id)
        for node_id in self.nodes:
            await self.ready(node_id)

    async def status(self, node_id: str) -> dict[str, Any]:
        """The lock group as this node sees it."""
        async with self.http.get(f"{self.nodes[node_id].url}/v1/raft/status") as response:
            groups = (await response.json())["groups"]
        found: dict[str, Any] = next(group for group in groups if group["group_id"] == 1)
        return found

    async def leader(self) -> str:
        """The node that says of itself that it leads."""
        until = time.monotonic() + LEADER_S
        while time.monotonic() < until:
            for node_id, process in self.running.items():
                if process.process.poll() is None:
                    status = await self.status(node_id)
                    if status["role"] == "leader" and status["leader"] == node_id:
                        return node_id
            await asyncio.sleep(0.05)
        raise RuntimeError(f"no leader of the lock nodes within {LEADER_S:.0f} s")

    async def metric(self, node_id: str, name: str) -> float:
        return await metric(self.http, f"{self.nodes[node_id].url}/metrics", name)

    def kill(self, node_id: str) -> None:
        self.running[node_id].kill()

    async def stop(self) -> None:
        await self.http.close()
        for process in self.running.values():
            process.stop()


async def metric(http: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum of a metric's samples at `url`."""
    async with http.get(url) as response:
        text = await response.text()
    samples = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((name + " ", name + "{"))
    ]
    if not samples:
        raise RuntimeError(f"{url} has no {name}")
    return sum(samples)
