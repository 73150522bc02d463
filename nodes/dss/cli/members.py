"""`dss members ls|add|remove|replace`: who belongs to the lock nodes' Raft groups.

What must not live here: how members change (the nodes do that; any lock node can be asked).
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from dss.base.errors import EXIT_TRY_AGAIN
from dss.base.levels import BASE_LEVEL
from dss.cli.connect import nodes
from dss.cli.http import CliError, Nodes, segment
from dss.cli.output import Output, duration

_PATH: Final = "/v1/raft/members"
_LOOK_EVERY_S: Final = 0.2
_LINK_WAIT_S: Final = 10.0
"""The lock nodes look for a node that was away every second or two."""
_CHANGE_MS: Final = 30_000
"""A change may wait for a leader in each group."""


def ls(args: argparse.Namespace) -> int:
    _show(args, _view(nodes(args)))
    return 0


def add(args: argparse.Namespace) -> int:
    """Add it, and wait until it is a voter of every group."""
    client = nodes(args)
    client.ask("lock", "POST", _PATH, {"node_id": args.node_id}, wait_ms=_CHANGE_MS)
    _show(args, _until_voter(client, args.node_id, args.wait))
    return 0


def remove(args: argparse.Namespace) -> int:
    _show(args, _remove(nodes(args), args.node_id))
    return 0


def replace(args: argparse.Namespace) -> int:
    """Remove the incarnation that was lost, add the one that answers now."""
    client = nodes(args)
    listed = _once_it_answers(client, args.node_id, min(args.wait, _LINK_WAIT_S))
    if listed and all(member["up"] for member in listed):
        raise CliError(
            f"{args.node_id} has the disk that the groups know: there is nothing to replace"
        )
    if any(not (member["lost_disk"] or member["up"]) for member in listed):
        raise CliError(
            f"{args.node_id} does not answer the lock nodes: start it with its new, empty data "
            "directory, then repeat this",
            EXIT_TRY_AGAIN,
            "unavailable",
        )
    if listed:
        _remove(client, args.node_id)
    return add(args)


def _once_it_answers(client: Nodes, node_id: str, wait_s: float) -> list[dict[str, Any]]:
    """Its rows as soon as every group's leader has heard from it, or after `wait_s`."""
    until = time.monotonic() + wait_s
    while True:
        listed = [m for m in _members(_view(client)) if m["node_id"] == node_id]
        if all(m["lost_disk"] or m["up"] for m in listed) or time.monotonic() >= until:
            return listed
        time.sleep(_LOOK_EVERY_S)


def _remove(client: Nodes, node_id: str) -> dict[str, Any]:
    answer = client.ask("lock", "DELETE", f"{_PATH}/{segment(node_id)}", wait_ms=_CHANGE_MS)
    return dict(answer.json())


def _view(client: Nodes) -> dict[str, Any]:
    return dict(client.ask("lock", "GET", _PATH, wait_ms=_CHANGE_MS).json())


def _members(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [member for group in view["groups"] for member in group["members"]]


def _until_voter(client: Nodes, node_id: str, wait_s: float) -> dict[str, Any]:
    until = time.monotonic() + wait_s
    while True:
        view = _view(client)
        mine = [m for m in _members(view) if m["node_id"] == node_id]
        if len(mine) == len(view["groups"]) and all(m["role"] == "voter" for m in mine):
            return view
        if time.monotonic() >= until:
            raise CliError(
                f"{node_id} is a learner, not a voter yet: it becomes one when it has caught up. "
                "Look again with: dss members ls",
                EXIT_TRY_AGAIN,
                "catching_up",
            )
        time.sleep(_LOOK_EVERY_S)


def _show(args: argparse.Namespace, view: dict[str, Any]) -> None:
    rows = [
        (
            group["group_id"],
            member["node_id"],
            "leader" if member["leader"] else member["role"],
            _state(member),
            member["lag"],
            duration(member["last_contact_ms"]),
            group.get("feature_level", BASE_LEVEL),  # a release without levels says none
            member.get("supports_level"),
            member["incarnation"][:8],
        )
        for group in view["groups"]
        for member in group["members"]
    ]
    header = (
        "group", "node", "role", "state", "lag", "heard of", "level", "supports", "incarnation",
    )  # fmt: skip
    Output(args.json).table(view, header, rows, "no members")


def _state(member: dict[str, Any]) -> str:
    if member["lost_disk"]:
        return "its disk was lost: dss members replace"
    return "up" if member["up"] else "down"
