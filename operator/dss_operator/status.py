"""The status of a DSSCluster out of what is known. Pure: same facts, same status.

Messages carry nothing that changes by itself (durations, indexes): every change of a status is a
write. What must not live here: I/O, when it is written (cluster.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from dss.base.ids import LOCK_GROUP
from dss.remediation import Diagnosis, Policy, Record
from dss.topology.model import GRAFANA_PORT, HTTP_PORT, PROMETHEUS_PORT, ROLES
from dss_operator.apply import Outcome
from dss_operator.events import Event
from dss_operator.members import (
    RoleView,
    leader_of,
    rolling,
    set_ready,
    view_roles,
)
from dss_operator.sampling import Answered
from dss_operator.state import Observed, Resource

State = Literal["True", "False", "Unknown"]

CONDITIONS: Final = ("Ready", "Progressing", "Degraded", "ElectionStuck", "MonitoringReady")
GOOD: Final[Mapping[str, State]] = {
    "Ready": "True",
    "Progressing": "False",
    "Degraded": "False",
    "ElectionStuck": "False",
    "MonitoringReady": "True",
}
LEADERLESS_GRACE_MS: Final = 5_000
"""A change of leaders takes one or two seconds and is no outage: Ready stays True that long."""
LISTED_MAX: Final = 5


class Verdict(msgspec.Struct, frozen=True):
    """A condition before it has a time."""

    status: State
    reason: str
    message: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a status is made of."""

    resource: Resource
    observed: Observed
    answers: Mapping[str, Answered]
    diagnoses: Sequence[Diagnosis]
    record: Record
    policy: Policy
    outcome: Outcome
    """Of the newest tick."""
    unsupported: Sequence[str] = ()
    test_mode: str = ""
    """The test mode that is on."""
    test_mode_refused: str = ""
    """Why a test mode that is asked for is not on."""
    record_fault: str = ""
    """Why status.remediation cannot be understood; then nothing is acted upon."""


def compute(facts: Facts, now: str) -> dict[str, Any]:
    """The whole status; `now` (RFC 3339) becomes the time of what changed."""
    resource = facts.resource
    leader, term = leader_of(LOCK_GROUP, facts.diagnoses, facts.answers)
    roles = view_roles(resource, facts.observed, facts.answers, leader)
    verdicts = {
        "Ready": _ready(facts, roles),
        "Progressing": (progressing := _progressing(facts)),
        "Degraded": _degraded(facts, roles, moving=progressing.status == "True"),
        "MonitoringReady": _monitoring(facts),
    }
    forming = verdicts["Ready"].reason == "Forming"
    verdicts["ElectionStuck"] = _election_stuck(facts, forming)
    status: dict[str, Any] = {
        "observedGeneration": resource.generation,
        "conditions": _conditions(resource, verdicts, now),
        "leader": leader,
        "term": term or int(resource.status.get("term") or 0),
        "endpoints": _endpoints(facts),
        "remediation": _remediation(facts),
    }
    for role, view in roles.items():
        status[role] = view.to_status()
    status["queue"]["underReplicated"] = roles["queue"].under_replicated
    return status


def transitions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """An Event for each condition whose status or reason changed."""
    old = {each["type"]: each for each in before.get("conditions") or []}
    events = []
    for condition in after["conditions"]:
        kind, status, reason = condition["type"], condition["status"], condition["reason"]
        was = old.get(kind)
        if was and (was["status"], was["reason"]) == (status, reason):
            continue
        if was is None and status == GOOD[kind]:
            continue  # a new cluster that is not stuck and not degraded is no news
        warns = status != GOOD[kind] and kind != "Progressing"
        warns = warns and reason not in ("Forming", "Off", "Unseen")
        warns = warns or reason in ("NotSupported", "InvalidSpec")
        message = f"{kind} is {status}: {condition['message']}"
        events.append(Event("Warning" if warns else "Normal", reason, message))
    return events


def _conditions(
    resource: Resource, verdicts: Mapping[str, Verdict], now: str
) -> list[dict[str, Any]]:
    old = {each["type"]: each for each in resource.status.get("conditions") or []}
    made = []
    for kind in CONDITIONS:
        verdict, was = verdicts[kind], old.get(kind, {})
        same = was.get("status") == verdict.status
        made.append(
            {
                "type": kind,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message,
                "lastTransitionTime": was.get("lastTransitionTime", now) if same else now,
                "observedGeneration": resource.generation,
            }
        )
    return made


# --- Ready ---


def _ready(facts: Facts, roles: Mapping[str, RoleView]) -> Verdict:
    """Whether the data plane serves; a member more or less is Degraded's matter."""
    counts = ", ".join(f"{role} {view.ready}/{view.replicas}" for role, view in roles.items())
    problem = (
        _lock_problem(facts, roles["lock"])
        or _queue_problem(facts, roles["queue"])
        or _memory_problem(facts, roles["cache"])
    )
    if problem is None:
        return Verdict("True", "Serving", f"locks, queues and cache are served ({counts})")
    if not ever_ready(facts.resource):
        message = f"the cluster is being made: {problem.message} ({counts})"
        return Verdict("False", "Forming", message)
    return msgspec.structs.replace(problem, message=f"{problem.message} ({counts})")


