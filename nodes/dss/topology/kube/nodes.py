"""The lock, queue and cache nodes: peer lists, Services, StatefulSets.

What must not live here: what a setting means (variables.py), how a pod is secured (pods.py).
"""

from __future__ import annotations

import json
from typing import Any, Final

from dss.topology.kube.names import (
    ClusterRef,
    Object,
    headless_name,
    manifest,
    peer_host,
    resource_name,
    selector,
)
from dss.topology.kube.pods import (
    Workload,
    config_volume,
    http_probe,
    mount,
    resources,
    secret_volume,
    stateful_set,
)
from dss.topology.model import (
    HTTP_PORT,
    PEER_PORT,
    REDIS_PORT,
    ROLES,
    DSSCluster,
    cluster_environment,
)
from dss.topology.variables import PEER_LISTS

NODE_UID: Final = 10_001
"""The image's user; volumes keep their owner from one image to the next."""
GRACE_SECONDS: Final = 30
"""A node hands its leaderships over and ends within 15 s; twice that before it is killed."""
PEERS_PATH: Final = "/etc/dss/peers"
SECRET_PATH: Final = "/etc/dss/cluster"  # noqa: S105 - a path
AUTH_PATH: Final = "/etc/dss/auth"
MEMORY_PATH: Final = "/etc/dss/memory"
POD_INDEX_LABEL: Final = "apps.kubernetes.io/pod-index"


def peers_config_map(cluster: DSSCluster, ref: ClusterRef) -> Object:
    """The peer lists, mounted as a directory: they are bootstrap, so no change rolls a pod."""
    data = {
        name: json.dumps(
            [
                {
                    "id": member.id,
                    "host": peer_host(ref, member.role, member.ordinal),
                    "port": HTTP_PORT,
                    "peer_port": PEER_PORT,
                }
                for member in cluster.members()
                if member.role == role
            ]
        )
        for name, role in PEER_LISTS.items()
    }
    name = resource_name(ref, "peers")
    return manifest(ref, "v1", "ConfigMap", name, "cluster", data=data)


