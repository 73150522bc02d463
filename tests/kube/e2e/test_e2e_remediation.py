"""Real split votes on the cluster, and the operator that ends them; or, with reason, does not.

Two clusters whose nodes run in a test mode: without pre-vote and with equal election timeouts. When
their leader dies by SIGKILL, all members campaign at the same moment, for ever. `split` is ended by
`POST /v1/raft/backoff`; `stubborn` answers that and does nothing, so one pod has to be evicted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_dss import Cluster, small
from e2e_kubectl import Kubectl, Object, holds, pod_ready, say, until
from e2e_operator import Operator

pytestmark = pytest.mark.kube

NAMESPACE = "dss-e2e-split"
WINDOW_S = 10
"""The least that is allowed; so the election timeout is 1 s at most."""
SEEN_S = 3 * WINDOW_S
ACTED_S = 6 * WINDOW_S
LOCK = {"replicas": 3, "heartbeatMs": 100, "electionTimeoutMs": {"min": 500, "max": 1_000}}
DIE = "import resource as r; r.prlimit(1, r.RLIMIT_CPU, (1, 1)); open('/dev/null').close()"
"""Run beside the node: the kernel kills process 1, which has used more than a second of CPU. No
process of the same container could: signals to process 1 are dropped."""


def spec(mode: str) -> Object:
    remediation = {"mode": mode, "windowSeconds": WINDOW_S, "cooldownSeconds": 10, "maxPerHour": 6}
    return small(lock=LOCK, remediation=remediation)


@pytest.fixture(scope="module")
def clusters(kubectl: Kubectl, operator: Operator) -> Iterator[dict[str, Cluster]]:
    """Both, Ready, with their test modes asked for and refused: the operator does not allow it."""
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    made = {name: Cluster(kubectl, name, NAMESPACE) for name in ("split", "stubborn")}
    made["split"].apply(spec("DryRun"), **{"dss.io/test-mode": "split-vote"})
    made["stubborn"].apply(spec("Off"), **{"dss.io/test-mode": "split-vote-no-backoff"})
    for cluster in made.values():
        cluster.wait()
    yield made
    for cluster in made.values():
        cluster.close()
    for node in kubectl.items("nodes"):
        if node["spec"].get("unschedulable"):
            kubectl("uncordon", node["metadata"]["name"])
    operator.set_env(ALLOW_TEST_MODE="")
    kubectl.delete_namespace(NAMESPACE)


@pytest.fixture(scope="module")
def allowed(clusters: dict[str, Cluster], operator: Operator) -> dict[str, Cluster]:
    """Both, in their test modes."""
    operator.set_env(ALLOW_TEST_MODE="1")
    for cluster in clusters.values():
        until(
            f"the lock nodes of {cluster.name} are in test mode", lambda c=cluster: rolled(c), 180
        )  # type: ignore[misc]
    return clusters


@pytest.fixture(scope="module")
def split(allowed: dict[str, Cluster]) -> Cluster:
    return allowed["split"]


@pytest.fixture(scope="module")
def stubborn(allowed: dict[str, Cluster]) -> Cluster:
    return allowed["stubborn"]


def variables(pod: Object) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def rolled(cluster: Cluster) -> bool:
    pods = cluster.pods("lock").values()
    return len(pods) == 3 and all(pod_ready(p) and "TEST_MODE" in variables(p) for p in pods)


def crash_leader(cluster: Cluster) -> str:
    """SIGKILL the leader's process, on any Kubernetes: no node has to be reached for it."""
    leader = until("a leader", lambda: cluster.status().get("leader"), 30)
    pod = f"{cluster.name}-{leader}"
    before = restarts(cluster)[pod]
    cluster.kubectl.run("-n", NAMESPACE, "exec", pod, "--", "python", "-c", DIE)
    until(f"{pod} was killed", lambda: restarts(cluster).get(pod, 0) > before, 30)
    say(f"{pod}, the leader, was killed")
    return pod


