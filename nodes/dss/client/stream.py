"""The stream protocol's client end: many requests in flight over one WebSocket.

A message is a msgpack array of `[request_id, op, args]`, answered by arrays of
`[request_id, status, result]`. All requests made in one loop iteration leave in one message; one
reader task settles futures; there is no task per request. What must not live here: what ops mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from dss.base.errors import DssError, Indeterminate, TooLarge, Unavailable
from dss.base.limits import (
    STREAM_IN_FLIGHT_MAX,
    STREAM_MESSAGE_BYTES_MAX,
    STREAM_OUTBOX_BYTES_MAX,
)
from dss.client.errors import Closed, error_of, plain, unreachable

Answer = tuple[int, Any]
"""(status, body): a status from 400 on has a body with `code` and `message`."""

CONNECT_S: Final = 3.0
"""For one endpoint's TCP and WebSocket handshake: a dead host must not eat a lock's wait."""
HEARTBEAT_S: Final = 4.0
"""WebSocket pings: a silently dead node is noticed within 1.5 of these, below a usual TTL."""

MOVES_MAX: Final = 20
"""Nodes in a row that stop before they answer anything: more is no rolling restart."""
HEADER_BYTES: Final = 5
"""Of a message's array."""

Mark = tuple[int, "asyncio.Task[None] | None"]
_Item = tuple[int, "asyncio.Future[Answer]", bytes]


