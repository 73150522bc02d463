"""A node drained, a node lost: quorum holds, nothing acknowledged is lost, all heals by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from asking import until
from e2e_dss import ROLES, Cluster, Ledger, Traffic, until_answer
from e2e_faults import Faults
from e2e_kubectl import Kubectl, Object, condition, pod_ready, say
from e2e_operator import Operator

pytestmark = pytest.mark.kube

GAP_S = 15.0
"""The longest time without an acknowledged write that a lost node may cost."""


@pytest.fixture(autouse=True)
def _schedulable(kubectl: Kubectl) -> Iterator[None]:
    """Whatever happens, no node stays cordoned."""
    yield
    for node in kubectl.items("nodes"):
        if node["spec"].get("unschedulable"):
            kubectl("uncordon", node["metadata"]["name"])


def by_node(cluster: Cluster) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, pod in cluster.pods().items():
        found.setdefault(pod["spec"].get("nodeName", ""), []).append(name)
    return found


def node_of(cluster: Cluster, pod: str) -> str:
    found: Object = cluster.pods()[pod]["spec"]
    return str(found["nodeName"])


def test_node_drained__the_budget_guards_the_rest_and_nothing_is_lost(
    demo: Cluster, kubectl: Kubectl, operator: Operator
) -> None:
    ledger = Ledger(demo, "e2e-drain")
    ledger.write(locks=10, messages=50)
    node = node_of(demo, demo.leader())
    say(f"draining {node}: {', '.join(sorted(by_node(demo)[node]))}")
    with Traffic(ledger) as traffic:
        kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s",
            timeout_s=130,
        )  # fmt: skip
        until("no pod of ours is on it", lambda: node not in by_node(demo), 60)
        assert_quorum(demo)
        say(f"drained; {traffic.line}")
        ready = [name for name, pod in demo.pods("lock").items() if pod_ready(pod)]
        if len(ready) == 2:  # the third waits for its volume's node: no other may go
            assert "disruption budget" in evict(kubectl, demo.namespace, ready[0])
        # Volumes that belong to a node keep their pods waiting for it.
        kubectl("uncordon", node)
        operator.wait()
        demo.wait_settled()
    say(traffic.line)
    assert traffic.longest_gap_s["lock"] < GAP_S
    assert traffic.longest_gap_s["queue"] < GAP_S
    ledger.check()


def test_node_lost__quorum_holds_status_says_so_and_all_heals(
    demo: Cluster, kubectl: Kubectl, operator: Operator, faults: Faults
) -> None:
    ledger = Ledger(demo, "e2e-lost")
    ledger.write(locks=10, messages=50)
    node = node_of(demo, demo.leader())
    number = node.rsplit("-", 1)[1]
    say(f"losing {node}: {', '.join(sorted(by_node(demo)[node]))}")
    with Traffic(ledger) as traffic:
        faults("kill-node", number)
        try:
            until("Kubernetes has noticed", lambda: not _node_ready(kubectl, node), 90)
            # The operator itself may have been on the lost node, and has to move first.
            until("the operator says so", lambda: demo.condition("Degraded") == "True", 180)
            assert demo.condition("Ready") == "True" or _redis_lost(demo, node)
            say(f"node is lost; {traffic.line}")
            assert traffic.longest_gap_s["lock"] < GAP_S
            assert traffic.longest_gap_s["queue"] < GAP_S
            assert_quorum(demo)
        finally:
            faults.start(f"containerd-{number}")
            time.sleep(2)
            faults.start(f"kubelet-{number}")
        began = time.monotonic()
        until("the node is back", lambda: _node_ready(kubectl, node), 120)
        operator.wait()
        demo.wait_settled()
        say(f"all well {time.monotonic() - began:.0f} s after the node was started")
    say(traffic.line)
    ledger.check()


def evict(kubectl: Kubectl, namespace: str, pod: str) -> str:
    """What the API server says to an eviction."""
    metadata = {"name": pod, "namespace": namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    done = kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    return done.stdout + done.stderr


def assert_quorum(cluster: Cluster) -> None:
    """Reads that need a quorum answer from nodes that are left."""
    for role, path in (("lock", "/v1/locks"), ("queue", "/v1/queues")):
        until_answer(f"{role} answers", lambda p=path, r=role: cluster.api("GET", p, role=r))  # type: ignore[misc]
    for role in ROLES[:2]:
        ready = [name for name, pod in cluster.pods(role).items() if pod_ready(pod)]
        assert len(ready) >= 2, f"{role}: {ready}"


def _node_ready(kubectl: Kubectl, node: str) -> bool:
    return condition(kubectl.get("node", node), "Ready") == "True"


def _redis_lost(cluster: Cluster, node: str) -> bool:
    """Redis is one pod: while its node is lost, the cache refuses, and Ready says so."""
    return any("redis" in name for name in by_node(cluster).get(node, []))
