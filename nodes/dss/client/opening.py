"""The client's half of a WebSocket's opening handshake (RFC 6455 §4.1), through aiohttp.

aiohttp's own `ws_connect` would read through a queue and a task. What must not live here: which
node to connect to, what messages mean.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp

from dss.base.limits import STREAM_OUTBOX_BYTES_MAX
from dss.base.websocket import WebSocketEnd, accept_of

HEARTBEAT_S: Final = 4.0
"""WebSocket pings: a silently dead node is noticed within 1.5 of these, below a usual TTL."""
CLOSE_S: Final = 1.0
"""For the node's half of the closing handshake."""

_NO_LIMITS: Final = aiohttp.ClientTimeout(total=None)
_MASKS_AT_ONCE: Final = 256


class NoWebSocket(Exception):
    """Somebody answered, but not with a WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@dataclass(slots=True, frozen=True)
class Opened:
    """A connection; `release` it when `end` is over."""

    end: WebSocketEnd
    _response: aiohttp.ClientResponse

    def release(self) -> None:
        self.end.abort()
        self._response.close()


async def open_websocket(
    http: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    received: Callable[[bytes], None],
) -> Opened:
    """Connect; `received` is called with every binary message, and must not raise.

    Raises:
        NoWebSocket; aiohttp.ClientError, OSError: nobody could be reached.
    """
    key = base64.b64encode(os.urandom(16)).decode()
    asked = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    response = await http.get(
        url, headers={**headers, **asked}, timeout=_NO_LIMITS, raise_for_status=False
    )
    try:
        connection = response.connection
        if (
            response.status != 101
            or response.headers.get("Sec-WebSocket-Accept") != accept_of(key)
            or connection is None
        ):
            raise NoWebSocket(response.status)
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            raise aiohttp.ServerDisconnectedError
        end = WebSocketEnd(
            transport,
            received,
            masks=_masks().__next__,
            # What a receive answers is larger than what may be sent; never beyond this.
            message_bytes_max=STREAM_OUTBOX_BYTES_MAX,
            unread_bytes_max=STREAM_OUTBOX_BYTES_MAX,
            heartbeat_s=HEARTBEAT_S,
            close_s=CLOSE_S,
        )
        # What it wants of a parser is feed_data and feed_eof.
        protocol.set_parser(cast(Any, end), aiohttp.EMPTY_PAYLOAD)
    except BaseException:
        response.close()
        raise
    return Opened(end, response)


def _masks() -> Iterator[bytes]:
    """Unpredictable (RFC 6455 §5.3), and one system call for many."""
    while True:
        drawn = os.urandom(4 * _MASKS_AT_ONCE)
        for at in range(0, len(drawn), 4):
            yield drawn[at : at + 4]
