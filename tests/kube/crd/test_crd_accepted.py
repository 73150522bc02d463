"""What must be accepted: defaults, samples, and every rendered object under restricted pods."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import yaml
from crd_kubectl import ROOT, cluster, kubectl, must

from dss.topology.crd import cluster_of_resource, default_spec
from dss.topology.kube import ClusterRef, render_objects, render_secrets

pytestmark = pytest.mark.kube

OFF = {"enabled": False}
SPECS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "lock": {"replicas": 5, "resources": {
            "requests": {"cpu": 1, "memory": "0.5Gi"},
            "limits": {"cpu": "2000m", "memory": "1024Mi"}}, "storage": {"size": "2048Mi"}},
        "cache": {"capacityMiB": 512, "resources": {"requests": {"cpu": "0.1", "memory": "2M"}}},
        "queue": {"replicas": 9, "replicationFactor": 5, "partitions": 256},
        "ingress": {
            "enabled": True, "host": "dss.local", "className": "contour",
            "annotations": {"example.com/a": "b"}, "tls": {"secretName": "cert"},
        },
        "pod": {
            "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"disk": "fast"}, "priorityClassName": "system-cluster-critical",
            "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect":
                "NoExecute", "tolerationSeconds": 5}],
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "disk", "operator": "In", "values": ["fast"]},
                        {"key": "old", "operator": "DoesNotExist"}]}]}},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 10, "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname", "matchLabelKeys": ["a"],
                        "labelSelector": {"matchLabels": {"app": "noisy"}}}}]},
            },
            "storageClassName": "standard", "labels": {"team": "a"},
            "annotations": {"example.com/x": "y"},
        },
        "reclaim": "Delete",
    },
    "least": {
        "lock": {"replicas": 1}, "queue": {"replicas": 1, "replicationFactor": 1},
        "cache": {"replicas": 1}, "redis": {"enabled": False, "externalUrl": "redis://r:6379/1"},
        "monitoring": {"prometheus": OFF, "grafana": OFF}, "auth": OFF,
    },
    "foreign redis": {"redis": {"enabled": False, "secretRef": {"name": "mine", "key": "uri"}}},
    "nginx": {"ingress": {"enabled": True, "host": "dss.local", "controller": "nginx"}},
    "longest name": {},
}  # fmt: skip


def name_of(case: str) -> str:
    return "x" * 40 if case == "longest name" else "demo"


@pytest.mark.parametrize("case", SPECS)
def test_resource__accepted_and_defaulted_as_the_model_says(namespace: str, case: str) -> None:
    document = cluster(namespace, SPECS[case], name_of(case))
    text = must("create", "--dry-run=server", "-o", "json", "-f", "-", document=document)
    stored = json.loads(text)
    assert cluster_of_resource(stored) == cluster_of_resource(document)
    if case == "default":
        assert stored["spec"] == default_spec() | {"paused": True}


def test_resource_without_a_spec__gets_every_default(namespace: str) -> None:
    document = cluster(namespace, {})
    del document["spec"]
    text = must("create", "--dry-run=server", "-o", "json", "-f", "-", document=document)
    assert json.loads(text)["spec"] == default_spec()


@pytest.mark.parametrize("sample", ["minimal", "full"])
def test_samples__accepted(namespace: str, sample: str) -> None:
    text = (ROOT / f"manifests/samples/{sample}.yaml").read_text()
    must("-n", namespace, "create", "--dry-run=server", "-f", "-", document=yaml.safe_load(text))


@pytest.mark.parametrize("case", SPECS)
def test_rendered_objects__accepted_by_the_api_server_without_a_warning(
    namespace: str, case: str
) -> None:
    name = name_of(case)
    ref = ClusterRef(
        name=name, namespace=namespace, uid=str(uuid.uuid4()), operator_namespace="dss-system",
        test_mode="split-vote" if case == "least" else "", restarted_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    wanted = cluster_of_resource({"metadata": {"name": name}, "spec": SPECS[case]})
    objects = render_secrets(wanted, ref, {}, lambda: "s" * 32) + render_objects(wanted, ref)
    answer = kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-",
        document={"apiVersion": "v1", "kind": "List", "items": objects},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    # A StatefulSet whose pods break the restricted standard is accepted with a warning.
    assert answer.stderr == ""
    stored = json.loads(answer.stdout)["items"]
    assert len(stored) == len(objects)
    for sent, got in zip(objects, stored, strict=True):
        assert lost(sent, got) == []


def lost(sent: Any, got: Any, path: str = "") -> list[str]:
    """Where the API server keeps something else than it was sent: drift without end."""
    if isinstance(sent, dict) and isinstance(got, dict):
        return [
            each
            for key, value in sent.items()
            for each in lost(value, got.get(key), f"{path}.{key}")
        ]
    if isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        pairs = enumerate(zip(sent, got, strict=True))
        return [each for i, (a, b) in pairs for each in lost(a, b, f"{path}[{i}]")]
    empty = sent in ({}, [], "", None) and got in ({}, [], "", None)
    return [] if sent == got or empty else [f"{path}: sent {sent!r}, kept {got!r}"]


def test_install__every_manifest_accepted(crd: None) -> None:
    answer = kubectl("kustomize", str(ROOT / "manifests"))
    assert answer.returncode == 0, answer.stderr
    kinds = [each["kind"] for each in yaml.safe_load_all(answer.stdout)]
    assert sorted(kinds) == [
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment",
        "Namespace", "Role", "RoleBinding", "Service", "ServiceAccount",
    ]  # fmt: skip


def test_operator__its_pod_holds_the_restricted_standard(namespace: str) -> None:
    text = (ROOT / "manifests/namespaced/operator.yaml").read_text()
    items = list(yaml.safe_load_all(text))
    for item in items:
        item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", []):
            subject["namespace"] = namespace
    answer = kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", "-",
        document={"apiVersion": "v1", "kind": "List", "items": items},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
