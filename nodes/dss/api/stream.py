"""The stream protocol over a WebSocket: many requests in flight, one message per flush.

A binary message is a msgpack array of `[request_id, op, args]`, answered by arrays of
`[request_id, status, result]`; id 0 is for pushes. The same for every service: what the ops mean
is in the submit function. What must not live here: ops, decisions. Source: RFC 6455.

Close codes: 1003 a text message; 1007 not the protocol; 1009 a message beyond
STREAM_MESSAGE_BYTES_MAX; 1001 the node stops, and has taken nothing that is unanswered; 1012 it
stops, and may have. A client that does not read its answers is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakSet

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from dss.base.errors import Invalid
from dss.base.limits import (
    STREAM_CLOSE_S,
    STREAM_HEARTBEAT_S,
    STREAM_IN_FLIGHT_MAX,
    STREAM_MESSAGE_BYTES_MAX,
    STREAM_OUTBOX_BYTES_MAX,
)
from dss.drivers.ports import StreamSink

Submit = Callable[[StreamSink, bytes], None]
"""submit(sink, payload): take one message; every id in it is answered once, now or later.
Raises Invalid when the payload is not the protocol."""


class StreamSession(Protocol):
    """What a service keeps with one connection."""

    def submit(self, payload: bytes) -> None:
        """As Submit, without the sink."""

    def end(self) -> None:
        """Called once, when the connection is over: nobody listens to answers any more."""


CLOSE_REASON_BYTES_MAX: Final = 123
"""RFC 6455 §5.5: a control frame has at most 125 bytes, two of them the code."""

_encode = msgspec.msgpack.Encoder().encode
_Answer = tuple[int, int, Any]


class StreamConnection:
    """One client's connection: a drivers.ports.StreamSink.

    Answers leave straight through the transport, so that a flush costs no task and no await.
    """

    __slots__ = (
        "__weakref__",
        "_answers",
        "_closing",
        "_open",
        "_socket",
        "_transport",
        "app",
        "leaving",
    )

    def __init__(
        self, app: web.Application, socket: web.WebSocketResponse, transport: asyncio.Transport
    ) -> None:
        self.app = app
        self._socket = socket
        self._transport = transport
        self._open: dict[int, None] = {}
        self._answers: list[_Answer] = []
        self._closing: asyncio.Task[None] | None = None
        self.leaving = False
        """Nothing more is taken: what comes is left unanswered."""

    @property
    def in_flight(self) -> int:
        return len(self._open)

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
        answers = self._answers
        if answers:
            self._answers = []
            self._send(answers)
            if self.leaving:
                self._close_if_idle()

    def leave(self) -> None:
        """The node stops: close as soon as everything taken is answered."""
        self.leaving = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._open and self._closing is None:
            self._closing = asyncio.ensure_future(self.stop())

    async def stop(self) -> None:
        """Close now, because the node stops."""
        code = WSCloseCode.SERVICE_RESTART if self._open else WSCloseCode.GOING_AWAY
        await self.close(code, "this node stops")

    def drop(self) -> None:
        """The connection is over: later answers are discarded."""
        self._open.clear()
        self._answers.clear()

    async def close(self, code: int, reason: str) -> None:
        """Say why and close; a peer that does not play along is cut off after STREAM_CLOSE_S."""
        self.drop()
        message = reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore").encode()
        try:
            async with asyncio.timeout(STREAM_CLOSE_S):
                await self._socket.close(code=code, message=message, drain=False)
        except TimeoutError:
            self._transport.abort()

    def _send(self, answers: list[_Answer]) -> None:
        message = _encode(answers)
        if len(message) > STREAM_MESSAGE_BYTES_MAX and len(answers) > 1:
            middle = len(answers) // 2
            self._send(answers[:middle])
            self._send(answers[middle:])
            return
        transport = self._transport
        if self._socket.closed or transport.is_closing():
            return
        write_binary_frame(transport, message)
        if transport.get_write_buffer_size() > STREAM_OUTBOX_BYTES_MAX:
            # Waiting for it would hold its answers in memory, or the engine's cycle.
            transport.abort()
            self.drop()


def write_binary_frame(transport: asyncio.WriteTransport, message: bytes) -> None:
    """One unfragmented, unmasked binary frame (RFC 6455 §5.2), beside aiohttp's own writer.

    aiohttp writes whole frames too (pings, pongs, close), so the two never interleave.
    """
    size = len(message)
    if size < 126:
        header = bytes((0x82, size))
    elif size < 65_536:
        header = b"\x82\x7e" + size.to_bytes(2, "big")
    else:
        header = b"\x82\x7f" + size.to_bytes(8, "big")
    transport.write(header + message)


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
        socket = web.WebSocketResponse(
            compress=False,
            heartbeat=STREAM_HEARTBEAT_S,
            max_msg_size=STREAM_MESSAGE_BYTES_MAX,
            timeout=STREAM_CLOSE_S,
        )
        await socket.prepare(request)
        transport = request.transport
        if transport is None:  # gone during the handshake
            return socket
        connection = StreamConnection(request.app, socket, transport)
        _connections.add(connection)
        session = begin(connection)
        try:
            await _serve(socket, connection, session.submit)
        finally:
            connection.drop()
            session.end()
            _connections.discard(connection)
        return socket

    return handle


async def _serve(
    socket: web.WebSocketResponse, connection: StreamConnection, submit: Callable[[bytes], None]
) -> None:
    while True:
        message = await socket.receive()
        if message.type is WSMsgType.BINARY:
            if connection.leaving:
                continue
            try:
                submit(message.data)
            except Invalid as error:
                await connection.close(WSCloseCode.INVALID_TEXT, error.message)
                return
        elif message.type is WSMsgType.TEXT:
            await connection.close(
                WSCloseCode.UNSUPPORTED_DATA,
                "send binary messages: msgpack arrays of [request_id, op, args]",
            )
            return
        else:  # closed by either side, or a frame that aiohttp refused and closed for
            return
