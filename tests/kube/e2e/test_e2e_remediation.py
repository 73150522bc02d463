"""Real split votes on the cluster, and the operator that ends them; or, with reason, does not.

Three clusters whose lock nodes run in a test mode from their birth: without pre-vote and with equal
election timeouts, so that all members campaign at the same moment, for ever. `split` is ended by
`POST /v1/raft/backoff`; `stubborn` answers that and does nothing, so one pod has to be evicted;
`wedged` likewise, and its pod is not ready, so its budget would forbid that; of `away` one member
cannot be reached.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asking import until
from e2e_dss import Cluster, small
from e2e_kubectl import Kubectl, Object, holds, pod_ready, say
from e2e_operator import SYSTEM, Operator

pytestmark = pytest.mark.kube

NAMESPACE = "dss-e2e-split"
PERIOD_MS = 1_500
"""Between two elections. A member that is later than a quarter of it may end the split."""
WINDOW_S = 15
"""The least that is allowed for it."""
SEEN_S = 3 * WINDOW_S
ACTED_S = 6 * WINDOW_S
LOCK = {"replicas": 3, "electionTimeoutMs": {"min": 750, "max": PERIOD_MS}}
BIRTHS = 5
"""Tries until a split vote lasts: the machine may be busy with starting so much at once."""
BORN = {  # name -> test mode, remediation mode at birth
    "split": ("split-vote", "DryRun"),
    "stubborn": ("split-vote-no-backoff", "Off"),
    "wedged": ("split-vote-no-backoff", "Off"),
    "away": ("split-vote", "DryRun"),
}


def spec(mode: str) -> Object:
    remediation = {"mode": mode, "windowSeconds": WINDOW_S, "cooldownSeconds": 10, "maxPerHour": 6}
    # Volumes go with a cluster: one that is born again is founded again.
    return small(lock=LOCK, remediation=remediation, reclaim="Delete")


@pytest.fixture(scope="module")
def clusters(kubectl: Kubectl, operator: Operator) -> Iterator[dict[str, Cluster]]:
    """All three, founded, without a leader."""
    operator.set_env(ALLOW_TEST_MODE="1")
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    made = {name: Cluster(kubectl, name, NAMESPACE) for name in BORN}
    unborn = list(made.values())
    for attempt in range(1, BIRTHS + 1):
        unborn = without_split(unborn)
        if not unborn:
            break
        names = ", ".join(cluster.name for cluster in unborn)
        say(f"birth {attempt} of {names}: somebody won an election")
    assert not unborn, f"no split vote in {BIRTHS} births"
    yield made
    for cluster in made.values():
        cluster.close()
    for node in kubectl.items("nodes"):
        if node["spec"].get("unschedulable"):
            kubectl("uncordon", node["metadata"]["name"])
    operator.set_env(ALLOW_TEST_MODE="")
    kubectl.delete_namespace(NAMESPACE, wait_s=0)


@pytest.fixture(scope="module")
def split(clusters: dict[str, Cluster]) -> Cluster:
    return clusters["split"]


@pytest.fixture(scope="module")
def stubborn(clusters: dict[str, Cluster]) -> Cluster:
    return clusters["stubborn"]


@pytest.fixture(scope="module")
def wedged(clusters: dict[str, Cluster]) -> Cluster:
    return clusters["wedged"]


@pytest.fixture(scope="module")
def away(clusters: dict[str, Cluster]) -> Cluster:
    return clusters["away"]


def variables(pod: Object) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def rolled(cluster: Cluster) -> bool:
    pods = cluster.pods("lock").values()
    return len(pods) == 3 and all(pod_ready(p) and "TEST_MODE" in variables(p) for p in pods)


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


def without_split(clusters: list[Cluster]) -> list[Cluster]:
    """Make these anew; those of them that found a leader."""
    for cluster in clusters:
        cluster.delete()
    for cluster in clusters:
        until("the last one is gone", lambda c=cluster: not c.pods(), 60)  # type: ignore[misc]
        test_mode, mode = BORN[cluster.name]
        cluster.apply(spec(mode), **{"dss.io/test-mode": test_mode})
    for cluster in clusters:
        until(f"the lock nodes of {cluster.name} run", lambda c=cluster: rolled(c), 120)  # type: ignore[misc]
    return [cluster for cluster in clusters if not split_lasts(cluster)]


def split_lasts(cluster: Cluster) -> bool:
    """Both groups have held five elections, and nobody won one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        groups = [g for pod in cluster.pods("lock") for g in cluster.forwards.raft(pod)["groups"]]
        if any(group["leader"] for group in groups):
            return False
        if len(groups) == 6 and min(group["term"] for group in groups) >= 5:
            return True
        time.sleep(0.5)
    return False


