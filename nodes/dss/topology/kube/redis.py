"""The cache's main memory: one Redis that loses nothing it has acknowledged.

What must not live here: a Redis of somebody else (spec.redis.externalUrl, secretRef).
"""

from __future__ import annotations

from typing import Final

from dss.topology.kube.names import ClusterRef, Object, manifest, resource_name, selector
from dss.topology.kube.pods import (
    Workload,
    exec_probe,
    mount,
    resources,
    secret_volume,
    stateful_set,
)
from dss.topology.model import REDIS_PORT, DSSCluster
from dss.topology.spec import REDIS_IMAGE

REDIS_UID: Final = 999
PASSWORD_PATH: Final = "/etc/dss/redis"  # noqa: S105 - a path

# The password goes through a file: a process's arguments are visible to all.
_START: Final = f"""\
umask 077
printf 'requirepass %s\\n' "$(cat {PASSWORD_PATH}/password)" > /tmp/auth.conf
exec redis-server /tmp/auth.conf --dir /data --bind '* -::*' --appendonly yes \\
  --appendfsync always --maxmemory 256mb --maxmemory-policy noeviction --save ''
"""
_PING: Final = f'REDISCLI_AUTH="$(cat {PASSWORD_PATH}/password)" redis-cli ping | grep -q PONG'


def redis_service(ref: ClusterRef) -> Object:
    name = resource_name(ref, "redis")
    spec = {
        "type": "ClusterIP",
        "selector": selector(ref, "redis"),
        "ports": [{"name": "redis", "port": REDIS_PORT, "targetPort": "redis", "protocol": "TCP"}],
    }
    return manifest(ref, "v1", "Service", name, "redis", spec=spec)


def redis_stateful_set(cluster: DSSCluster, ref: ClusterRef) -> Object:
    """As in compose: append-only file, fsync before every answer, no eviction."""
    ping = ["sh", "-c", _PING]
    workload = Workload(
        component="redis",
        replicas=1,
        service=resource_name(ref, "redis"),
        uid=REDIS_UID,
        gid=REDIS_UID,
        container={
            "image": cluster.redis.image or REDIS_IMAGE,
            "command": ["sh", "-ec", _START],
            "ports": [{"name": "redis", "containerPort": REDIS_PORT, "protocol": "TCP"}],
            "resources": resources(
                cluster.redis.resources,
                {"cpu": "50m", "memory": "64Mi"},
                # Twice maxmemory: a rewrite of the append-only file copies pages.
                {"memory": "512Mi"},
            ),
            "startupProbe": exec_probe(ping, period=2, failures=300),
            "livenessProbe": exec_probe(ping, period=10, failures=6),
            "readinessProbe": exec_probe(ping, period=5, failures=3),
            "volumeMounts": [mount("password", PASSWORD_PATH)],
        },
        volumes=[secret_volume("password", resource_name(ref, "redis"), "password")],
        storage_size=cluster.redis.storage.size,
        data_path="/data",
        grace_seconds=30,
    )
    return stateful_set(cluster, ref, workload)
