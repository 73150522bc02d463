"""What every node tells about the cluster and its Raft groups, and what may be asked of those.

What must not live here: decisions (drivers/raft_admin.py), the console's pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from aiohttp import web

from dss.api.problem import path_name, read_json, result_response
from dss.api.routes import Route
from dss.base.errors import WrongRole
from dss.base.levels import BASE_LEVEL
from dss.base.limits import BACKOFF_MS_MAX, NAME_BYTES_MAX
from dss.drivers.raft_admin import RaftAdmin
from dss.drivers.raft_members import RaftMembers
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


class LinkView(msgspec.Struct):
    up: bool
    since_ms: int
    """For how long it has been so."""


class RaftStatus(msgspec.Struct, kw_only=True):
    node_id: str
    boot_id: str
    """Changes with every start of the process."""
    role: str
    """`lock`, `queue` or `cache`."""
    feature_level: int
    """The newest that this node supports, as it is set up; each group has its own."""
    links: dict[str, LinkView]
    """The peer link to every other node of the cluster."""
    groups: list[dict[str, Any]]
    """`group_id`, `role`, `leader`, `term`, `voted_for`, `last_log_term`, `last_log_index`,
    `feature_level`, …"""


GroupId = Annotated[int, msgspec.Meta(ge=0)]
WaitMs = Annotated[int, msgspec.Meta(ge=1, le=BACKOFF_MS_MAX)]


class BackoffRequest(msgspec.Struct, forbid_unknown_fields=True):
    group_id: GroupId
    boot_id: str | None = None
    """Refused (409 `boot_mismatch`) unless this process has it."""
    wait_ms: WaitMs | None = None
    """How long it must not campaign; default: twice the longest election timeout."""


class BackoffAnswer(msgspec.Struct):
    group_id: int
    role: str
    """What it was when it was asked."""
    term: int
    wait_ms: int


class TransferRequest(msgspec.Struct, forbid_unknown_fields=True):
    group_id: GroupId
    to: str | None = None
    """A voter's id; default: the one whose log is closest to the leader's."""


class TransferAnswer(msgspec.Struct):
    group_id: int
    leader: str
    term: int


class MemberView(msgspec.Struct):
    node_id: str
    incarnation: str
    """Of its data directory: a node whose disk was lost comes back with another one."""
    role: str
    """`voter` or `learner`: one that is catching up, and becomes a voter by itself."""
    leader: bool
    up: bool
    """The leader's link to it is up, and it has the listed incarnation."""
    lost_disk: bool
    """Its link proves another incarnation: replace it."""
    lag: int
    """Log entries that it has not acknowledged yet."""
    last_contact_ms: int
    supports_level: int | None = None
    """The newest feature level that it supports; null: it is not linked."""


class GroupMembersView(msgspec.Struct):
    group_id: int
    leader: str
    term: int
    change_under_way: bool
    members: list[MemberView]
    feature_level: int = BASE_LEVEL


class MembersView(msgspec.Struct):
    groups: list[GroupMembersView]


class AddMemberRequest(msgspec.Struct, forbid_unknown_fields=True):
    node_id: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
    """A lock node that RAFT_PEERS lists."""


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


def member_routes(config: NodeConfig, members: RaftMembers | None) -> list[Route]:
    """Who belongs to the lock nodes' groups. Any lock node answers; `members` is None on others."""

    def service() -> RaftMembers:
        if members is None:
            urls = [node_url(peer) for peer in config.raft_peers]
            raise WrongRole(
                f"{config.node_id} is a {config.role} node; members are a matter of the lock "
                f"nodes: {', '.join(urls)}",
                role="lock",
                urls=urls,
            )
        return members

    async def view(request: web.Request) -> web.Response:
        return result_response(200, await service().view())

    async def add(request: web.Request) -> web.Response:
        body = await read_json(request, AddMemberRequest)
        return result_response(200, await service().add(body.node_id))

    async def remove(request: web.Request) -> web.Response:
        return result_response(200, await service().remove(path_name(request, "node_id")))

    errors = (409, 421, 503, 504)
    return [
        Route(
            method="GET", path="/v1/raft/members", handler=view, errors=errors, admin=True,
            response=MembersView,
            summary="The members of the lock nodes' groups, as their leaders see them",
        ),
        Route(
            method="POST", path="/v1/raft/members", handler=add, errors=errors, admin=True,
            request=AddMemberRequest, response=MembersView,
            summary="Add a lock node as a learner; it becomes a voter when it has caught up",
        ),
        Route(
            method="DELETE", path="/v1/raft/members/{node_id}", handler=remove,
            errors=(404, *errors), admin=True, response=MembersView,
            summary="Remove a lock node; a leader hands over first",
        ),
    ]  # fmt: skip


def routes(admin: RaftAdmin) -> list[Route]:
    """The Raft routes of a node; those that change something are an administrator's."""

    async def status(request: web.Request) -> web.Response:
        return result_response(200, admin.status())

    async def backoff(request: web.Request) -> web.Response:
        body = await read_json(request, BackoffRequest)
        return result_response(200, admin.backoff(body.group_id, body.wait_ms, body.boot_id))

    async def transfer(request: web.Request) -> web.Response:
        body = await read_json(request, TransferRequest)
        return result_response(200, await admin.transfer(body.group_id, body.to))

    return [
        Route(
            method="GET", path="/v1/raft/status", handler=status, response=RaftStatus,
            summary="This node's Raft groups: role, term, leader, indexes; its peer links",
        ),
        Route(
            method="POST", path="/v1/raft/backoff", handler=backoff, errors=(404, 409),
            admin=True, request=BackoffRequest, response=BackoffAnswer,
            summary="Give up this member's candidacy in one group and sit out the next election",
        ),
        Route(
            method="POST", path="/v1/raft/transfer", handler=transfer, errors=(404, 409, 503),
            admin=True, request=TransferRequest, response=TransferAnswer,
            summary="Hand this member's leadership of one group to another voter",
        ),
    ]  # fmt: skip
