"""`kubectl apply -k manifests`: the CRD, the rights, the operator's Deployment."""

from __future__ import annotations

import pytest
from asking import http
from e2e_kubectl import Kubectl, condition, forwarded
from e2e_operator import METRICS_PORT, SYSTEM, USER, Operator

pytestmark = pytest.mark.kube


def test_crd__established_with_its_names_and_columns(operator: Operator) -> None:
    crd = operator.kubectl.get("crd", "dssclusters.dss.io")
    assert condition(crd, "Established") == "True"
    assert condition(crd, "NonStructuralSchema") == ""
    names = crd["spec"]["names"]
    assert (names["kind"], names["shortNames"]) == ("DSSCluster", ["dss"])
    [version] = crd["spec"]["versions"]
    columns = [c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")]
    assert columns == ["Ready", "Leader", "Term", "Locks", "Queues", "Caches", "Age"]
    assert list(version["subresources"]) == ["status"], "no scale subresource yet"


def test_operator_pod__restricted_probed_and_limited(operator: Operator) -> None:
    namespace = operator.kubectl.get("namespace", SYSTEM)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    [container] = operator.deployment()["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["livenessProbe"]
    assert container["readinessProbe"]
    assert container["resources"]["limits"]["memory"]
    environment = {entry["name"] for entry in container.get("env", [])}
    assert "ALLOW_TEST_MODE" not in environment, "never in a default manifest"
    [pod] = operator.pods()
    assert all(status["restartCount"] == 0 for status in pod["status"]["containerStatuses"])


def test_operator__metrics_are_served(operator: Operator) -> None:
    with forwarded(operator.kubectl, SYSTEM, f"pod/{operator.pod()}", METRICS_PORT) as url:
        answer = http("GET", f"{url}/metrics")
    assert answer.status == 200, answer.body
    assert b"process_resident_memory_bytes" in answer.body
    assert b"dss_operator_" in answer.body


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "secrets"), ("watch", "secrets"), ("update", "secrets"),
        ("create", "pods"), ("patch", "pods"), ("create", "pods/exec"), ("get", "nodes"),
        ("delete", "persistentvolumeclaims"), ("create", "clusterroles"), ("create", "roles"),
        ("delete", "dssclusters.dss.io"), ("create", "dssclusters.dss.io"),
        ("patch", "dssclusters.dss.io"), ("patch", "customresourcedefinitions"),
    ],
)  # fmt: skip
def test_operator__has_no_right_to(operator: Operator, verb: str, resource: str) -> None:
    asked = operator.kubectl.run("auth", "can-i", verb, resource, f"--as={USER}", "-A")
    assert asked.stdout.strip() == "no", asked.stdout + asked.stderr


def test_installed_twice__nothing_changes(kubectl: Kubectl, operator: Operator) -> None:
    def state() -> dict[str, object]:
        # What has no generation changes its version by nothing but a change of content.
        found = kubectl.items("-k", operator.folder())
        return {f"{obj['kind']} {obj['metadata']['name']}": obj["metadata"].get("generation")
                or obj["metadata"]["resourceVersion"] for obj in found}  # fmt: skip

    before, pod = state(), operator.pod()
    kubectl("apply", "-k", operator.folder())
    assert state() == before
    assert operator.pod() == pod
