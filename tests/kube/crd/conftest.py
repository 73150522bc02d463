"""The newest CRD in the cluster, and a namespace for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crd_kubectl import ROOT, kubectl, must
from crd_kubectl import namespace as new_namespace


@pytest.fixture(scope="session")
def crd() -> None:
    answer = kubectl("version", "-o", "json")
    assert answer.returncode == 0, f"no Kubernetes answers; set KUBECONFIG: {answer.stderr}"
    manifest = str(ROOT / "manifests/crd.yaml")
    must("apply", "--server-side", "--force-conflicts", "-f", manifest)
    must("wait", "--for=condition=Established", "crd/dssclusters.dss.io", "--timeout=30s")


@pytest.fixture(scope="session")
def namespace(crd: None) -> Iterator[str]:
    with new_namespace() as name:
        yield name
