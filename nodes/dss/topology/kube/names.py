"""Names, labels and the head of every object that belongs to one cluster.

What must not live here: any particular object.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

Object = dict[str, Any]

API_VERSION: Final = "dss.io/v1alpha1"
KIND: Final = "DSSCluster"
MANAGER: Final = "dss-operator"
CLUSTER_LABEL: Final = "dss.io/cluster"

NAME_CHARS_MAX: Final = 40
"""Of a cluster's name: StatefulSets add a revision label of 11 characters to theirs, at most 63."""


class ClusterRef(msgspec.Struct, frozen=True, kw_only=True):
    """The DSSCluster object that the objects are rendered for.

    Attributes:
        operator_namespace: where the operator runs; its pods may reach the nodes.
        test_mode: the value of the annotation `dss.io/test-mode` where the operator allows it.
        restarted_at: the value of `dss.io/restartedAt`: a change rolls every pod.
    """

    name: str
    namespace: str
    uid: str
    operator_namespace: str = ""
    test_mode: str = ""
    restarted_at: str = ""

    @property
    def cluster_id(self) -> str:
        """What nodes prove to each other: kept volumes fit a cluster that is made again."""
        return f"{self.namespace}/{self.name}"


def resource_name(ref: ClusterRef, component: str) -> str:
    return f"{ref.name}-{component}"


def headless_name(ref: ClusterRef, role: str) -> str:
    return f"{ref.name}-{role}-nodes"


def peer_host(ref: ClusterRef, role: str, ordinal: int) -> str:
    """What other pods dial: resolved again at every dial, for a pod's address changes."""
    return f"{ref.name}-{role}-{ordinal}.{headless_name(ref, role)}.{ref.namespace}.svc"


def selector(ref: ClusterRef, component: str) -> dict[str, str]:
    """The labels that find one component's pods; they can never change."""
    return {
        "app.kubernetes.io/name": "dss",
        "app.kubernetes.io/instance": ref.name,
        "app.kubernetes.io/component": component,
    }


def labels(ref: ClusterRef, component: str) -> dict[str, str]:
    return selector(ref, component) | {
        "app.kubernetes.io/managed-by": MANAGER,
        CLUSTER_LABEL: ref.name,
    }


def owner_reference(ref: ClusterRef) -> Object:
    """Deletion of the cluster removes the object.

    It does not block: nothing waits for the objects one by one, and blocking would ask for a
    right on the finalizers of every DSSCluster where that admission plugin is on.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": ref.name,
        "uid": ref.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def manifest(
    ref: ClusterRef, api_version: str, kind: str, name: str, component: str, **body: Any
) -> Object:
    """An object of the cluster with its head; `body` is the rest (`spec`, `data`, …)."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": ref.namespace,
            "labels": labels(ref, component),
            "ownerReferences": [owner_reference(ref)],
        },
        **body,
    }
