"""The server's half of a WebSocket's opening handshake (RFC 6455 §4.2).

aiohttp's own WebSocketResponse would read through a queue and a task. What must not live here:
what comes after the handshake (base/websocket.py).
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from aiohttp import web

from dss.base.websocket import accept_of

_VERSION: Final = "13"
_KEY_BYTES: Final = 16


async def upgrade(request: web.Request) -> web.StreamResponse:
    """Switch protocols: the 101 has been sent, and nothing has been read since.

    Raises:
        web.HTTPBadRequest: it does not ask for a WebSocket.
    """
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": _accept(request),
    }
    response = web.StreamResponse(status=101, headers=headers)
    response.force_close()
    await response.prepare(request)
    request.protocol.keep_alive(False)
    return response


def _accept(request: web.Request) -> str:
    asked = request.headers
    if "websocket" not in _tokens(asked.get("Upgrade")):
        raise web.HTTPBadRequest(text="this is a WebSocket: ask with `Upgrade: websocket`")
    if "upgrade" not in _tokens(asked.get("Connection")):
        raise web.HTTPBadRequest(text="this is a WebSocket: ask with `Connection: Upgrade`")
    if asked.get("Sec-WebSocket-Version") != _VERSION:
        raise web.HTTPBadRequest(
            text=f"Sec-WebSocket-Version is {_VERSION} here",
            headers={"Sec-WebSocket-Version": "13"},
        )
    key = asked.get("Sec-WebSocket-Key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        valid = False
    if not valid:
        raise web.HTTPBadRequest(text="Sec-WebSocket-Key is 16 bytes in base64")
    return accept_of(key)


def _tokens(header: str | None) -> list[str]:
    return [token.strip().lower() for token in (header or "").split(",")]
