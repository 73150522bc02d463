"""Carries a plan out: server-side apply without force first, conflicts told apart from drift.

A field that someone else changed is forced back once, and what someone added is taken away once.
Who does the same again within ten minutes means it: that is reported and left alone for as long as
it is held. (Asked without force in each look: the API server's 409 changes nothing, and the look in
which the field is let go succeeds.) What comes back from an apply is compared again: a webhook that
rewrites it is reported, not fought. What must not live here: what is to be done (plan.py), what
people are told (status.py, events.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from dss_operator.compare import Difference, differences, removal_patch
from dss_operator.kube import ApiError, Kube
from dss_operator.observe import api_of
from dss_operator.plan import Action
from dss_operator.state import CLUSTER_LABEL, FIELD_MANAGER, Key, Object, owner_uid

CONFLICT_S: Final = 600.0
"""Who does again within this time what was undone is left alone."""
SOMEONE: Final = "another manager"
"""Who added to an object: the API does not say it as plainly as for a conflict."""
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

    def concerns(self, kind: str, name: str) -> bool:
        """Whether something was done to this object, or has to wait for it."""
        waits = any(why.startswith(f"{kind} {name}: ") for why in self.waiting)
        return waits or any((each.kind, each.name) == (kind, name) for each in self.done)

    @property
    def unfinished(self) -> bool:
        """Whether another look right away may find more to do."""
        return bool(self.done or self.waiting)


class Grudges:
    """What was taken back from whom, and when last: the memory behind `CONFLICT_S`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: dict[tuple[Key, str, str], float] = {}

    def note(self, key: Key, conflicts: Iterable[Conflict]) -> None:
        """Now: taken back, or found held again; the time begins anew."""
        for conflict in conflicts:
            self._at[key, conflict.manager, conflict.field] = self._clock()

    def again(self, key: Key, conflicts: Iterable[Conflict]) -> bool:
        """Whether one of these was noted within the time."""
        oldest = self._clock() - CONFLICT_S
        self._at = {noted: at for noted, at in self._at.items() if at > oldest}
        return any((key, each.manager, each.field) in self._at for each in conflicts)


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
        takes a merge patch, once."""
        key = (action.kind, action.name)
        added = [
            Conflict(kind=action.kind, name=action.name, manager=SOMEONE, field=field)
            for field in action.extras
        ]
        if self._grudges.again(key, added):
            self._grudges.note(key, added)
            outcome.conflicts.extend(added)
            return
        live = await self._apply(action, outcome, told=False)
        if live is None:
            return
        extras = [each for each in differences(action.obj, live) if each.extra]
        if extras:
            self._grudges.note(key, added)
            live = await self._take_away(action, live, extras)
        self._note_done(action, live, outcome)

    async def _take_away(
        self, action: Action, live: Object, extras: Sequence[Difference]
    ) -> Object | None:
        """The live object then; None: it was changed meanwhile, the next look sees to it."""
        patch = removal_patch(action.obj, extras)
        version = {"resourceVersion": live["metadata"]["resourceVersion"]}
        patch["metadata"] = patch.get("metadata", {}) | version
        namespace = live["metadata"]["namespace"]
        try:
            return await self._kube.merge(api_of(action.kind), namespace, action.name, patch)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return None

    async def _apply(self, action: Action, outcome: Outcome, *, told: bool = True) -> Object | None:
        """The live object then; None: others hold on to a field."""
        api, key = api_of(action.kind), (action.kind, action.name)
        try:
            live = await self._kube.apply(api, action.obj)
        except ApiError as error:
            conflicts = _conflicts(error, key)
            if not conflicts:
                raise
            others = [each for each in conflicts if each.manager != FIELD_MANAGER]
            held = self._grudges.again(key, others)
            self._grudges.note(key, others)
            if held:
                outcome.conflicts.extend(others)
                return None
            live = await self._kube.apply(api, action.obj, force=True)
        if told:
            self._note_done(action, live, outcome)
        return live

    def _note_done(self, action: Action, live: Object | None, outcome: Outcome) -> None:
        """Done, unless what came back is not what was sent: then doing it again is no cure. (Items
        that others added are the next look's matter.)"""
        left = differences(action.obj, live) if live is not None else []
        changed = [str(each) for each in left if action.verb == "strip" or not each.extra]
        if changed:
            fields = ", ".join(changed[:5])
            outcome.refused.append(
                f"{action.kind} {action.name}: an admission webhook or the API server changes "
                f"{fields} of what is applied"
            )
        else:
            outcome.done.append(action)


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
