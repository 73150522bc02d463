"""The parts of a DSSCluster's `spec`: fields, defaults, ranges and what each one means.

The ranges and descriptions become the CRD's schema (crd.py). Fields are only added, always with a
default. What must not live here: the whole (model.py), rules between fields (model.py, crd.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from dss.base.limits import NODES_PER_ROLE_MAX, PARTITIONS_MAX

REDIS_IMAGE: Final = "redis:7.2.7-bookworm"
PROMETHEUS_IMAGE: Final = "prom/prometheus:v2.53.3"
GRAFANA_IMAGE: Final = "grafana/grafana:11.4.0"

QUANTITY: Final = r"^[1-9][0-9]{0,5}(Mi|Gi|Ti)$"
"""A volume's size as people write it; smaller units hold no log."""
_ANY_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_DNS_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME: Final = rf"^({_DNS_LABEL}(\.{_DNS_LABEL})*)?$"
_IMAGE: Final = (
    r"^([A-Za-z0-9][-.A-Za-z0-9]*(:[0-9]+)?/)?([a-z0-9][-._a-z0-9/]*)?"
    r"(:[A-Za-z0-9_][-.A-Za-z0-9_]*)?(@sha256:[a-f0-9]{64})?$"
)
_KEY: Final = r"^(([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_LABEL: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

Image = Annotated[
    str,
    Meta(
        max_length=512,
        pattern=_IMAGE,
        extra={"message": "an image like registry.example/dss-node:0.1.0"},
    ),
]
Name = Annotated[
    str,
    Meta(
        max_length=253,
        pattern=_DNS_NAME,
        extra={"message": "lower-case letters, digits, '-' and '.', beginning and ending with a "
               "letter or digit"},
    ),
]  # fmt: skip
Size = Annotated[
    str,
    Meta(
        max_length=10,
        pattern=QUANTITY,
        description="The volume of each member; at least 128Mi. Cannot change later.",
        extra={"message": "a whole number with Mi, Gi or Ti, like 512Mi, 1Gi or 2Ti"},
    ),
]
Replicas = Annotated[int, Meta(ge=1, le=NODES_PER_ROLE_MAX)]
Text = Annotated[str, Meta(max_length=4_096)]
Amount = Annotated[str, Meta(max_length=32, pattern=_ANY_QUANTITY)]
Amounts = Annotated[dict[str, int | Amount], Meta(max_length=8)]
LabelValue = Annotated[
    str,
    Meta(
        max_length=63,
        pattern=_LABEL,
        extra={"message": "at most 63 letters, digits, '-', '_' and '.', beginning and ending "
               "with a letter or digit"},
    ),
]  # fmt: skip
Labels = Annotated[dict[str, LabelValue], Meta(max_length=32)]
"""In `extra`, `message` is what the API server says of a value that does not match the pattern."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What every part of the model shares."""


class StorageSpec(Part, frozen=True, kw_only=True):
    """A volume of each member. Cannot change later: volumes are not grown yet."""

    size: Size = "1Gi"


class ResourcesSpec(Part, frozen=True, kw_only=True):
    """As in a container: empty means the operator's defaults."""

    requests: Annotated[Amounts, Meta(description="What the scheduler sets aside.")] = {}
    limits: Annotated[Amounts, Meta(description="What a container may use at most.")] = {}


class ElectionTimeout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The random span after which a follower without a leader asks for votes, in ms."""

    min: Annotated[int, Meta(ge=50, le=60_000, description="More than twice heartbeatMs.")] = 300
    max: Annotated[int, Meta(ge=75, le=120_000, description="At least 1.5 times min.")] = 900


class LockSpec(Part, frozen=True, kw_only=True):
    """The lock nodes: one Raft group for locks and sessions, one for the cluster's metadata."""

    replicas: Annotated[Replicas, Meta(description="Voters; an odd number.")] = 3
    heartbeat_ms: Annotated[
        int, Meta(ge=10, le=10_000, description="How often a leader says that it lives.")
    ] = 50
    election_timeout_ms: ElectionTimeout = ElectionTimeout()
    storage: StorageSpec = StorageSpec()
    resources: ResourcesSpec = ResourcesSpec()


class QueueSpec(Part, frozen=True, kw_only=True):
    """The queue nodes: each partition is a Raft group on replicationFactor of them."""

    replicas: Annotated[Replicas, Meta(description="Queue nodes.")] = 3
    replication_factor: Annotated[
        Literal[1, 3, 5], Meta(description="Copies of each partition. Cannot change later.")
    ] = 3
    partitions: Annotated[
        int, Meta(ge=1, le=PARTITIONS_MAX, description="Raft groups. Cannot change later.")
    ] = 32
    storage: StorageSpec = StorageSpec(size="2Gi")
    resources: ResourcesSpec = ResourcesSpec()


class CacheSpec(Part, frozen=True, kw_only=True):
    """The cache nodes: coherent copies of what main memory (Redis) holds."""

    replicas: Annotated[Replicas, Meta(description="Cache nodes.")] = 2
    capacity_mib: Annotated[
        int, Meta(ge=1, le=65_536, description="What one node keeps before it evicts, in MiB.")
    ] = msgspec.field(default=64, name="capacityMiB")
    lease_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="How long a copy serves without asking again.")
    ] = 1_000
    policy: Annotated[Literal["sieve"], Meta(description="Which line goes when full.")] = "sieve"
    write: Annotated[
        Literal["through"], Meta(description="A write is acknowledged when Redis has it.")
    ] = "through"
    storage: StorageSpec = StorageSpec(size="256Mi")
    resources: ResourcesSpec = ResourcesSpec()


