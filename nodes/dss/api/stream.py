"""The stream protocol over a WebSocket: many requests in flight, one message per flush.

A binary message is a msgpack array of `[request_id, op, args]`, answered by arrays of
`[request_id, status, result]`; id 0 is for pushes. The same for every service: what the ops mean
is in the submit function, which is called as the message is read (base/websocket.py). What must
not live here: ops, decisions. Source: RFC 6455.

Close codes: 1002 not RFC 6455; 1003 a text message; 1007 not the protocol; 1009 a message beyond
STREAM_MESSAGE_BYTES_MAX; 1001 the node stops, and has taken nothing that is unanswered; 1012 it
stops, and may have; 1011 a bug. A client that does not read its answers is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast
from weakref import WeakSet

import msgspec
from aiohttp import web

from dss.api.upgrade import upgrade
from dss.base.errors import Invalid
from dss.base.limits import (
    STREAM_CLOSE_S,
    STREAM_HEARTBEAT_S,
    STREAM_IN_FLIGHT_MAX,
    STREAM_MESSAGE_BYTES_MAX,
    STREAM_OUTBOX_BYTES_MAX,
)
from dss.base.websocket import GOING_AWAY, INVALID_DATA, WebSocketEnd
from dss.drivers.ports import StreamSink
from dss.observe.logs import unexpected

Submit = Callable[[StreamSink, bytes], None]
"""submit(sink, payload): take one message; every id in it is answered once, now or later.
Raises Invalid when the payload is not the protocol."""


class StreamSession(Protocol):
    """What a service keeps with one connection."""

    def submit(self, payload: bytes) -> None:
        """As Submit, without the sink."""

    def end(self) -> None:
        """Called once, when the connection is over: nobody listens to answers any more."""


SERVICE_RESTART: Final = 1012
INTERNAL_ERROR: Final = 1011
_STOPS: Final = "this node stops"

_log = logging.getLogger("dss.http")
_encode = msgspec.msgpack.Encoder().encode
_Answer = tuple[int, int, Any]


class StreamConnection:
    """One client's connection: a drivers.ports.StreamSink.

    Messages are taken and answers leave straight from and to the transport, so that neither a
    message nor a flush costs a task or an await.
    """

    __slots__ = ("__weakref__", "_answers", "_end", "_open", "_submit", "app", "leaving")

    def __init__(self, app: web.Application, transport: asyncio.Transport) -> None:
        self.app = app
        self._end = WebSocketEnd(
            transport,
            self._received,
            message_bytes_max=STREAM_MESSAGE_BYTES_MAX,
            unread_bytes_max=STREAM_OUTBOX_BYTES_MAX,
            heartbeat_s=STREAM_HEARTBEAT_S,
            close_s=STREAM_CLOSE_S,
        )
        self._submit: Callable[[bytes], None] | None = None
        self._open: dict[int, None] = {}
        self._answers: list[_Answer] = []
        self.leaving = False
        """Nothing more is taken: what comes is left unanswered."""

    async def serve(self, request: web.Request, submit: Callable[[bytes], None]) -> None:
        """Take its messages until it is over."""
        self._submit = submit
        # What it wants of a parser is feed_data and feed_eof.
        request.protocol.set_parser(cast(Any, self._end))
        await asyncio.shield(self._end.over)

    def _received(self, payload: bytes) -> None:
        if self.leaving or self._submit is None:
            return
        try:
            self._submit(payload)
        except Invalid as error:
            self.close(INVALID_DATA, error.message)
        except Exception as bug:
            unexpected(_log, "stream", bug)
            self.close(INTERNAL_ERROR, "internal error; the node's log has the cause")

    @property
    def in_flight(self) -> int:
        return len(self._open)

    @property
    def unread_bytes(self) -> int:
        """What has been said and the client has not taken yet."""
        return self._end.unsent_bytes

    def take(self, request_ids: Sequence[int]) -> int:
        """See drivers.ports.StreamSink.take."""
        unanswered = self._open
        before = len(unanswered)
        unanswered.update(dict.fromkeys(request_ids))
        if len(unanswered) != before + len(request_ids):
            raise Invalid("a request id is used twice while the first is unanswered")
        if 0 in unanswered:
            raise Invalid("request id 0 is reserved for pushes")
        return max(0, min(len(request_ids), STREAM_IN_FLIGHT_MAX - before))

    def answer(self, request_id: int, status: int, body: Any) -> None:
        """See drivers.ports.Sink.answer. After the connection's end: nobody listens."""
        if self._open.pop(request_id, False) is None:
            self._answers.append((request_id, status, body))

    def push(self, body: Any) -> None:
        """Something that nobody asked for: request id 0. It leaves with the next flush."""
        self._answers.append((0, 200, body))

    def flush(self) -> None:
        """Everything answered since the last flush, as one message (more when it is huge)."""
        if self._answers:
            self._say_answers()
            if self.leaving:
                self._close_if_idle()

    def _say_answers(self) -> None:
        answers = self._answers
        if answers:
            self._answers = []
            self._send(answers)

    def leave(self) -> None:
        """The node stops: close as soon as everything taken is answered."""
        self.leaving = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._open:
            self._say_answers()  # what is answered and not said would be asked of another node
            self.close(GOING_AWAY, _STOPS)

    async def stop(self) -> None:
        """Close now, because the node stops; returns when it is over."""
        self._say_answers()
        self.close(SERVICE_RESTART if self._open else GOING_AWAY, _STOPS)
        await asyncio.shield(self._end.over)

    def drop(self) -> None:
        """The connection is over: later answers are discarded."""
        self._open.clear()
        self._answers.clear()

    def cut_off(self) -> None:
        """Whoever served it has ended."""
        self.drop()
        self._end.abort()

    def close(self, code: int, reason: str) -> None:
        """Say why and close; a peer that does not play along is cut off after STREAM_CLOSE_S."""
        self.drop()
        self._end.close(code, reason)

    def _send(self, answers: list[_Answer]) -> None:
        message = _encode(answers)
        if len(message) > STREAM_MESSAGE_BYTES_MAX and len(answers) > 1:
            middle = len(answers) // 2
            self._send(answers[:middle])
            self._send(answers[middle:])
            return
        self._end.send(message)
        if self._end.over.done():
            self.drop()


