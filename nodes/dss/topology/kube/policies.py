"""Who may reach whom. Egress stays open but Redis': where DNS and a foreign Redis are is not known.

What must not live here: who may do what once connected (tokens, the cluster's secret).
"""

from __future__ import annotations

from dss.topology.kube.names import ClusterRef, Object, manifest, resource_name, selector
from dss.topology.model import (
    GRAFANA_PORT,
    HTTP_PORT,
    PEER_PORT,
    PROMETHEUS_PORT,
    REDIS_PORT,
    ROLES,
    DSSCluster,
)

OPERATOR_LABELS = {"app.kubernetes.io/name": "dss-operator"}


def network_policies(cluster: DSSCluster, ref: ClusterRef) -> list[Object]:
    policies = [_nodes(cluster, ref)]
    if cluster.redis.enabled:
        policies.append(_redis(ref))
    if cluster.monitoring.prometheus.enabled:
        policies.append(_web(ref, "prometheus", PROMETHEUS_PORT))
    if cluster.monitoring.grafana.enabled:
        policies.append(_web(ref, "grafana", GRAFANA_PORT))
    return policies


def _port(port: int) -> list[Object]:
    return [{"protocol": "TCP", "port": port}]


def _any_node(ref: ClusterRef) -> Object:
    labels = selector(ref, "lock")
    del labels["app.kubernetes.io/component"]
    in_roles = {"key": "app.kubernetes.io/component", "operator": "In", "values": list(ROLES)}
    return {"matchLabels": labels, "matchExpressions": [in_roles]}


def _nodes(cluster: DSSCluster, ref: ClusterRef) -> Object:
    """Peers among themselves; HTTP from every pod, and from anywhere with an ingress.

    Ingress controllers often use their machine's network, which no selector of pods matches.
    """
    http: Object = {"ports": _port(HTTP_PORT)}
    rules = [{"ports": _port(PEER_PORT), "from": [{"podSelector": _any_node(ref)}]}]
    if cluster.ingress.enabled:
        rules.append(http)
    else:
        rules.append(http | {"from": [{"namespaceSelector": {}}]})
    if ref.operator_namespace:
        operator = {
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": ref.operator_namespace}
            },
            "podSelector": {"matchLabels": dict(OPERATOR_LABELS)},
        }
        rules.append(http | {"from": [operator]})
    spec = {"podSelector": _any_node(ref), "policyTypes": ["Ingress"], "ingress": rules}
    name = resource_name(ref, "nodes")
    return manifest(ref, "networking.k8s.io/v1", "NetworkPolicy", name, "cluster", spec=spec)


def _redis(ref: ClusterRef) -> Object:
    """Only cache nodes speak to it, and it speaks to nobody."""
    source = {"podSelector": {"matchLabels": selector(ref, "cache")}}
    spec = {
        "podSelector": {"matchLabels": selector(ref, "redis")},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": _port(REDIS_PORT), "from": [source]}],
    }
    name = resource_name(ref, "redis")
    return manifest(ref, "networking.k8s.io/v1", "NetworkPolicy", name, "redis", spec=spec)


def _web(ref: ClusterRef, component: str, port: int) -> Object:
    """Pods of the namespace; people come through `kubectl port-forward`."""
    spec = {
        "podSelector": {"matchLabels": selector(ref, component)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": _port(port), "from": [{"podSelector": {}}]}],
    }
    name = resource_name(ref, component)
    return manifest(ref, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)
