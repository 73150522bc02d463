"""What the operator reports: the schema of `status` and the columns of `kubectl get dss`.

What must not live here: what the operator makes of what it sees (dss_operator.status).
"""

from __future__ import annotations

from typing import Final

from dss.topology.crd_schema import Schema

CONDITIONS: Final = ("Ready", "Progressing", "Degraded", "ElectionStuck", "MonitoringReady")


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def _count(description: str) -> Schema:
    return {"type": "integer", "format": "int64", "minimum": 0, "description": description}


def _condition() -> Schema:
    return {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": _text(f"One of {', '.join(CONDITIONS)}."),
            "status": _text("Whether it holds.") | {"enum": ["True", "False", "Unknown"]},
            "reason": _text("A word for programs."),
            "message": _text("A sentence for people."),
            "lastTransitionTime": _time("When the status changed."),
            "observedGeneration": _count("Of the spec that was looked at."),
        },
    }


def _member() -> Schema:
    return {
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": _text("The node's id, like lock-1."),
            "pod": _text("Its pod."),
            "role": _text("leader, follower, candidate, …; empty when it does not answer."),
            "healthy": {"type": "boolean", "description": "Its pod is ready."},
            "caughtUp": {
                "type": "boolean",
                "description": "It has applied what its leader had committed.",
            },
            "message": _text("Why it is not healthy."),
        },
    }


def _role(name: str) -> Schema:
    schema: Schema = {
        "type": "object",
        "description": f"The {name} nodes.",
        "properties": {
            "ready": _text("Ready of wanted, like 3/3."),
            "replicas": _count("How many there should be."),
            "readyReplicas": _count("How many are ready."),
            "members": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["id"],
                "items": _member(),
            },
        },
    }
    if name == "queue":
        missing = "Partitions with fewer live copies than they should have."
        schema["properties"]["underReplicated"] = _count(missing)
    return schema


def _remediation() -> Schema:
    row = {
        "at": _time("When it was decided."),
        "groupId": _count("The Raft group."),
        "action": _text("backoff, restart or alert."),
        "member": _text("Whom it was done to."),
        "term": _count("The term in which it was decided."),
        "outcome": _text("done, dry-run, or why it could not be carried out."),
        "recoveredAt": _time("When the group had a leader again."),
    }
    counters = ("attempts", "backoffs", "restarts", "alerts", "recoveries")
    return {
        "type": "object",
        "description": "What was done about stuck elections; an operator that restarts reads it.",
        # Counters that a later operator adds must not be lost on an older definition.
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {
            **{name: _count("Since the cluster was made.") for name in counters},
            "lastActionAt": _time("When it last acted."),
            "cooldownUntil": _time("It does not act again before."),
            "history": {
                "type": "array",
                "maxItems": 10,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": True,
                    "properties": row,
                },
            },
        },
    }


def status_schema() -> Schema:
    return {
        "type": "object",
        "description": "What the operator sees; written by it alone.",
        "properties": {
            "observedGeneration": _count("The generation of the spec that was last carried out."),
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": _condition(),
            },
            "leader": _text("The lock nodes' leader."),
            "term": _count("Its term."),
            "lock": _role("lock"),
            "queue": _role("queue"),
            "cache": _role("cache"),
            "endpoints": {
                "type": "object",
                "description": "Where clients find each service.",
                "additionalProperties": {"type": "string"},
            },
            "remediation": _remediation(),
        },
    }


def printer_columns() -> list[Schema]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        {"name": "Ready", "type": "string", "jsonPath": f"{ready}.status"},
        {"name": "Leader", "type": "string", "jsonPath": ".status.leader"},
        {"name": "Term", "type": "integer", "jsonPath": ".status.term"},
        {"name": "Locks", "type": "string", "jsonPath": ".status.lock.ready"},
        {"name": "Queues", "type": "string", "jsonPath": ".status.queue.ready"},
        {"name": "Caches", "type": "string", "jsonPath": ".status.cache.ready"},
        {"name": "Reason", "type": "string", "jsonPath": f"{ready}.reason", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
