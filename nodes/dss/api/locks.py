"""HTTP routes of sessions and locks: parse, call the service, render.

What must not live here: decisions; bodies (lock_bodies.py); events (lock_events.py). Names in
paths are percent-encoded. A client that hangs up while it waits gives up its place after a while.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
from aiohttp import web

from dss.api import lock_bodies as bodies
from dss.api import lock_events
from dss.api.lock_stream import LockStream
from dss.api.problem import path_name, read_json, result_response
from dss.api.routes import CALLER, IS_ADMIN, Route
from dss.api.stream import session_handler
from dss.base.errors import Invalid
from dss.base.limits import LABEL_CHARS_MAX
from dss.core.locks.commands import (
    Acquire,
    AcquireMany,
    Break,
    Cancel,
    Confirm,
    Downgrade,
    ExplainLock,
    GetLock,
    GetSession,
    ListLocks,
    LockHistory,
    Release,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
    VerifyToken,
    Write,
)
from dss.drivers.gone_clients import Waiting
from dss.drivers.lock_handles import shown
from dss.drivers.locks import LockService
from dss.observe.logs import event

KEY_HEADER: Final = "Idempotency-Key"
KEY_HEADERS: Final = {
    KEY_HEADER: "the same request under the same key gets the one true answer (for 10 minutes)"
}
_WRITE: Final = (429, 503, 504)
"""No room; no quorum; nobody knows."""
_OWN_WRITE: Final = (409, *_WRITE)
"""Of a session: it has ended, does not hold the lock, …"""
HANG_UP_LOOK_S: Final = 1.0
"""How often a waiting handler looks whether its client is still there."""

_log = logging.getLogger("dss.locks")


def idempotency_key(request: web.Request) -> str:
    """The header's value, or "". Raises Invalid."""
    key = request.headers.get(KEY_HEADER, "")
    if key and (len(key) > LABEL_CHARS_MAX or not key.isascii() or not key.isprintable()):
        raise Invalid(f"{KEY_HEADER} has at most {LABEL_CHARS_MAX} printable ASCII characters")
    return key


def _key_of(request: web.Request, command: Write | Break) -> str:
    """As `idempotency_key`, for a command that may be sequenced instead."""
    key = idempotency_key(request)
    sequenced: int = getattr(command, "seq", 0)
    if key and sequenced:
        raise Invalid(f"one of {KEY_HEADER} and seq: each makes a request be carried out once")
    return key


def _has_gone(request: web.Request) -> bool:
    """Whether it is known that nobody can get the answer any more."""
    return request.transport is None or request.transport.is_closing()


