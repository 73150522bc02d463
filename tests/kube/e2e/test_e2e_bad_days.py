"""Bad input and other people's edits: what runs goes on, and the status says what to do."""

from __future__ import annotations

import time

import pytest
from asking import until
from conftest import NAMESPACE
from e2e_dss import Cluster, manifest
from e2e_faults import AuditLog
from e2e_kubectl import Kubectl, KubectlFailed, holds, say
from e2e_operator import USER

pytestmark = pytest.mark.kube


def running(cluster: Cluster) -> dict[str, str]:
    """What must not change: the pods' and StatefulSets' identities and templates."""
    found = {name: pod["metadata"]["uid"] for name, pod in cluster.pods().items()}
    for (_, name), obj in cluster.owned("statefulset").items():
        found[f"set {name}"] = f"{obj['metadata']['uid']} {obj['metadata']['generation']}"
    return found


def test_unknown_field__refused_with_its_name_and_changes_nothing(demo: Cluster) -> None:
    before, generation = running(demo), demo.resource()["metadata"]["generation"]
    body = manifest("demo", NAMESPACE, {"lock": {"replicaz": 5}})
    with pytest.raises(KubectlFailed, match="replicaz"):
        demo.kubectl.apply(body)
    # A client that does not ask for strictness: the API server prunes what it does not know.
    demo.kubectl.patch(NAMESPACE, "dss", "demo", {"spec": {"lok": 1}})
    assert "lok" not in demo.resource()["spec"]
    assert demo.resource()["metadata"]["generation"] == generation
    assert running(demo) == before


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"lock": {"replicas": 2}}, "odd"),
        ({"tls": {"enabled": True}}, "tls"),
        ({"remediation": {"windowSeconds": 5}}, "windowSeconds"),
        ({"queue": {"partitions": 8}}, "partitions"),
    ],
)
def test_impossible_value__refused_by_the_api_server_and_changes_nothing(
    demo: Cluster, spec: dict[str, object], said: str
) -> None:
    before = running(demo)
    with pytest.raises(KubectlFailed, match=said):
        demo.patch(spec)
    assert running(demo) == before


def test_image_and_replicas_changed__nothing_is_touched_and_the_condition_says_so(
    demo: Cluster,
) -> None:
    before, spec = running(demo), demo.resource()["spec"]
    demo.patch({"image": "dss-node:9.9.9", "queue": {"replicas": 5}})
    until("NotSupported", lambda: demo.condition("Progressing", "reason") == "NotSupported")
    message = demo.condition("Progressing", "message")
    assert demo.condition("Progressing") == "False"
    assert "image" in message
    assert "queue" in message
    holds("nothing is touched", lambda: running(demo) == before, 5)
    assert demo.condition("Ready") == "True"
    demo.patch({"image": spec["image"], "queue": {"replicas": spec["queue"]["replicas"]}})
    until("all is well", lambda: demo.condition("Progressing", "reason") != "NotSupported")
    demo.wait_settled()
    assert running(demo) == before


def test_another_managers_edits__reported_and_not_fought_over(
    demo: Cluster, kubectl: Kubectl, audit: AuditLog
) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "demo-queue", "namespace": NAMESPACE},
        "spec": {"maxUnavailable": 2},
    }

    def insist() -> None:
        kubectl.apply(budget, args=("--server-side", "--force-conflicts", "--field-manager=gitops"))

    def value() -> int | None:
        found: int | None = kubectl.get("-n", NAMESPACE, "pdb", "demo-queue")["spec"].get(
            "maxUnavailable"
        )
        return found

    insist()
    until("the first edit is put back, as any drift", lambda: value() == 1, 35)
    insist()

    def reported() -> bool:
        return demo.condition("Degraded", "reason") == "FieldConflict"

    def insist_until_reported() -> bool:
        if reported():
            return True
        insist()
        time.sleep(3)
        return False

    until("the conflict is reported", insist_until_reported, 60)
    message = demo.condition("Degraded", "message")
    assert "demo-queue" in message
    assert "gitops" in message
    assert "FieldConflict" in {event["reason"] for event in demo.events()}
    calm = audit.settle()
    holds("the other manager's value stays", lambda: value() == 2, 33, every_s=3)
    writes = [c.line for c in calm.since(USER)
              if c.name == "demo-queue" and c.verb == "patch"]  # fmt: skip
    assert len(writes) <= 1, f"a fight: {writes}"
    total = [c for c in audit.since(USER) if c.name == "demo-queue" and c.verb == "patch"]
    say(f"conflict reported after {len(total)} patches, then left alone")
    # The other manager lets go: the operator's value is back, and the report ends.
    del budget["spec"]
    kubectl.apply(budget, args=("--server-side", "--field-manager=gitops"))
    until("the operator's value is back", lambda: value() == 1, 35)
    until("the report ends", lambda: demo.condition("Degraded") == "False", 35)
    demo.wait_settled()


def test_a_key_that_somebody_adds_again_and_again__reported_and_not_fought_over(
    demo: Cluster, kubectl: Kubectl, audit: AuditLog
) -> None:
    def add() -> None:
        kubectl.patch(NAMESPACE, "configmap", "demo-peers", {"data": {"added": "by hand"}})

    def added() -> bool:
        return "added" in kubectl.get("-n", NAMESPACE, "configmap", "demo-peers")["data"]

    def add_until_reported() -> bool:
        if demo.condition("Degraded", "reason") == "FieldConflict":
            return True
        add()
        time.sleep(3)
        return False

    add()
    until("the first one is taken away", lambda: not added(), 35)
    until("the conflict is reported", add_until_reported, 100)
    assert "demo-peers" in demo.condition("Degraded", "message")
    calm = audit.settle()
    holds("the key stays", added, 33, every_s=3)
    writes = [call.line for call in calm.since(USER)
              if call.name == "demo-peers" and call.verb == "patch"]  # fmt: skip
    assert len(writes) <= 1, f"a fight: {writes}"
    kubectl.patch(NAMESPACE, "configmap", "demo-peers", {"data": {"added": None}})
    until("the report ends", lambda: demo.condition("Degraded") == "False", 35)
    demo.wait_settled()
