"""Fifty DSSClusters at once: what they cost the API server and the operator."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from asking import until
from e2e_dss import NOWHERE, manifest, small
from e2e_kubectl import Kubectl, say
from e2e_operator import TICK_S, Metrics, Operator

pytestmark = pytest.mark.kube

NAMESPACE = "dss-e2e-many"
LOOK_S = TICK_S + 10
COUNT = int(os.environ.get("E2E_MANY", "50"))


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    yield NAMESPACE
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def seen(kubectl: Kubectl) -> int:
    """How many the operator has made objects for and reported on."""
    return sum((item.get("status") or {}).get("observedGeneration") == 1
               for item in kubectl.items("-n", NAMESPACE, "dss"))  # fmt: skip


def spent(before: Metrics, after: Metrics, name: str) -> float:
    return after.sum(name) - before.sum(name)


def test_fifty_clusters_at_once__all_are_made_and_cost_little_when_quiet(
    kubectl: Kubectl, operator: Operator, namespace: str
) -> None:
    before = operator.metrics()
    spec = small(**NOWHERE)
    began = time.monotonic()
    kubectl.apply(*(manifest(f"c{n}", namespace, spec) for n in range(COUNT)))
    until("all are reported on", lambda: seen(kubectl) == COUNT, 240, every_s=2)
    took = time.monotonic() - began

    def complete() -> bool:
        return len(kubectl.items("-n", namespace, "statefulset")) == 4 * COUNT

    until("all StatefulSets are there", complete, 120, every_s=2)
    made = operator.metrics()
    calls = spent(before, made, "dss_operator_api_calls_total")
    say(f"{COUNT} clusters made in {took:.0f} s with {calls:.0f} API calls")
    time.sleep(TICK_S)  # what their making has woken comes to rest
    start = operator.metrics()
    time.sleep(LOOK_S)
    end = operator.metrics()
    ticks = spent(start, end, "dss_operator_reconcile_seconds_count")
    seconds = spent(start, end, "dss_operator_reconcile_seconds_sum")
    calls = spent(start, end, "dss_operator_api_calls_total")
    memory = end.sum("process_resident_memory_bytes") / 2**20
    cpu = spent(start, end, "process_cpu_seconds_total") / (LOOK_S)
    say(
        f"quiet: {ticks:.0f} reconciles in {LOOK_S:.0f} s, {calls / ticks:.1f} API calls and "
        f"{1_000 * seconds / ticks:.0f} ms each; operator: {memory:.0f} MiB, {cpu:.0%} of a core"
    )
    verbs = {verb: count - start.by("dss_operator_api_calls_total", "verb").get(verb, 0)
             for verb, count in end.by("dss_operator_api_calls_total", "verb").items()}  # fmt: skip
    say(f"quiet calls by verb: { {verb: count for verb, count in verbs.items() if count} }")
    assert ticks >= COUNT, "each is looked at once a tick"
    assert calls / ticks < 25
    assert memory < 256, "half of the limit in the manifest"
