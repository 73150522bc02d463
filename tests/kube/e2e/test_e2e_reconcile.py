"""What the operator does about change, and that it does nothing about none."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from asking import until
from conftest import NAMESPACE
from e2e_dss import Cluster, Ledger, Traffic
from e2e_faults import WRITES, AuditLog
from e2e_kubectl import Kubectl, Object, holds, pod_ready, say
from e2e_operator import TICK_S, USER

pytestmark = pytest.mark.kube

KINDS = (
    "service,configmap,secret,serviceaccount,poddisruptionbudget,networkpolicy,ingress,statefulset"
)
BACK_S = TICK_S + 5
"""One tick, and what the API server takes."""


def essence(obj: Object) -> Object:
    """What the operator is responsible for: all but what the API server adds."""
    metadata = {key: obj["metadata"].get(key) for key in ("name", "labels", "ownerReferences")}
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    if obj["kind"] == "Service":  # a Service made again may get another address
        rest["spec"] = {k: v for k, v in obj["spec"].items() if not k.startswith("clusterIP")}
    return {"metadata": metadata} | rest


def edited(obj: Object) -> Object:
    """A merge patch of something that the operator set."""
    kind, name = obj["kind"], obj["metadata"]["name"]
    label = {"metadata": {"labels": {"app.kubernetes.io/component": "edited"}}}
    changes: dict[str, Any] = {
        "StatefulSet": {"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}},
        "PodDisruptionBudget": {"spec": {"maxUnavailable": 3}},
        "NetworkPolicy": {"spec": {"ingress": []}},
        "ServiceAccount": {"automountServiceAccountToken": True},
    }
    if kind == "Service":
        ports = [port | {"targetPort": 1} for port in obj["spec"]["ports"]]
        return label | {"spec": {"ports": ports}}
    if kind == "Ingress":
        rules = [rule | {"host": "edited.test"} for rule in obj["spec"]["rules"]]
        return label | {"spec": {"rules": rules}}
    if kind == "ConfigMap":
        return label | {"data": {next(iter(obj["data"])): "edited", "added": "by hand"}}
    if kind == "Secret":
        wrong = base64.b64encode(b"edited").decode()
        # The tokens file follows from another Secret; what is in the others is the user's.
        derived = {"tokens.json": wrong} if name.endswith("-auth") else {}
        return label | {"data": derived | {"added": wrong}}
    changed: Object = label | changes[kind]
    return changed


def wait_back(cluster: Cluster, wanted: dict[tuple[str, str], Object], what: str) -> None:
    """All objects are as they were, within one tick; says which was the last."""
    began, missing = time.monotonic(), dict(wanted)
    while missing:
        now = cluster.owned(KINDS)
        for key, before in list(missing.items()):
            if key in now and essence(now[key]) == essence(before):
                del missing[key]
        took = time.monotonic() - began
        if missing and took > BACK_S:
            key, before = next(iter(missing.items()))
            found = essence(now[key]) if key in now else None
            raise AssertionError(
                f"{what}: not back after {took:.0f} s: {sorted(missing)}; the first was "
                f"{json.dumps(essence(before))} and is {json.dumps(found)}"
            )
        time.sleep(0.3)
    say(f"{what}: {len(wanted)} objects back after {time.monotonic() - began:.1f} s")


def versions(cluster: Cluster) -> dict[tuple[str, str], str]:
    found = {key: obj["metadata"]["resourceVersion"] for key, obj in cluster.owned(KINDS).items()}
    return found | {("DSSCluster", "demo"): cluster.resource()["metadata"]["resourceVersion"]}


def test_unchanged_cluster__two_ticks_write_nothing_and_repeat_no_event(
    demo: Cluster, audit: AuditLog
) -> None:
    demo.wait_settled()
    audit = audit.settle()
    before, events = versions(demo), demo.events()
    time.sleep(2 * TICK_S + 5)
    calls = [call for call in audit.since(USER) if call.namespace == NAMESPACE]
    assert [call.line for call in calls if call.verb in WRITES] == []
    assert [call for call in calls if call.verb == "list"], "the operator did not even look"
    assert versions(demo) == before
    assert [(e["reason"], e.get("count")) for e in demo.events()] == [
        (e["reason"], e.get("count")) for e in events
    ]
    say(f"two quiet ticks: {len(calls)} API calls, no write")


def test_each_object_edited__comes_back_within_one_tick(demo: Cluster) -> None:
    wanted = demo.owned(KINDS)
    for (kind, name), obj in wanted.items():
        demo.kubectl.patch(NAMESPACE, kind.lower(), name, edited(obj))
    wait_back(demo, wanted, "edited")
    demo.wait_settled()


def test_each_object_deleted__comes_back_within_one_tick(demo: Cluster) -> None:
    wanted = demo.owned(KINDS)
    pods = {name: pod["metadata"]["uid"] for name, pod in demo.pods().items()}
    ordinary = [f"{kind.lower()}/{name}" for kind, name in wanted if kind != "StatefulSet"]
    sets = [f"statefulset/{name}" for kind, name in wanted if kind == "StatefulSet"]
    demo.kubectl("-n", NAMESPACE, "delete", "--wait=false", *ordinary)
    # Orphaned pods are adopted by the StatefulSet that comes back: nothing restarts.
    demo.kubectl("-n", NAMESPACE, "delete", "--cascade=orphan", *sets)
    wait_back(demo, wanted, "deleted")
    demo.wait_settled()
    assert {name: pod["metadata"]["uid"] for name, pod in demo.pods().items()} == pods


def test_statefulset_deleted_with_its_pods__locks_come_back_from_their_volumes(
    demo: Cluster,
) -> None:
    ledger = Ledger(demo, "e2e-sets")
    ledger.write(locks=5, messages=20)
    before = set(demo.pods("lock"))
    demo.kubectl("-n", NAMESPACE, "delete", "statefulset", "demo-lock", "--wait=true")
    until("three ready lock nodes", lambda: _ready(demo, "lock") == before, 120)
    demo.wait_settled()
    ledger.check()


def test_pods_deleted__leader_and_others_at_once__nothing_is_lost(demo: Cluster) -> None:
    ledger = Ledger(demo, "e2e-pods")
    ledger.write(locks=10, messages=50)
    leader = demo.leader()
    with Traffic(ledger) as traffic:
        demo.kubectl("-n", NAMESPACE, "delete", "pod", "--wait=false",
                     leader, "demo-queue-1", "demo-cache-1")  # fmt: skip
        until("the leader's pod is gone or new", lambda: leader not in _ready(demo, "lock"), 60)
        demo.wait_settled()
    say(traffic.line)
    ledger.check()
    assert traffic.longest_gap_s["lock"] < 15
    assert traffic.longest_gap_s["queue"] < 15


def test_paused__drift_stays_until_it_is_resumed(demo: Cluster) -> None:
    def budget() -> Object | None:
        return demo.kubectl.find("-n", NAMESPACE, "pdb", "demo-cache")

    demo.patch({"paused": True})
    until("the operator has seen it", lambda: demo.condition("Progressing", "reason") == "Paused")
    demo.kubectl("-n", NAMESPACE, "delete", "pdb", "demo-cache")
    demo.annotate(**{"dss.io/test-poke": "1"})  # the budget's end alone wakes nobody
    holds("the budget stays away", lambda: budget() is None, 8)
    demo.annotate(**{"dss.io/test-poke": None})
    demo.patch({"paused": False})
    until("the budget is back", budget)
    demo.wait_settled()


def test_ingress_switched_off__is_pruned_and_comes_back(demo: Cluster, kubectl: Kubectl) -> None:
    demo.patch({"ingress": {"enabled": False}})
    until("the Ingress is gone", lambda: kubectl.find("-n", NAMESPACE, "ingress", "demo") is None)
    demo.patch({"ingress": {"enabled": True}})
    until("the Ingress is back", lambda: kubectl.find("-n", NAMESPACE, "ingress", "demo"))


def _ready(cluster: Cluster, role: str) -> set[str]:
    return {name for name, pod in cluster.pods(role).items() if pod_ready(pod)}
