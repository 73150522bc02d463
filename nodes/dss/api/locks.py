"""HTTP routes of sessions and locks: parse, call the service, render.

What must not live here: decisions. Names in paths are percent-encoded. The other routes of the
contract (upgrade, several locks at once, explain, history, events) come with their features.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from dss.api.problem import path_name, read_json, result_response
from dss.api.routes import Route
from dss.api.stream import stream_handler
from dss.base.errors import Invalid
from dss.base.limits import SESSION_TTL_MS_DEFAULT
from dss.core.locks.commands import (
    Acquire,
    Label,
    ListLocks,
    Mode,
    Release,
    SessionId,
    TokenValue,
    TtlMs,
    WaitMs,
)
from dss.drivers.locks import LockService


class CreateSessionRequest(msgspec.Struct, forbid_unknown_fields=True):
    ttl_ms: TtlMs = SESSION_TTL_MS_DEFAULT
    name: Label = ""
    """What people see in messages and lists: `worker-7`."""


class AcquireRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    owner: Label = ""
    """Two owners of one session exclude each other; default: the session."""
    mode: Mode = "exclusive"
    wait_ms: WaitMs = 0


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    token: TokenValue
    owner: Label = ""


class SessionAnswer(msgspec.Struct):
    session: str
    ttl_ms: int


class AcquireAnswer(msgspec.Struct):
    token: int
    mode: str
    expires_in_ms: int
    """What was left of the session's TTL at the grant."""


class SessionDetail(msgspec.Struct):
    session: str
    ttl_ms: int
    name: str
    expires_in_ms: int
    held: int
    waiting: int
    locks: list[dict[str, Any]]


class LockDetail(msgspec.Struct):
    name: str
    state: str
    """`held` or `free`."""
    holders: list[dict[str, Any]]
    waiters: list[dict[str, Any]]
    waiting: int
    mode: str | None = None
    token: int | None = None


class LockPage(msgspec.Struct):
    items: list[dict[str, Any]]
    next: str | None
    """The next page's `cursor`; null: this is the last."""


class Empty(msgspec.Struct):
    pass


class _Handlers:
    """One method per route; each parses, calls and renders."""

    def __init__(self, service: LockService) -> None:
        self._service = service

    async def create_session(self, request: web.Request) -> web.Response:
        body = await read_json(request, CreateSessionRequest)
        return result_response(*await self._service.create_session(body.ttl_ms, body.name))

    async def get_session(self, request: web.Request) -> web.Response:
        return result_response(*await self._service.get_session(path_name(request, "session")))

    async def keepalive(self, request: web.Request) -> web.Response:
        return result_response(*await self._service.keepalive(path_name(request, "session")))

    async def end_session(self, request: web.Request) -> web.Response:
        return result_response(*await self._service.end_session(path_name(request, "session")))

    async def acquire(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, AcquireRequest)
        command = Acquire(body.session, name, body.mode, body.wait_ms, body.owner)
        return result_response(*await self._service.acquire(command))

    async def release(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, ReleaseRequest)
        command = Release(body.session, name, body.token, body.owner)
        return result_response(*await self._service.release(command))

    async def get_lock(self, request: web.Request) -> web.Response:
        return result_response(*await self._service.get(path_name(request)))

    async def list_locks(self, request: web.Request) -> web.Response:
        try:
            query = msgspec.convert(dict(request.query), ListLocks, strict=False)
        except msgspec.ValidationError as error:
            raise Invalid(f"query: {error}") from error
        return result_response(*await self._service.list_locks(query))


LIST_QUERY: Final = {
    "prefix": "only names that begin so",
    "limit": "items a page, 1 to 1,000; default 100",
    "cursor": "`next` of the page before",
}


def routes(service: LockService) -> list[Route]:
    """The routes of a lock node, the stream included."""
    handle = _Handlers(service)
    return [
        Route(
            method="POST", path="/v1/sessions", handler=handle.create_session, status=201,
            request=CreateSessionRequest, response=SessionAnswer,
            summary="Create a session: it owns locks and ends when it is not kept alive",
        ),
        Route(
            method="GET", path="/v1/sessions/{session}", handler=handle.get_session,
            response=SessionDetail, summary="A session and what it holds",
        ),
        Route(
            method="POST", path="/v1/sessions/{session}/keepalive", handler=handle.keepalive,
            response=SessionAnswer, errors=(409,), summary="Give the session its full TTL again",
        ),
        Route(
            method="DELETE", path="/v1/sessions/{session}", handler=handle.end_session,
            response=Empty, errors=(409,), summary="End a session and release its locks",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/acquire", handler=handle.acquire,
            request=AcquireRequest, response=AcquireAnswer, errors=(409,),
            summary="Acquire a lock, waiting in line for up to wait_ms",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/release", handler=handle.release,
            request=ReleaseRequest, response=Empty, errors=(409,), summary="Release a lock",
        ),
        Route(
            method="GET", path="/v1/locks/{name}", handler=handle.get_lock, response=LockDetail,
            summary="Who holds a lock and who waits for it",
        ),
        Route(
            method="GET", path="/v1/locks", handler=handle.list_locks, response=LockPage,
            query=LIST_QUERY, summary="Held locks by name",
        ),
        Route(
            method="GET", path="/v1/locks:stream", handler=stream_handler(service.submit_stream),
            status=101, summary="WebSocket: msgpack arrays of [request_id, op, args] and answers",
        ),
    ]  # fmt: skip
