"""HTTP routes of queues: parse, call the service, render. What must not live here: decisions.

A JSON body is kept and given back as the bytes that were sent; `body_base64` carries any bytes.
Fields of the contract that are not here yet (priority, ttl_ms, dedup_id) are refused, not ignored.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from dss.api.problem import path_name, read_json, result_response
from dss.api.routes import Route
from dss.base.errors import Invalid, RemoteError
from dss.base.limits import BATCH_ITEMS_MAX, VISIBILITY_MS_DEFAULT, WAIT_MS_MAX
from dss.core.meta.commands import QueueEntry
from dss.core.queueing.commands import (
    BatchSize,
    DelayMs,
    Headers,
    Key,
    Message,
    QueueSettings,
    VisibilityMs,
    message_id,
    receipt,
)
from dss.core.ring.ring import LOAD_PERCENT_MAX, VIRTUAL_NODES
from dss.drivers.queue_receiver import Taken
from dss.drivers.queues import Outcome, QueueService

WaitMs = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]
Receipt = Annotated[str, msgspec.Meta(max_length=64)]
Receipts = Annotated[list[Receipt], msgspec.Meta(max_length=BATCH_ITEMS_MAX)]


class NewMessage(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly one of `body` (any JSON value) and `body_base64`."""

    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: Headers | None = None
    key: Key | None = None
    delay_ms: DelayMs = 0


class SendRequest(NewMessage, forbid_unknown_fields=True):
    """One message, or a batch in `messages` (and then nothing else)."""

    messages: Annotated[list[NewMessage], msgspec.Meta(max_length=BATCH_ITEMS_MAX)] | None = None


class ReceiveRequest(msgspec.Struct, forbid_unknown_fields=True):
    max: BatchSize = 1
    wait_ms: WaitMs = 0
    visibility_ms: VisibilityMs | None = None
    """Default: the queue's setting."""


class AckRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Either `receipts`, answered per item, or one `receipt`, answered by the status."""

    receipts: Receipts | None = None
    receipt: Receipt | None = None


class NackRequest(AckRequest, forbid_unknown_fields=True):
    delay_ms: DelayMs = 0


class ExtendRequest(AckRequest, forbid_unknown_fields=True):
    visibility_ms: VisibilityMs = VISIBILITY_MS_DEFAULT


class SentMessage(msgspec.Struct):
    id: str


class ItemResult(msgspec.Struct, omit_defaults=True):
    """`ok`, or why not: `status` is what the item alone would have been answered with."""

    ok: bool
    id: str | None = None
    status: int = 200
    code: str | None = None
    message: str | None = None


class BatchResults(msgspec.Struct):
    results: list[ItemResult]


class ReceivedMessage(msgspec.Struct, omit_defaults=True):
    id: str
    receipt: str
    deliveries: int
    redelivered: bool
    """It was delivered before: whoever had it may have done part of the work."""
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: dict[str, str] | None = None
    key: str | None = None


class ReceivedMessages(msgspec.Struct):
    messages: list[ReceivedMessage]


class QueueDetail(msgspec.Struct):
    name: str
    visibility_ms: int
    max_deliveries: int
    max_length: int
    version: int
    """Rises with each change of the settings."""


class QueueItem(msgspec.Struct):
    name: str
    ready: int
    leased: int
    delayed: int
    dead: int


class QueuePage(msgspec.Struct):
    items: list[QueueItem]
    next: str | None = None


class QueueStats(msgspec.Struct, omit_defaults=True):
    """Counts over all partitions; the second group since the queue was made."""

    name: str
    ready: int
    leased: int
    delayed: int
    dead: int
    bytes: int
    sent: int
    received: int
    redelivered: int
    acked: int
    nacked: int
    expired: int
    dead_lettered: int
    oldest_age_ms: int | None = None


class _Handlers:
    """One method per route; each parses, calls and renders."""

    def __init__(self, service: QueueService) -> None:
        self._service = service

    async def put(self, request: web.Request) -> web.Response:
        name = path_name(request)
        settings = await read_json(request, QueueSettings)
        entry, created = await self._service.put(name, settings)
        return result_response(201 if created else 200, _detail(entry))

    async def get(self, request: web.Request) -> web.Response:
        return result_response(200, _detail(await self._service.get(path_name(request))))

    async def delete(self, request: web.Request) -> web.Response:
        await self._service.delete(path_name(request))
        return result_response(204, None)

    async def list_queues(self, request: web.Request) -> web.Response:
        names = [entry.name for entry in await self._service.list_queues()]
        stats = await self._service.stats(names)
        items = [
            QueueItem(name, part["ready"], part["leased"], part["delayed"], part["dead"])
            for name, part in stats.items()
        ]
        return result_response(200, QueuePage(items))

    async def stats(self, request: web.Request) -> web.Response:
        name = path_name(request)
        await self._service.get(name)
        stats = await self._service.stats([name])
        return result_response(200, QueueStats(name, **stats[name]))

    async def send(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, SendRequest)
        if body.messages is None:
            [outcome] = await self._service.send(name, [_message(body, "")])
            _raise_for(outcome)
            return result_response(201, SentMessage(message_id(*outcome.body)))
        if body != SendRequest(messages=body.messages):
            raise Invalid("a batch has nothing but 'messages'", field="messages")
        messages = [_message(new, f"messages[{i}].") for i, new in enumerate(body.messages)]
        if not messages:
            return result_response(200, BatchResults([]))
        outcomes = await self._service.send(name, messages)
        _raise_if_all_unavailable(outcomes)
        return result_response(200, BatchResults([_result(one) for one in outcomes]))

    async def receive(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, ReceiveRequest)
        taken = await self._service.receive(name, body.max, body.wait_ms, body.visibility_ms)
        return result_response(200, ReceivedMessages([_received(one) for one in taken]))

    async def ack(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, AckRequest)
        return _settled(body, await self._service.ack(name, _receipts(body)))

    async def nack(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, NackRequest)
        return _settled(body, await self._service.nack(name, _receipts(body), body.delay_ms))

    async def extend(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, ExtendRequest)
        outcomes = await self._service.extend(name, _receipts(body), body.visibility_ms)
        return _settled(body, outcomes)

    async def ring(self, request: web.Request) -> web.Response:
        return result_response(200, _ring(self._service.placement()))

    async def partitions(self, request: web.Request) -> web.Response:
        return result_response(200, {"items": self._service.placement(), "next": None})


def _detail(entry: QueueEntry) -> QueueDetail:
    settings = entry.settings
    return QueueDetail(
        entry.name,
        settings.visibility_ms,
        settings.max_deliveries,
        settings.max_length,
        entry.version,
    )


def _message(new: NewMessage, place: str) -> Message:
    """Raises Invalid, naming the field, unless there is exactly one body."""
    if new.body is not msgspec.UNSET and new.body_base64 is msgspec.UNSET:
        return Message(bytes(new.body), False, new.headers, new.key, new.delay_ms)
    if new.body is msgspec.UNSET and new.body_base64 is not msgspec.UNSET:
        try:
            data = base64.b64decode(new.body_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            field = f"{place}body_base64"
            raise Invalid(f"field {field!r} is not base64: {error}", field=field) from error
        return Message(data, True, new.headers, new.key, new.delay_ms)
    field = f"{place}body"
    raise Invalid(
        f"field {field!r}: a message has either 'body' (any JSON value) or 'body_base64'",
        field=field,
    )


def _received(taken: Taken) -> ReceivedMessage:
    one = taken.delivered
    message = ReceivedMessage(
        message_id(taken.partition, one.sequence),
        receipt(taken.partition, one.sequence, one.deliveries),
        one.deliveries,
        one.deliveries > 1,
        headers=one.headers,
        key=one.key,
    )
    if one.base64:
        message.body_base64 = base64.b64encode(one.body).decode()
    else:
        message.body = msgspec.Raw(one.body)
    return message


def _receipts(body: AckRequest) -> list[str]:
    if (body.receipts is None) == (body.receipt is None):
        raise Invalid("give either 'receipts' (a list) or one 'receipt'", field="receipts")
    return body.receipts if body.receipts is not None else [str(body.receipt)]


def _settled(body: AckRequest, outcomes: Sequence[Outcome]) -> web.Response:
    if body.receipt is not None:
        _raise_for(outcomes[0])
        return result_response(200, {})
    _raise_if_all_unavailable(outcomes)
    return result_response(200, BatchResults([_result(one) for one in outcomes]))


def _result(outcome: Outcome) -> ItemResult:
    if outcome.status < 400:
        return ItemResult(True, message_id(*outcome.body) if outcome.body else None)
    code, message = outcome.body["code"], outcome.body["message"]
    return ItemResult(False, None, outcome.status, code, message)


def _raise_for(outcome: Outcome) -> None:
    if outcome.status >= 400:
        raise RemoteError(outcome.status, outcome.body)


def _raise_if_all_unavailable(outcomes: Sequence[Outcome]) -> None:
    """A batch of which no item was done for want of a quorum is answered as a whole."""
    if outcomes and all(outcome.status >= 429 for outcome in outcomes):
        _raise_for(outcomes[0])


def _ring(partitions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per node how many partitions it holds, should lead and leads."""
    held = Counter(node for row in partitions for node in row["replicas"])
    preferred = Counter(row["preferred_leader"] for row in partitions)
    leads = Counter(row["leader"] for row in partitions)
    nodes = [
        {
            "id": node,
            "replicas": held[node],
            "preferred_leader_of": preferred[node],
            "leads": leads[node],
        }
        for node in sorted(held)
    ]
    return {
        "partitions": len(partitions),
        "virtual_nodes": VIRTUAL_NODES,
        "load_percent_max": LOAD_PERCENT_MAX,
        "nodes": nodes,
    }


