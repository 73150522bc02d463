"""What one tick knows of one cluster: the resource, what is wanted, what is there.

Plain data between observe (reads the API), plan (pure), status (pure) and apply (writes).
What must not live here: any I/O, any decision.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.topology import crd
from dss.topology.kube import names
from dss.topology.model import DSSCluster

GROUP: Final = crd.GROUP
VERSION: Final = crd.VERSION
PLURAL: Final = crd.PLURAL
FIELD_MANAGER: Final = names.MANAGER
CLUSTER_LABEL: Final = names.CLUSTER_LABEL
TEST_MODE: Final = "dss.io/test-mode"
RESTARTED_AT: Final = "dss.io/restartedAt"

Object = dict[str, Any]
"""A Kubernetes object as the API has it."""

Key = tuple[str, str]
"""(kind, name) within the cluster's namespace."""


def key_of(obj: Object) -> Key:
    return (obj["kind"], obj["metadata"]["name"])


def owner_uid(obj: Object) -> str:
    """The UID of the controller that an object belongs to; empty: of none."""
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            uid: str = owner.get("uid", "")
            return uid
    return ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """The DSSCluster as read at the start of a tick."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    annotations: dict[str, str]
    spec: DSSCluster | None
    """None: the resource says something impossible, `fault` says what."""
    status: dict[str, Any]
    fault: str = ""
    deleting: bool = False

    @property
    def paused(self) -> bool:
        return self.spec is not None and self.spec.paused


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the API server lists for one cluster."""

    owned: dict[Key, Object]
    """Every object with the cluster's label of a kind that the operator manages, Secrets (read by
    their fixed names) included."""
    pods: dict[str, Object]
    """By name; the nodes', Redis' and monitoring's."""
    missing_kinds: frozenset[str] = frozenset()
    """Kinds that this API server does not serve (a ServiceMonitor without its operator)."""
