"""What every node tells about the cluster and its Raft groups.

What must not live here: decisions, the console's pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from dss.api.problem import result_response
from dss.api.routes import Route
from dss.topology.nodes import NodeConfig, NodeSpec


class NodeView(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One node as the answering node sees it. `up`: the peer link to it is established."""

    id: str
    role: str
    url: str
    up: bool
    since_ms: int = 0
    """For how long the link has been in this state."""
    reason: str = ""
    """Why the link is down."""


class ClusterView(msgspec.Struct, kw_only=True):
    cluster_id: str
    node_id: str
    """Who answers."""
    role: str
    nodes: list[NodeView]


class RaftStatus(msgspec.Struct, kw_only=True):
    node_id: str
    boot_id: str
    """Changes with every start of the process."""
    groups: list[dict[str, Any]]


def node_url(node: NodeSpec) -> str:
    """How others reach a node's HTTP."""
    host = f"[{node.host}]" if ":" in node.host else node.host
    return f"http://{host}:{node.port}"


def cluster_view(config: NodeConfig, links: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The body of `GET /v1/cluster`, out of `Transport.links()`."""
    nodes = []
    for peer in config.peers:
        me = peer.id == config.node_id
        link = links.get(peer.id, {})
        nodes.append(
            NodeView(
                id=peer.id,
                role=config.role_of(peer.id) or "",
                url=node_url(peer),
                up=me or bool(link.get("up", False)),
                since_ms=0 if me else int(link.get("since_ms", 0)),
                reason="" if me else str(link.get("reason", "") or ""),
            )
        )
    view = ClusterView(
        cluster_id=config.cluster_id, node_id=config.node_id, role=config.role, nodes=nodes
    )
    body: dict[str, Any] = msgspec.to_builtins(view)
    return body


def routes(
    *, node_id: str, boot_id: str, group_status: Callable[[], list[dict[str, Any]]]
) -> list[Route]:
    """The Raft routes of a node.

    Args:
        group_status: `Consensus.group_status`; for a node without groups `lambda: []`.
    """

    async def status(request: web.Request) -> web.Response:
        view = RaftStatus(node_id=node_id, boot_id=boot_id, groups=group_status())
        return result_response(200, view)

    return [
        Route(
            method="GET",
            path="/v1/raft/status",
            handler=status,
            summary="This node's Raft groups: role, term, leader, indexes, links",
            response=RaftStatus,
        )
    ]
