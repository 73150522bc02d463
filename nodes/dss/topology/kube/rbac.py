"""What the operator may do, one row for each verb that it uses, with the reason.

`tests/kube` takes the rows from here: each verb given is used, each verb left out not needed.
What must not live here: who may edit a DSSCluster (a cluster's own business).
"""

from __future__ import annotations

from typing import Final

import msgspec

from dss.topology.kube.names import Object


class Grant(msgspec.Struct, frozen=True):
    """Verbs on one resource. `scope`: `watched` namespaces, or the operator's `own`."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    scope: str = "watched"
    optional: bool = False
    """Only used where a cluster asks for it (a feature that is off by default)."""


_KEPT: Final = ("list", "create", "patch")
"""Of kinds that a cluster always wants: the garbage collector removes them with it."""
_OWNED: Final = (*_KEPT, "delete")
"""Of kinds that a change of the spec may make superfluous."""

GRANTS: Final = (
    Grant("dss.io", "dssclusters", ("get", "list", "watch"), "what is wanted"),
    Grant("dss.io", "dssclusters/status", ("patch",), "what it says about a cluster"),
    Grant("", "serviceaccounts", _KEPT, "the pods' identity"),
    Grant("", "configmaps", _OWNED, "peer lists, Prometheus' and Grafana's files"),
    Grant("", "services", _OWNED, "names of pods, addresses for clients"),
    Grant("policy", "poddisruptionbudgets", _KEPT, "one node of a role at a time"),
    Grant("networking.k8s.io", "networkpolicies", _OWNED, "who may reach whom"),
    Grant("networking.k8s.io", "ingresses", _OWNED, "the client routes"),
    Grant("apps", "statefulsets", (*_OWNED, "watch"), "the nodes, Redis, Prometheus, Grafana"),
    Grant("", "secrets", ("get", "create", "patch", "delete"), "by fixed names, never listed"),
    Grant("", "pods", ("get", "list", "delete"), "health; the second rung of the remedy"),
    Grant("", "pods/eviction", ("create",), "the second rung of the remedy"),
    Grant("", "events", ("create",), "transitions"),
    Grant(
        "monitoring.coreos.com", "servicemonitors", _OWNED,
        "spec.monitoring.serviceMonitor", optional=True,
    ),
    Grant(
        "coordination.k8s.io", "leases", ("get", "create", "update"),
        "one operator at a time", scope="own",
    ),
)  # fmt: skip


def rules(scope: str) -> list[Object]:
    """The rules of the Role (or ClusterRole) for one scope."""
    return [
        {"apiGroups": [grant.group], "resources": [grant.resource], "verbs": list(grant.verbs)}
        for grant in GRANTS
        if grant.scope == scope
    ]