def touched(cluster: Cluster) -> list[dict[str, Any]]:
    return [row for row in rows(cluster)
            if row["outcome"] != "dry-run" and row["action"] != "alert"]  # fmt: skip


def told(cluster: Cluster, words: str) -> bool:
    return any(words in event["message"] for event in cluster.events())


def stuck(cluster: Cluster) -> bool:
    return cluster.condition("ElectionStuck") == "True"


def test_test_mode_without_leave__ignored_with_a_warning_and_a_condition(demo: Cluster) -> None:
    before = identities(demo)
    demo.annotate(**{"dss.io/test-mode": "split-vote"})
    try:
        refused = ("Degraded", "reason")
        until("it is reported", lambda: demo.condition(*refused) == "TestModeRefused", 35)
        assert "ALLOW_TEST_MODE" in demo.condition("Degraded", "message")
        warnings = [e["message"] for e in demo.events() if e["type"] == "Warning"]
        assert any("test-mode" in message for message in warnings)
        for pod in demo.pods().values():
            assert not {"TEST_MODE", "ALLOW_TEST_MODE"} & set(variables(pod))
    finally:
        demo.annotate(**{"dss.io/test-mode": None})
    demo.wait_settled()
    assert identities(demo) == before


def test_split_vote_in_dry_run__is_seen_said_and_left_alone(split: Cluster) -> None:
    pods, killed, first = identities(split), restarts(split), terms(split)
    until("the operator sees it", lambda: stuck(split), SEEN_S)
    assert split.condition("Ready") != "True"
    until(
        "it says what it would do",
        lambda: "backoff" in {row["action"] for row in rows(split, "dry-run")},
        SEEN_S,
    )
    assert "dry run" in " ".join(event["message"] for event in split.events())
    time.sleep(WINDOW_S)
    second = terms(split)
    say(f"a real split vote: terms of the groups from {first} to {second}")
    assert all(second[group] >= first[group] + 5 for group in first), "the elections go on"
    assert (identities(split), restarts(split)) == (pods, killed)
    assert remedy(split)["attempts"] == 0
    assert not split.status()["leader"]


def test_split_vote_in_enforce__ended_by_backoffs_and_nobody_restarted(split: Cluster) -> None:
    pods, killed = identities(split), restarts(split)
    began = time.monotonic()
    split.patch({"remediation": {"mode": "Enforce"}})
    until("the operator acted", lambda: touched(split), ACTED_S)
    split.wait("ElectionStuck=False", timeout_s=ACTED_S)
    split.wait(timeout_s=ACTED_S)
    say(f"split vote ended {time.monotonic() - began:.0f} s after the operator was allowed to act")
    until("each episode is closed", lambda: closed(split), SEEN_S)
    assert {(row["action"], row["outcome"]) for row in touched(split)} == {("backoff", "done")}
    assert remedy(split)["restarts"] == 0
    assert (identities(split), restarts(split)) == (pods, killed)
    for group in (0, 1):
        leaders = {split.forwards.raft(pod)["groups"][group]["leader"] for pod in pods}
        assert len(leaders) == 1, leaders
        assert None not in leaders


