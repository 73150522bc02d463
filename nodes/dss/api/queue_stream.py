"""`/v1/queues:stream`: the queue routes as ops of the stream protocol.

| op | args, beside `queue` | answer |
|---|---|---|
| send | `body_json` or `body_bytes`, `headers`, `key`, `delay_ms`; or `messages` | 201, 200 |
| receive | `max`, `wait_ms`, `visibility_ms` | 200 `{messages}` |
| ack, nack, extend | `receipts` or `receipt`; `delay_ms`; `visibility_ms` | 200 |
| queue.put, queue.get | `settings`; none | 201 or 200, the queue |

Bodies are msgpack bytes: `body_json` holds the JSON text of a value (over HTTP `body`),
`body_bytes` any bytes (over HTTP `body_base64`); a received message has the one it was sent with.

Requests of one message that mean the same (sends to one queue, acks of one queue, …) go to the
service as one batch: 64 producers in one process cost one log entry, not 64. Each is answered as
if it had come alone. What must not live here: what the ops do (drivers/queues.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from dss.api.problem import check_name
from dss.api.queue_shapes import (
    AckRequest,
    BatchResults,
    ExtendRequest,
    NackRequest,
    ReceiveRequest,
    batch_alone,
    detail,
    receipts_of,
    sent,
    settled,
)
from dss.api.routes import Route
from dss.api.stream import StreamConnection, session_handler
from dss.api.stream_calls import Handle, Op, StreamCalls
from dss.base.errors import Invalid, Overloaded, RemoteError, TooLarge
from dss.base.limits import BATCH_ITEMS_MAX, BODY_BYTES_MAX
from dss.core.queueing.commands import (
    DelayMs,
    Headers,
    Key,
    Message,
    QueueSettings,
    message_id,
    receipt,
)
from dss.drivers.queue_receiver import Taken
from dss.drivers.queues import Outcome, QueueService

PATH: Final = "/v1/queues:stream"


class StreamMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Exactly one of `body_json` (a JSON text) and `body_bytes`."""

    body_json: bytes | None = None
    body_bytes: bytes | None = None
    headers: Headers | None = None
    key: Key | None = None
    delay_ms: DelayMs = 0


class SendArgs(StreamMessage, forbid_unknown_fields=True, kw_only=True):
    """One message, or a batch in `messages` (and then nothing else)."""

    queue: str
    messages: Annotated[list[StreamMessage], msgspec.Meta(max_length=BATCH_ITEMS_MAX)] | None = None


class ReceiveArgs(ReceiveRequest, forbid_unknown_fields=True, kw_only=True):
    queue: str


class AckArgs(AckRequest, forbid_unknown_fields=True, kw_only=True):
    queue: str


class NackArgs(NackRequest, forbid_unknown_fields=True, kw_only=True):
    queue: str


class ExtendArgs(ExtendRequest, forbid_unknown_fields=True, kw_only=True):
    queue: str


class PutArgs(msgspec.Struct, forbid_unknown_fields=True):
    queue: str
    settings: QueueSettings = QueueSettings()


class GetArgs(msgspec.Struct, forbid_unknown_fields=True):
    queue: str


class StreamReceived(msgspec.Struct, omit_defaults=True):
    """A received message; see queue_shapes.ReceivedMessage."""

    id: str
    receipt: str
    deliveries: int
    redelivered: bool
    body_json: bytes | None = None
    body_bytes: bytes | None = None
    headers: dict[str, str] | None = None
    key: str | None = None


class StreamReceivedMessages(msgspec.Struct):
    messages: list[StreamReceived]


class _Part(NamedTuple):
    """One request of a batch: its messages, its receipts, or a range as long as it wants many."""

    request_id: int
    items: Sequence[Any]
    single: bool = False
    wait_ms: int = 0


class _Batch:
    """Requests of one stream message that go to the service together."""

    __slots__ = ("bytes", "items", "parts")

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.items = 0
        self.bytes = 0

    def has_room(self, part: _Part, size: int) -> bool:
        """Together no more than one HTTP request may have."""
        items = self.items + len(part.items)
        return items <= BATCH_ITEMS_MAX and self.bytes + size <= BODY_BYTES_MAX

    def add(self, part: _Part, size: int) -> None:
        self.parts.append(part)
        self.items += len(part.items)
        self.bytes += size


_Key = tuple[str, str, int | None]
"""(op, queue, its one further argument)."""

