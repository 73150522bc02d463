"""What a cluster was founded with: images and replica counts, which cannot change yet. Pure.

A changed `spec.image` must be refused, an edited StatefulSet put back: from the live object alone
the two cannot be told apart. So the founding is noted on each StatefulSet, and all of them together
on the ConfigMap of the peer lists, which outlives a StatefulSet that somebody deletes. What must
not live here: any other rule (plan.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from dss.topology.model import ROLES, DSSCluster
from dss_operator.compare import differences, listed
from dss_operator.state import Object, Observed

FOUNDED_IMAGES: Final = "dss.io/founded-images"
"""On a StatefulSet: `container=image,…`."""
FOUNDED_REPLICAS: Final = "dss.io/founded-replicas"
"""On a StatefulSet."""
FOUNDED: Final = "dss.io/founded"
"""On the ConfigMap of the peer lists: StatefulSet -> its founding, as JSON."""
_PEERS: Final = "-peers"


class Founding(msgspec.Struct, frozen=True):
    """Of one StatefulSet."""

    replicas: int
    images: dict[str, str]
    """Container -> image."""


def supported(spec: DSSCluster, observed: Observed, cluster: str) -> tuple[DSSCluster, list[str]]:
    """The spec with the replica counts that the cluster was founded with, and what that left
    out."""
    refused = []
    for role in ROLES:
        founding = _founding(observed, f"{cluster}-{role}")
        asked = spec.replicas(role)
        if founding is not None and asked != founding.replicas:
            kept = founding.replicas
            refused.append(
                f"spec.{role}.replicas: changing {kept} to {asked} is not supported yet; "
                f"put {kept} back"
            )
            part = msgspec.structs.replace(getattr(spec, role), replicas=kept)
            spec = msgspec.structs.replace(spec, **{role: part})
    return spec, refused


def keep_founding(rendered: Object, observed: Observed, refused: list[str]) -> Object:
    """A copy of a rendered StatefulSet with its marks, and with what must stay as it was."""
    obj: Object = msgspec.json.decode(msgspec.json.encode(rendered))
    name = obj["metadata"]["name"]
    founding = _founding(observed, name)
    for container in _containers(obj):
        asked = container["image"]
        image = founding.images.get(container["name"], asked) if founding else asked
        if image != asked:
            refused.append(
                f"image of {name}: changing {image} to {asked} is not supported yet; put {image} "
                "back"
            )
            container["image"] = image
    live = observed.owned.get(("StatefulSet", name))
    if live is not None:
        _keep_claims(obj, live, refused)
    made = founding_of_set(obj)
    marks = obj["metadata"].setdefault("annotations", {})
    marks[FOUNDED_IMAGES] = ",".join(f"{key}={image}" for key, image in made.images.items())
    marks[FOUNDED_REPLICAS] = str(made.replicas)
    return obj


def founding_of_set(obj: Object) -> Founding:
    """What a StatefulSet, rendered or live, says it is."""
    images = {container["name"]: container["image"] for container in _containers(obj)}
    return Founding(replicas=int(obj["spec"].get("replicas", 1)), images=images)


def with_note(obj: Object, foundings: Mapping[str, Founding]) -> Object:
    """The peer lists with the note of all foundings; any other object as it is."""
    meta = obj["metadata"]
    if obj["kind"] != "ConfigMap" or not meta["name"].endswith(_PEERS):
        return obj
    text = json.dumps(msgspec.to_builtins(dict(foundings)), sort_keys=True)
    notes = (meta.get("annotations") or {}) | {FOUNDED: text}
    return obj | {"metadata": meta | {"annotations": notes}}


def _founding(observed: Observed, name: str) -> Founding | None:
    """By the marks on the live StatefulSet, else by the note, else by what runs."""
    live = observed.owned.get(("StatefulSet", name))
    marks = (live["metadata"].get("annotations") or {}) if live else {}
    pairs = [pair.partition("=") for pair in marks.get(FOUNDED_IMAGES, "").split(",")]
    images = {container: image for container, found, image in pairs if found}
    replicas = marks.get(FOUNDED_REPLICAS, "")
    noted = _noted(observed).get(name)
    runs = founding_of_set(live) if live else None
    rest = noted or runs
    if rest is None:
        return None
    return Founding(
        replicas=int(replicas) if replicas.isdigit() else rest.replicas,
        images=images or rest.images,
    )


def _noted(observed: Observed) -> dict[str, Founding]:
    for (kind, name), live in observed.owned.items():
        if kind == "ConfigMap" and name.endswith(_PEERS):
            text = (live["metadata"].get("annotations") or {}).get(FOUNDED, "{}")
            try:
                return msgspec.json.decode(text, type=dict[str, Founding])
            except msgspec.DecodeError:
                return {}  # spoilt by hand: what runs counts, and the note is written again
    return {}


def _containers(obj: Object) -> list[dict[str, Any]]:
    pod = obj["spec"]["template"]["spec"]
    return [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]


def _keep_claims(obj: Object, live: Object, refused: list[str]) -> None:
    """Volume claims stay as they were made: growing them is a later issue's matter."""
    asked = obj["spec"].get("volumeClaimTemplates") or []
    there = live["spec"].get("volumeClaimTemplates") or []
    found = differences({"items": asked}, {"items": there})
    if found:
        name = obj["metadata"]["name"]
        refused.append(
            f"volume claims of {name}: changing {listed(found)} is not supported yet; "
            "put the old value back"
        )
        obj["spec"]["volumeClaimTemplates"] = there