class SecretKey(Part, frozen=True, kw_only=True):
    """A value in a Secret of the same namespace; an empty name means none."""

    name: Annotated[Name, Meta(description="The Secret.")] = ""
    key: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=r"^[-._a-zA-Z0-9]+$",
            description="The key in it.",
            extra={"message": "a Secret's key: letters, digits, '-', '_' and '.'"},
        ),
    ] = "url"


class RedisSpec(Part, frozen=True, kw_only=True):
    """The cache's main memory: one that the operator runs, or one of yours."""

    enabled: Annotated[bool, Meta(description="Run a Redis for this cluster.")] = True
    image: Annotated[Image, Meta(description="Empty: the operator's default.")] = REDIS_IMAGE
    storage: StorageSpec = StorageSpec()
    resources: ResourcesSpec = ResourcesSpec()
    external_url: Annotated[
        Annotated[str, Meta(max_length=1_024)],
        Meta(description="redis://host[:port][/db] of your own; a password belongs in secretRef."),
    ] = ""
    secret_ref: Annotated[
        SecretKey, Meta(description="Where the whole URL of your own Redis lies, password too.")
    ] = SecretKey()


class PrometheusSpec(Part, frozen=True, kw_only=True):
    """A Prometheus that scrapes this cluster's nodes, with the alert rules."""

    enabled: Annotated[bool, Meta(description="Run it.")] = True
    image: Annotated[Image, Meta(description="Empty: the operator's default.")] = PROMETHEUS_IMAGE
    storage: StorageSpec = StorageSpec(size="2Gi")
    resources: ResourcesSpec = ResourcesSpec()


class GrafanaSpec(Part, frozen=True, kw_only=True):
    """A Grafana with the dashboards, fed by the Prometheus above."""

    enabled: Annotated[bool, Meta(description="Run it; needs prometheus.enabled.")] = True
    image: Annotated[Image, Meta(description="Empty: the operator's default.")] = GRAFANA_IMAGE
    resources: ResourcesSpec = ResourcesSpec()


class MonitoringSpec(Part, frozen=True, kw_only=True):
    """What watches the cluster."""

    prometheus: PrometheusSpec = PrometheusSpec()
    grafana: GrafanaSpec = GrafanaSpec()
    service_monitor: Annotated[
        bool, Meta(description="Make a ServiceMonitor for a Prometheus Operator of yours.")
    ] = False


class IngressTlsSpec(Part, frozen=True, kw_only=True):
    """The certificate that the ingress controller shows to clients."""

    secret_name: Annotated[
        Name, Meta(description="A Secret of type kubernetes.io/tls; empty: plain HTTP.")
    ] = ""


class IngressSpec(Part, frozen=True, kw_only=True):
    """The client routes of all three services under one host."""

    enabled: Annotated[bool, Meta(description="Make an Ingress; needs a host.")] = False
    host: Annotated[Name, Meta(description="The host name that clients use.")] = ""
    class_name: Annotated[
        Name, Meta(description="The IngressClass; empty: the cluster's default.")
    ] = ""
    controller: Annotated[
        Literal["contour", "nginx", "traefik", "none"],
        Meta(description="Whose annotations keep long polls and WebSockets open."),
    ] = "contour"
    annotations: Annotated[
        dict[str, Text], Meta(max_length=64, description="More annotations; they win.")
    ] = {}
    tls: IngressTlsSpec = IngressTlsSpec()


class AuthSpec(Part, frozen=True, kw_only=True):
    """Bearer tokens on every /v1 route."""

    enabled: Annotated[
        bool, Meta(description="Ask for tokens; they lie in the Secret <name>-tokens.")
    ] = True


class TlsSpec(Part, frozen=True, kw_only=True):
    """Certificates between nodes and towards clients: not built yet."""

    enabled: Annotated[bool, Meta(description="Must be false in this version.")] = False


class RemediationSpec(Part, frozen=True, kw_only=True):
    """What the operator does about an election that no one can win."""

    mode: Annotated[
        Literal["Enforce", "DryRun", "Off"],
        Meta(description="Act, only say what it would do, or do not even look."),
    ] = "Enforce"
    window_seconds: Annotated[
        int, Meta(ge=10, le=3_600, description="How long an election must be seen to be stuck.")
    ] = 30
    cooldown_seconds: Annotated[
        int, Meta(ge=10, le=86_400, description="Rest after an action; doubles each time.")
    ] = 300
    max_per_hour: Annotated[
        int, Meta(ge=0, le=6, description="Actions in an hour before it only alerts.")
    ] = 3


class LocalReference(Part, frozen=True, kw_only=True):
    """An object of the same namespace."""

    name: Annotated[Name, Meta(min_length=1, description="Of a Secret with the registry's login.")]


class Toleration(Part, frozen=True, kw_only=True):
    """As in a pod."""

    key: Annotated[
        str,
        Meta(
            max_length=316,
            pattern=_KEY,
            extra={"message": "a taint's key like example.com/name"},
        ),
    ] = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = None


class PodSpec(Part, frozen=True, kw_only=True):
    """What goes into every pod of the cluster."""

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: Annotated[list[LocalReference], Meta(max_length=16)] = []
    node_selector: Labels = {}
    tolerations: Annotated[list[Toleration], Meta(max_length=32)] = []
    affinity: Annotated[dict[str, Any], Meta(description="As in a pod.")] = {}
    priority_class_name: Name = ""
    storage_class_name: Annotated[
        Name, Meta(description="Of every volume; empty: the default. Cannot change later.")
    ] = ""
    labels: Annotated[Labels, Meta(description="More labels of the pods.")] = {}
    annotations: Annotated[
        dict[str, Text], Meta(max_length=64, description="More annotations of the pods.")
    ] = {}
