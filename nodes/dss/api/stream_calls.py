"""What the streams of queues and cache share: requests decoded, bounded, answered together.

Requests of one connection run side by side, in no promised order. Answers that are known at once
leave before the next message is read; all others that become ready in one loop turn leave as one
message. What must not live here: any op, frames and connections (stream.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from dss.api.problem import wrong_field
from dss.api.stream import StreamConnection
from dss.base.errors import DssError, Invalid, Overloaded
from dss.base.limits import STREAM_IN_FLIGHT_BYTES_MAX, STREAM_IN_FLIGHT_MAX
from dss.observe.logs import unexpected

Value = TypeVar("Value")
Handle = Callable[[int, Any, int], bool]
"""handle(request_id, args, size): True when the answer comes later, through `finish`. The size is
that of the args as they came, in bytes."""
Op = tuple[msgspec.msgpack.Decoder[Any], Handle]

_split = msgspec.msgpack.Decoder(list[tuple[int, str, msgspec.Raw]]).decode
_log = logging.getLogger("dss.http")

_TOO_MANY: Final = (
    f"more than {STREAM_IN_FLIGHT_MAX} unanswered requests on this stream: wait for answers"
)
_TOO_LARGE: Final = (
    f"unanswered requests of more than {STREAM_IN_FLIGHT_BYTES_MAX} bytes on this stream: "
    "wait for answers"
)
RETRY_MS: Final = 100


class StreamCalls:
    """One connection's requests: an api.stream.StreamSession. Subclasses give the ops."""

    def __init__(self, connection: StreamConnection) -> None:
        self.connection = connection
        self._ops = self.ops()
        self._loop = asyncio.get_running_loop()
        self._sizes: dict[int, int] = {}
        """Of the requests that wait for their answer."""
        self._held_bytes = 0
        self._flushing = False
        self._tasks: dict[asyncio.Task[None], bool] = {}
        """Whether to cancel it when the client goes."""

    def ops(self) -> Mapping[str, Op]:
        """The ops by name, bound to this connection."""
        raise NotImplementedError

    def taken(self) -> None:
        """Called when all requests of a message have been handled."""

    def submit(self, payload: bytes) -> None:
        """See StreamSession."""
        try:
            triples = _split(payload)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise Invalid(f"a message must be [[request_id, op, args], …]: {error}") from error
        connection = self.connection
        admitted = connection.take([triple[0] for triple in triples])
        for request_id, op, raw in triples[:admitted]:
            try:
                later = self._handle(request_id, op, raw)
            except Exception as failed:
                known = _known(failed)
                connection.answer(request_id, known.status, known.body())
                continue
            if later:
                self._sizes[request_id] = len(raw)
                self._held_bytes += len(raw)
        if admitted < len(triples):
            body = Overloaded(_TOO_MANY, retry_after_ms=RETRY_MS).body()
            for request_id, _, _ in triples[admitted:]:
                connection.answer(request_id, Overloaded.status, body)
        self.taken()
        connection.flush()

    def _handle(self, request_id: int, op: str, raw: msgspec.Raw) -> bool:
        found = self._ops.get(op)
        if found is None:
            raise Invalid(f"unknown op {op!r}; known: {', '.join(sorted(self._ops))}")
        if self._held_bytes > STREAM_IN_FLIGHT_BYTES_MAX:
            raise Overloaded(_TOO_LARGE, retry_after_ms=RETRY_MS)
        decoder, handle = found
        try:
            args = decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise wrong_field(str(error), f"the args of {op}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"the args of {op}: {error}") from error
        return handle(request_id, args, len(raw))

    def finish(self, request_id: int, status: int, body: Any) -> None:
        """Answer a request whose handler returned True, with whatever else is ready this turn."""
        self._held_bytes -= self._sizes.pop(request_id, 0)
        self.connection.answer(request_id, status, body)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.connection.flush()

    def end(self) -> None:
        """See StreamSession. What only waits is given up; what may change something goes on."""
        for task, cancel in list(self._tasks.items()):
            if cancel:
                task.cancel()

    # --- answers that come later --------------------------------------------------------------

    def when_done(
        self,
        request_id: int,
        future: asyncio.Future[Value],
        render: Callable[[Value], tuple[int, Any]],
    ) -> bool:
        """Answer with `render(value)`, or what it raises; no task waits for it."""
        future.add_done_callback(partial(self._done, request_id, render))
        return True

    def _done(
        self,
        request_id: int,
        render: Callable[[Value], tuple[int, Any]],
        future: asyncio.Future[Value],
    ) -> None:
        if future.cancelled():  # with the loop
            return
        try:
            status, body = render(future.result())
        except Exception as failed:
            error = _known(failed)
            status, body = error.status, error.body()
        self.finish(request_id, status, body)

    def spawn(
        self, request_ids: Sequence[int], work: Coroutine[Any, Any, None], *, cancel: bool = False
    ) -> None:
        """Run `work`, which answers `request_ids`; its error answers those it has not.

        Args:
            cancel: when the client goes; for work that nobody else profits from.
        """
        task = self._loop.create_task(self._answered(request_ids, work))
        self._tasks[task] = cancel
        task.add_done_callback(self._tasks.pop)

    async def _answered(self, request_ids: Sequence[int], work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            return
        except Exception as failed:
            error = _known(failed)
        body = error.body()
        for request_id in request_ids:
            if request_id in self._sizes:
                self.finish(request_id, error.status, body)


def _known(error: Exception) -> DssError:
    """The error to answer with; a bug is logged."""
    if isinstance(error, DssError):
        return error
    unexpected(_log, "stream", error)
    return DssError("internal error; the node's log has the cause")
