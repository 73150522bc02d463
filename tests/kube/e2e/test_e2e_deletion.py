"""Deleting a DSSCluster removes what it made; volumes as `spec.reclaim` says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from asking import until
from e2e_dss import LABEL, Cluster, Ledger, small
from e2e_kubectl import Kubectl, say
from e2e_operator import Operator

pytestmark = pytest.mark.kube

NAMESPACE = "dss-e2e-gone"
KINDS = (
    "statefulset,service,configmap,secret,serviceaccount,poddisruptionbudget,ingress,"
    "networkpolicy,pod"
)


@pytest.fixture(scope="module")
def gone(kubectl: Kubectl, operator: Operator) -> Iterator[Cluster]:
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    cluster = Cluster(kubectl, "gone", NAMESPACE)
    yield cluster
    cluster.close()
    kubectl.delete_namespace(NAMESPACE, wait_s=0)


def left(cluster: Cluster) -> list[str]:
    """What the cluster made and still is there, volumes aside."""
    found = cluster.kubectl("-n", NAMESPACE, "get", KINDS, "-l", f"{LABEL}=gone", "-o", "name")
    return found.split()


def volumes(cluster: Cluster) -> list[str]:
    found = cluster.kubectl("-n", NAMESPACE, "get", "pvc", "-o", "name")
    return found.split()


def test_deleted__all_objects_go_and_volumes_stay_and_fit_the_next_one(gone: Cluster) -> None:
    gone.apply(small())
    gone.wait()
    ledger = Ledger(gone, "kept")
    ledger.write(locks=2, messages=10)
    kept = volumes(gone)
    assert len(kept) >= 3
    gone.close()
    gone.delete()
    until("nothing is left", lambda: not left(gone), 90)
    assert volumes(gone) == kept, "spec.reclaim is Retain by default"
    # The new cluster has new tokens and a new cluster secret, and the old one's volumes.
    again = Cluster(gone.kubectl, gone.name, gone.namespace)
    again.apply(small(reclaim="Delete"))
    again.wait()
    ledger.cluster = again
    ledger.check()
    again.close()


def test_deleted_while_the_operator_is_away__does_not_hang_and_removes_volumes_too(
    gone: Cluster, operator: Operator
) -> None:
    assert gone.resource()["spec"]["reclaim"] == "Delete"
    assert not gone.resource()["metadata"].get("finalizers"), "a finalizer would make it hang"
    operator.scale(0)
    try:
        began = time.monotonic()
        gone.delete(timeout_s=20)
        until("nothing is left", lambda: not left(gone) and not volumes(gone), 90)
        say(f"deleted without an operator in {time.monotonic() - began:.1f} s")
    finally:
        operator.scale(1)
    time.sleep(5)
    assert left(gone) == []
