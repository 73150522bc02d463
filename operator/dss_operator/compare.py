"""Where a live object differs from what was declared. Pure.

The API server adds defaults, so a live object may say more than the declared one; it must never
say less or otherwise. Where "more" is harm (a key in a ConfigMap, a container, a selector's label)
it counts too, as `Extra`. What must not live here: what is done about it (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from dss.topology.kube.quantity import canonical

Path = tuple[str | int, ...]

EXACT_MAPS: Final = frozenset(
    {"data", "binaryData", "selector", "matchLabels", "nodeSelector", "limits", "requests"}
)
"""Maps in which a key that was not declared changes what the object does."""
POD_ADDITIONS: Final = frozenset(
    {
        "affinity", "dnsConfig", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers",
        "imagePullSecrets", "initContainers", "nodeName", "nodeSelector", "priorityClassName",
        "readinessGates", "runtimeClassName", "shareProcessNamespace", "tolerations", "volumes",
    }
)  # fmt: skip
"""Fields of a pod template that no API server fills in: who added one changed the pods."""
CONTAINER_ADDITIONS: Final = frozenset(
    {
        "args", "command", "env", "envFrom", "lifecycle", "livenessProbe", "ports",
        "readinessProbe", "securityContext", "startupProbe", "stdin", "tty", "volumeDevices",
        "volumeMounts", "workingDir",
    }
)  # fmt: skip
"""Likewise of a container."""
QUANTITIES: Final = frozenset({"limits", "requests", "sizeLimit"})
"""Below these, 1Gi and 1024Mi are the same."""
ITEM_KEYS: Final = ("name", "mountPath", "uid", "topologyKey", "port", "containerPort")
"""What identifies an item of a list of maps, the first that all items have."""
OPEN_LISTS: Final = frozenset({"ownerReferences", "finalizers", "secrets"})
"""Lists that others may add to."""
IGNORED: Final = frozenset({"status", "managedFields", "creationTimestamp"})


class Difference(msgspec.Struct, frozen=True):
    """One place where live and declared differ."""

    path: Path
    extra: bool = False
    """The live object has something that was not declared; server-side apply leaves that alone."""

    def __str__(self) -> str:
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
        return text.removeprefix(".")


def differences(declared: dict[str, Any], live: dict[str, Any]) -> list[Difference]:
    """All differences, in the order of the declared object."""
    found: list[Difference] = []
    _compare_maps(declared, live, (), found)
    return found


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ("", 0) or value == {} or value == []


def _compare(declared: Any, live: Any, path: Path, found: list[Difference]) -> None:
    if isinstance(declared, dict) and isinstance(live, dict):
        _compare_maps(declared, live, path, found)
    elif isinstance(declared, list) and isinstance(live, list):
        _compare_lists(declared, live, path, found)
    elif declared == live or (_empty(declared) and _empty(live)):
        return
    elif not _same_quantity(declared, live, path):
        found.append(Difference(path))


def _same_quantity(declared: Any, live: Any, path: Path) -> bool:
    if not QUANTITIES.intersection(path):
        return False
    try:
        return canonical(declared) == canonical(live)
    except ValueError:
        return False


def _compare_maps(
    declared: dict[str, Any], live: dict[str, Any], path: Path, found: list[Difference]
) -> None:
    for key, value in declared.items():
        if not (path == () and key in IGNORED):
            _compare(value, live.get(key, _blank(value)), (*path, key), found)
    for key in sorted(live.keys() - declared.keys()):
        if _is_addition(path, key) and not _empty(live[key]):
            found.append(Difference((*path, key), extra=True))


def _is_addition(path: Path, key: str) -> bool:
    """Whether a field that was not declared is more than a default of the API server's."""
    if path and path[-1] in EXACT_MAPS:
        return True
    if path[-2:] == ("template", "spec"):
        return key in POD_ADDITIONS
    in_container = len(path) > 1 and path[-2] in ("containers", "initContainers")
    return in_container and key in CONTAINER_ADDITIONS


def _blank(value: Any) -> Any:
    """What a missing field counts as, so that its parts are compared as missing."""
    return {} if isinstance(value, dict) else [] if isinstance(value, list) else None


def _compare_lists(
    declared: list[Any], live: list[Any], path: Path, found: list[Difference]
) -> None:
    key = _item_key(declared, live)
    if key is None:
        if len(declared) != len(live):
            found.append(Difference(path))
            return
        for at, (wanted, there) in enumerate(zip(declared, live, strict=True)):
            _compare(wanted, there, (*path, at), found)
        return
    by_key = {item[key]: item for item in live}
    for at, wanted in enumerate(declared):
        if wanted[key] in by_key:
            _compare(wanted, by_key.pop(wanted[key]), (*path, at), found)
        else:
            found.append(Difference((*path, at)))
    if by_key and not OPEN_LISTS.intersection(path):
        found.append(Difference(path, extra=True))


def _item_key(declared: list[Any], live: list[Any]) -> str | None:
    items = declared + live
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    for key in ITEM_KEYS:
        if all(key in item for item in items) and all(
            len({item[key] for item in side}) == len(side) for side in (declared, live)
        ):
            return key
    return None


def listed(found: Sequence[Difference]) -> str:
    """At most five, for people."""
    names = [str(each) for each in found]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def removal_patch(declared: dict[str, Any], extras: Sequence[Difference]) -> dict[str, Any]:
    """A JSON merge patch that takes the extras away: null for a map's key, the whole declared list
    for a list's item (a merge patch knows no items)."""
    patch: dict[str, Any] = {}
    for difference in extras:
        inner, at = patch, declared
        for depth, part in enumerate(map(str, difference.path)):
            value = at.get(part)
            if depth == len(difference.path) - 1 or isinstance(value, list):
                inner[part] = value
                break
            inner = inner.setdefault(part, {})
            at = value if isinstance(value, dict) else {}
    return patch
