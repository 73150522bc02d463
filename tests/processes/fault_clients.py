"""One attempt of one request, over HTTP or the stream protocol, on connections that are kept.

What must not live here: repeats, what an answer means.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import select
import time
import uuid
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

UNKNOWN = 0
"""The request may have reached the node; no answer came."""
NOT_SENT = 599
"""The node cannot have got it: it refused the connection."""
TIMEOUT_S = 1.5
"""Beyond the request's `wait_ms`. Short, or all clients soon hang at a node that was cut off."""

KEPT_S = 0.4
"""How long a connection may have been idle. A node that stops keeps idle ones for 0.5 s (DRAIN_S)
and says `Connection: close` to all others before, so a request never meets its closing."""

_ROUTES = {
    "session.create": ("POST", "/v1/sessions"),
    "session.end": ("DELETE", "/v1/sessions/{session}"),
    "acquire": ("POST", "/v1/locks/{name}/acquire"),
    "release": ("POST", "/v1/locks/{name}/release"),
    "verify": ("POST", "/v1/locks/{name}/verify"),
    "get": ("GET", "/v1/locks/{name}"),
}


class LockClient(Protocol):
    def ask(
        self, url: str, op: str, name: str, args: dict[str, Any], key: str
    ) -> tuple[int, Any]: ...

    def begin(self) -> None:
        """A new session: numbers start anew."""

    def next_key(self) -> str:
        """For a request that will be repeated until it has an answer."""

    def close(self) -> None: ...


class HttpClient:
    """Keeps one connection to each node, and leaves it when the node says `Connection: close`."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._used_s: dict[str, float] = {}

    def begin(self) -> None:
        pass

    def next_key(self) -> str:
        return uuid.uuid4().hex

    def ask(self, url: str, op: str, name: str, args: dict[str, Any], key: str) -> tuple[int, Any]:
        method, path = _ROUTES[op]
        path = path.format(name=quote(name, safe=""), session=args.get("session", ""))
        body = None if op in ("get", "session.end") else json.dumps(args).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        if key:
            headers["Idempotency-Key"] = key
        try:
            connection = self._connection(url)
        except OSError as error:
            return NOT_SENT, repr(error)
        assert connection.sock is not None
        connection.sock.settimeout(self._timeout_s + args.get("wait_ms", 0) / 1_000)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self._leave(url)
            return UNKNOWN, repr(error)
        self._used_s[url] = time.monotonic()
        if reply.will_close:
            self._leave(url)
        return reply.status, json.loads(data) if data else {}

    def _connection(self, url: str) -> http.client.HTTPConnection:
        connection = self._connections.get(url)
        if connection is not None and connection.sock is not None:
            idle_s = time.monotonic() - self._used_s[url]
            if idle_s < KEPT_S and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            self._leave(url)  # it is old, or the node has closed it
        place = urlsplit(url)
        connection = http.client.HTTPConnection(
            str(place.hostname), place.port, timeout=self._timeout_s
        )
        connection.connect()
        self._connections[url] = connection
        return connection

    def _leave(self, url: str) -> None:
        self._connections.pop(url).close()

    def close(self) -> None:
        for url in list(self._connections):
            self._leave(url)


class StreamClient:
    """One stream at a time, to the node that was asked last. Keys are the session's numbers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._http: aiohttp.ClientSession | None = None
        self._stream: aiohttp.ClientWebSocketResponse | None = None
        self._url = ""
        self._request = 0
        self._number = 0

    def begin(self) -> None:
        self._number = 0

    def next_key(self) -> str:
        self._number += 1
        return str(self._number)

    def ask(self, url: str, op: str, name: str, args: dict[str, Any], key: str) -> tuple[int, Any]:
        sent = {**args, **({"name": name} if name else {})}
        if key:
            sent |= {"seq": int(key), "ack": int(key) - 1}
        return self._loop.run_until_complete(self._ask(url, op, sent))

    async def _ask(self, url: str, op: str, args: dict[str, Any]) -> tuple[int, Any]:
        if self._stream is None or self._stream.closed or self._request % 20 == 0:
            await self._leave()
            self._url = url
        try:
            stream = await asyncio.wait_for(self._connected(), TIMEOUT_S)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            await self._leave()
            return NOT_SENT, repr(error)
        self._request += 1
        try:
            async with asyncio.timeout(TIMEOUT_S + args.get("wait_ms", 0) / 1_000):
                await stream.send_bytes(msgspec.msgpack.encode([[self._request, op, args]]))
                return await self._answer(stream)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            # The node had closed it before: aiohttp wrote nothing.
            sent = not isinstance(error, aiohttp.ClientConnectionResetError)
            await self._leave()
            return (UNKNOWN if sent else NOT_SENT), repr(error)

    async def _answer(self, stream: aiohttp.ClientWebSocketResponse) -> tuple[int, Any]:
        while True:
            message = await stream.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                # 1001: what is unanswered was not taken (docs/streams.md).
                code = stream.close_code
                await self._leave()
                return (NOT_SENT if code == 1001 else UNKNOWN), f"closed with {code}"
            for number, status, body in msgspec.msgpack.decode(message.data):
                if number == self._request:
                    return int(status), body

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        if self._http is None:
            self._http = aiohttp.ClientSession()
        if self._stream is None:
            self._stream = await self._http.ws_connect(f"{self._url}/v1/locks:stream")
        return self._stream

    async def _leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(TimeoutError, OSError, aiohttp.ClientError):
                await asyncio.wait_for(stream.close(), 0.5)

    async def _end(self) -> None:
        await self._leave()
        if self._http is not None:
            await self._http.close()
        await asyncio.sleep(0.01)  # connections close in a turn of their own

    def close(self) -> None:
        self._loop.run_until_complete(self._end())
        self._loop.close()
