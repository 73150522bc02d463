"""One end of an open WebSocket (RFC 6455): from the transport to its receiver and back.

aiohttp makes the handshake and owns the transport; from then on its protocol hands what it reads
to `feed_data`, and a whole message reaches the receiver before that returns: no queue, no future,
no task and no loop turn per message. What must not live here: handshakes, what messages mean.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from functools import cache
from typing import Final

try:  # aiohttp's, in C; its place is not public
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:  # pragma: no cover - of another version

    def websocket_mask(mask: bytes, data: bytearray) -> None:
        xor_by_table(mask, data)


TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_WHOLE_BINARY: Final = _FINAL | BINARY

NO_CODE: Final = 1005
"""The peer closed and gave no code."""
CUT_OFF: Final = 1006
"""The connection ended without a closing handshake."""
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009
_CODES_OF_OTHERS: Final = (1000, 1001, 1002, 1003, *range(1007, 1015))
"""Of those below 3000, what a close frame may carry."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 §1.3: whoever answers with it has read the key as a WebSocket's."""
CONTROL_BYTES_MAX: Final = 125
"""RFC 6455 §5.5: the payload of a control frame. Two of a close frame's are the code."""

_TAKEN: Final = (False, b"")
"""What aiohttp wants to hear of `feed_data`: not over, nothing left."""