class _Handlers:
    """One method per route; each parses, calls and renders."""

    def __init__(self, service: LockService) -> None:
        self._service = service

    async def _write(self, request: web.Request, command: Write | Break) -> web.Response:
        return result_response(*await self._service.write(command, _key_of(request, command)))

    async def _wait(self, request: web.Request, command: Waiting) -> Any:
        """As `_write`, for what may wait long: when its client has gone, its wait ends, and what
        it was granted goes back."""
        key = _key_of(request, command)
        answer = asyncio.ensure_future(self._service.write(command, key))
        noticed = False
        if command.wait_ms > HANG_UP_LOOK_S * 1_000:
            while not answer.done() and not noticed:
                await asyncio.wait((answer,), timeout=HANG_UP_LOOK_S)
                noticed = _has_gone(request)
            if noticed:
                self._service.gone.left(command, answer, bool(key))
        result = await answer
        if not noticed and _has_gone(request):
            self._service.gone.left(command, answer, bool(key))
        return result_response(*shown(result))

    # --- sessions -----------------------------------------------------------------------

    async def create_session(self, request: web.Request) -> web.Response:
        body = await read_json(request, bodies.CreateSessionRequest)
        key = idempotency_key(request)
        return result_response(*await self._service.create_session(body.ttl_ms, body.name, key))

    async def get_session(self, request: web.Request) -> web.Response:
        return await self._read(GetSession(path_name(request, "session")))

    async def keepalive(self, request: web.Request) -> web.Response:
        return await self._write(request, SessionKeepalive(path_name(request, "session")))

    async def end_session(self, request: web.Request) -> web.Response:
        return await self._write(request, SessionEnd(path_name(request, "session")))

    # --- acquiring and releasing --------------------------------------------------------

    async def acquire(self, request: web.Request) -> Any:
        name = path_name(request)
        body = await read_json(request, bodies.AcquireRequest)
        command = Acquire(
            body.session,
            name,
            body.mode,
            body.wait_ms,
            body.owner,
            body.permits,
            body.limit,
            body.priority,
            body.confirm_ms,
            body.seq,
            body.ack,
        )
        return await self._wait(request, command)

    async def acquire_many(self, request: web.Request) -> Any:
        body = await read_json(request, bodies.AcquireManyRequest)
        command = AcquireMany(
            body.session,
            body.locks,
            body.wait_ms,
            body.owner,
            body.priority,
            body.seq,
            body.ack,
        )
        return await self._wait(request, command)

    async def release(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, bodies.HoldRequest)
        command = Release(body.session, name, body.token, body.owner, body.seq, body.ack)
        return await self._write(request, command)

    async def upgrade(self, request: web.Request) -> Any:
        name = path_name(request)
        body = await read_json(request, bodies.UpgradeRequest)
        command = Upgrade(
            body.session, name, body.token, body.wait_ms, body.owner, body.seq, body.ack
        )
        return await self._wait(request, command)

    async def downgrade(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, bodies.HoldRequest)
        command = Downgrade(body.session, name, body.token, body.owner, body.seq, body.ack)
        return await self._write(request, command)

    async def confirm(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, bodies.TokenRequest)
        return await self._write(request, Confirm(body.session, name, body.token, body.owner))

    async def cancel(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, bodies.CancelRequest)
        return await self._write(request, Cancel(body.session, name, body.owner))

    async def break_lock(self, request: web.Request) -> web.Response:
        """For administrators. Whoever asks stands in the log line and in the history."""
        name = path_name(request)
        by = str(request.get(CALLER) or request.remote or "unknown")[:LABEL_CHARS_MAX]
        reason = request.query.get("reason", "")
        if len(reason) > LABEL_CHARS_MAX:
            raise Invalid(f"reason has at most {LABEL_CHARS_MAX} characters")
        command = Break(name, by, reason)
        status, answer = await self._service.write(command, idempotency_key(request))
        event(
            _log, "lock_broken", lock=name, by=by, reason=reason, status=status,
            broken=answer.get("broken", []),
        )  # fmt: skip
        return result_response(status, answer)

    # --- reads --------------------------------------------------------------------------

    async def _read(self, query: Any) -> web.Response:
        return result_response(*await self._service.read(query))

    async def _read_lock(self, request: web.Request, query: GetLock) -> web.Response:
        """With whole session ids for an administrator's token only."""
        whole = bool(request.get(IS_ADMIN))
        return result_response(*await self._service.read(query, whole=whole))

    async def get_lock(self, request: web.Request) -> web.Response:
        return await self._read_lock(request, GetLock(path_name(request)))

    async def explain(self, request: web.Request) -> web.Response:
        return await self._read_lock(request, ExplainLock(path_name(request)))

    async def history(self, request: web.Request) -> web.Response:
        return await self._read(LockHistory(path_name(request)))

    async def verify(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, bodies.VerifyRequest)
        return await self._read(VerifyToken(name, body.token))

    async def list_locks(self, request: web.Request) -> web.Response:
        try:
            query = msgspec.convert(dict(request.query), ListLocks, strict=False)
        except msgspec.ValidationError as error:
            raise Invalid(f"query: {error}") from error
        return await self._read(query)


LIST_QUERY: Final = {
    "prefix": "only names that begin so",
    "limit": "items a page, 1 to 1,000; default 100",
    "cursor": "`next` of the page before",
}


def routes(service: LockService) -> list[Route]:
    """The routes of a lock node, the stream included."""
    handle = _Handlers(service)
    return [
        *_session_routes(handle),
        *_lock_routes(handle),
        *_read_routes(handle, service),
        *lock_events.routes(service.events),
    ]