class LockStream:
    """A connection to a role's stream on one of several nodes, made on first use.

    When it breaks, requests that had been sent fail with Indeterminate (they may have happened);
    the next request connects again, to the next endpoint. A node that stops says with its close
    code that it has not taken what it did not answer: that is sent again, to the next. All methods
    belong to one event loop.

    Args:
        endpoints: base URLs; or a coroutine function that gives them, best first, asked before
            each connection.
        http: the session to use; without it the stream has its own and closes it.
        token: bearer token, when the cluster wants one.
        role: of the nodes that serve `path`, for messages.
        on_push: called with `(kind, body)` for messages the node sends unasked.
        on_broken: called when a connection has ended: nobody tells anything until the next one.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | Callable[[], Awaitable[Sequence[str]]],
        *,
        http: aiohttp.ClientSession | None = None,
        token: str | None = None,
        path: str = "/v1/locks:stream",
        role: str = "lock",
        on_push: Callable[[Any, Any], None] | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._path = path
        self._role = role
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http
        self._own_http: aiohttp.ClientSession | None = None
        self._on_push = on_push
        self._on_broken = on_broken
        self._failures = 0
        self._moves = 0
        self._next_id = 1
        self._waiting: deque[_Item] = deque()
        self._sent: dict[int, _Item] = {}
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._heard = 0
        """Messages that have come, over all connections."""
        self.closed = False
        self.no_websockets = False
        """The last time it connected, somebody answered, but spoke no WebSocket (a proxy)."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[tuple[int, Any, Any]]).decode
        self.endpoint: str | None = None
        """Where it is connected, if it is."""

    def request(self, op: str, args: Any) -> asyncio.Future[Answer]:
        """Send one request; the future gives `(status, body)`, statuses from 400 on included.

        The future fails with Unavailable (never sent: no node could be reached) or Indeterminate
        (sent, and the connection broke).

        Raises:
            Closed: the client is.
            TooLarge: it does not fit one message.
        """
        if self.closed:
            raise Closed()
        request_id = self._next_id
        self._next_id = request_id + 1
        item = self._encode((request_id, op, args))
        if len(item) + HEADER_BYTES > STREAM_MESSAGE_BYTES_MAX:
            limit = STREAM_MESSAGE_BYTES_MAX
            raise TooLarge(f"{op}: the request is larger than {limit} bytes", limit=limit)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request_id, future, item))
        wake = self._wake
        if wake is not None:
            # The writer runs in the next iteration and takes all that this one has added.
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="dss-stream")
        return future

    def mark(self) -> Mark:
        """What has been heard so far, for `drop_if_silent`."""
        return self._heard, self._reader

    def drop_if_silent(self, since: Mark) -> None:
        """Give the connection up if nothing was heard on it since: its node is stopped or gone.

        For who has sent something then, and waits. What was sent fails with Indeterminate.
        """
        reader = since[1]
        if reader is not None and since == self.mark():
            reader.cancel()

    async def close(self) -> None:
        """Fail what is pending and disconnect."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(*self._closing)
        self._fail_waiting(Closed())
        if self._own_http is not None:
            await self._own_http.close()

    # --- one task: connect, write; and one that reads -------------------------------------

    async def _run(self) -> None:
        try:
            await self._serve()
        finally:  # nothing may wait for a task that has ended
            self._fail_waiting(Unavailable("the stream ended"))

    async def _serve(self) -> None:
        """Until the connection breaks and nothing waits to be sent."""
        while True:
            try:
                ws = await self._connect()
            except DssError as error:
                self._fail_waiting(error)
                return
            reader = asyncio.create_task(self._read(ws), name="dss-stream-reader")
            self._reader = reader
            try:
                await self._write(ws, reader)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                self._reader = None
                self._broken(ws.close_code)
                # Beside the next connection: a dead node does not play along.
                closing = asyncio.create_task(_quietly_close(ws), name="dss-stream-close")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            if not self._waiting:
                return

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        http = self._http or self._own_http
        if http is None:
            http = self._own_http = aiohttp.ClientSession()
        if callable(self._endpoints):
            endpoints = list(await self._endpoints())
        else:
            shift = self._failures % max(1, len(self._endpoints))
            endpoints = [*self._endpoints[shift:], *self._endpoints[:shift]]
        reasons: dict[str, str] = {}
        self.no_websockets = False
        for endpoint in endpoints:
            try:
                async with asyncio.timeout(CONNECT_S):
                    ws = await http.ws_connect(
                        endpoint.rstrip("/") + self._path,
                        headers=self._headers,
                        heartbeat=HEARTBEAT_S,
                        # What a receive answers is larger than what may be sent; never beyond this.
                        max_msg_size=STREAM_OUTBOX_BYTES_MAX,
                        compress=0,
                    )
            except aiohttp.WSServerHandshakeError as error:
                if error.status in (401, 403):
                    raise error_of(error.status, _refusal(endpoint, error.status)) from error
                self._failures += 1
                self.no_websockets = True
                reasons[endpoint] = f"HTTP {error.status}"
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._failures += 1
                reasons[endpoint] = plain(error)
                continue
            self.endpoint = endpoint
            self.no_websockets = False
            return ws
        raise unreachable(self._role, reasons)

    async def _write(self, ws: aiohttp.ClientWebSocketResponse, reader: asyncio.Task[None]) -> None:
        """Send batches until the connection breaks (the reader ends)."""
        while not reader.done():
            batch = self._take_batch()
            if batch is None:
                wake = self._wake = asyncio.get_running_loop().create_future()
                await wake
                continue
            try:
                await ws.send_bytes(batch)
            except (aiohttp.ClientError, OSError):
                return

    def _take_batch(self) -> bytes | None:
        """All that may be sent now, as one message; None when there is nothing."""
        waiting = self._waiting
        if not waiting or len(self._sent) >= STREAM_IN_FLIGHT_MAX:
            return None
        room = STREAM_IN_FLIGHT_MAX - len(self._sent)
        size = HEADER_BYTES
        pieces: list[bytes] = []
        while waiting and len(pieces) < room:
            request_id, future, item = waiting[0]
            if pieces and size + len(item) > STREAM_MESSAGE_BYTES_MAX:
                break
            entry = waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                continue
            size += len(item)
            self._sent[request_id] = entry
            pieces.append(item)
        if not pieces:
            return None
        return b"\xdd" + len(pieces).to_bytes(4, "big") + b"".join(pieces)

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Settle futures until the connection ends; then let the writer end too."""
        sent = self._sent
        try:
            while True:
                message = await ws.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                self._moves = 0
                self._heard += 1
                for request_id, status, body in self._decode(message.data):
                    if request_id == 0:
                        if self._on_push is not None:
                            self._on_push(status, body)
                        continue
                    entry = sent.pop(request_id, None)
                    if entry is not None and not entry[1].done():
                        entry[1].set_result((status, body))
                if self._waiting:
                    self._wake_writer()
        except msgspec.MsgspecError:
            return  # not our protocol: treated as a broken connection
        finally:
            self._wake_writer()

    def _wake_writer(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _broken(self, close_code: int | None) -> None:
        endpoint, self.endpoint = self.endpoint, None
        self._failures += 1
        self._wake = None
        if self._on_broken is not None and not self.closed:
            self._on_broken()
        sent, self._sent = self._sent, {}
        left = close_code == aiohttp.WSCloseCode.GOING_AWAY and not self.closed
        if left and self._moves < MOVES_MAX:
            self._moves += 1
            self._waiting.extendleft(reversed(sent.values()))
            return
        for _, future, _ in sent.values():
            if not future.done():
                future.set_exception(
                    Indeterminate(f"the stream to {endpoint} broke before the answer came")
                )

    def _fail_waiting(self, error: DssError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for _, future, _ in waiting:
            if not future.done():
                future.set_exception(type(error)(error.message))


async def _quietly_close(ws: aiohttp.ClientWebSocketResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await ws.close()


def _refusal(endpoint: str, status: int) -> dict[str, str]:
    """aiohttp drops the problem document of a refused handshake."""
    why = "wants a bearer token, or another one" if status == 401 else "forbids this token"
    return {"detail": f"{endpoint} {why}: give connect(token=…) or set DSS_TOKEN"}
