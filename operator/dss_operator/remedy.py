"""Carries out what dss.remediation decides about one cluster's elections.

What is about to be done is stored in the resource's status before it is done, and what came of it
after: an operator that is killed in between finds the row and never does the same again. What must
not live here: the rules (dss.remediation), the writing of a status (cluster.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from dss.remediation import (
    Action,
    Diagnosis,
    Policy,
    Record,
    SampleWindow,
    decide,
    diagnose,
    parse_status,
    unanswered,
)
from dss.topology.model import DSSCluster
from dss_operator.events import Event, EventType
from dss_operator.kube import PODS, ApiError, Kube
from dss_operator.members import pod_ready
from dss_operator.sampling import Answered, NodeError, Nodes
from dss_operator.state import Object

log = logging.getLogger(__name__)

REASONS: Final[Mapping[str, str]] = {
    "backoff": "RemediationBackoff",
    "restart": "RemediationRestart",
    "alert": "RemediationAlert",
    "recovered": "RemediationRecovered",
}
SAMPLES_PER_WINDOW: Final = 6
"""Twice what a diagnosis wants at least."""
RESTARTED_BETWEEN: Final = "unknown: the operator was restarted while it acted"


def policy_of(spec: DSSCluster | None) -> Policy:
    """`spec.remediation`; of an impossible resource: hands off."""
    if spec is None:
        return Policy(mode="Off")
    given = spec.remediation
    return Policy(
        mode=given.mode,
        window_ms=given.window_seconds * 1_000,
        cooldown_ms=given.cooldown_seconds * 1_000,
        max_per_hour=given.max_per_hour,
    )


def sample_every_s(policy: Policy, longest_s: float) -> float:
    """Between two rounds of questions: a window must hold its samples with room for a late one."""
    return min(longest_s, policy.window_ms / 1_000 / SAMPLES_PER_WINDOW)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where an action goes."""

    namespace: str
    pod: str
    pod_uid: str
    address: str
    token: str


class Remedy:
    """The watch over one cluster's elections.

    Args:
        cluster: its name, for the log.
        store: writes a record into the resource's status; must have returned before anything is
            done.
        tell: sends Events.
        count: told of every decision that is not `none`, (action, reason).
    """

    def __init__(
        self,
        kube: Kube,
        nodes: Nodes,
        cluster: str,
        *,
        store: Callable[[Record], Awaitable[None]],
        tell: Callable[[list[Event]], Awaitable[None]],
        count: Callable[[str, str], None],
    ) -> None:
        self._kube = kube
        self._nodes = nodes
        self._cluster = cluster
        self._store = store
        self._tell = tell
        self._count = count
        self._window = SampleWindow(Policy().window_ms)
        self._idle = ""
        self.record = Record()
        self.fault = ""
        self.diagnoses: list[Diagnosis] = []

    def load(self, status: Mapping[str, Any], *, keep: bool = False) -> None:
        """The record that an earlier process, or another one meanwhile, left.

        Args:
            keep: rows that this process knows are not forgotten for it.
        """
        try:
            found = Record.from_status(status.get("remediation"))
            self.record = found.merged(self.record) if keep else found
            self.fault = ""
        except ValueError as error:
            self.fault = str(error)
            return
        self.record = self.record.ended(RESTARTED_BETWEEN)

    def observe(
        self,
        answers: Mapping[str, Answered],
        policy: Policy,
        now_ms: int,
        volatile: frozenset[str],
    ) -> list[Diagnosis]:
        """Takes one round of answers in; the diagnosis of each group."""
        members = sorted(answers)
        if self._window.window_ms != policy.window_ms:
            self._window = SampleWindow(policy.window_ms)
        self._window.keep(members)
        for member, answer in answers.items():
            if answer.body is None:
                self._window.add(unanswered(member, answer.at_ms, answer.reason))
            else:
                self._window.add(parse_status(member, answer.body, answer.at_ms))
        samples = self._window.samples()
        self.diagnoses = diagnose(samples, members, policy, now_ms, volatile=volatile)
        return self.diagnoses

    async def act(
        self,
        policy: Policy,
        busy: str,
        now: float,
        target: Callable[[str], Target | None],
    ) -> Action:
        """Decides and carries out at most one action.

        Args:
            busy: why nothing may be done now; "" when free.
            now: unix seconds.
            target: member -> where to reach it, None: nowhere.
        """
        if self.fault:
            return Action(kind="none", reason="Unreadable", message=self.fault)
        if not self.diagnoses:
            return Action(kind="none", reason="Unseen", message="no member was asked yet")
        action = decide(self.diagnoses, policy, self.record.history, busy, now)
        if action.kind == "none":
            self._note_idle(action)
            return action
        touches = action.kind in ("backoff", "restart") and not action.dry_run
        reached = target(action.member) if touches else None
        if touches and reached is None:
            return Action(kind="none", reason="Unreachable", message=f"{action.member} is away")
        before, self.record = self.record, self.record.begin(action, now)
        try:
            await self._store(self.record)
        except Exception:
            self.record = before  # nothing was done: the rung is still to be taken
            raise
        self._count(action.kind, action.reason)
        await self._tell([_event(action)])
        if reached is not None:
            outcome = await self._carry_out(action, reached)
            self.record = self.record.ended(outcome)
            await self._store(self.record)
            if outcome != "done":
                reason = REASONS[action.kind] + "Failed"
                await self._tell([Event("Warning", reason, f"{action.member}: {outcome}")])
        return action

    def _note_idle(self, action: Action) -> None:
        """Why nothing is done, once for each reason, for the log and the metric."""
        if action.reason != self._idle:
            self._idle = action.reason
            self._count("none", action.reason)
            log.info("%s: nothing to do: %s: %s", self._cluster, action.reason, action.message)

    async def _carry_out(self, action: Action, target: Target) -> str:
        """What came of it: `done`, or why not."""
        if action.kind == "backoff":
            return await self._back_off(action, target)
        try:
            return await self._restart(target)
        except ApiError as error:
            return f"not restarted: {error}"

    async def _back_off(self, action: Action, target: Target) -> str:
        body = {"group_id": action.group_id, "boot_id": action.boot_id}
        try:
            await self._nodes.post(target.address, "/v1/raft/backoff", target.token, body)
        except NodeError as error:
            return f"no backoff: {error}"
        return "done"

    async def _restart(self, target: Target) -> str:
        """Eviction within the disruption budget; the pod is read first, for an eviction that names
        another UID is refused but still burns the budget. An unready pod is deleted: it is not
        serving, and the budget would protect it from its cure."""
        pod = await self._kube.get(PODS, target.namespace, target.pod)
        problem = _not_the_one(pod, target)
        if problem or pod is None:
            return problem
        if pod_ready(pod):
            await self._kube.evict(target.namespace, target.pod, target.pod_uid)
        else:
            gone = await self._kube.delete(PODS, target.namespace, target.pod, uid=target.pod_uid)
            if not gone:
                return "not restarted: the pod was replaced meanwhile"
        return "done"


def _not_the_one(pod: Object | None, target: Target) -> str:
    if pod is None:
        return "not restarted: the pod is gone"
    if pod["metadata"]["uid"] != target.pod_uid:
        return "not restarted: the pod was replaced meanwhile"
    if pod["metadata"].get("deletionTimestamp"):
        return "not restarted: the pod is ending already"
    return ""


def _event(action: Action) -> Event:
    withheld = "dry run, nothing was done: " if action.dry_run else ""
    kind: EventType = "Normal" if action.kind == "recovered" else "Warning"
    return Event(kind, REASONS[action.kind], f"{withheld}{action.message}")