_DECODERS: Final = {
    op: msgspec.msgpack.Decoder(kind)
    for op, kind in (
        ("send", SendArgs), ("receive", ReceiveArgs), ("ack", AckArgs), ("nack", NackArgs),
        ("extend", ExtendArgs), ("queue.put", PutArgs), ("queue.get", GetArgs),
    )
}  # fmt: skip
_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class QueueStream(StreamCalls):
    """One connection's queue requests."""

    def __init__(self, service: QueueService, connection: StreamConnection) -> None:
        super().__init__(connection)
        self._service = service
        self._batches: dict[_Key, _Batch] = {}

    def ops(self) -> Mapping[str, Op]:
        handles: dict[str, Handle] = {
            "send": self._send, "receive": self._receive, "ack": self._ack, "nack": self._nack,
            "extend": self._extend, "queue.put": self._put, "queue.get": self._get,
        }  # fmt: skip
        return {op: (_DECODERS[op], handle) for op, handle in handles.items()}

    # --- one request --------------------------------------------------------------------------

    def _send(self, request_id: int, args: SendArgs, size: int) -> bool:
        check_name(args.queue)
        if size > BODY_BYTES_MAX:
            limit = BODY_BYTES_MAX
            raise TooLarge(f"the args of send are larger than {limit} bytes", limit=limit)
        messages = _messages_of(args)
        if not messages:
            self.connection.answer(request_id, 200, BatchResults([]))
            return False
        part = _Part(request_id, messages, args.messages is None)
        return self._join(("send", args.queue, None), part, size)

    def _receive(self, request_id: int, args: ReceiveArgs, size: int) -> bool:
        check_name(args.queue)
        part = _Part(request_id, range(args.max), wait_ms=args.wait_ms)
        return self._join(("receive", args.queue, args.visibility_ms), part)

    def _ack(self, request_id: int, args: AckArgs, size: int) -> bool:
        return self._settle("ack", request_id, args, None)

    def _nack(self, request_id: int, args: NackArgs, size: int) -> bool:
        return self._settle("nack", request_id, args, args.delay_ms)

    def _extend(self, request_id: int, args: ExtendArgs, size: int) -> bool:
        return self._settle("extend", request_id, args, args.visibility_ms)

    def _settle(
        self, op: str, request_id: int, args: AckArgs | NackArgs | ExtendArgs, ms: int | None
    ) -> bool:
        check_name(args.queue)
        receipts = receipts_of(args)
        part = _Part(request_id, receipts, args.receipt is not None)
        return self._join((op, args.queue, ms), part)

    def _put(self, request_id: int, args: PutArgs, size: int) -> bool:
        check_name(args.queue)

        async def put() -> None:
            entry, created = await self._service.put(args.queue, args.settings)
            self.finish(request_id, 201 if created else 200, detail(entry))

        self.spawn([request_id], put())
        return True

    def _get(self, request_id: int, args: GetArgs, size: int) -> bool:
        check_name(args.queue)

        async def get() -> None:
            self.finish(request_id, 200, detail(await self._service.get(args.queue)))

        self.spawn([request_id], get(), cancel=True)
        return True

    # --- batches ------------------------------------------------------------------------------

    def _join(self, key: _Key, part: _Part, size: int = 0) -> bool:
        batch = self._batches.get(key)
        if batch is not None and not batch.has_room(part, size):
            self._begin(key, batch.parts)
            batch = None
        if batch is None:
            batch = self._batches[key] = _Batch()
        batch.add(part, size)
        return True

    def taken(self) -> None:
        batches, self._batches = self._batches, {}
        for key, batch in batches.items():
            self._begin(key, batch.parts)

    def _begin(self, key: _Key, parts: list[_Part]) -> None:
        op, queue, ms = key
        request_ids = [part.request_id for part in parts]
        if op == "send":
            self.spawn(request_ids, self._run_send(queue, parts))
        elif op == "receive":
            self.spawn(request_ids, self._run_receive(queue, ms, parts), cancel=True)
        else:
            self.spawn(request_ids, self._run_settle(op, queue, ms or 0, parts))

    async def _run_send(self, queue: str, parts: list[_Part]) -> None:
        """Where a queue is too full for all, each tries alone: some may still fit."""
        outcomes = await self._send_batch(queue, [m for part in parts for m in part.items])
        refused = []
        for part, own in _shares(parts, outcomes):
            if len(parts) > 1 and all(one.status == Overloaded.status for one in own):
                refused.append(part)
            else:
                self.finish(part.request_id, *sent(own, part.single))
        for part in refused:  # one after another: the length is checked before each
            outcomes = await self._send_batch(queue, part.items)
            self.finish(part.request_id, *sent(outcomes, part.single))

    async def _send_batch(self, queue: str, messages: Sequence[Message]) -> list[Outcome]:
        try:
            return await self._service.send(queue, messages)
        except RemoteError as error:
            if error.status != Overloaded.status:
                raise
            return [Outcome(error.status, error.body())] * len(messages)

    async def _run_settle(self, op: str, queue: str, ms: int, parts: list[_Part]) -> None:
        receipts = [receipt for part in parts for receipt in part.items]
        if op == "ack":
            outcomes = await self._service.ack(queue, receipts)
        elif op == "nack":
            outcomes = await self._service.nack(queue, receipts, ms)
        else:
            outcomes = await self._service.extend(queue, receipts, ms)
        for part, own in _shares(parts, outcomes):
            self.finish(part.request_id, *settled(own, part.single))

    async def _run_receive(self, queue: str, visibility_ms: int | None, parts: list[_Part]) -> None:
        """Several take what there is together, in their order; who goes empty waits by itself."""
        if len(parts) == 1:
            await self._run_one(queue, visibility_ms, parts[0])
            return
        waiting = deque(parts)
        while waiting:
            wanted = min(BATCH_ITEMS_MAX, sum(len(part.items) for part in waiting))
            taken = await self._service.receive(queue, wanted, 0, visibility_ms)
            if not taken:
                break
            at = 0
            while at < len(taken):
                part = waiting.popleft()
                self._finish_receive(part, taken[at : at + len(part.items)])
                at += len(part.items)
        for part in waiting:
            if part.wait_ms:
                work = self._run_one(queue, visibility_ms, part)
                self.spawn([part.request_id], work, cancel=True)
            else:
                self._finish_receive(part, [])

    async def _run_one(self, queue: str, visibility_ms: int | None, part: _Part) -> None:
        taken = await self._service.receive(queue, len(part.items), part.wait_ms, visibility_ms)
        self._finish_receive(part, taken)

    def _finish_receive(self, part: _Part, taken: Sequence[Taken]) -> None:
        messages = [_received(one) for one in taken]
        self.finish(part.request_id, 200, StreamReceivedMessages(messages))


