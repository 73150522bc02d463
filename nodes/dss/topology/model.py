"""The one `DSSCluster` model: counts, images, timing, ports; every rendering comes from it.

Field names on the wire are the custom resource's (`dss.io/v1alpha1`): its schema is rendered from
these structs (crd.py), ranges and descriptions included.
What must not live here: any output format (render_*.py, kube/), the parts' fields (spec.py).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dss import __version__
from dss.base.errors import ConfigProblem
from dss.base.limits import NODES_PER_ROLE_MAX, PARTITIONS_MAX
from dss.topology.spec import (
    AuthSpec,
    CacheSpec,
    ElectionTimeout,
    Image,
    IngressSpec,
    LockSpec,
    MonitoringSpec,
    PodSpec,
    QueueSpec,
    RedisSpec,
    RemediationSpec,
    TlsSpec,
)

__all__ = [
    "CacheSpec",
    "DSSCluster",
    "ElectionTimeout",
    "LockSpec",
    "Member",
    "QueueSpec",
    "cluster_environment",
    "cluster_of",
    "ensure_valid",
    "validate",
]

ROLES: Final = ("lock", "queue", "cache")
HTTP_PORT: Final = 8_000
"""Of every node in its own container."""
PEER_PORT: Final = 9_000
BASE_PORT: Final = 8_000
"""Locally and published by compose: lock-i at base+i, queue-i at base+10+i, cache-i at +20+i."""
ROLE_PORT_OFFSET: Final = {"lock": 0, "queue": 10, "cache": 20}
PEER_PORT_OFFSET: Final = 1_000
"""A local peer port lies this far above the HTTP port."""
PROMETHEUS_PORT: Final = 9_090
GRAFANA_PORT: Final = 3_000
REDIS_PORT: Final = 6_379
SUPPORT_SERVICES: Final = ("redis", "prometheus", "grafana")


class DSSCluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cluster. `validate` says what is wrong with it; the renderers expect nothing wrong."""

    name: str = "dss"
    image: Annotated[
        Image, Meta(min_length=1, description="Of every node; a change is not carried out yet.")
    ] = f"dss-node:{__version__}"
    lock: LockSpec = LockSpec()
    queue: QueueSpec = QueueSpec()
    cache: CacheSpec = CacheSpec()
    redis: RedisSpec = RedisSpec()
    monitoring: MonitoringSpec = MonitoringSpec()
    ingress: IngressSpec = IngressSpec()
    auth: AuthSpec = AuthSpec()
    tls: TlsSpec = TlsSpec()
    remediation: RemediationSpec = RemediationSpec()
    pod: PodSpec = PodSpec()
    paused: Annotated[bool, Meta(description="Touch nothing, only report.")] = False
    reclaim: Annotated[
        Literal["Retain", "Delete"],
        Meta(description="What becomes of the volumes when the cluster is deleted."),
    ] = "Retain"

    def replicas(self, role: str) -> int:
        return {
            "lock": self.lock.replicas,
            "queue": self.queue.replicas,
            "cache": self.cache.replicas,
        }[role]

    def members(self) -> tuple[Member, ...]:
        """All nodes in the order lock, queue, cache; ordinals from 1."""
        return tuple(
            Member(role, ordinal) for role in ROLES for ordinal in range(1, self.replicas(role) + 1)
        )

    def names(self) -> tuple[str, ...]:
        """All services of the compose file: the nodes, then redis, prometheus, grafana."""
        return tuple(member.id for member in self.members()) + SUPPORT_SERVICES


class Member(msgspec.Struct, frozen=True):
    """One node of the cluster."""

    role: str
    ordinal: int

    @property
    def id(self) -> str:
        return f"{self.role}-{self.ordinal}"

    def http_port(self, base_port: int = BASE_PORT) -> int:
        """Its HTTP port on the machine that the cluster runs on."""
        return base_port + ROLE_PORT_OFFSET[self.role] + self.ordinal

    def peer_port(self, base_port: int = BASE_PORT) -> int:
        return self.http_port(base_port) + PEER_PORT_OFFSET


KUBE_DEFAULTS: Final = DSSCluster(
    lock=LockSpec(heartbeat_ms=100, election_timeout_ms=ElectionTimeout(1_000, 2_000)),
    cache=CacheSpec(capacity_mib=256),
)
"""What an empty `spec` means on Kubernetes: slower networks and disks than one machine's."""


