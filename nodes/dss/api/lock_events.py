"""`GET /v1/locks:events`: server-sent events of this node's locks, resumable by index.

An event's id is its number; a client that comes back says the last one it has seen, as `since` or
as `Last-Event-ID` (browsers do), on any node. A node that knows no leader may be the last to hear
of anything: it opens no stream and ends a quiet one, so that clients go to another. Source: WHATWG
HTML § Server-sent events. What must not live here: what the events are (core/locks/journal.py,
drivers/lock_events.py).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Final

import msgspec
from aiohttp import web

from dss.api.routes import Route
from dss.base.errors import Invalid
from dss.base.limits import EVENTS_COMMENT_S, NAME_BYTES_MAX
from dss.drivers.lock_events import RETRY_MS, LockEvents

LAST_EVENT_ID: Final = "Last-Event-ID"
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "Server": "dss",
}
_encode = msgspec.json.Encoder().encode
_QUERY: Final = {
    "prefix": "only locks whose names begin so",
    "since": "the last event seen, by its number; default: from now on",
}


def routes(events: LockEvents) -> list[Route]:
    async def handle(request: web.Request) -> web.StreamResponse:
        prefix = request.query.get("prefix", "")
        if len(prefix) > NAME_BYTES_MAX:
            raise Invalid(f"prefix has at most {NAME_BYTES_MAX} characters")
        since = _since(request)
        events.open_stream()
        try:
            return await _stream(request, events, prefix, since)
        finally:
            events.close_stream()

    return [
        Route(
            method="GET", path="/v1/locks:events", handler=handle, query=_QUERY, errors=(429, 503),
            headers={LAST_EVENT_ID: "as `since`: browsers say it when they come back"},
            summary="Server-sent events: who got, released, waits for and lost which lock",
        ),
    ]  # fmt: skip


def _since(request: web.Request) -> int | None:
    text = request.query.get("since") or request.headers.get(LAST_EVENT_ID)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise Invalid(f"since is the number of an event, not {text[:40]!r}")
    return int(text)


async def _stream(
    request: web.Request, events: LockEvents, prefix: str, since: int | None
) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    number = events.newest if since is None else since
    # The id tells a client that has seen no event yet where to come back to.
    await response.write(f"retry: {RETRY_MS}\nid: {number}\n: connected\n\n".encode())
    async with aclosing(events.follow(number, prefix, EVENTS_COMMENT_S)) as batches:
        async for number, found in batches:
            if found:
                await response.write(b"".join(map(_event, found)))
            else:
                await response.write(f"id: {number}\n: nothing new\n\n".encode())
    return response


def _event(event: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        event["index"],
        event["event"].encode(),
        _encode(event),
    )
