"""One operator and one demo cluster for all end-to-end tests: cheap tests first, breaking last.

Fixtures only; what they hand out is in e2e_*.py.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_dss import Cluster
from e2e_faults import AuditLog, Faults, need
from e2e_kubectl import ROOT, Kubectl, dump, say, say_loudly
from e2e_operator import NODE_IMAGE, SYSTEM, Operator

NAMESPACE = "dss-e2e"
HOST = "demo.dss.test"
ORDER = (
    "test_e2e_install", "test_e2e_apply", "test_e2e_status", "test_e2e_ingress",
    "test_e2e_reconcile", "test_e2e_prune", "test_e2e_deletion", "test_e2e_bad_days",
    "test_e2e_remediation",
    "test_e2e_many", "test_e2e_kill_points", "test_e2e_nodes", "test_e2e_outage", "test_e2e_rbac",
    "test_e2e_namespaced",
)  # fmt: skip
"""What breaks things comes late. The outage comes after the nodes: a scheduler whose watch is cut
off may not know for a minute which nodes are cordoned. RBAC looks back at all calls; the last one
installs anew."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else -1

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and item.path.parent == Path(__file__).parent:
        kubectl = Kubectl()
        why = str(call.excinfo.value)[:600] if call.excinfo else ""
        say_loudly(f"FAILED: {item.name} ({report.when})", *why.splitlines()[:4])
        found = kubectl.run(
            "get", "namespaces", "-l", "dss.io/test=e2e", "-o", "name", timeout_s=20
        )
        names = [line.removeprefix("namespace/") for line in found.stdout.split()]
        chosen = [name for name in names if name.startswith(NAMESPACE)][:3]
        report.sections.append(("the cluster", dump(kubectl, chosen, SYSTEM)))
    return report


@pytest.fixture(autouse=True)
def _progress(request: pytest.FixtureRequest) -> None:
    say(f"--- {request.node.name}")


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    found = Kubectl()
    try:
        answer = found.run("version", "-o", "json", timeout_s=20)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        pytest.fail(f"no Kubernetes: {error}. Set KUBECONFIG; see docs/testing.md")
    assert answer.returncode == 0, f"no Kubernetes answers; set KUBECONFIG: {answer.stderr}"
    if load := os.environ.get("E2E_LOAD_CMD"):
        subprocess.run(shlex.split(load), check=True, cwd=ROOT, timeout=600)
    return found


@pytest.fixture(scope="session")
def suite_audit() -> AuditLog | None:
    """The audit log from the suite's first moment, where there is one."""
    file = os.environ.get("E2E_AUDIT_LOG")
    return AuditLog(Path(file)) if file else None


@pytest.fixture
def audit() -> AuditLog:
    """The audit log from now on."""
    return AuditLog(Path(need("E2E_AUDIT_LOG", "the operator's API calls are read"))).settle()


@pytest.fixture(scope="session")
def faults() -> Faults:
    return Faults(need("E2E_FAULT_CMD", "nodes and parts of the control plane are broken"))


@pytest.fixture(scope="session")
def operator(
    kubectl: Kubectl, suite_audit: AuditLog | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """Installed cluster-wide by `kubectl apply -k manifests`."""
    found = Operator(kubectl, tmp_path_factory.mktemp("kustomize"))
    kubectl.run("-n", SYSTEM, "delete", "deployment", "dss-operator", "--ignore-not-found")
    kubectl.run("-n", SYSTEM, "delete", "lease", "--all")
    found.install()
    say("operator installed")
    yield found
    if not os.environ.get("E2E_KEEP"):
        found.uninstall()


@pytest.fixture(scope="session")
def demo(kubectl: Kubectl, operator: Operator) -> Iterator[Cluster]:
    """Three lock, three queue, two cache nodes, Redis, Prometheus, an ingress; Ready."""
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    cluster = Cluster(kubectl, "demo", NAMESPACE, HOST)
    cluster.apply(DEMO_SPEC)
    took = cluster.wait()
    say(f"from apply to Ready: {took:.1f} s")
    cluster.wait_settled()
    yield cluster
    cluster.close()
    if not os.environ.get("E2E_KEEP"):
        kubectl.delete_namespace(NAMESPACE, wait_s=0)


DEMO_SPEC = {
    "image": NODE_IMAGE,
    "ingress": {"enabled": True, "host": HOST},
    "remediation": {"windowSeconds": 20},
}
"""Everything else is the CRD's default."""