def _lock_problem(facts: Facts, lock: RoleView) -> Verdict | None:
    quorum = lock.replicas // 2 + 1
    if lock.replicas == 0 or lock.ready < quorum:
        message = f"{quorum} lock nodes make a quorum"
        return Verdict("False", "LockQuorumLost", message)
    answering = sum(
        answer.body is not None
        for member, answer in facts.answers.items()
        if member.startswith("lock-")
    )
    if answering < quorum:
        return Verdict("Unknown", "NodesUnreachable", "the operator cannot ask the lock nodes")
    for diagnosis in facts.diagnoses:
        if diagnosis.state == "Healthy":
            continue
        if _is(facts.resource, "Ready", "True") and diagnosis.leaderless_ms < LEADERLESS_GRACE_MS:
            continue
        message = f"Raft group {diagnosis.group_id} of the lock nodes has no leader"
        return Verdict("False", "NoLeader", message)
    return None


def _queue_problem(facts: Facts, queue: RoleView) -> Verdict | None:
    spec = facts.resource.spec
    spare = (spec.queue.replication_factor - 1) // 2 if spec else 0
    if queue.replicas == 0 or queue.ready < queue.replicas - spare:
        message = f"partitions need {max(queue.replicas - spare, 1)} queue nodes"
        return Verdict("False", "QueueUnavailable", message)
    return None


def _memory_problem(facts: Facts, cache: RoleView) -> Verdict | None:
    if cache.ready == 0:
        return Verdict("False", "CacheUnavailable", "no cache node is ready")
    name = f"{facts.resource.name}-redis"
    if ("StatefulSet", name) in facts.observed.owned and not set_ready(facts.observed, name):
        return Verdict("False", "RedisUnavailable", "Redis, the cache's main memory, is not ready")
    return None


# --- Progressing ---


def _progressing(facts: Facts) -> Verdict:
    resource, outcome = facts.resource, facts.outcome
    if resource.fault:
        return Verdict("False", "InvalidSpec", f"nothing was changed: {resource.fault}")
    if resource.paused:
        return Verdict("False", "Paused", "spec.paused is true: nothing is changed")
    if facts.unsupported:
        return Verdict("False", "NotSupported", "; ".join(facts.unsupported))
    if outcome.waiting:
        return Verdict("True", "Waiting", _some(outcome.waiting))
    sets = _sets(facts)
    renewed = {a.name for a in outcome.done if a.kind == "StatefulSet" and a.verb != "prune"}
    moving = sorted(name for name in sets if name in renewed or rolling(facts.observed, name))
    if moving:
        return Verdict("True", "RollingOut", f"pods are being made or renewed: {_some(moving)}")
    unready = sorted(name for name in sets if not set_ready(facts.observed, name))
    if unready and _is(resource, "Progressing", "True", default=True):
        return Verdict("True", "RollingOut", f"waiting for ready pods: {_some(unready)}")
    return Verdict("False", "Settled", "everything is as declared")


def _sets(facts: Facts) -> list[str]:
    """The StatefulSets that the cluster has or should have."""
    wanted = {f"{facts.resource.name}-{role}" for role in ROLES}
    return sorted(wanted | {name for kind, name in facts.observed.owned if kind == "StatefulSet"})


# --- Degraded ---


def _degraded(facts: Facts, roles: Mapping[str, RoleView], *, moving: bool) -> Verdict:
    outcome = facts.outcome
    if facts.record_fault:
        return Verdict("True", "RemediationUnreadable", facts.record_fault)
    if outcome.refused:
        return Verdict("True", "ApplyRefused", _some(outcome.refused))
    if outcome.conflicts:
        held = _some([str(conflict) for conflict in outcome.conflicts])
        return Verdict("True", "FieldConflict", f"not fought over: {held}")
    if facts.test_mode:
        message = f"test mode {facts.test_mode} is on: elections are broken on purpose"
        return Verdict("True", "TestMode", message)
    if facts.test_mode_refused:
        message = f"annotation dss.io/test-mode ignored: {facts.test_mode_refused}"
        return Verdict("True", "TestModeRefused", message)
    if moving:
        return Verdict("False", "RollingOut", "members come and go as planned")
    missing = [member for view in roles.values() for member in view.missing]
    if missing and ever_ready(facts.resource):
        return Verdict("True", "MembersNotReady", f"not ready: {_some(missing)}")
    behind = [
        member["id"]
        for view in roles.values()
        for member in view.members
        if member["healthy"] and not member["caughtUp"]
    ]
    if behind:
        return Verdict("True", "MembersBehind", f"catching up: {_some(behind)}")
    return Verdict("False", "AsDeclared", "every member is ready and caught up")


