"""The Secrets of a cluster: what is there is kept, what is missing is made.

What must not live here: randomness (the caller brings `new_secret`), reading Secrets.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from dss.topology.kube.names import ClusterRef, Object, manifest
from dss.topology.kube.nodes import memory_url
from dss.topology.model import DSSCluster

TOKENS: Final = {"admin": "admin", "client": "client", "operator": "admin"}
"""The token's name -> its role."""
_KINDS: Final = ("cluster", "tokens", "auth", "redis", "grafana")

Existing = Mapping[str, Mapping[str, str]]
"""Secret's name -> key -> value, decoded."""


def secret_names(cluster_name: str) -> tuple[str, ...]:
    """Every Secret that a cluster may own: they are read by name, never listed."""
    return tuple(f"{cluster_name}-{kind}" for kind in _KINDS)


def render_secrets(
    cluster: DSSCluster, ref: ClusterRef, existing: Existing, new_secret: Callable[[], str]
) -> list[Object]:
    """All Secrets that the cluster wants.

    Args:
        existing: values to keep, an empty one counts as missing.
        new_secret: 32 or more random characters of a-z A-Z 0-9 - _ at each call.
    """

    def kept(kind: str, key: str, default: str = "") -> str:
        value = existing.get(f"{ref.name}-{kind}", {}).get(key, "")
        return value or default or new_secret()

    values: dict[str, dict[str, str]] = {
        "cluster": {"cluster-secret": kept("cluster", "cluster-secret")}
    }
    if cluster.auth.enabled:
        values["tokens"] = {name: kept("tokens", name) for name in TOKENS}
        values["auth"] = {"tokens.json": tokens_file(values["tokens"])}
    if cluster.redis.enabled:
        password = kept("redis", "password")
        values["redis"] = {"password": password, "url": memory_url(ref, password)}
    if cluster.monitoring.grafana.enabled:
        values["grafana"] = {
            "admin-user": kept("grafana", "admin-user", "admin"),
            "admin-password": kept("grafana", "admin-password"),
        }
    return [_secret(ref, kind, data) for kind, data in values.items()]


def tokens_file(tokens: Mapping[str, str]) -> str:
    """AUTH_TOKENS_FILE's content: hashes alone, so a node's volume gives no token away."""
    return json.dumps(
        [
            {
                "name": name,
                "sha256": hashlib.sha256(tokens[name].encode()).hexdigest(),
                "role": role,
            }
            for name, role in TOKENS.items()
        ]
    )


def _secret(ref: ClusterRef, kind: str, values: dict[str, str]) -> Object:
    component = kind if kind in ("redis", "grafana") else "cluster"
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    name = f"{ref.name}-{kind}"
    return manifest(ref, "v1", "Secret", name, component, type="Opaque", data=data)
