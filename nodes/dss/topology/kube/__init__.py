"""A DSSCluster as Kubernetes objects.

What must not live here: the API server, randomness, any decision about what is there already
(dss_operator).
"""

from __future__ import annotations

from typing import Final

from dss.topology.kube.ingress import ingress
from dss.topology.kube.monitoring import (
    grafana_config_map,
    grafana_stateful_set,
    prometheus_config_map,
    prometheus_stateful_set,
    service_monitor,
    web_service,
)
from dss.topology.kube.names import ClusterRef, Object
from dss.topology.kube.nodes import (
    disruption_budget,
    node_services,
    node_stateful_set,
    peers_config_map,
    service_account,
)
from dss.topology.kube.policies import network_policies
from dss.topology.kube.redis import redis_service, redis_stateful_set
from dss.topology.kube.secrets import render_secrets, secret_names
from dss.topology.model import GRAFANA_PORT, PROMETHEUS_PORT, ROLES, DSSCluster, ensure_valid

__all__ = [
    "MANAGED_KINDS",
    "OPTIONAL_KINDS",
    "ClusterRef",
    "Object",
    "render_objects",
    "render_secrets",
    "secret_names",
]

MANAGED_KINDS: Final = (
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "Service", "services"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("networking.k8s.io/v1", "Ingress", "ingresses"),
)
"""(apiVersion, kind, plural) of what may be owned, in apply order; Secrets go by their names."""
OPTIONAL_KINDS: Final = (("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"),)
"""Likewise, but a cluster may not know the type: a 404 for the list means none."""


def render_objects(cluster: DSSCluster, ref: ClusterRef) -> list[Object]:
    """Everything but Secrets, in the order in which to apply it.

    Raises:
        ConfigProblem: the model is not valid.
    """
    ensure_valid(cluster)
    monitoring = cluster.monitoring
    objects = [service_account(ref), peers_config_map(cluster, ref)]
    objects += node_services(ref)
    objects += [disruption_budget(ref, role) for role in ROLES]
    objects += network_policies(cluster, ref)
    if cluster.redis.enabled:
        objects += [redis_service(ref), redis_stateful_set(cluster, ref)]
    objects += [node_stateful_set(cluster, ref, role) for role in ROLES]
    if monitoring.prometheus.enabled:
        config = prometheus_config_map(cluster, ref)
        service = web_service(ref, "prometheus", PROMETHEUS_PORT)
        objects += [config, service, prometheus_stateful_set(cluster, ref, config)]
    if monitoring.grafana.enabled:
        config = grafana_config_map(ref)
        service = web_service(ref, "grafana", GRAFANA_PORT)
        objects += [config, service, grafana_stateful_set(cluster, ref, config)]
    if monitoring.service_monitor:
        objects.append(service_monitor(ref))
    if cluster.ingress.enabled:
        objects.append(ingress(cluster, ref))
    return objects