def routes(service: QueueService) -> list[Route]:
    """The routes of a queue node."""
    handle = _Handlers(service)
    queue = "/v1/queues/{name}"

    def route(
        method: str,
        path: str,
        handler: Callable[[web.Request], Any],
        summary: str,
        request: Any = None,
        response: Any = None,
        status: int = 200,
        errors: tuple[int, ...] = (),
    ) -> Route:
        return Route(
            method=method,
            path=path,
            handler=handler,
            summary=summary,
            request=request,
            response=response,
            status=status,
            errors=errors,
        )

    return [
        route("PUT", queue, handle.put, "Make a queue (201) or change its settings",
              QueueSettings, QueueDetail, 201),
        route("GET", queue, handle.get, "A queue's settings", None, QueueDetail),
        route("DELETE", queue, handle.delete, "Delete a queue and its messages", status=204),
        route("GET", "/v1/queues", handle.list_queues, "All queues", None, QueuePage),
        route("GET", f"{queue}/stats", handle.stats, "Counts of a queue", None, QueueStats),
        route("POST", f"{queue}/messages", handle.send,
              "Send one message (201) or a batch (200, a result per message)",
              SendRequest, SentMessage, 201),
        route("POST", f"{queue}/receive", handle.receive,
              "Receive messages, leased until acknowledged; waits up to wait_ms for the first",
              ReceiveRequest, ReceivedMessages),
        route("POST", f"{queue}/ack", handle.ack, "Messages are done",
              AckRequest, BatchResults, errors=(409,)),
        route("POST", f"{queue}/nack", handle.nack, "Give messages back",
              NackRequest, BatchResults, errors=(409,)),
        route("POST", f"{queue}/extend", handle.extend, "Lease messages for longer",
              ExtendRequest, BatchResults, errors=(409,)),
        route("GET", "/v1/ring", handle.ring, "Nodes on the ring and their share", None, dict),
        route("GET", "/v1/partitions", handle.partitions,
              "Where each partition should be, and who leads it", None, dict),
    ]  # fmt: skip
