"""What `kubectl get`, `describe` and `wait` show of a healthy cluster."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import NAMESPACE
from e2e_dss import Cluster

pytestmark = pytest.mark.kube


def test_get__columns_show_readiness_leader_term_and_counts(demo: Cluster) -> None:
    header, row = demo.kubectl("-n", NAMESPACE, "get", "dss", "demo").splitlines()
    assert header.split() == ["NAME", "READY", "LEADER", "TERM", "LOCKS", "QUEUES", "CACHES", "AGE"]
    name, ready, leader, term, locks, queues, caches, _age = row.split()
    assert (name, ready) == ("demo", "True")
    assert leader in ("lock-1", "lock-2", "lock-3")
    assert int(term) >= 1
    assert [column.split("/")[0] for column in (locks, queues, caches)] == ["3", "3", "2"]


def test_conditions__all_five_usable_with_kubectl_wait(demo: Cluster) -> None:
    resource = demo.resource()
    status = resource["status"]
    assert status["observedGeneration"] == resource["metadata"]["generation"]
    conditions = {found["type"]: found for found in status["conditions"]}
    wanted = {"Ready": "True", "Progressing": "False", "Degraded": "False",
              "ElectionStuck": "False", "MonitoringReady": "True"}  # fmt: skip
    assert {kind: found["status"] for kind, found in conditions.items()} == wanted
    for kind, value in wanted.items():
        assert conditions[kind]["reason"], kind
        assert conditions[kind]["lastTransitionTime"], kind
        assert conditions[kind]["observedGeneration"] == status["observedGeneration"], kind
        demo.wait(f"{kind}={value}", timeout_s=5)


def test_members__every_node_with_role_and_health(demo: Cluster) -> None:
    status = demo.status()
    for role, count in (("lock", 3), ("queue", 3), ("cache", 2)):
        found = status[role]
        assert (found["replicas"], found["readyReplicas"]) == (count, count), role
        assert [member["id"] for member in found["members"]] == [
            f"{role}-{n}" for n in range(1, count + 1)
        ]
        for member in found["members"]:
            assert member["healthy"] is True, member
            assert member["pod"] == f"demo-{member['id']}"
    roles = sorted(member["role"] for member in status["lock"]["members"])
    assert roles == ["follower", "follower", "leader"]
    [leader] = [m["id"] for m in status["lock"]["members"] if m["role"] == "leader"]
    assert status["leader"] == leader


def test_leader_in_status__is_the_one_that_the_nodes_name(demo: Cluster) -> None:
    for pod in demo.pods("lock"):
        groups = {group["group_id"]: group for group in demo.forwards.raft(pod)["groups"]}
        assert groups[1]["leader"] == demo.status()["leader"]


def test_events__tell_the_way_to_ready_once(demo: Cluster) -> None:
    events = demo.events()
    assert any(event["message"].startswith("Ready is True") for event in events)
    told = Counter((event["reason"], event["message"]) for event in events)
    assert told.most_common(1)[0][1] <= 2, told.most_common(3)
