"""Asks nodes over HTTP at their pods' addresses, with the operator's token.

What must not live here: what the answers mean (dss.remediation, status.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

import aiohttp
import msgspec

from dss.topology.model import HTTP_PORT
from dss_operator.state import Object

ASK_TIMEOUT_S: Final = 2.0
"""A node answers its status in milliseconds; who needs longer counts as silent for this sample."""
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One member's Raft status, or why there is none."""

    member: str
    pod: str
    pod_uid: str
    at_ms: int
    body: dict[str, Any] | None = None
    reason: str = ""


class Nodes(Protocol):
    """The way to the nodes; tests bring their own."""

    async def get(self, host: str, path: str, token: str) -> dict[str, Any]: ...

    async def post(self, host: str, path: str, token: str, body: dict[str, Any]) -> None: ...


class NodeError(Exception):
    """A node did not answer, or answered no; the text says which."""


class HttpNodes:
    """Nodes over one aiohttp session."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def get(self, host: str, path: str, token: str) -> dict[str, Any]:
        return await self._send("GET", host, path, token, None)

    async def post(self, host: str, path: str, token: str, body: dict[str, Any]) -> None:
        await self._send("POST", host, path, token, body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _send(
        self, method: str, host: str, path: str, token: str, body: dict[str, Any] | None
    ) -> dict[str, Any]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        shown = f"[{host}]" if ":" in host else host
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._session.request(
                method, f"http://{shown}:{HTTP_PORT}{path}", headers=headers, json=body
            ) as response:
                data = b""
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > ANSWER_BYTES_MAX:
                        raise NodeError(f"answered more than {ANSWER_BYTES_MAX} bytes")
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NodeError(f"does not answer ({type(error).__name__})") from error
        return _understood(status, data)


def _understood(status: int, data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    if status >= HTTPStatus.BAD_REQUEST:
        code = parsed.get("code") if isinstance(parsed, dict) else None
        raise NodeError(f"answered {status} {code or ''}".rstrip())
    if not isinstance(parsed, dict):
        raise NodeError("answered something that is not a JSON object")
    return parsed


def member_of(pod: Object) -> tuple[str, str]:
    """(role, member id) of a node's pod; empty strings for other pods."""
    labels = pod["metadata"].get("labels") or {}
    role = labels.get("app.kubernetes.io/component", "")
    ordinal = pod["metadata"]["name"].rpartition("-")[2]
    if role not in ("lock", "queue", "cache") or not ordinal.isdigit():
        return "", ""
    return role, f"{role}-{ordinal}"


async def ask_all(
    nodes: Nodes, pods: Mapping[str, Object], members: list[str], token: str, at_ms: int
) -> list[Answered]:
    """The Raft status of every member, all asked at once.

    Args:
        pods: member -> its pod; a member without one is silent.
    """

    async def ask(member: str) -> Answered:
        pod = pods.get(member)
        if pod is None:
            return Answered(member=member, pod="", pod_uid="", at_ms=at_ms, reason="has no pod")
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        address = (pod.get("status") or {}).get("podIP") or ""
        if not address:
            reason = "its pod has no address yet"
            return Answered(member=member, pod=name, pod_uid=uid, at_ms=at_ms, reason=reason)
        try:
            body = await nodes.get(address, "/v1/raft/status", token)
        except NodeError as error:
            return Answered(member=member, pod=name, pod_uid=uid, at_ms=at_ms, reason=str(error))
        return Answered(member=member, pod=name, pod_uid=uid, at_ms=at_ms, body=body)

    return list(await asyncio.gather(*(ask(member) for member in members)))