_connections: WeakSet[StreamConnection] = WeakSet()


def leave_streams(app: web.Application) -> None:
    """A planned stop begins: the streams of this application close one by one."""
    for connection in _connections_of(app):
        connection.leave()


async def close_streams(app: web.Application) -> None:
    """For `app.on_shutdown`: close those that are left."""
    await asyncio.gather(*(connection.stop() for connection in _connections_of(app)))


def _connections_of(app: web.Application) -> list[StreamConnection]:
    return [connection for connection in _connections if connection.app is app]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def stream_handler(submit: Submit) -> Handler:
    """The handler of a `…:stream` route whose service keeps nothing with a connection."""
    return session_handler(lambda connection: _Stateless(partial(submit, connection)))


class _Stateless:
    __slots__ = ("submit",)

    def __init__(self, submit: Callable[[bytes], None]) -> None:
        self.submit = submit

    def end(self) -> None:
        """Nothing was kept."""


def session_handler(begin: Callable[[StreamConnection], StreamSession]) -> Handler:
    """The handler of a `…:stream` route; `begin` makes what is kept with each connection."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await upgrade(request)
        transport = request.transport
        if transport is None:  # gone during the handshake
            return response
        connection = StreamConnection(request.app, transport)
        _connections.add(connection)
        session = begin(connection)
        try:
            await connection.serve(request, session.submit)
        finally:
            connection.cut_off()
            session.end()
            _connections.discard(connection)
        return response

    return handle
