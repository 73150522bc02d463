"""Asks the nodes over HTTP how far they are, for the progress lines and the table of `dss up`.

What must not live here: deciding readiness. A node decides (`/readyz`); this only reports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from dss.base.ids import LOCK_GROUP

_TIMEOUT = aiohttp.ClientTimeout(total=2)
"""A node on this machine that needs longer is not ready."""


class NodeView(msgspec.Struct, frozen=True):
    """One node as seen from outside. `problem` is "" when it is ready, else why it is not."""

    name: str
    role: str
    url: str
    problem: str = "not asked yet"
    groups: tuple[dict[str, Any], ...] = ()
    """`groups` of its `GET /v1/raft/status`; cache nodes have none."""

    @property
    def ready(self) -> bool:
        return not self.problem

    def state(self) -> str:
        """The table's last column."""
        if self.problem:
            return self.problem
        if self.role == "lock":
            return next(
                (str(g["role"]) for g in self.groups if g["group_id"] == LOCK_GROUP), "ready"
            )
        if self.role == "queue":
            leads = sum(1 for group in self.groups if group["role"] == "leader")
            return f"leads {leads} of {len(self.groups)} partitions"
        return "ready"


async def look(session: aiohttp.ClientSession, nodes: Sequence[NodeView]) -> list[NodeView]:
    """All nodes again, asked at once."""
    return list(await asyncio.gather(*(_look_at(session, node) for node in nodes)))


async def _look_at(session: aiohttp.ClientSession, node: NodeView) -> NodeView:
    try:
        status, body = await _get(session, f"{node.url}/readyz")
        if status != 200:
            return msgspec.structs.replace(node, problem=_reason(status, body))
        groups: tuple[dict[str, Any], ...] = ()
        if node.role != "cache":
            status, body = await _get(session, f"{node.url}/v1/raft/status")
            if status == 200 and isinstance(body, dict):
                groups = tuple(body["groups"])
        return msgspec.structs.replace(node, problem="", groups=groups)
    except TimeoutError:  # before ClientConnectionError: aiohttp's time-outs are both
        return msgspec.structs.replace(node, problem="does not answer")
    except aiohttp.ClientError:
        return msgspec.structs.replace(node, problem="not listening yet")


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with session.get(url, timeout=_TIMEOUT) as answer:
        text = await answer.text()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text


def _reason(status: int, body: Any) -> str:
    """Why a node says that it is not ready, in one line."""
    if isinstance(body, dict):
        for member in ("detail", "message", "reason", "title"):
            if body.get(member):
                return str(body[member]).splitlines()[0]
    if isinstance(body, str) and body.strip():
        return body.strip().splitlines()[0][:200]
    return f"not ready (HTTP {status})"


def leader_line(lock_nodes: Sequence[NodeView]) -> str | None:
    """`leader lock-2, term 1`; None while no node leads the lock group."""
    leading = [
        (int(group["term"]), node.name)
        for node in lock_nodes
        for group in node.groups
        if group["group_id"] == LOCK_GROUP and group["role"] == "leader"
    ]
    if not leading:
        return None
    term, name = max(leading)  # a deposed leader may not know it yet
    return f"leader {name}, term {term}"


def partitions_led(queue_nodes: Sequence[NodeView]) -> int:
    """How many partitions have a leader."""
    led = {
        int(group["group_id"])
        for node in queue_nodes
        for group in node.groups
        if group["role"] == "leader"
    }
    return len(led)