def _session_routes(handle: _Handlers) -> list[Route]:
    return [
        Route(
            method="POST", path="/v1/sessions", handler=handle.create_session, status=201,
            request=bodies.CreateSessionRequest, response=bodies.SessionAnswer,
            errors=_WRITE, headers=KEY_HEADERS,
            summary="Create a session: it owns locks and ends when it is not kept alive",
        ),
        Route(
            method="GET", path="/v1/sessions/{session}", handler=handle.get_session,
            response=bodies.SessionDetail, errors=(404, 503),
            summary="A session and what it holds",
        ),
        Route(
            method="POST", path="/v1/sessions/{session}/keepalive", handler=handle.keepalive,
            response=bodies.SessionAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Give the session its full TTL again",
        ),
        Route(
            method="DELETE", path="/v1/sessions/{session}", handler=handle.end_session,
            response=bodies.Empty, errors=_OWN_WRITE, headers=KEY_HEADERS,
            summary="End a session and release its locks",
        ),
    ]  # fmt: skip


def _lock_routes(handle: _Handlers) -> list[Route]:
    return [
        Route(
            method="POST", path="/v1/locks/{name}/acquire", handler=handle.acquire,
            request=bodies.AcquireRequest, response=bodies.AcquireAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Acquire a lock, waiting in line for up to wait_ms",
        ),
        Route(
            method="POST", path="/v1/locks:acquire", handler=handle.acquire_many,
            request=bodies.AcquireManyRequest, response=bodies.AcquireManyAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Acquire several locks, all or nothing",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/release", handler=handle.release,
            request=bodies.HoldRequest, response=bodies.Empty, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Release a lock",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/upgrade", handler=handle.upgrade,
            request=bodies.UpgradeRequest, response=bodies.AcquireAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Make a shared hold exclusive, under a new token",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/downgrade", handler=handle.downgrade,
            request=bodies.HoldRequest, response=bodies.AcquireAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Make an exclusive hold shared",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/confirm", handler=handle.confirm,
            request=bodies.TokenRequest, response=bodies.AcquireAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="Confirm a grant that was asked for with confirm_ms",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/cancel", handler=handle.cancel,
            request=bodies.CancelRequest, response=bodies.CancelAnswer, errors=_OWN_WRITE,
            headers=KEY_HEADERS,
            summary="End a wait for a lock",
        ),
        Route(
            method="DELETE", path="/v1/locks/{name}", handler=handle.break_lock, admin=True,
            response=bodies.BreakAnswer, query={"reason": "for the lock's history"},
            errors=(404, *_WRITE), headers=KEY_HEADERS,
            summary="Take a lock from whoever holds it (audited)",
        ),
    ]  # fmt: skip


def _read_routes(handle: _Handlers, service: LockService) -> list[Route]:
    return [
        Route(
            method="GET", path="/v1/locks/{name}", handler=handle.get_lock,
            response=bodies.LockDetail, errors=(503,),
            summary="Who holds a lock and who waits for it",
        ),
        Route(
            method="GET", path="/v1/locks/{name}/explain", handler=handle.explain,
            response=bodies.LockExplanation, errors=(503,),
            summary="Why nobody gets a lock, in words",
        ),
        Route(
            method="GET", path="/v1/locks/{name}/history", handler=handle.history,
            response=bodies.LockHistoryAnswer, errors=(503,),
            summary="Who held a lock when, with which token",
        ),
        Route(
            method="POST", path="/v1/locks/{name}/verify", handler=handle.verify,
            request=bodies.VerifyRequest, response=bodies.VerifyAnswer, errors=(503,),
            summary="Is this token good now, and which is the newest",
        ),
        Route(
            method="GET", path="/v1/locks", handler=handle.list_locks, response=bodies.LockPage,
            query=LIST_QUERY, errors=(503,), summary="Held locks by name",
        ),
        Route(
            method="GET", path="/v1/locks:stream", status=101, errors=(400,),
            handler=session_handler(lambda connection: LockStream(service, connection)),
            summary="WebSocket: msgpack arrays of [request_id, op, args] and answers",
        ),
    ]  # fmt: skip
