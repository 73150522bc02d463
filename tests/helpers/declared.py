"""Every answer that a test's HTTP client gets has a status that `/openapi.json` declares for it.

What must not live here: any one route, starting servers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import TraceConfig

from dss.api import openapi
from dss.api.routes import Route


def declared(routes: Sequence[Route], *, tokens: bool = False) -> TraceConfig:
    """For a ClientSession: its requests fail when their answer is not declared. What no route
    matches is not looked at."""
    api = msgspec.json.decode(openapi.document(routes, "any", tokens=tokens))
    operations = [
        (method.upper(), re.compile(re.sub(r"{\w+}", "[^/]+", path)), set(operation["responses"]))
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]

    async def ended(session: Any, context: Any, params: Any) -> None:
        path, status = params.url.raw_path, str(params.response.status)
        for method, pattern, statuses in operations:
            if method == params.method and pattern.fullmatch(path):
                assert status in statuses, f"{method} {path}: {status} is not declared"

    trace = TraceConfig()
    trace.on_request_end.append(ended)
    return trace