def accept_of(key: str) -> str:
    """RFC 6455 §4.2.2: the Sec-WebSocket-Accept to a Sec-WebSocket-Key."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class WebSocketEnd:
    """An open WebSocket; `protocol.set_parser(end)` lets it hear.

    Args:
        received: called with each binary message. Must not raise.
        masks: gives the 4 bytes that a frame is masked with; None: this is the server's end.
        message_bytes_max: a longer message closes with 1009.
        unread_bytes_max: a peer that leaves more than this unread is cut off.
        heartbeat_s: a ping after so long a silence; half of it later the peer is taken for dead.
        close_s: for the peer's half of the closing handshake.

    Attributes:
        over: done when the connection has ended: the close code of the peer, or CUT_OFF.
    """

    __slots__ = (
        "_close_s",
        "_closing",
        "_deaf",
        "_heard_s",
        "_heartbeat_s",
        "_kept",
        "_loop",
        "_masks",
        "_message_bytes_max",
        "_needed",
        "_parts",
        "_peer_masks",
        "_pinged_s",
        "_received",
        "_timer",
        "_transport",
        "_unread_bytes_max",
        "over",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        received: Callable[[bytes], None],
        *,
        masks: Callable[[], bytes] | None = None,
        message_bytes_max: int,
        unread_bytes_max: int,
        heartbeat_s: float,
        close_s: float,
    ) -> None:
        self._transport = transport
        self._received = received
        self._masks = masks
        self._peer_masks = 0 if masks is not None else 1
        self._message_bytes_max = message_bytes_max
        self._unread_bytes_max = unread_bytes_max
        self._heartbeat_s = heartbeat_s
        self._close_s = close_s
        self._kept = bytearray()
        """The beginning of a frame, and how much of it is needed to go on."""
        self._needed = 0
        self._parts: bytearray | None = None
        """The beginning of a message that comes in several frames."""
        self._closing = False
        """Our close frame has been sent: what comes before the peer's is dropped."""
        self._deaf = False
        """Nothing is read any more: it is over, or no frame can be made out."""
        self._loop = loop = asyncio.get_running_loop()
        self._heard_s = self._pinged_s = loop.time()
        self._timer: asyncio.TimerHandle | None = loop.call_later(heartbeat_s, self._beat)
        self.over: asyncio.Future[int] = loop.create_future()

    @property
    def is_open(self) -> bool:
        """What is sent leaves."""
        return not (self._closing or self._deaf or self._transport.is_closing())

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet."""
        return self._transport.get_write_buffer_size()

    # --- what comes ---------------------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """What aiohttp has read."""
        self._heard_s = self._loop.time()
        if self._deaf:
            return _TAKEN
        if self._needed:
            self._kept += data
            if len(self._kept) < self._needed:
                return _TAKEN
            data, self._kept = bytes(self._kept), bytearray()
            self._needed = 0
        elif type(data) is not bytes:  # of a Windows event loop
            data = bytes(data)
        self._frames(data)
        return _TAKEN

    def feed_eof(self) -> None:
        """The connection is lost."""
        self._end(CUT_OFF)

    def _frames(self, data: bytes) -> None:
        """All that are whole; the rest is kept."""
        at, end, peer_masks = 0, len(data), self._peer_masks
        while end - at >= 2:
            first, second = data[at], data[at + 1]
            size, body = second & 0x7F, at + 2
            if size > CONTROL_BYTES_MAX:
                body += 2 if size == 126 else 8
                if body > end:
                    break
                size = int.from_bytes(data[at + 2 : body], "big")
            if first != _WHOLE_BINARY or self._parts is not None or size > self._message_bytes_max:
                fault = self._fault(first, size)
                if fault is not None:
                    self._fail(*fault)
                    return
            if second >> 7 != peer_masks:
                self._fail(PROTOCOL_ERROR, "a client masks its frames, a server does not")
                return
            if peer_masks:
                body += 4
            stop = body + size
            if stop > end:
                self._keep(data[at:], stop - at)
                return
            payload = data[body:stop]
            if peer_masks:
                unmasked = bytearray(payload)
                websocket_mask(data[body - 4 : body], unmasked)
                payload = bytes(unmasked)
            at = stop
            if first != _WHOLE_BINARY:
                self._unusual(first, payload)
            elif not self._closing:
                self._received(payload)
            if self._deaf:
                return
        if at < end:
            self._keep(data[at:], end - at + 1)

    def _keep(self, data: bytes, needed: int) -> None:
        self._kept = bytearray(data)
        self._needed = needed

    def _fault(self, first: int, size: int) -> tuple[int, str] | None:
        """What RFC 6455 §5 forbids of a frame's head."""
        opcode, parts = first & 0x0F, self._parts
        if first & _RESERVED:
            return PROTOCOL_ERROR, "reserved bits are set"
        if opcode >= CLOSE:
            if opcode > PONG or not first & _FINAL or size > CONTROL_BYTES_MAX:
                return PROTOCOL_ERROR, f"no such control frame: opcode {opcode}, {size} bytes"
        elif opcode > BINARY or (parts is None) != (opcode > 0):
            return PROTOCOL_ERROR, f"opcode {opcode} where it must not be"
        elif size + len(parts or b"") > self._message_bytes_max:
            return TOO_BIG, f"a message has at most {self._message_bytes_max} bytes"
        return None

    def _unusual(self, first: int, payload: bytes) -> None:
        """A control frame, a text message, or a part of a message."""
        opcode = first & 0x0F
        if opcode == CLOSE:
            self._peer_closes(payload)
        elif opcode == PING:
            if not self._closing:
                self._write(PONG, payload)
        elif opcode == TEXT:
            self.close(UNSUPPORTED_DATA, "send binary messages")
        elif opcode != PONG:
            parts = self._parts = bytearray() if self._parts is None else self._parts
            parts += payload
            if first & _FINAL:
                self._parts = None
                if not self._closing:
                    self._received(bytes(parts))

    def _peer_closes(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
        if payload and (
            len(payload) < 2
            or not (3_000 <= code < 5_000 or code in _CODES_OF_OTHERS)
            or not _is_utf8(payload[2:])
        ):
            self._fail(PROTOCOL_ERROR, "a close frame without a valid code and reason")
            return
        if not self._closing:
            self._write(CLOSE, payload[:2])
        self._end(code)
        self._transport.close()  # once all has left
        if self.unsent_bytes:
            self._loop.call_later(self._close_s, self._transport.abort)

    # --- what leaves --------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """One binary message; dropped when it is not open any more."""
        if not (self._closing or self._deaf or self._transport.is_closing()):
            self._write(BINARY, message)

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; what comes from now on is dropped. It ends by `over`."""
        if self._closing or self._deaf:
            return
        cut = reason.encode()[: CONTROL_BYTES_MAX - 2].decode(errors="ignore").encode()
        self._write(CLOSE, code.to_bytes(2, "big") + cut)
        self._closing = True
        if not self._deaf:
            self._set_timer(self._close_s, self.abort)

    def abort(self) -> None:
        """Cut the connection off, unless it is over."""
        if not self.over.done():
            self._end(CUT_OFF)
            self._transport.abort()

    def _write(self, opcode: int, payload: bytes) -> None:
        transport = self._transport
        transport.write(frame(opcode, payload, self._masks() if self._masks else None))
        if transport.get_write_buffer_size() > self._unread_bytes_max:
            self.abort()

    # --- its end ------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """The peer does not speak this protocol: say so, and read no more."""
        self.close(code, reason)
        self._deaf = True

    def _end(self, code: int) -> None:
        self._deaf = True
        self._kept, self._parts = bytearray(), None
        self._received = _ignore  # its receiver often has this end: no cycle is left
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.over.done():
            self.over.set_result(code)

    def _set_timer(self, after_s: float, do: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(after_s, do)

    def _beat(self) -> None:
        now_s = self._loop.time()
        silent_s = now_s - self._heard_s
        if silent_s < self._heartbeat_s * 0.99:  # timers are not exact
            self._set_timer(self._heartbeat_s - silent_s, self._beat)
        elif self._pinged_s <= self._heard_s:  # no ping is out: this loop may have stood still
            self._pinged_s = now_s
            self._write(PING, b"")
            if not self._deaf:
                self._set_timer(self._heartbeat_s / 2, self._beat)
        else:
            self.abort()


def _ignore(payload: bytes) -> None:
    """Nobody listens."""


def frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """One unfragmented frame (RFC 6455 §5.2), masked when there is a mask."""
    size = len(payload)
    masked = 0 if mask is None else 0x80
    if size < 126:
        head = bytes((_FINAL | opcode, masked | size))
    elif size < 65_536:
        head = bytes((_FINAL | opcode, masked | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, masked | 127)) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    body = bytearray(payload)
    websocket_mask(mask, body)
    return head + mask + body


def xor_by_table(mask: bytes, data: bytearray) -> None:
    """Mask `data`, or unmask it, in place (RFC 6455 §5.3), without C."""
    for offset, key in enumerate(mask):
        data[offset::4] = data[offset::4].translate(_xor_with(key))


@cache
def _xor_with(key: int) -> bytes:
    return bytes(byte ^ key for byte in range(256))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
