"""HTTP routes of queues: parse, call the service, render. What must not live here: decisions.

A JSON body is kept and given back as the bytes that were sent; `body_base64` carries any bytes.
Fields of the contract that are not here yet (priority, ttl_ms, dedup_id) are refused, not ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from dss.api.problem import path_name, read_json, result_response
from dss.api.queue_shapes import (
    AckRequest,
    BatchResults,
    ExtendRequest,
    NackRequest,
    QueueDetail,
    QueueItem,
    QueuePage,
    QueueStats,
    ReceivedMessages,
    ReceiveRequest,
    SendRequest,
    SentMessage,
    SettledAnswer,
    detail,
    messages_of,
    receipts_of,
    received,
    sent,
    settled,
)
from dss.api.queue_stream import stream_route
from dss.api.routes import Route
from dss.core.queueing.commands import QueueSettings
from dss.core.ring.ring import LOAD_PERCENT_MAX, VIRTUAL_NODES
from dss.drivers.queues import QueueService


class _Handlers:
    """One method per route; each parses, calls and renders."""

    def __init__(self, service: QueueService) -> None:
        self._service = service

    async def put(self, request: web.Request) -> web.Response:
        name = path_name(request)
        settings = await read_json(request, QueueSettings)
        entry, created = await self._service.put(name, settings)
        return result_response(201 if created else 200, detail(entry))

    async def get(self, request: web.Request) -> web.Response:
        return result_response(200, detail(await self._service.get(path_name(request))))

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
        messages = messages_of(body)
        outcomes = await self._service.send(name, messages) if messages else []
        return result_response(*sent(outcomes, body.messages is None))

    async def receive(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, ReceiveRequest)
        taken = await self._service.receive(name, body.max, body.wait_ms, body.visibility_ms)
        return result_response(200, ReceivedMessages([received(one) for one in taken]))

    async def ack(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, AckRequest)
        outcomes = await self._service.ack(name, receipts_of(body))
        return result_response(*settled(outcomes, body.receipt is not None))

    async def nack(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, NackRequest)
        outcomes = await self._service.nack(name, receipts_of(body), body.delay_ms)
        return result_response(*settled(outcomes, body.receipt is not None))

    async def extend(self, request: web.Request) -> web.Response:
        name = path_name(request)
        body = await read_json(request, ExtendRequest)
        outcomes = await self._service.extend(name, receipts_of(body), body.visibility_ms)
        return result_response(*settled(outcomes, body.receipt is not None))

    async def ring(self, request: web.Request) -> web.Response:
        return result_response(200, _ring(self._service.placement()))

    async def partitions(self, request: web.Request) -> web.Response:
        return result_response(200, {"items": self._service.placement(), "next": None})


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
        also: dict[int, Any] | None = None,
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
            also=also or {},
        )

    return [
        route("PUT", queue, handle.put, "Make a queue (201) or change its settings",
              QueueSettings, QueueDetail, 201, (429, 503, 504), {200: QueueDetail}),
        route("GET", queue, handle.get, "A queue's settings", None, QueueDetail,
              errors=(404, 503)),
        route("DELETE", queue, handle.delete, "Delete a queue and its messages", status=204,
              errors=(404, 503, 504)),
        route("GET", "/v1/queues", handle.list_queues, "All queues", None, QueuePage,
              errors=(503,)),
        route("GET", f"{queue}/stats", handle.stats, "Counts of a queue", None, QueueStats,
              errors=(404, 503)),
        route("POST", f"{queue}/messages", handle.send,
              "Send one message (201) or a batch (200, a result per message)",
              SendRequest, SentMessage, 201, (404, 429, 503, 504), {200: BatchResults}),
        route("POST", f"{queue}/receive", handle.receive,
              "Receive messages, leased until acknowledged; waits up to wait_ms for the first",
              ReceiveRequest, ReceivedMessages, errors=(404, 429, 503, 504)),
        route("POST", f"{queue}/ack", handle.ack, "Messages are done",
              AckRequest, SettledAnswer, errors=(404, 409, 429, 503, 504)),
        route("POST", f"{queue}/nack", handle.nack, "Give messages back",
              NackRequest, SettledAnswer, errors=(404, 409, 429, 503, 504)),
        route("POST", f"{queue}/extend", handle.extend, "Lease messages for longer",
              ExtendRequest, SettledAnswer, errors=(404, 409, 429, 503, 504)),
        stream_route(service),
        route("GET", "/v1/ring", handle.ring, "Nodes on the ring and their share", None, dict),
        route("GET", "/v1/partitions", handle.partitions,
              "Where each partition should be, and who leads it", None, dict),
    ]  # fmt: skip
