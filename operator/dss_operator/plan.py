"""From what is wanted and what is there to what is to be done. Pure and level-based: the same pair
always gives the same actions, and none when nothing differs.

What must not live here: I/O, how objects look (dss.topology.kube), what a difference is
(compare.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from dss_operator.compare import Difference, differences, listed
from dss_operator.founding import Founding, founding_of_set, keep_founding, with_note
from dss_operator.state import Object, Observed, key_of, owner_uid

Verb = Literal["create", "apply", "strip", "recreate", "prune", "wait"]

DIGEST_CHARS: Final = 16

DECLARED: Final = "dss.io/declared"
"""On every object but Secrets: a digest of what was declared. A field that is declared no longer is
missing from the declaration alone, so comparing would not see it; the digest differs, and
server-side apply takes the field away."""

SETTLED_FIELDS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "StatefulSet": (
        ("spec", "selector"), ("spec", "serviceName"), ("spec", "podManagementPolicy"),
        ("spec", "volumeClaimTemplates"),
    ),
    "Service": (("spec", "clusterIP"),),
    "Secret": (("type",),),
}  # fmt: skip
"""What the API server never changes in a live object: it has to be made anew."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One write, or the reason why one has to wait."""

    verb: Verb
    kind: str
    name: str
    obj: Object = {}
    """What to apply (create, apply), and what must be left alone afterwards (strip)."""
    uid: str = ""
    """Of the live object, for recreate and prune."""
    why: str = ""
    """The fields that differ, or what is waited for."""
    extras: tuple[str, ...] = ()
    """Of strip: what others added."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The objects that a resource asks for, as far as it may be followed."""

    objects: tuple[Object, ...]
    unsupported: tuple[str, ...] = ()
    """What was asked for and is left as it is: a sentence each, with what to put back."""


def settle(rendered: Iterable[Object], observed: Observed) -> Wanted:
    """The rendered objects with what StatefulSets were founded with, noted on them and on the peer
    lists; Secrets in the form in which the API keeps them; a digest on all others."""
    refused: list[str] = []
    objects = []
    foundings: dict[str, Founding] = {}
    for obj in rendered:
        if obj["kind"] == "StatefulSet":
            obj = keep_founding(obj, observed, refused)
            foundings[obj["metadata"]["name"]] = founding_of_set(obj)
        objects.append(obj)
    finished = [
        encoded_secret(obj) if obj["kind"] == "Secret" else _signed(with_note(obj, foundings))
        for obj in objects
    ]
    return Wanted(objects=tuple(finished), unsupported=tuple(dict.fromkeys(refused)))


def _signed(obj: Object) -> Object:
    """A copy with its digest."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]
    notes = (obj["metadata"].get("annotations") or {}) | {DECLARED: digest}
    return obj | {"metadata": obj["metadata"] | {"annotations": notes}}


def encoded_secret(obj: Object) -> Object:
    """With `data` alone: `stringData` is never in a live object, so it cannot be compared."""
    data = dict(obj.get("data") or {})
    for key, text in (obj.get("stringData") or {}).items():
        data[key] = base64.b64encode(text.encode()).decode()
    return {key: value for key, value in obj.items() if key != "stringData"} | {"data": data}


def decoded_secret(obj: Object) -> dict[str, str]:
    """The values of a live Secret; what is no text is left out (the operator makes only text)."""
    values = {}
    for key, text in (obj.get("data") or {}).items():
        try:
            values[key] = base64.b64decode(text, validate=True).decode()
        except ValueError:
            continue
    return values


def mounted_secrets(observed: Observed) -> set[str]:
    """The Secrets that live StatefulSets mount."""
    found = set()
    for (kind, _), live in observed.owned.items():
        if kind == "StatefulSet":
            for volume in live["spec"]["template"]["spec"].get("volumes") or []:
                found.add((volume.get("secret") or {}).get("secretName", ""))
    return found - {""}


def plan(wanted: Sequence[Object], observed: Observed, uid: str) -> list[Action]:
    """Actions in the order of `wanted`, then prunes. `uid` is the DSSCluster's."""
    actions = []
    for obj in wanted:
        action = _plan_object(obj, observed, uid)
        if action is not None:
            actions.append(action)
    kept = {key_of(obj) for obj in wanted}
    for key in sorted(observed.owned.keys() - kept):
        live = observed.owned[key]
        if owner_uid(live) == uid and not _ending(live):
            kind, name = key
            actions.append(Action(verb="prune", kind=kind, name=name, uid=live["metadata"]["uid"]))
    return actions


def _plan_object(obj: Object, observed: Observed, uid: str) -> Action | None:
    kind, name = key = key_of(obj)
    live = observed.owned.get(key)
    if kind in observed.missing_kinds:
        return None  # nothing can be done; the status tells
    if live is None:
        return Action(verb="create", kind=kind, name=name, obj=obj)
    if owner_uid(live) not in ("", uid):
        why = "the last cluster of this name is still being removed"
        return Action(verb="wait", kind=kind, name=name, why=why)
    if _ending(live):
        return Action(verb="wait", kind=kind, name=name, why="it is being deleted")
    found = differences(obj, live)
    if not found:
        return None
    settled = [difference for difference in found if _needs_a_new_one(kind, difference, live)]
    if settled:
        why = _fields(settled)
        return Action(verb="recreate", kind=kind, name=name, uid=live["metadata"]["uid"], why=why)
    missing = [difference for difference in found if not difference.extra]
    if missing:
        return Action(verb="apply", kind=kind, name=name, obj=obj, why=_fields(missing))
    extras = tuple(str(difference) for difference in found)
    return Action(verb="strip", kind=kind, name=name, obj=obj, why=_fields(found), extras=extras)


def _ending(live: Object) -> bool:
    return bool(live["metadata"].get("deletionTimestamp"))


def _needs_a_new_one(kind: str, difference: Difference, live: Object) -> bool:
    if live.get("immutable") and difference.path[0] in ("data", "binaryData", "immutable"):
        return True
    settled = SETTLED_FIELDS.get(kind, ())
    return any(difference.path[: len(field)] == field for field in settled)


def _fields(found: Sequence[Difference]) -> str:
    """At most five, for Events and logs."""
    named = [each for each in found if each.path[-1] != DECLARED]
    return listed(named) if named else "fields that are declared no longer"
