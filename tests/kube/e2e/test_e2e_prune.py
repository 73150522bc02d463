"""What is no longer wanted goes: features switched off, and strays that carry the cluster's name.

The cluster here exists on paper: no node takes its pods, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import until
from e2e_dss import LABEL, NOWHERE, Cluster, small
from e2e_kubectl import Kubectl, Object, say
from e2e_operator import TICK_S, Operator

pytestmark = pytest.mark.kube

NAMESPACE = "dss-e2e-paper"
MONITORING = {"prometheus": {"enabled": True}, "grafana": {"enabled": True}}
EMPTY_PEERS = {"policyTypes": ["Ingress"], "podSelector": {"matchLabels": {"stray": "true"}}}
SELECTOR = {"matchLabels": {"stray": "true"}}
STRAYS: dict[str, Object] = {  # of the kinds that a change of a spec can make superfluous
    "v1/ConfigMap": {"data": {"a": "b"}},
    "v1/Service": {"spec": {"ports": [{"port": 1}], "clusterIP": "None"}},
    "networking.k8s.io/v1/NetworkPolicy": {"spec": EMPTY_PEERS},
    "networking.k8s.io/v1/Ingress": {
        "spec": {
            "ingressClassName": "none",
            "defaultBackend": {"service": {"name": "stray", "port": {"number": 1}}},
        }
    },
    "apps/v1/StatefulSet": {
        "spec": {
            "replicas": 0,
            "serviceName": "stray",
            "selector": SELECTOR,
            "template": {
                "metadata": {"labels": {"stray": "true"}},
                "spec": {"containers": [{"name": "a", "image": "a"}]},
            },
        }
    },
}
SERVICE_MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com", "annotations": {
        "api-approved.kubernetes.io": "unapproved, a stand-in of the tests of DSS"}},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"plural": "servicemonitors", "kind": "ServiceMonitor"},
        "versions": [{
            "name": "v1", "served": True, "storage": True,
            "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": True}},
        }],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def paper(kubectl: Kubectl, operator: Operator) -> Iterator[Cluster]:
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    cluster = Cluster(kubectl, "paper", NAMESPACE)
    cluster.apply(small(monitoring=MONITORING, **NOWHERE))
    until("it is made", lambda: kubectl.find("-n", NAMESPACE, "statefulset", "paper-grafana"))
    yield cluster
    kubectl.delete_namespace(NAMESPACE, wait_s=0)


def names(cluster: Cluster, kinds: str) -> set[str]:
    return {name for _, name in cluster.owned(kinds)}


def test_monitoring_switched_off__its_objects_and_secret_are_pruned(paper: Cluster) -> None:
    kinds = "statefulset,service,configmap,secret,networkpolicy"

    def monitoring() -> list[tuple[str, str]]:
        return [key for key in paper.owned(kinds)
                if "grafana" in key[1] or "prometheus" in key[1]]  # fmt: skip

    assert ("Secret", "paper-grafana") in monitoring()
    assert len(monitoring()) >= 7
    paper.patch({"monitoring": {name: {"enabled": False} for name in MONITORING}})
    until("nothing of it is left", lambda: not monitoring(), TICK_S)


def test_strays_with_the_clusters_label_and_owner__are_pruned_and_others_stay(
    paper: Cluster, kubectl: Kubectl
) -> None:
    owner = {"apiVersion": "dss.io/v1alpha1", "kind": "DSSCluster", "name": "paper",
             "uid": paper.resource()["metadata"]["uid"], "controller": True}  # fmt: skip

    def stray(name: str, key: str, owners: list[Object]) -> Object:
        version, kind = key.rsplit("/", 1)
        metadata = {"name": name, "namespace": NAMESPACE, "labels": {LABEL: "paper"}}
        obj = {"apiVersion": version, "kind": kind, "metadata": metadata}
        return obj | {"metadata": metadata | {"ownerReferences": owners}} | STRAYS[key]

    kubectl.apply(*(stray("stray", key, [owner]) for key in STRAYS),
                  *(stray("foreign", key, []) for key in STRAYS))  # fmt: skip
    kinds = ",".join(key.rsplit("/", 1)[1] for key in STRAYS)
    until("the strays are pruned", lambda: "stray" not in names(paper, kinds), TICK_S + 5)
    foreign = [kind for kind, name in paper.owned(kinds) if name == "foreign"]
    assert len(foreign) == len(STRAYS), "what is not owned by the cluster is not the operator's"
    say(f"strays of {len(STRAYS)} kinds pruned, the same without an owner left alone")


def test_service_monitor__made_where_the_type_is_known_and_pruned(
    paper: Cluster, kubectl: Kubectl, operator: Operator
) -> None:
    name = SERVICE_MONITORS["metadata"]["name"]  # type: ignore[index]
    paper.patch({"monitoring": {"serviceMonitor": True}})
    ours = kubectl.find("crd", name) is None
    if ours:
        until("the lack is reported", lambda: paper.condition("MonitoringReady", "reason")
              == "ServiceMonitorMissing", TICK_S + 5)  # fmt: skip
        kubectl.apply(SERVICE_MONITORS)
        kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
        operator.scale(0)  # it looks for missing types anew every few minutes, and when it starts
        operator.scale(1)
    try:
        until("it is made", lambda: names(paper, "servicemonitors"), 2 * TICK_S)
        paper.patch({"monitoring": {"serviceMonitor": False}})
        until("it is pruned", lambda: not names(paper, "servicemonitors"), TICK_S + 5)
    finally:
        if ours:
            kubectl("delete", "crd", name)