# --- ElectionStuck ---


def _election_stuck(facts: Facts, forming: bool) -> Verdict:
    """The worst group's; the message of an unchanged reason stays, for it names durations."""
    if facts.resource.spec is None:
        return Verdict("Unknown", "InvalidSpec", "nobody looks while the resource is invalid")
    if facts.policy.mode == "Off":
        return Verdict("Unknown", "Off", "spec.remediation.mode is Off: nobody looks")
    if forming and not any(found.state == "ElectionStuck" for found in facts.diagnoses):
        return Verdict("Unknown", "Forming", "the cluster is being made")
    for state in ("ElectionStuck", "Uncertain", "Electing"):
        for found in facts.diagnoses:
            if found.state == state:
                status: State = "True" if state == "ElectionStuck" else "False"
                if state == "Uncertain":
                    status = "Unknown"
                message = f"group {found.group_id}: {found.message}"
                return _kept(facts.resource, Verdict(status, found.reason, message))
    if not facts.diagnoses:
        was = _was(facts.resource, "ElectionStuck")
        if was:  # an operator that has just started: the last one's word holds for a moment
            return Verdict(was["status"], was["reason"], was["message"])
        return Verdict("Unknown", "Unseen", "the lock nodes have not been asked yet")
    return Verdict("False", "HasLeader", "every Raft group of the lock nodes has a leader")


def _kept(resource: Resource, verdict: Verdict) -> Verdict:
    was = _was(resource, "ElectionStuck")
    if was and (was["status"], was["reason"]) == (verdict.status, verdict.reason):
        return msgspec.structs.replace(verdict, message=was["message"])
    return verdict


# --- MonitoringReady ---


def _monitoring(facts: Facts) -> Verdict:
    name, observed = facts.resource.name, facts.observed
    spec = facts.resource.spec
    if spec is not None and spec.monitoring.service_monitor and observed.missing_kinds:
        message = "the API server serves no ServiceMonitor: install the Prometheus Operator"
        return Verdict("False", "ServiceMonitorMissing", message)
    wanted = {
        "prometheus": spec is not None and spec.monitoring.prometheus.enabled,
        "grafana": spec is not None and spec.monitoring.grafana.enabled,
    }
    there = [
        part
        for part, asked in wanted.items()
        if asked or ("StatefulSet", f"{name}-{part}") in observed.owned
    ]
    if not there:
        return Verdict("True", "Disabled", "no monitoring is asked for")
    unready = [part for part in there if not set_ready(observed, f"{name}-{part}")]
    if unready:
        reason = "NotReady" if _ever_true(facts.resource, "MonitoringReady") else "Forming"
        return Verdict("False", reason, f"not ready: {', '.join(unready)}")
    return Verdict("True", "Serving", f"ready: {', '.join(there)}")


# --- the rest ---


def _endpoints(facts: Facts) -> dict[str, str]:
    name, namespace = facts.resource.name, facts.resource.namespace
    ports = dict.fromkeys(ROLES, HTTP_PORT)
    ports |= {"prometheus": PROMETHEUS_PORT, "grafana": GRAFANA_PORT}
    found = {
        part: f"http://{name}-{part}.{namespace}.svc:{port}"
        for part, port in ports.items()
        if ("Service", f"{name}-{part}") in facts.observed.owned
    }
    spec = facts.resource.spec
    if spec is not None and spec.ingress.enabled:
        scheme = "https" if spec.ingress.tls.secret_name else "http"
        found["ingress"] = f"{scheme}://{spec.ingress.host}"
    return found


def _remediation(facts: Facts) -> dict[str, Any]:
    if facts.record_fault:  # what is there is kept for a person to look at
        kept: dict[str, Any] = facts.resource.status.get("remediation") or {}
        return kept
    return {"mode": facts.policy.mode} | facts.record.to_status(facts.policy)


def _was(resource: Resource, kind: str) -> dict[str, Any] | None:
    for condition in resource.status.get("conditions") or []:
        if condition["type"] == kind:
            found: dict[str, Any] = condition
            return found
    return None


def _is(resource: Resource, kind: str, status: State, *, default: bool = False) -> bool:
    was = _was(resource, kind)
    return default if was is None else was["status"] == status


def ever_ready(resource: Resource) -> bool:
    """Whether it served before: then a missing member is a loss, not a beginning."""
    return _ever_true(resource, "Ready")


def _ever_true(resource: Resource, kind: str) -> bool:
    was = _was(resource, kind)
    return was is not None and was["reason"] != "Forming"


def _some(items: Sequence[str]) -> str:
    shown = "; ".join(items[:LISTED_MAX])
    more = len(items) - LISTED_MAX
    return shown + (f"; and {more} more" if more > 0 else "")
