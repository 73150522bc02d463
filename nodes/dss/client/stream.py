"""The stream protocol's client end: many requests in flight over one WebSocket.

A message is a msgpack array of `[request_id, op, args]`, answered by arrays of
`[request_id, status, result]`. All requests made in one loop iteration leave in one message, and
an answer settles its future as it is read: one task per connection, none per request or message.
What must not live here: what ops mean, frames (base/websocket.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from dss.base.errors import DssError, Indeterminate, Invalid, TooLarge, Unavailable
from dss.base.limits import (
    STREAM_IN_FLIGHT_MAX,
    STREAM_MESSAGE_BYTES_MAX,
)
from dss.base.websocket import GOING_AWAY, WebSocketEnd
from dss.client.errors import Closed, error_of, plain, unreachable
from dss.client.opening import NoWebSocket, Opened, open_websocket

Answer = tuple[int, Any]
"""(status, body): a status from 400 on has a body with `code` and `message`."""

CONNECT_S: Final = 3.0
"""For one endpoint's TCP and WebSocket handshake: a dead host must not eat a lock's wait."""
MOVES_MAX: Final = 20
"""Nodes in a row that stop before they answer anything: more is no rolling restart."""
HEADER_BYTES: Final = 5
"""Of a message's array."""
UNSENT_BYTES_MAX: Final = STREAM_MESSAGE_BYTES_MAX
"""What the node has not taken yet: beyond, requests wait here, where they can go to another."""

Mark = tuple[int, WebSocketEnd | None]
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
        self._gathering = False
        """What waits leaves at the end of this loop iteration."""
        self._task: asyncio.Task[None] | None = None
        self._end: WebSocketEnd | None = None
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
            Invalid: `args` holds what cannot be encoded.
        """
        if self.closed:
            raise Closed()
        request_id = self._next_id
        self._next_id = request_id + 1
        try:
            item = self._encode((request_id, op, args))
        except (TypeError, ValueError, OverflowError) as error:
            raise Invalid(f"{op}: it cannot be sent: {error}") from error
        if len(item) + HEADER_BYTES > STREAM_MESSAGE_BYTES_MAX:
            limit = STREAM_MESSAGE_BYTES_MAX
            raise TooLarge(f"{op}: the request is larger than {limit} bytes", limit=limit)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((request_id, future, item))
        if self._end is not None:
            if not self._gathering:
                self._gathering = True
                loop.call_soon(self._send)
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="dss-stream")
        return future

    def mark(self) -> Mark:
        """What has been heard so far, for `drop_if_silent`."""
        return self._heard, self._end

    def drop_if_silent(self, since: Mark) -> None:
        """Give the connection up if nothing was heard on it since: its node is stopped or gone.

        For who has sent something then, and waits. What was sent fails with Indeterminate.
        """
        end = since[1]
        if end is not None and since == self.mark():
            end.abort()

    async def close(self) -> None:
        """Fail what is pending and disconnect."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail_waiting(Closed())
        if self._own_http is not None:
            await self._own_http.close()

    # --- one task: connect, and wait for the connection's end ---------------------------------

    async def _run(self) -> None:
        try:
            await self._serve()
        finally:  # nothing may wait for a task that has ended
            self._fail_waiting(Unavailable("the stream ended"))

    async def _serve(self) -> None:
        """Until the connection breaks and nothing waits to be sent."""
        while True:
            try:
                opened = await self._connect()
            except DssError as error:
                self._fail_waiting(error)
                return
            end = self._end = opened.end
            try:
                self._send()
                code = await asyncio.shield(end.over)
                self._broken(code)
            except asyncio.CancelledError:
                self._broken(None)
                end.close(aiohttp.WSCloseCode.OK)
                await asyncio.shield(end.over)
                raise
            finally:
                opened.release()
            if not self._waiting:
                return

    async def _connect(self) -> Opened:
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
            url = endpoint.rstrip("/") + self._path
            try:
                async with asyncio.timeout(CONNECT_S):
                    opened = await open_websocket(http, url, self._headers, self._received)
            except NoWebSocket as error:
                if error.status in (401, 403):
                    raise error_of(error.status, _refusal(endpoint, error.status)) from error
                self._failures += 1
                self.no_websockets = True
                reasons[endpoint] = str(error)
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._failures += 1
                reasons[endpoint] = plain(error)
                continue
            self.endpoint = endpoint
            self.no_websockets = False
            return opened
        raise unreachable(self._role, reasons)

    # --- messages ---------------------------------------------------------------------------

    def _send(self) -> None:
        """All that has gathered, unless the node is behind: its answers bring us back here."""
        self._gathering = False
        end = self._end
        if end is None or not end.is_open:
            return
        while end.unsent_bytes <= UNSENT_BYTES_MAX:
            batch = self._take_batch()
            if batch is None:
                return
            end.send(batch)

    def _take_batch(self) -> bytes | None:
        """All that may be sent now, as one message; None when there is nothing."""
        waiting, sent = self._waiting, self._sent
        room = STREAM_IN_FLIGHT_MAX - len(sent)
        size = HEADER_BYTES
        pieces: list[bytes] = []
        while waiting and len(pieces) < room:
            entry = waiting[0]
            request_id, future, item = entry
            size += len(item)
            if pieces and size > STREAM_MESSAGE_BYTES_MAX:
                break
            waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                size -= len(item)
                continue
            sent[request_id] = entry
            pieces.append(item)
        if not pieces:
            return None
        return b"\xdd" + len(pieces).to_bytes(4, "big") + b"".join(pieces)

    def _received(self, message: bytes) -> None:
        """Settle futures. What is not our protocol ends the connection."""
        self._moves = 0
        self._heard += 1
        end = self._end
        try:
            sent = self._sent
            for request_id, status, body in self._decode(message):
                entry = sent.pop(request_id, None)
                if entry is not None:
                    if not entry[1].done():
                        entry[1].set_result((status, body))
                elif request_id == 0 and self._on_push is not None:
                    self._on_push(status, body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if end is not None:
                end.abort()
        except Exception as bug:  # of who listens to pushes
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"what {self.endpoint} sent unasked", "exception": bug}
            )
            if end is not None:
                end.abort()
        if not self._gathering:
            # Behind all that has been woken here: what it asks for leaves in this loop iteration.
            self._gathering = True
            asyncio.get_running_loop().call_soon(self._send)

    def _broken(self, close_code: int | None) -> None:
        endpoint, self.endpoint = self.endpoint, None
        self._end = None
        self._failures += 1
        if self._on_broken is not None and not self.closed:
            self._on_broken()
        sent, self._sent = self._sent, {}
        left = close_code == GOING_AWAY and not self.closed
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


def _refusal(endpoint: str, status: int) -> dict[str, str]:
    """aiohttp drops the problem document of a refused handshake."""
    why = "wants a bearer token, or another one" if status == 401 else "forbids this token"
    return {"detail": f"{endpoint} {why}: give connect(token=…) or set DSS_TOKEN"}