def cluster_of(lock: int = 3, queue: int = 3, cache: int = 2) -> DSSCluster:
    """The default cluster with other counts; fewer than three queue nodes keep single copies."""
    return ensure_valid(
        DSSCluster(
            lock=LockSpec(replicas=lock),
            queue=QueueSpec(replicas=queue, replication_factor=3 if queue >= 3 else 1),
            cache=CacheSpec(replicas=cache),
        )
    )


def validate(cluster: DSSCluster) -> list[str]:
    """Every fault of the model: the field, what was expected, what was found."""
    faults = []

    def expect(good: bool, field: str, expected: str, found: object) -> None:
        if not good:
            faults.append(f"{field}: expected {expected}, found {found}")

    top, lock, queue, cache = NODES_PER_ROLE_MAX, cluster.lock, cluster.queue, cluster.cache
    expect(
        1 <= lock.replicas <= top and lock.replicas % 2 == 1,
        "lock.replicas", f"an odd number from 1 to {top}", lock.replicas,
    )  # fmt: skip
    expect(1 <= queue.replicas <= top, "queue.replicas", f"1 to {top}", queue.replicas)
    expect(1 <= cache.replicas <= top, "cache.replicas", f"1 to {top}", cache.replicas)
    factor = queue.replication_factor
    expect(
        factor in (1, 3, 5) and factor <= queue.replicas,
        "queue.replicationFactor", f"1, 3 or 5, at most queue.replicas, {queue.replicas}", factor,
    )  # fmt: skip
    expect(
        1 <= queue.partitions <= PARTITIONS_MAX,
        "queue.partitions", f"1 to {PARTITIONS_MAX}", queue.partitions,
    )  # fmt: skip
    low, high = lock.election_timeout_ms.min, lock.election_timeout_ms.max
    expect(
        low > 2 * lock.heartbeat_ms > 0,
        "lock.electionTimeoutMs.min", f"more than twice heartbeatMs, {lock.heartbeat_ms}", low,
    )  # fmt: skip
    expect(
        2 * high >= 3 * low, "lock.electionTimeoutMs.max", f"at least 1.5 times min, {low}", high
    )
    expect(cache.capacity_mib >= 1, "cache.capacityMiB", "at least 1", cache.capacity_mib)
    expect(cache.lease_ms >= 100, "cache.leaseMs", "at least 100", cache.lease_ms)
    return faults + _validate_services(cluster)


def _validate_services(cluster: DSSCluster) -> list[str]:
    """The faults between parts that only Kubernetes reads; the CRD's rules say the same."""
    faults = []
    redis, monitoring, ingress = cluster.redis, cluster.monitoring, cluster.ingress
    sources = [redis.enabled, bool(redis.external_url), bool(redis.secret_ref.name)]
    if sources.count(True) != 1:
        faults.append(
            "redis: expected one of enabled: true, externalUrl and secretRef.name, found "
            f"{sources.count(True)} of them"
        )
    if "@" in redis.external_url:
        faults.append("redis.externalUrl: expected no password: put the whole URL into a Secret")
    if monitoring.grafana.enabled and not monitoring.prometheus.enabled:
        faults.append("monitoring.grafana.enabled: expected false without prometheus.enabled")
    if ingress.enabled and not ingress.host:
        faults.append("ingress.host: expected a host name with ingress.enabled, found none")
    if cluster.tls.enabled:
        faults.append("tls.enabled: expected false: certificates are not built yet")
    window, longest = cluster.remediation.window_seconds, cluster.lock.election_timeout_ms.max
    if window * 1_000 < 10 * longest:
        faults.append(
            "remediation.windowSeconds: expected at least ten times lock.electionTimeoutMs.max, "
            f"{-(-longest // 100)}, found {window}"
        )
    return faults


def ensure_valid(cluster: DSSCluster) -> DSSCluster:
    """`cluster` itself. Raises ConfigProblem with one line for each fault."""
    faults = validate(cluster)
    if faults:
        raise ConfigProblem("\n".join(f"{fault}." for fault in faults))
    return cluster


def cluster_environment(cluster: DSSCluster) -> dict[str, str]:
    """What every node of the cluster is told besides the peer lists and secrets."""
    return {
        "CLUSTER_ID": cluster.name,
        "HEARTBEAT_MS": str(cluster.lock.heartbeat_ms),
        "ELECTION_MIN_MS": str(cluster.lock.election_timeout_ms.min),
        "ELECTION_MAX_MS": str(cluster.lock.election_timeout_ms.max),
        "PARTITIONS": str(cluster.queue.partitions),
        "REPLICATION_FACTOR": str(cluster.queue.replication_factor),
        "CACHE_CAPACITY_MIB": str(cluster.cache.capacity_mib),
        "CACHE_LEASE_MS": str(cluster.cache.lease_ms),
    }