def test_member_unreachable__uncertain_and_no_action(away: Cluster, kubectl: Kubectl) -> None:
    until("the operator sees it", lambda: stuck(away), SEEN_S)
    nodes = [node["metadata"]["name"] for node in kubectl.items("nodes")]
    kubectl("cordon", *nodes)
    try:
        kubectl("-n", NAMESPACE, "delete", "pod", "away-lock-3", "--wait=true")
        away.patch({"remediation": {"mode": "Enforce"}})
        until("Uncertain", lambda: away.condition("ElectionStuck") == "Unknown", SEEN_S)
        until("a person is called", lambda: told(away, "nothing is done, for: lock-3"), SEEN_S)
        holds("no action", lambda: not touched(away), 2 * WINDOW_S, every_s=2)
        assert not away.status()["leader"], "the two others cannot win either"
    finally:
        kubectl("uncordon", *nodes)
    say("lock-3 was away: Uncertain, nothing was done")
    away.wait(timeout_s=2 * ACTED_S)  # by itself or by the operator, now that all are seen


def test_split_vote_with_remediation_off__left_alone(stubborn: Cluster) -> None:
    pods, first = identities(stubborn), terms(stubborn)
    holds("nothing is done", lambda: not rows(stubborn), WINDOW_S, every_s=3)
    assert identities(stubborn) == pods
    assert all(term > first[group] for group, term in terms(stubborn).items())
    assert stubborn.condition("ElectionStuck", "reason") == "Off"


def test_backoff_without_effect__one_candidate_is_evicted_and_an_operator_restart_forgets_nothing(
    stubborn: Cluster, operator: Operator, kubectl: Kubectl
) -> None:
    pods = identities(stubborn)
    stubborn.patch({"remediation": {"mode": "Enforce"}})
    until("a backoff was asked for", lambda: touched(stubborn), ACTED_S, every_s=0.3)
    first = until("its outcome", lambda: [r for r in touched(stubborn) if r["outcome"] == "done"])[
        0
    ]
    assert first["action"] == "backoff"
    kubectl("-n", SYSTEM, "delete", "pod", operator.pod(), "--wait=false")
    say("the operator's pod was deleted between the first and the second rung")
    operator.wait()
    assert first in rows(stubborn), "the history was forgotten"
    until("a candidate was evicted", lambda: remedy(stubborn)["restarts"] >= 1, 2 * ACTED_S)
    stubborn.wait(timeout_s=3 * ACTED_S)
    until("each episode is closed", lambda: closed(stubborn), ACTED_S)
    history = touched(stubborn)
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


def test_candidate_not_ready__deleted_for_its_budget_would_protect_it_from_its_cure(
    wedged: Cluster,
) -> None:
    pods, over = identities(wedged), threading.Event()

    def keep_unready() -> None:
        """The candidate is the last of equals. Its kubelet corrects this every ten seconds."""
        reason = {"type": "Ready", "status": "False", "reason": "Test"}
        body = json.dumps({"status": {"conditions": [reason]}})
        while not over.wait(0.2):
            wedged.kubectl.run("-n", NAMESPACE, "patch", "pod", "wedged-lock-3",
                               "--subresource=status", "--type=strategic", "-p", body)  # fmt: skip

    thread = threading.Thread(target=keep_unready, daemon=True)
    thread.start()
    try:
        wedged.patch({"remediation": {"mode": "Enforce"}})
        until("a candidate was restarted", lambda: remedy(wedged)["restarts"] >= 1, 2 * ACTED_S)
    finally:
        over.set()
        thread.join(30)
    wedged.wait(timeout_s=3 * ACTED_S)
    rungs = [row for row in touched(wedged) if row["action"] == "restart"]
    assert {(row["member"], row["outcome"]) for row in rungs} == {("lock-3", "done")}
    changed = {name for name, uid in identities(wedged).items() if pods.get(name) != uid}
    assert changed == {"wedged-lock-3"}


def test_remediation__counted_in_the_operators_metrics_and_told_in_events(
    stubborn: Cluster, split: Cluster, operator: Operator
) -> None:
    metrics = operator.metrics()
    taken = metrics.by("dss_operator_remediation_decisions_total", "action")
    assert taken.get("restart", 0) >= 1, taken
    told = " ".join(event["message"] for event in stubborn.events() + split.events())
    assert "backoff" in told.lower() or "back off" in told.lower()
    assert "evict" in told.lower() or "restart" in told.lower()
