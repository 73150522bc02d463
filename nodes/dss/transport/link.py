"""One TCP connection between two nodes: the handshake first, then frames.

A frame is `u32 length | msgpack array of messages`; all that was sent in one loop iteration leaves
as one frame. Half-open connections are found by TCP keepalive and TCP_USER_TIMEOUT (the kernel's
work, no application pings). What must not live here: which nodes there are, what messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final
from typing import cast as typed

import msgspec

from dss.base import limits
from dss.base.levels import BASE_LEVEL
from dss.core.machine import UNREADABLE
from dss.transport.handshake import (
    HANDSHAKE_BYTES_MAX,
    Acceptor,
    Dialer,
    HandshakeRefused,
    reject,
)
from dss.transport.ports import Peer
from dss.transport.wire import Call, Cast, Message, Return

if TYPE_CHECKING:
    from dss.transport.links import Links

log = logging.getLogger("dss.transport")

HANDSHAKE_TIMEOUT_S: Final = 3.0

_encode = msgspec.msgpack.Encoder().encode
_frames: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])


def encode_frames(messages: list[Message]) -> bytes:
    """Length-prefixed frames of at most FRAME_BYTES_MAX each; usually one.

    A single message beyond the limit is dropped with an error line: no sender may make one.
    """
    body = _encode(messages)
    if len(body) <= limits.FRAME_BYTES_MAX:
        return len(body).to_bytes(4, "big") + body
    if len(messages) == 1:
        log.error("a %s of %d bytes is beyond the frame limit", type(messages[0]), len(body))
        return b""
    half = len(messages) // 2
    return encode_frames(messages[:half]) + encode_frames(messages[half:])


class Link(asyncio.Protocol):
    """One TCP connection: handshake first, then frames."""

    def __init__(self, links: Links, dial_to: str | None) -> None:
        self.links = links
        self.dialer = Dialer(links.identity, dial_to) if dial_to else None
        self.acceptor = None if dial_to else Acceptor(links.identity, links.known)
        self.peer: Peer | None = None
        self.transport: asyncio.Transport | None = None
        self.outbox: list[Message] = []
        self.buffer = bytearray()
        self.greeted = False
        self.frames = 0
        self.established: asyncio.Future[None] = links.loop.create_future()
        self.closed: asyncio.Future[None] = links.loop.create_future()
        self.reason = "connection closed"
        self.deadline: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = stream = typed(asyncio.Transport, transport)  # uvloop's is no subclass
        _tune(transport.get_extra_info("socket"))
        stream.set_write_buffer_limits(high=limits.PEER_OUTBOX_BYTES_MAX)
        self.links.connections[self] = None
        self.deadline = self.links.loop.call_later(
            HANDSHAKE_TIMEOUT_S, self.close, "handshake timed out"
        )
        if self.dialer:
            self._write_one(self.dialer.hello())

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = in_words(exc)
        if self.deadline:
            self.deadline.cancel()
        self.links.connections.pop(self, None)
        if not self.established.done():
            self.established.set_exception(ConnectionError(self.reason))
            self.established.exception()  # the dialer may have given up: not "never retrieved"
        if not self.closed.done():
            self.closed.set_result(None)
        self.links.link_lost(self)

    def data_received(self, data: bytes) -> None:
        # The common case is one or a few whole frames in one read: no copy then.
        if self.buffer:
            self.buffer += data
            data = bytes(self.buffer)
            self.buffer.clear()
        view = memoryview(data)
        position, end = 0, len(data)
        while end - position >= 4 and self.transport is not None:
            size = int.from_bytes(view[position : position + 4], "big")
            bound = limits.FRAME_BYTES_MAX if self.peer else HANDSHAKE_BYTES_MAX
            if size > bound:
                self.close(f"frame of {size} bytes is beyond the limit of {bound}")
                return
            if end - position - 4 < size:
                break
            body = view[position + 4 : position + 4 + size]
            position += 4 + size
            if self.peer is not None:
                self._frame(body)
            else:
                self._handshake(bytes(body))
        if position < end and self.transport is not None:
            self.buffer += view[position:]

    # --- sending ---

    def flush(self) -> None:
        messages = self.outbox
        if not messages:
            return
        self.outbox = []
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > limits.PEER_OUTBOX_BYTES_MAX:
            self.links.dropped += len(messages)
            if any(isinstance(message, Call | Return | Cast) for message in messages):
                # Raft repeats itself, nobody repeats these: whoever waits must hear of it.
                self.close(f"it does not read: {limits.PEER_OUTBOX_BYTES_MAX} bytes are unsent")
            return
        transport.write(encode_frames(messages))

    def close(self, reason: str) -> None:
        self.reason = reason
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _write_one(self, body: bytes) -> None:
        assert self.transport is not None
        self.transport.write(len(body).to_bytes(4, "big") + body)

    # --- receiving ---

    def _handshake(self, body: bytes) -> None:
        try:
            if self.dialer:
                welcome, proof = self.dialer.welcomed(body)
                self._write_one(proof)
                peer = Peer(
                    welcome.node_id, welcome.incarnation, welcome.boot_id, welcome.feature_level
                )
            else:
                assert self.acceptor is not None
                if not self.greeted:
                    self._write_one(self.acceptor.greeted(body))
                    self.greeted = True
                    return
                hello = self.acceptor.proved(body)
                peer = Peer(
                    hello.node_id,
                    hello.incarnation,
                    hello.boot_id,
                    max(hello.feature_level, BASE_LEVEL),
                )
        except HandshakeRefused as error:
            if self.acceptor is not None:
                self._write_one(reject(str(error)))
            self.links.refused(str(error), dialed=self.dialer is not None)
            self.reason = str(error)
            if self.transport is not None:
                self.transport.close()
                self.transport = None
            return
        self.peer = peer
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        if not self.established.done():
            self.established.set_result(None)
        self.links.link_made(self)

    def _frame(self, body: memoryview) -> None:
        try:
            messages = _frames.decode(body)
        except UNREADABLE as error:
            self.close(f"undecodable frame: {error}")
            return
        self.links.received(self, messages)


def in_words(error: BaseException) -> str:
    """For people: `connection refused`, not `[Errno 111] Connection refused`."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def _tune(sock: socket.socket | None) -> None:
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 5_000),
    ):
        option = getattr(socket, name, None)
        if option is not None:  # Linux has them all; elsewhere the defaults must do
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
