"""What a route is. Each `api/<role>.py` returns a list of these; `app.py` serves them.

What must not live here: any particular route, rendering.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

CALLER: Final[Any] = web.RequestKey("caller", str) if hasattr(web, "RequestKey") else "caller"
"""`request[CALLER]`: the name of the token that the request came with; absent without tokens.
(aiohttp before 3.14 has no typed keys.)"""
IS_ADMIN: Final[Any] = web.RequestKey("admin", bool) if hasattr(web, "RequestKey") else "admin"
"""`request[IS_ADMIN]`: whether that token is an administrator's; absent without tokens."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the HTTP API; also one entry of `/openapi.json`.

    `path` is written as in OpenAPI: `/v1/locks/{name}/acquire`. `{name}` never spans a slash:
    slashes in names are percent-encoded. The handler raises DssError for every failure.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    request: Any = None
    """A msgspec struct type of the JSON body, or None for no body."""
    response: Any = None
    """A msgspec struct type of the 2xx JSON body, or None for no body."""
    status: int = 200
    also: dict[int, Any] = {}
    """Further answers that are no problem, as with `response`: status -> type of the body."""
    errors: tuple[int, ...] = ()
    """Statuses of failures: all but 500, those of bodies and parameters (404, 413, 422), and those
    of tokens and origins (401, 403)."""
    admin: bool = False
    """Where tokens are asked for: an administrator's alone will do."""
    query: dict[str, str] = {}
    """Query parameters: name -> one-line description."""
    headers: dict[str, str] = {}
    """Request headers that the handler reads: name -> one-line description."""

    @property
    def writes(self) -> bool:
        """It changes something, or opens a stream that can."""
        return self.method != "GET" or self.path.endswith(":stream")