def restarts(cluster: Cluster) -> dict[str, int]:
    return {
        name: sum(s["restartCount"] for s in pod["status"].get("containerStatuses", []))
        for name, pod in cluster.pods("lock").items()
    }


def identities(cluster: Cluster) -> dict[str, str]:
    return {name: pod["metadata"]["uid"] for name, pod in cluster.pods("lock").items()}


def terms(cluster: Cluster) -> dict[int, int]:
    """The highest term of each group that any reachable member knows."""
    found: dict[int, int] = {}
    for name, pod in cluster.pods("lock").items():
        if pod_ready(pod):
            for group in cluster.forwards.raft(name)["groups"]:
                at = group["group_id"]
                found[at] = max(found.get(at, 0), group["term"])
    return found


def remedy(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.status().get("remediation") or {}
    return found


def rows(cluster: Cluster, outcome: str = "") -> list[dict[str, Any]]:
    return [row for row in remedy(cluster).get("history", [])
            if not outcome or row["outcome"] == outcome]  # fmt: skip


def closed(cluster: Cluster) -> bool:
    return all("recoveredAt" in row for row in rows(cluster))


def stuck(cluster: Cluster) -> bool:
    return cluster.condition("ElectionStuck") == "True"


def reasons(cluster: Cluster) -> set[str]:
    return {event["reason"] for event in cluster.events()}


def test_test_mode_without_leave__ignored_with_a_warning_and_a_condition(
    clusters: dict[str, Cluster],
) -> None:
    for cluster in clusters.values():
        until(
            "the refusal is reported",
            lambda c=cluster: c.condition("Degraded", "reason") == "TestModeRefused",  # type: ignore[misc]
        )
        assert "ALLOW_TEST_MODE" in cluster.condition("Degraded", "message")
        warnings = [e for e in cluster.events() if e["type"] == "Warning"]
        assert any("test-mode" in event["message"] for event in warnings)
        for pod in cluster.pods().values():
            assert not {"TEST_MODE", "ALLOW_TEST_MODE"} & set(variables(pod))


def test_split_vote_in_dry_run__is_seen_said_and_left_alone(split: Cluster) -> None:
    before = terms(split)
    crash_leader(split)
    until("the operator sees it", lambda: stuck(split), SEEN_S)
    assert split.condition("Ready", "reason") == "NoLeader"
    until("it says what it would do", lambda: rows(split, "dry-run"), SEEN_S)
    row = rows(split, "dry-run")[-1]
    assert row["action"] == "backoff"
    said = [e for e in split.events() if "DryRun" in e["reason"] or "dry" in e["message"].lower()]
    assert said, reasons(split)
    pods, killed = identities(split), restarts(split)
    first = terms(split)
    time.sleep(WINDOW_S)
    second = terms(split)
    say(f"split vote: terms {before} -> {first} -> {second}")
    assert any(second[group] >= first[group] + 3 for group in first), "the election still goes on"
    assert (identities(split), restarts(split)) == (pods, killed)
    assert (remedy(split)["attempts"], split.status()["leader"]) == (0, "")


def test_member_unreachable__uncertain_and_no_action_until_all_are_seen(
    split: Cluster, kubectl: Kubectl
) -> None:
    assert stuck(split)
    nodes = [node["metadata"]["name"] for node in kubectl.items("nodes")]
    kubectl("cordon", *nodes)
    try:
        kubectl("-n", NAMESPACE, "delete", "pod", "split-lock-3", "--wait=true")
        split.patch({"remediation": {"mode": "Enforce"}})
        until("Uncertain", lambda: split.condition("ElectionStuck") == "Unknown", SEEN_S)
        assert "lock-3" in split.condition("ElectionStuck", "message")
        holds("no action", lambda: remedy(split)["attempts"] == 0, 2 * WINDOW_S, every_s=2)
        assert split.status()["leader"] == "", "the two others cannot win either"
    finally:
        kubectl("uncordon", *nodes)
    say("lock-3 was away: Uncertain, nothing was done")


def test_split_vote_in_enforce__ended_by_a_backoff_and_nobody_restarted(split: Cluster) -> None:
    until("lock-3 is back", lambda: len(split.pods("lock")) == 3 and rolled(split), 60)
    pods, killed = identities(split), restarts(split)
    began = time.monotonic()
    until("the operator acted", lambda: remedy(split)["backoffs"] >= 1, ACTED_S)
    split.wait(timeout_s=ACTED_S)
    split.wait("ElectionStuck=False", timeout_s=ACTED_S)
    say(f"split vote ended {time.monotonic() - began:.0f} s after all members were seen again")
    history = rows(split, "done")
    assert {row["action"] for row in history} == {"backoff"}
    until("the episode is closed", lambda: closed(split), SEEN_S)
    assert remedy(split)["restarts"] == 0
    assert (identities(split), restarts(split)) == (pods, killed)
    split.forwards.close()
    for group in (0, 1):
        leaders = {split.forwards.raft(pod)["groups"][group]["leader"] for pod in pods}
        assert len(leaders) == 1, leaders
        assert None not in leaders


def test_split_vote_with_remediation_off__left_alone(stubborn: Cluster) -> None:
    crash_leader(stubborn)
    until("no leader", lambda: stubborn.condition("Ready", "reason") == "NoLeader", SEEN_S)
    pods = identities(stubborn)
    holds("nothing is done", lambda: not rows(stubborn), int(1.5 * WINDOW_S), every_s=3)
    assert identities(stubborn) == pods


def test_backoff_without_effect__one_candidate_is_evicted_and_an_operator_restart_forgets_nothing(
    stubborn: Cluster, operator: Operator, kubectl: Kubectl
) -> None:
    pods = identities(stubborn)
    stubborn.patch({"remediation": {"mode": "Enforce"}})
    until("a backoff was asked for", lambda: rows(stubborn, "done"), ACTED_S, every_s=0.3)
    first = rows(stubborn)[0]
    assert first["action"] == "backoff"
    kubectl("-n", "dss-system", "delete", "pod", operator.pod(), "--wait=false")
    say("the operator's pod was deleted between the first and the second rung")
    operator.wait()
    assert first in rows(stubborn), "the history was forgotten"
    until("a candidate was evicted", lambda: remedy(stubborn)["restarts"] >= 1, 2 * ACTED_S)
    stubborn.wait(timeout_s=3 * ACTED_S)
    until(
        "each episode is closed", lambda: all("recoveredAt" in r for r in rows(stubborn)), ACTED_S
    )
    history = rows(stubborn)
    for group in {row["groupId"] for row in history}:
        actions = [row["action"] for row in history if row["groupId"] == group]
        assert len(actions) == len(set(actions)), f"the same rung twice: {history}"
        if "restart" in actions:
            assert actions.index("backoff") < actions.index("restart")
    changed = {name for name, uid in identities(stubborn).items() if pods.get(name) != uid}
    evicted = {f"stubborn-{row['member']}" for row in history if row["action"] == "restart"}
    assert changed == evicted, "exactly the evicted pods are new"
    assert remedy(stubborn)["restarts"] == len([r for r in history if r["action"] == "restart"])
    say(f"history: {[(row['groupId'], row['action'], row['member']) for row in history]}")


def test_remediation__counted_in_the_operators_metrics_and_told_in_events(
    stubborn: Cluster, split: Cluster, operator: Operator
) -> None:
    metrics = operator.metrics()
    taken = metrics.by("dss_operator_remediation_decisions_total", "action")
    assert taken.get("restart", 0) >= 1, taken
    told = " ".join(event["message"] for event in stubborn.events() + split.events())
    assert "backoff" in told.lower() or "back off" in told.lower()
    assert "evict" in told.lower() or "restart" in told.lower()
