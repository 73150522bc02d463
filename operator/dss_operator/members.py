"""What is known of a cluster's members: pods and what they say of themselves. Pure.

What must not live here: conditions (status.py), split votes (dss.remediation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from dss.base.ids import LOCK_GROUP
from dss.remediation import Diagnosis
from dss.topology.model import ROLES
from dss_operator.sampling import Answered, member_of
from dss_operator.state import CLUSTER_LABEL, Object, Observed, Resource, owner_uid

LAG_MAX: Final = 1_000
"""Log entries that a member may be behind the highest commit index and still count as caught up:
members are asked one after another while the log grows."""


class RoleView(msgspec.Struct, frozen=True, kw_only=True):
    """One role's members."""

    replicas: int
    members: tuple[dict[str, Any], ...]
    """As in status: id, pod, role, healthy, caughtUp."""
    under_replicated: int = 0
    """Raft groups with fewer caught-up members than voters."""

    @property
    def ready(self) -> int:
        return sum(member["healthy"] for member in self.members)

    @property
    def missing(self) -> list[str]:
        return [member["id"] for member in self.members if not member["healthy"]]

    def to_status(self) -> dict[str, Any]:
        return {
            "ready": f"{self.ready}/{self.replicas}",
            "replicas": self.replicas,
            "readyReplicas": self.ready,
            "members": list(self.members),
        }


def slim(observed: Observed) -> Observed:
    """What is needed between two ticks: of fifty clusters the rest would be fifty megabytes."""
    pods = {
        name: {
            "metadata": pod["metadata"],
            "spec": {"volumes": pod["spec"].get("volumes")},
            "status": {key: (pod.get("status") or {}).get(key) for key in ("podIP", "conditions")},
        }
        for name, pod in observed.pods.items()
    }
    owned = {}
    for key, obj in observed.owned.items():
        meta = obj["metadata"]
        owned[key] = {"metadata": {"uid": meta["uid"], "generation": meta.get("generation", 0)}}
        if key[0] == "StatefulSet":
            owned[key]["spec"] = {"replicas": obj["spec"].get("replicas", 1)}
            owned[key]["status"] = obj.get("status") or {}
    return Observed(owned=owned, pods=pods, missing_kinds=observed.missing_kinds)


def pods_by_member(observed: Observed) -> dict[str, Object]:
    """member id -> its pod: of the right name, and made by the StatefulSet that is there. Whoever
    only carries the labels gets no token and is never evicted."""
    found = {}
    for name, pod in observed.pods.items():
        role, member = member_of(pod)
        cluster = (pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL, "")
        live = observed.owned.get(("StatefulSet", f"{cluster}-{role}"))
        if not member or live is None or name != f"{cluster}-{member}":
            continue
        if owner_uid(pod) == live["metadata"]["uid"]:
            found[member] = pod
    return found


def pod_ready(pod: Object | None) -> bool:
    if pod is None or pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def replicas_of(observed: Observed, name: str) -> int:
    """What the live StatefulSet says; 0 when there is none."""
    live = observed.owned.get(("StatefulSet", name))
    return int(live["spec"].get("replicas", 1)) if live else 0


def set_ready(observed: Observed, name: str) -> bool:
    live = observed.owned.get(("StatefulSet", name))
    if live is None:
        return False
    ready = int((live.get("status") or {}).get("readyReplicas") or 0)
    return ready >= int(live["spec"].get("replicas", 1))


def rolling(observed: Observed, name: str) -> bool:
    """Whether its controller makes or renews a StatefulSet; a lost pod is no rollout."""
    live = observed.owned.get(("StatefulSet", name))
    if live is None:
        return True
    status = live.get("status") or {}
    return bool(
        status.get("observedGeneration", 0) < live["metadata"].get("generation", 0)
        or status.get("currentRevision") != status.get("updateRevision")
    )


def volatile_members(observed: Observed) -> frozenset[str]:
    """Lock members whose data is not on a PersistentVolumeClaim: never acted upon."""
    found = set()
    for member, pod in pods_by_member(observed).items():
        volumes = pod["spec"].get("volumes") or []
        if not any(v.get("name") == "data" and v.get("persistentVolumeClaim") for v in volumes):
            found.add(member)
    return frozenset(found)


def view_roles(
    resource: Resource,
    observed: Observed,
    answers: Mapping[str, Answered],
    leader: str,
) -> dict[str, RoleView]:
    """Every role's view; `leader` is the lock group's, empty when there is none."""
    cluster = resource.name
    pods = pods_by_member(observed)
    views = {}
    for role in ROLES:
        replicas = replicas_of(observed, f"{cluster}-{role}")
        if not replicas and resource.spec is not None:
            replicas = resource.spec.replicas(role)
        ids = [f"{role}-{ordinal}" for ordinal in range(1, replicas + 1)]
        lags, under = _replication(ids, answers)
        members = tuple(
            {
                "id": member,
                "pod": f"{cluster}-{member}",
                "role": _raft_role(member, answers.get(member), leader) if role == "lock" else role,
                "healthy": pod_ready(pods.get(member)),
                "caughtUp": pod_ready(pods.get(member)) and lags.get(member, 0) <= LAG_MAX,
            }
            for member in ids
        )
        views[role] = RoleView(replicas=replicas, members=members, under_replicated=under)
    return views


def leader_of(
    group_id: int, diagnoses: Sequence[Diagnosis], answers: Mapping[str, Answered]
) -> tuple[str, int]:
    """(leader, term) of a lock nodes' group that a quorum follows; ("", 0) when there is none."""
    if not any(d.group_id == group_id and d.state == "Healthy" for d in diagnoses):
        return "", 0
    found = ("", 0)
    for member, answer in answers.items():
        for group in groups_of(answer) if member.startswith("lock-") else []:
            leads = group.get("group_id") == group_id and group.get("role") == "leader"
            if leads and group.get("term", 0) > found[1]:
                found = (member, int(group["term"]))
    return found


def groups_of(answer: Answered | None) -> list[dict[str, Any]]:
    if answer is None or answer.body is None:
        return []
    groups = answer.body.get("groups")
    return [group for group in groups if isinstance(group, dict)] if groups else []


def _raft_role(member: str, answer: Answered | None, leader: str) -> str:
    """Stable words: who stands for election changes too often for a status."""
    for group in groups_of(answer):
        if group.get("group_id") == LOCK_GROUP and group.get("role") == "learner":
            return "learner"
    if member == leader:
        return "leader"
    return "follower" if leader else "voter"


def _replication(ids: Sequence[str], answers: Mapping[str, Answered]) -> tuple[dict[str, int], int]:
    """(member -> how far its furthest-behind group lags, groups with too few copies)."""
    committed: dict[int, int] = {}
    voters: dict[int, set[str]] = {}
    for member in ids:
        for group in groups_of(answers.get(member)):
            at = int(group.get("group_id", -1))
            committed[at] = max(committed.get(at, 0), int(group.get("commit_index") or 0))
            voters.setdefault(at, set()).update(group.get("voters") or [])
    lags: dict[str, int] = {}
    good: dict[int, int] = {}
    for member in ids:
        for group in groups_of(answers.get(member)):
            at = int(group.get("group_id", -1))
            lag = committed[at] - int(group.get("applied_index") or 0)
            lags[member] = max(lags.get(member, 0), lag)
            if lag <= LAG_MAX and member in voters[at]:
                good[at] = good.get(at, 0) + 1
    under = sum(good.get(at, 0) < len(named) for at, named in voters.items())
    return lags, under
