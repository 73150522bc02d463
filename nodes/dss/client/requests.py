"""One HTTP request to some node of a role: which node, what to repeat, what an answer means.

Repeated is only what cannot have happened (connection refused, `no_quorum`, `unavailable`,
`overloaded`, another role's node), and reads. What must not live here: any service's shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from dss.base.errors import DssError, Indeterminate, Invalid, WrongRole
from dss.client.errors import REPEATABLE, error_of, plain, unreachable
from dss.client.nodes import Nodes

RETRY_S: Final = 5.0
"""How long a request is repeated while nothing was done: several elections."""
ANSWER_S: Final = 10.0
"""For an answer, on top of what the request itself may wait: beyond, its outcome is unknown."""
CONNECT_S: Final = 2.0
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A 2xx answer (or one of the statuses the caller asked to see)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body) if self.body else {}


def segment(name: str) -> str:
    """A name as one path segment: `/` becomes %2F."""
    return quote(name, safe="")


class Requests:
    """Sends requests to nodes of a role; safe to use from many tasks."""

    def __init__(self, http: aiohttp.ClientSession, nodes: Nodes) -> None:
        self._http = http
        self._nodes = nodes

    async def send(
        self,
        role: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_ms: int = 0,
        accept: tuple[int, ...] = (),
    ) -> Reply:
        """Ask nodes of `role` until one answers.

        Args:
            path: percent-encoded already.
            wait_ms: how long the node may hold the answer back on purpose.
            accept: statuses from 400 on (and 304) that are an answer to the caller, not an error.

        Raises:
            Invalid: `json` holds what cannot be encoded.
            DssError: of the answer's class and code; Unavailable when nobody could be reached for
                RETRY_S; Indeterminate when a write was sent and no answer came.
        """
        sent = dict(headers or {})
        if json is not None:
            try:
                data = msgspec.json.encode(json)
            except (TypeError, ValueError, OverflowError) as error:
                raise Invalid(f"{method} {path}: it cannot be sent: {error}") from error
            sent["Content-Type"] = "application/json"
        limits = aiohttp.ClientTimeout(
            total=wait_ms / 1_000 + ANSWER_S, sock_connect=CONNECT_S, connect=None
        )
        until = monotonic() + RETRY_S
        pause = PAUSE_S
        while True:
            try:
                return await self._round(role, method, path, data, sent, limits, accept)
            except REPEATABLE as error:
                after = (error.retry_after_ms or 0) / 1_000 or pause
                if monotonic() + after > until:
                    raise
            await asyncio.sleep(after)
            pause = min(2 * pause, PAUSE_S_MAX)
            await self._nodes.refresh()

    async def _round(
        self,
        role: str,
        method: str,
        path: str,
        data: bytes | None,
        headers: dict[str, str],
        limits: aiohttp.ClientTimeout,
        accept: tuple[int, ...],
    ) -> Reply:
        """Each candidate once, until one of the role has answered."""
        reasons: dict[str, str] = {}
        for url in list(await self._nodes.of_role(role)):
            target = URL(url + path, encoded=True)
            try:
                async with self._http.request(
                    method, target, data=data, headers=headers, timeout=limits
                ) as response:
                    reply = Reply(response.status, response.headers, await response.read())
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                reasons[url] = plain(error)
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if method not in ("GET", "HEAD"):
                    raise Indeterminate(
                        f"{method} {path}: {url} did not answer ({plain(error)}); whether it was "
                        "carried out is unknown"
                    ) from error
                reasons[url] = plain(error)
                continue
            if reply.status < 300 or reply.status in accept:
                self._nodes.worked(role, url)
                return reply
            problem = _problem(reply)
            if not isinstance(problem, WrongRole):
                raise problem
        raise unreachable(role, reasons)


def _problem(reply: Reply) -> DssError:
    try:
        body = msgspec.json.decode(reply.body)
    except msgspec.MsgspecError:
        body = reply.body.decode("utf-8", "replace")
    return error_of(reply.status, body)