def node_services(ref: ClusterRef) -> list[Object]:
    """For each role a headless Service (names of pods) and one for clients (ready nodes)."""
    found = []
    for role in ROLES:
        http = {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"}
        peer = {"name": "peer", "port": PEER_PORT, "targetPort": "peer", "protocol": "TCP"}
        headless = {
            "clusterIP": "None",
            # Nodes find each other before they are ready: getting ready needs the others.
            "publishNotReadyAddresses": True,
            "selector": selector(ref, role),
            "ports": [http, peer],
        }
        clients = {"type": "ClusterIP", "selector": selector(ref, role), "ports": [http]}
        for name, spec in ((headless_name(ref, role), headless), (f"{ref.name}-{role}", clients)):
            found.append(manifest(ref, "v1", "Service", name, role, spec=spec))
    return found


def node_stateful_set(cluster: DSSCluster, ref: ClusterRef, role: str) -> Object:
    parts: dict[str, Any] = {"lock": cluster.lock, "queue": cluster.queue, "cache": cluster.cache}
    part = parts[role]
    volumes = [
        config_volume("peers", resource_name(ref, "peers")),
        secret_volume("cluster-secret", resource_name(ref, "cluster"), "cluster-secret"),
    ]
    mounts = [mount("peers", PEERS_PATH), mount("cluster-secret", SECRET_PATH)]
    if cluster.auth.enabled:
        volumes.append(secret_volume("auth", resource_name(ref, "auth"), "tokens.json"))
        mounts.append(mount("auth", AUTH_PATH))
    memory = memory_secret(cluster, ref) if role == "cache" else None
    if memory:
        volumes.append(secret_volume("memory", *memory))
        mounts.append(mount("memory", MEMORY_PATH))
    workload = Workload(
        component=role,
        replicas=part.replicas,
        service=headless_name(ref, role),
        uid=NODE_UID,
        gid=NODE_UID,
        container={
            "image": cluster.image,
            "env": node_environment(cluster, ref, role),
            "ports": [
                {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
                {"name": "peer", "containerPort": PEER_PORT, "protocol": "TCP"},
            ],
            "resources": resources(part.resources, *_default_resources(cluster, role)),
            # A log of gigabytes is read before the node listens: ten minutes.
            "startupProbe": http_probe("/healthz", "http", period=2, failures=300),
            "livenessProbe": http_probe("/healthz", "http", period=10, failures=6),
            "readinessProbe": http_probe("/readyz", "http", period=3, failures=3),
            # Endpoints and the ingress forget the pod before it stops listening.
            "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
            "volumeMounts": mounts,
        },
        volumes=volumes,
        storage_size=part.storage.size,
        data_path="/data",
        grace_seconds=GRACE_SECONDS,
    )
    return stateful_set(cluster, ref, workload)


def node_environment(cluster: DSSCluster, ref: ClusterRef, role: str) -> list[Object]:
    """The environment of a role's nodes; secrets and peer lists are files."""
    index = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{POD_INDEX_LABEL}']"}}
    plain = {
        "NODE_ID": f"{role}-$(POD_INDEX)",
        "NODE_ROLE": role,
        "DATA_DIR": "/data",
        "BIND_HOST": "0.0.0.0",  # noqa: S104 - the pod's own address is not known before
    }
    plain |= {f"{name}_FILE": f"{PEERS_PATH}/{name}" for name in PEER_LISTS}
    plain |= cluster_environment(cluster) | {"CLUSTER_ID": ref.cluster_id}
    plain |= {"CLUSTER_SECRET_FILE": f"{SECRET_PATH}/cluster-secret", "LOG_FORMAT": "json"}
    if cluster.auth.enabled:
        plain["AUTH_TOKENS_FILE"] = f"{AUTH_PATH}/tokens.json"
    if role == "cache":
        memory = memory_secret(cluster, ref)
        if memory:
            plain["MEMORY_URL_FILE"] = f"{MEMORY_PATH}/{memory[1]}"
        else:
            plain["MEMORY_URL"] = cluster.redis.external_url
    if role == "lock" and ref.test_mode:
        plain |= {"ALLOW_TEST_MODE": "1", "TEST_MODE": ref.test_mode}
    found: list[Object] = [{"name": "POD_INDEX", "valueFrom": index}]
    return found + [{"name": name, "value": value} for name, value in plain.items()]


def memory_secret(cluster: DSSCluster, ref: ClusterRef) -> tuple[str, str] | None:
    """(Secret, key) of main memory's URL; None where it is plain, without a password."""
    if cluster.redis.secret_ref.name:
        return cluster.redis.secret_ref.name, cluster.redis.secret_ref.key
    if cluster.redis.external_url:
        return None
    return resource_name(ref, "redis"), "url"


def memory_url(ref: ClusterRef, password: str) -> str:
    """Where the cluster's own Redis is."""
    host = f"{resource_name(ref, 'redis')}.{ref.namespace}.svc"
    return f"redis://:{password}@{host}:{REDIS_PORT}/0"


def _default_resources(cluster: DSSCluster, role: str) -> tuple[Object, Object]:
    """(requests, limits); a cache node's copies cost about half again in Python objects."""
    limit_mib = 512
    if role == "cache":
        limit_mib = 256 + cluster.cache.capacity_mib * 3 // 2
    return {"cpu": "50m", "memory": "128Mi"}, {"memory": f"{limit_mib}Mi"}


def disruption_budget(ref: ClusterRef, role: str) -> Object:
    """Drains and evictions take one node of a role at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(ref, role)}}
    name = resource_name(ref, role)
    return manifest(ref, "policy/v1", "PodDisruptionBudget", name, role, spec=spec)


def service_account(ref: ClusterRef) -> Object:
    """No pod of a cluster talks to the API server."""
    name = resource_name(ref, "nodes")
    return manifest(
        ref, "v1", "ServiceAccount", name, "cluster", automountServiceAccountToken=False
    )
