"""The namespaced install: one setting, and no right beyond that one namespace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import until
from e2e_dss import NOWHERE, Cluster, manifest, small
from e2e_kubectl import Kubectl, holds, say
from e2e_operator import SYSTEM, USER, Operator

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def namespaced(
    kubectl: Kubectl, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    operator.uninstall()
    kubectl.namespace(SYSTEM)  # the namespaced install makes no namespace: it may not
    found = Operator(kubectl, tmp_path_factory.mktemp("kustomize"), "manifests/namespaced")
    found.install()
    yield found
    found.uninstall()


def test_namespaced__serves_its_own_namespace_and_has_no_rights_elsewhere(
    namespaced: Operator, kubectl: Kubectl
) -> None:
    inside, outside = Cluster(kubectl, "inside", SYSTEM), "dss-e2e-outside"
    kubectl.namespace(outside)
    try:
        kubectl.apply(manifest("outside", outside, small(**NOWHERE)))
        inside.apply(small())
        say(f"namespaced: from apply to Ready: {inside.wait():.1f} s")
        for verb, resource in (("list", "statefulsets.apps"), ("patch", "services")):
            asked = ("auth", "can-i", verb, resource, f"--as={USER}")
            assert kubectl.run(*asked, "-n", SYSTEM).stdout.strip() == "yes", resource
            assert kubectl.run(*asked, "-n", outside).stdout.strip() == "no", resource
        holds(
            "nothing is made outside",
            lambda: not kubectl.items("-n", outside, "statefulset"), 3,
        )  # fmt: skip
    finally:
        inside.close()
        inside.delete()
        kubectl("-n", outside, "delete", "dss", "outside", "--ignore-not-found")
        kubectl.delete_namespace(outside)
    until("its pods are gone", lambda: not inside.pods(), 60)
