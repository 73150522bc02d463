"""Conditions and members out of what is there; Events on transitions only; few writes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from operator_lab import Lab, run

from dss_operator.settings import Settings


async def _formed(**spec: Any) -> Lab:
    lab = Lab(**spec)
    await lab.formed()
    return lab


async def _look(lab: Lab, gone: tuple[str, ...] = ()) -> None:
    """Pods named are not ready; two rounds, so that held-back writes get out."""
    lab.api.run_sets(ready=lambda pod: pod not in gone)
    for _ in range(2):
        await lab.tick()
        await lab.sample()


# (name, pods that are not ready, silent members, Ready, Degraded)
LOSSES: list[tuple[str, tuple[str, ...], set[str], tuple[str, str], tuple[str, str]]] = [
    ("a lock node", ("demo-lock-2",), {"lock-2"}, ("True", "Serving"), ("True", "MembersNotReady")),
    ("two lock nodes", ("demo-lock-2", "demo-lock-3"), {"lock-2", "lock-3"},
     ("False", "LockQuorumLost"), ("True", "MembersNotReady")),
    ("a queue node", ("demo-queue-2",), set(), ("True", "Serving"), ("True", "MembersNotReady")),
    ("two queue nodes", ("demo-queue-2", "demo-queue-3"), set(), ("False", "QueueUnavailable"),
     ("True", "MembersNotReady")),
    ("a cache node", ("demo-cache-2",), set(), ("True", "Serving"), ("True", "MembersNotReady")),
    ("all cache nodes", ("demo-cache-1", "demo-cache-2"), set(), ("False", "CacheUnavailable"),
     ("True", "MembersNotReady")),
    ("Redis", ("demo-redis-1",), set(), ("False", "RedisUnavailable"), ("False", "AsDeclared")),
    ("Prometheus", ("demo-prometheus-1",), set(), ("True", "Serving"), ("False", "AsDeclared")),
    ("the way to the lock nodes", (), {"lock-1", "lock-2", "lock-3"},
     ("Unknown", "NodesUnreachable"), ("False", "AsDeclared")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("gone", "silent", "ready", "degraded"), [x[1:] for x in LOSSES], ids=[x[0] for x in LOSSES]
)
def test_loss__named_by_its_condition_and_healed(
    gone: tuple[str, ...], silent: set[str], ready: tuple[str, str], degraded: tuple[str, str]
) -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.nodes.silent = silent
        await _look(lab, gone)
        assert lab.condition("Ready") == ready
        assert lab.condition("Degraded") == degraded
        assert lab.condition("Progressing") == ("False", "Settled")
        lab.nodes.silent = set()
        await _look(lab)
        assert lab.condition("Ready") == ("True", "Serving")
        assert lab.condition("Degraded") == ("False", "AsDeclared")

    run(scenario())


def test_prometheus_lost__monitoring_is_not_ready_and_the_rest_is() -> None:
    async def scenario() -> None:
        lab = await _formed()
        await _look(lab, ("demo-prometheus-1",))
        assert lab.condition("MonitoringReady") == ("False", "NotReady")
        assert lab.condition("Ready") == ("True", "Serving")

    run(scenario())


def test_long_outage__each_event_once() -> None:
    async def scenario() -> None:
        lab = await _formed()
        before = len(lab.api.events)
        lab.nodes.silent = {"lock-2"}
        for _ in range(20):
            await _look(lab, ("demo-lock-2",))
        told = [event["reason"] for event in lab.api.events[before:]]
        assert told == ["MembersNotReady"]
        warned = [e for e in lab.api.events if e["reason"] == "MembersNotReady"]
        assert warned[0]["type"] == "Warning"
        assert warned[0]["involvedObject"]["uid"] == lab.resource["metadata"]["uid"]

    run(scenario())


def test_new_cluster__no_warnings_while_it_forms() -> None:
    async def scenario() -> None:
        lab = await _formed()
        assert [e for e in lab.api.events if e["type"] == "Warning"] == []

    run(scenario())


def test_leader_changes_within_the_grace__ready_stays_true() -> None:
    async def scenario() -> None:
        lab = await _formed()
        await lab.sample()
        lab.nodes.leader = None
        await lab.sample(after_s=2)
        assert lab.condition("Ready") == ("True", "Serving")
        lab.nodes.leader, lab.nodes.term = "lock-2", 4
        await lab.sample()
        await lab.sample()
        assert lab.condition("Ready") == ("True", "Serving")
        assert (lab.status["leader"], lab.status["term"]) == ("lock-2", 4)
        roles = {m["id"]: m["role"] for m in lab.status["lock"]["members"]}
        assert roles == {"lock-1": "follower", "lock-2": "leader", "lock-3": "follower"}

    run(scenario())


def test_no_leader_for_long__not_ready() -> None:
    async def scenario() -> None:
        lab = await _formed()
        await lab.sample()
        lab.nodes.leader = None
        for _ in range(3):
            await lab.sample()
        assert lab.condition("Ready") == ("False", "NoLeader")
        assert lab.status["leader"] == ""
        assert lab.status["term"] == 3  # the last known one: terms rise while nobody wins

    run(scenario())


def _behind(lab: Lab, member: str) -> Callable[..., Any]:
    original = lab.nodes._group

    def group(group_id: int, asked: str, voters: list[str]) -> dict[str, Any]:
        found = original(group_id, asked, voters)
        leads = found["role"] == "leader"
        return found | {
            "commit_index": 50_000,
            "applied_index": 10 if asked == member else 50_000 - (0 if leads else 3),
        }

    return group


@pytest.mark.parametrize("member", ["lock-3", "queue-3"])
def test_member_far_behind__named_and_counted(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        lab = await _formed()
        monkeypatch.setattr(lab.nodes, "_group", _behind(lab, member))
        await _look(lab)
        assert lab.condition("Degraded") == ("True", "MembersBehind")
        assert member in lab.message("Degraded")
        role = member.partition("-")[0]
        late = {m["id"] for m in lab.status[role]["members"] if not m["caughtUp"]}
        assert late == {member}
        assert lab.status["queue"]["underReplicated"] == (2 if role == "queue" else 0)

    run(scenario())


def test_test_mode_without_permission__ignored_warned_and_said() -> None:
    async def scenario() -> None:
        lab = await _formed()
        before = lab.state()
        mode = {"dss.io/test-mode": "split-vote"}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["metadata"].update(annotations=mode))
        await _look(lab)
        assert lab.state() == before
        assert lab.condition("Degraded") == ("True", "TestModeRefused")
        assert lab.api.reasons().count("TestModeRefused") == 1

    run(scenario())


def test_unknown_test_mode__ignored_and_said() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.process(Settings(pod_id="op", allow_test_mode=True))
        mode = {"dss.io/test-mode": "explode"}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["metadata"].update(annotations=mode))
        await _look(lab)
        assert "TEST_MODE" not in str(lab.api.get("statefulsets", "demo-lock"))
        assert lab.condition("Degraded") == ("True", "TestModeRefused")
        assert "found 'explode'" in lab.message("Degraded")

    run(scenario())


def test_test_mode_where_allowed__reaches_the_lock_nodes_alone() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.process(Settings(pod_id="op", allow_test_mode=True))
        mode = {"dss.io/test-mode": "split-vote"}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["metadata"].update(annotations=mode))
        await _look(lab)
        assert lab.condition("Degraded") == ("True", "TestMode")
        for role in ("lock", "queue", "cache"):
            text = str(lab.api.get("statefulsets", f"demo-{role}")["spec"]["template"])
            assert ("ALLOW_TEST_MODE" in text) == (role == "lock")
        lab.api.edit("dssclusters", "demo", lambda obj: obj["metadata"].update(annotations={}))
        await lab.settle()
        assert "TEST_MODE" not in str(lab.api.get("statefulsets", "demo-lock"))
        assert lab.condition("Degraded") == ("False", "AsDeclared")

    run(scenario())


def test_service_monitor_where_its_kind_is_not_served__said_and_the_rest_is_made() -> None:
    async def scenario() -> None:
        parts = {"grafana": {"enabled": False}, "serviceMonitor": True}
        lab = await _formed(monitoring=parts)
        assert lab.condition("MonitoringReady") == ("False", "ServiceMonitorMissing")
        assert lab.condition("Progressing") == ("False", "Settled")
        assert lab.condition("Ready") == ("True", "Serving")
        lists = [call for call in lab.api.calls if call.plural == "servicemonitors"]
        assert len(lists) <= 1

    run(scenario())


def test_endpoints__what_there_is() -> None:
    async def scenario() -> None:
        lab = await _formed(ingress={"enabled": True, "host": "dss.local"})
        assert lab.status["endpoints"] == {
            "lock": "http://demo-lock.ns.svc:8000",
            "queue": "http://demo-queue.ns.svc:8000",
            "cache": "http://demo-cache.ns.svc:8000",
            "prometheus": "http://demo-prometheus.ns.svc:9090",
            "ingress": "http://dss.local",
        }

    run(scenario())


def test_flapping_member__status_is_written_at_most_once_in_five_seconds() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.clock.now += 60
        at = []
        for number in range(40):
            gone = ("demo-lock-2",) if number % 2 else ()
            lab.api.run_sets(ready=lambda pod, gone=gone: pod not in gone)
            before = len([call for call in lab.api.calls if call.sub == "status"])
            await lab.tick(after_s=1)
            if len([call for call in lab.api.calls if call.sub == "status"]) > before:
                at.append(lab.clock.now)
        assert len(at) >= 5
        assert min(later - earlier for earlier, later in pairwise(at)) >= 5

    run(scenario())


def test_held_back_status__written_when_the_time_has_come() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.clock.now += 60
        lab.api.run_sets(ready=lambda pod: pod != "demo-lock-2")
        await lab.tick()
        lab.api.run_sets()
        await lab.tick(after_s=1)
        assert lab.condition("Degraded")[0] == "True"
        assert lab.cluster.next_tick == lab.clock.now + 4

    run(scenario())


def test_condition_unchanged__keeps_its_transition_time() -> None:
    async def scenario() -> None:
        lab = await _formed()

        def since(kind: str) -> str:
            found = [c for c in lab.status["conditions"] if c["type"] == kind]
            return str(found[0]["lastTransitionTime"])

        before = since("Ready"), since("Degraded")
        await _look(lab, ("demo-lock-2",))
        assert since("Ready") == before[0]
        assert since("Degraded") > before[1]

    run(scenario())


def test_status_spoilt_by_a_person__written_again() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.api.objects["dssclusters", "ns", "demo"]["status"]["leader"] = "nobody"
        await _look(lab)
        assert lab.status["leader"] == "lock-1"

    run(scenario())


def test_schema_drops_a_field__status_is_not_written_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older CRD keeps less than this operator writes."""

    async def scenario() -> None:
        lab = Lab()
        apply = lab.api._apply

        def pruned(call: Any, key: Any, body: Any) -> Any:
            if call.sub == "status":
                body["status"].pop("endpoints", None)
            return apply(call, key, body)

        monkeypatch.setattr(lab.api, "_apply", pruned)
        await lab.formed()
        for _ in range(5):
            await lab.tick(30)
            await lab.sample()
        assert [call for call in lab.api.calls if call.sub == "status"] == []

    run(scenario())


def test_nodes_are_asked_with_the_operators_token() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.nodes.tokens.clear()
        await lab.sample()
        assert len(lab.nodes.tokens) == 1
        assert "".join(lab.nodes.tokens).startswith("secret-")

    run(scenario())
