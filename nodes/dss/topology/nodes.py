"""The configuration of one node process, after validation. Parsing lives in `config.py`.

What must not live here: reading the environment, defaults of the cluster model.
"""

from __future__ import annotations

import msgspec

from dss.base.levels import FEATURE_LEVEL


class NodeSpec(msgspec.Struct, frozen=True):
    """One entry of a peer list: how others reach a node.

    `host` is what others dial; `port` serves HTTP, `peer_port` the peer transport.
    """

    id: str
    host: str
    port: int
    peer_port: int


class TokenSpec(msgspec.Struct, frozen=True):
    """A bearer token: `sha256` is the hex digest of its UTF-8 bytes."""

    name: str
    """For people and logs: whom it was given to."""
    sha256: str
    role: str
    """`admin` may do everything; `client` everything but the administrator's routes."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `dss node` needs. Units stand last in the name."""

    node_id: str
    role: str
    """`lock`, `queue` or `cache`."""
    data_dir: str
    bind_host: str = "127.0.0.1"
    raft_peers: tuple[NodeSpec, ...] = ()
    queue_nodes: tuple[NodeSpec, ...] = ()
    cache_peers: tuple[NodeSpec, ...] = ()
    cluster_id: str = "local"
    cluster_secret: str = msgspec.field(default="")
    cluster_secret_file: str = ""
    """Where it came from, when it came from a file; looked at again while the node runs."""
    auth_tokens: tuple[TokenSpec, ...] = ()
    """Who may use /v1; empty: everybody."""
    auth_tokens_file: str = ""
    memory_url: str = ""
    memory_url_file: str = ""
    partitions: int = 32
    replication_factor: int = 3
    heartbeat_ms: int = 50
    election_min_ms: int = 300
    election_max_ms: int = 900
    cache_capacity_mib: int = 64
    cache_lease_ms: int = 1_000
    snapshot_every_entries: int = 50_000
    feature_level_max: int = FEATURE_LEVEL
    """What this node supports of its release's feature levels."""
    log_level: str = "info"
    log_format: str = "text"
    """`text` or `json`."""
    test_mode: str = ""
    """How this lock node breaks elections, on purpose; empty: not at all."""
    allow_test_mode: bool = False

    def __repr__(self) -> str:
        """Without the secret and without MEMORY_URL, which may hold a password."""
        return f"NodeConfig(node_id={self.node_id!r}, role={self.role!r}, {self.data_dir!r})"

    @property
    def peers(self) -> tuple[NodeSpec, ...]:
        """All nodes of the cluster, this one included, in the order lock, queue, cache."""
        return self.raft_peers + self.queue_nodes + self.cache_peers

    @property
    def me(self) -> NodeSpec:
        """This node's own entry (validation has made sure that there is exactly one)."""
        return next(peer for peer in self.peers if peer.id == self.node_id)

    def role_of(self, node_id: str) -> str | None:
        """`lock`, `queue`, `cache`, or None for an id that is in no list."""
        for role, peers in (
            ("lock", self.raft_peers),
            ("queue", self.queue_nodes),
            ("cache", self.cache_peers),
        ):
            if any(peer.id == node_id for peer in peers):
                return role
        return None