def stream_route(service: QueueService) -> Route:
    """The route of the stream."""
    return Route(
        method="GET",
        path=PATH,
        handler=session_handler(partial(QueueStream, service)),
        status=101,
        errors=(400,),
        summary="WebSocket: msgpack arrays of [request_id, op, args] and answers",
    )


def _shares(
    parts: Sequence[_Part], outcomes: Sequence[Outcome]
) -> list[tuple[_Part, Sequence[Outcome]]]:
    """Each request's own outcomes."""
    shares = []
    at = 0
    for part in parts:
        shares.append((part, outcomes[at : at + len(part.items)]))
        at += len(part.items)
    return shares


def _messages_of(args: SendArgs) -> list[Message]:
    """The one message, or those of the batch. Raises Invalid, naming the field."""
    if args.messages is None:
        return [_message(args, "")]
    if args != SendArgs(queue=args.queue, messages=args.messages):
        raise batch_alone()
    return [_message(new, f"messages[{i}].") for i, new in enumerate(args.messages)]


def _message(new: StreamMessage, place: str) -> Message:
    """Raises Invalid, naming the field, unless there is exactly one body, and JSON if so named."""
    if new.body_bytes is not None and new.body_json is None:
        return Message(new.body_bytes, True, new.headers, new.key, new.delay_ms)
    field = f"{place}body_json"
    if new.body_json is None or new.body_bytes is not None:
        raise Invalid(
            f"field {field!r}: a message has either 'body_json' (a JSON text) or 'body_bytes'",
            field=field,
        )
    try:
        body = bytes(_check_json(new.body_json))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"field {field!r} is not JSON: {error}", field=field) from error
    return Message(body, False, new.headers, new.key, new.delay_ms)


def _received(taken: Taken) -> StreamReceived:
    one = taken.delivered
    message = StreamReceived(
        message_id(taken.partition, one.sequence),
        receipt(taken.partition, one.sequence, one.deliveries),
        one.deliveries,
        one.deliveries > 1,
        headers=one.headers,
        key=one.key,
    )
    if one.base64:
        message.body_bytes = one.body
    else:
        message.body_json = one.body
    return message
