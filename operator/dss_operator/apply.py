"""Carries a plan out: server-side apply without force first, conflicts told apart from drift.

A field that someone else changed is forced back once. Who takes it again within ten minutes means
it: that is reported and left alone until the ten minutes are over or the field is let go. (Asked
without force in each look: the API server's 409 changes nothing.) What must not live here: what is
to be done (plan.py), what people are told (status.py, events.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from dss_operator.compare import differences, removal_patch
from dss_operator.kube import ApiError, Kube
from dss_operator.observe import api_of
from dss_operator.plan import Action
from dss_operator.state import CLUSTER_LABEL, FIELD_MANAGER, Key, Object, owner_uid

CONFLICT_S: Final = 600.0
"""How long a manager that took a field back is left alone."""
_MANAGER: Final = re.compile(r'conflict with "([^"]+)"')


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """A field that another manager holds on to."""

    kind: str
    name: str
    manager: str
    field: str

    def __str__(self) -> str:
        return f"{self.manager} holds {self.field} of {self.kind} {self.name}"


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a plan."""

    done: list[Action] = msgspec.field(default_factory=list)
    conflicts: list[Conflict] = msgspec.field(default_factory=list)
    waiting: list[str] = msgspec.field(default_factory=list)
    """Why something could not be done yet."""
    refused: list[str] = msgspec.field(default_factory=list)
    """What the API server said no to, or what is in the way: a person has to look."""

    @property
    def unfinished(self) -> bool:
        """Whether another look right away may find more to do."""
        return bool(self.done or self.waiting)


class Grudges:
    """Which fields were forced back from whom, and when: the memory behind `CONFLICT_S`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._forced: dict[tuple[Key, str, str], float] = {}

    def forced(self, key: Key, conflicts: Iterable[Conflict]) -> None:
        for conflict in conflicts:
            self._forced[key, conflict.manager, conflict.field] = self._clock()

    def taken_again(self, key: Key, conflicts: Iterable[Conflict]) -> bool:
        """Whether one of these was forced back already within the time."""
        oldest = self._clock() - CONFLICT_S
        self._forced = {key: at for key, at in self._forced.items() if at > oldest}
        return any((key, each.manager, each.field) in self._forced for each in conflicts)


class Applier:
    """Carries out the plans of one cluster."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._grudges = Grudges(clock)

    async def carry_out(self, actions: Sequence[Action], namespace: str, uid: str) -> Outcome:
        """Every action; a refusal of one does not hold up the others. Raises ApiError when the
        API server cannot be reached, NotHolder when the Lease is lost."""
        outcome = Outcome()
        for action in actions:
            try:
                await self._carry_out(action, namespace, uid, outcome)
            except ApiError as error:
                if error.transient:
                    raise
                if error.namespace_ends:
                    outcome.waiting.append("the namespace is being deleted")
                    return outcome
                outcome.refused.append(f"{action.kind} {action.name}: {error.message}")
        return outcome

    async def _carry_out(self, action: Action, namespace: str, uid: str, outcome: Outcome) -> None:
        api, name = api_of(action.kind), action.name
        if action.verb == "wait":
            outcome.waiting.append(f"{action.kind} {name}: {action.why}")
        elif action.verb == "create":
            await self._create(action, namespace, uid, outcome)
        elif action.verb == "apply":
            await self._apply(action, outcome)
        elif action.verb == "strip":
            await self._strip(action, outcome)
        else:
            # A StatefulSet leaves its pods to its successor: nothing stops serving.
            orphan = action.verb == "recreate" and action.kind == "StatefulSet"
            propagation = "Orphan" if orphan else "Background"
            await self._kube.delete(api, namespace, name, uid=action.uid, propagation=propagation)
            outcome.done.append(action)

    async def _create(self, action: Action, namespace: str, uid: str, outcome: Outcome) -> None:
        """Unless there is an object of this name that is not ours: server-side apply would take
        it over. (It may also be ours with its label gone: then apply puts that back.)"""
        api = api_of(action.kind)
        if action.kind == "Secret":
            there = await self._kube.get(api, namespace, action.name)
        else:
            found = await self._kube.list(api, namespace, name=action.name)
            there = found[0] if found else None
        if there is not None:
            problem = in_the_way(there, uid)
            if problem and owner_uid(there):
                outcome.waiting.append(f"{action.kind} {action.name}: {problem}")
                return
            if problem:
                outcome.refused.append(f"{action.kind} {action.name}: {problem}")
                return
        await self._apply(action, outcome)

    async def _strip(self, action: Action, outcome: Outcome) -> None:
        """Applying takes away what the operator itself had declared before; what others added
        takes a merge patch."""
        live = await self._apply(action, outcome)
        extras = [each for each in differences(action.obj, live or action.obj) if each.extra]
        if live is None or not extras:
            return
        patch = removal_patch(action.obj, extras)
        version = {"resourceVersion": live["metadata"]["resourceVersion"]}
        patch["metadata"] = patch.get("metadata", {}) | version
        try:
            namespace = live["metadata"]["namespace"]
            await self._kube.merge(api_of(action.kind), namespace, action.name, patch)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:  # changed since it was read: next look
                raise

    async def _apply(self, action: Action, outcome: Outcome) -> Object | None:
        """The live object then; None: others hold on to a field."""
        api, key = api_of(action.kind), (action.kind, action.name)
        try:
            live = await self._kube.apply(api, action.obj)
        except ApiError as error:
            conflicts = _conflicts(error, key)
            if not conflicts:
                raise
            others = [each for each in conflicts if each.manager != FIELD_MANAGER]
            if self._grudges.taken_again(key, others):
                outcome.conflicts.extend(others)
                return None
            self._grudges.forced(key, others)
            live = await self._kube.apply(api, action.obj, force=True)
        outcome.done.append(action)
        return live


def in_the_way(there: Object, uid: str) -> str:
    """Why an object found by name is not the cluster's own to change; empty: it is."""
    owner = owner_uid(there)
    if owner == uid:
        return ""
    labels = there["metadata"].get("labels") or {}
    if owner and CLUSTER_LABEL in labels:
        return "the last cluster of this name is still being removed"
    return "an object of this name exists and is not this cluster's: rename or delete it"


def _conflicts(error: ApiError, key: Key) -> list[Conflict]:
    """The fields that other managers own, out of a 409; empty: another kind of 409."""
    if error.status != HTTPStatus.CONFLICT:
        return []
    found = []
    for cause in error.causes:
        match = _MANAGER.search(cause.get("message", ""))
        if match:
            kind, name = key
            field = cause.get("field", "").removeprefix(".")
            found.append(Conflict(kind=kind, name=name, manager=match.group(1), field=field))
    return found
