"""The cluster as processes of this machine: one environment and one URL for each node.

What must not live here: starting anything (dss.local), files.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import msgspec

from dss.base.errors import ConfigProblem
from dss.topology.model import (
    BASE_PORT,
    PEER_PORT_OFFSET,
    ROLE_PORT_OFFSET,
    DSSCluster,
    cluster_environment,
    ensure_valid,
)
from dss.topology.variables import PEER_LISTS

HOST = "127.0.0.1"
_PORT_SPAN = PEER_PORT_OFFSET + max(ROLE_PORT_OFFSET.values()) + 9
"""From the base port to the highest port a cluster can use."""


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """One process to start: `dss node` with `env`."""

    id: str
    role: str
    env: dict[str, str]
    url: str
    port: int
    peer_port: int

    @property
    def ports(self) -> tuple[int, int]:
        return (self.port, self.peer_port)


def render_local(
    cluster: DSSCluster,
    data_dir: Path,
    *,
    base_port: int = BASE_PORT,
    cluster_secret: str = "",
) -> tuple[LocalNode, ...]:
    """All nodes in the order lock, queue, cache; main memory is one SQLite file in `data_dir`.

    Raises:
        ConfigProblem: the model or the base port cannot work.
    """
    ensure_valid(cluster)
    if not 1 <= base_port <= 65_535 - _PORT_SPAN:
        raise ConfigProblem(
            f"base port: expected 1 to {65_535 - _PORT_SPAN}, found {base_port} "
            f"(ports up to {_PORT_SPAN} above it are used)."
        )
    data_dir = data_dir.absolute()
    members = cluster.members()
    shared = cluster_environment(cluster) | {
        name: json.dumps(
            [
                {
                    "id": member.id,
                    "host": HOST,
                    "port": member.http_port(base_port),
                    "peer_port": member.peer_port(base_port),
                }
                for member in members
                if member.role == role
            ]
        )
        for name, role in PEER_LISTS.items()
    }
    shared["CLUSTER_SECRET"] = cluster_secret
    nodes = []
    for member in members:
        env = shared | {
            "NODE_ID": member.id,
            "NODE_ROLE": member.role,
            "DATA_DIR": str(data_dir / member.id),
            "BIND_HOST": HOST,
        }
        if member.role == "cache":
            env["MEMORY_URL"] = f"sqlite:///{quote(str(data_dir / 'memory.db'))}"
        port = member.http_port(base_port)
        nodes.append(
            LocalNode(
                id=member.id,
                role=member.role,
                env=env,
                url=f"http://{HOST}:{port}",
                port=port,
                peer_port=member.peer_port(base_port),
            )
        )
    return tuple(nodes)
