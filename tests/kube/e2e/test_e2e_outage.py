"""The API server and etcd gone for a minute: clusters serve on, the operator finds back."""

from __future__ import annotations

import time

import pytest
from asking import until
from conftest import NAMESPACE
from e2e_dss import Cluster, Ledger, Traffic
from e2e_faults import Faults, need
from e2e_kubectl import Kubectl, say
from e2e_operator import TICK_S, Operator

pytestmark = pytest.mark.kube

OUTAGE_S = 60.0


def test_api_server_and_etcd_stopped_for_a_minute__clients_notice_nothing(
    demo: Cluster, operator: Operator, kubectl: Kubectl, faults: Faults
) -> None:
    need("E2E_INGRESS", "clients are watched during the outage, and port-forwards end with it")
    ledger = Ledger(demo, "e2e-outage")
    ledger.write(locks=5, messages=20)
    pods = {name: pod["metadata"]["uid"] for name, pod in demo.pods().items()}
    restarts = operator_restarts(operator)
    with Traffic(ledger) as traffic:
        faults.stop("kube-apiserver")
        faults.stop("etcd")
        time.sleep(OUTAGE_S)
        during = traffic.line
        faults.start("etcd")
        faults.start("kube-apiserver")
        until(
            "the API server is ready",
            lambda: kubectl.run("get", "--raw", "/readyz", timeout_s=10).returncode == 0,
            60,
        )
        began = time.monotonic()
        say(f"API back; {during}")
    assert traffic.longest_gap_s["lock"] < 2
    assert traffic.longest_gap_s["queue"] < 2
    kubectl("-n", NAMESPACE, "delete", "pdb", "demo-lock")
    until(
        "the operator is at work again",
        lambda: kubectl.find("-n", NAMESPACE, "pdb", "demo-lock"),
        2 * TICK_S,
    )
    say(f"the operator put drift back {time.monotonic() - began:.1f} s after the API was back")
    assert {name: pod["metadata"]["uid"] for name, pod in demo.pods().items()} == pods
    assert operator_restarts(operator) == restarts, "the operator died of the outage"
    demo.wait_settled()
    ledger.check()


def operator_restarts(operator: Operator) -> dict[str, int]:
    return {
        pod["metadata"]["name"]: status["restartCount"]
        for pod in operator.pods()
        for status in pod["status"].get("containerStatuses", [])
    }
