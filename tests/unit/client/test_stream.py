"""client/stream.py against a real WebSocket server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType, web

from dss.base.errors import Forbidden, Indeterminate, Unauthenticated, Unavailable
from dss.base.limits import STREAM_IN_FLIGHT_MAX
from dss.client.errors import Closed
from dss.client.stream import MOVES_MAX, LockStream

Items = list[tuple[int, str, Any]]
Reply = Callable[[web.WebSocketResponse, Items], Awaitable[None]]


class FakeNode:
    """Records each message's items; answers by `reply`."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.messages: list[Items] = []
        self.connections = 0
        self.received = asyncio.Event()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.connections += 1
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                items = msgspec.msgpack.decode(message.data, type=Items)
                self.messages.append(items)
                self.received.set()
                await self.reply(ws, items)
        return ws


@asynccontextmanager
async def running(node: FakeNode) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v1/locks:stream", node.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def echo(ws: web.WebSocketResponse, items: Items) -> None:
    await ws.send_bytes(msgspec.msgpack.encode([(i, 200, args) for i, _, args in items]))


async def silence(ws: web.WebSocketResponse, items: Items) -> None:
    """Never answers."""


def test_requests_of_one_iteration__leave_in_one_message() -> None:
    async def scenario() -> None:
        node = FakeNode(echo)
        async with running(node) as url:
            stream = LockStream([url])
            await stream.request("acquire", {"n": 0})
            futures = [stream.request("acquire", {"n": n}) for n in range(100)]
            assert await asyncio.gather(*futures) == [(200, {"n": n}) for n in range(100)]
            await stream.close()
        assert [len(items) for items in node.messages] == [1, 100]
        assert node.connections == 1

    asyncio.run(scenario())


def test_answers_out_of_order__reach_their_callers() -> None:
    async def backwards(ws: web.WebSocketResponse, items: Items) -> None:
        await ws.send_bytes(
            msgspec.msgpack.encode([(i, 200 + args, None) for i, _, args in reversed(items)])
        )

    async def scenario() -> None:
        async with running(FakeNode(backwards)) as url:
            stream = LockStream([url])
            answers = await asyncio.gather(*(stream.request("x", n) for n in range(5)))
            assert [status for status, _ in answers] == [200, 201, 202, 203, 204]
            await stream.close()

    asyncio.run(scenario())


def test_broken_connection__sent_requests_are_indeterminate_and_the_next_one_reconnects() -> None:
    async def hang_up(ws: web.WebSocketResponse, items: Items) -> None:
        await ws.close()

    async def scenario() -> None:
        bad, good = FakeNode(hang_up), FakeNode(echo)
        async with running(bad) as first, running(good) as second:
            stream = LockStream([first, second])
            with pytest.raises(Indeterminate, match="broke"):
                await stream.request("acquire", 1)
            assert await stream.request("acquire", 2) == (200, 2)
            assert stream.endpoint == second
            await stream.close()
        assert (bad.connections, good.connections) == (1, 1)

    asyncio.run(scenario())


def test_node_that_stops__what_it_did_not_answer_goes_to_the_next_in_order() -> None:
    async def leave(ws: web.WebSocketResponse, items: Items) -> None:
        await echo(ws, items[:1])
        await ws.close(code=1001)

    async def scenario() -> None:
        stopping, good = FakeNode(leave), FakeNode(echo)
        async with running(stopping) as first, running(good) as second:
            stream = LockStream([first, second])
            futures = [stream.request("x", n) for n in range(3)]
            assert await asyncio.gather(*futures) == [(200, n) for n in range(3)]
            assert stream.endpoint == second
            await stream.close()
        assert [args for items in good.messages for _, _, args in items] == [1, 2]

    asyncio.run(scenario())


def test_nodes_that_only_stop__requests_fail_in_the_end() -> None:
    async def leave(ws: web.WebSocketResponse, items: Items) -> None:
        await ws.close(code=1001)

    async def scenario() -> None:
        node = FakeNode(leave)
        async with running(node) as url:
            stream = LockStream([url])
            with pytest.raises(Indeterminate):
                await stream.request("x", 1)
            await stream.close()
        assert node.connections == MOVES_MAX + 1

    asyncio.run(scenario())


def test_node_that_dies__fails_requests_instead_of_hanging() -> None:
    async def scenario() -> None:
        node = FakeNode(silence)
        async with running(node) as url:
            stream = LockStream([url])
            pending = stream.request("acquire", 1)
            await node.received.wait()
        with pytest.raises(Indeterminate):
            await asyncio.wait_for(pending, 2)
        with pytest.raises(Unavailable, match="no lock node answers"):
            await asyncio.wait_for(stream.request("acquire", 2), 2)
        await stream.close()

    asyncio.run(scenario())


def test_dead_first_endpoint__the_second_serves() -> None:
    async def scenario() -> None:
        node = FakeNode(echo)
        async with running(node) as url:
            stream = LockStream(["http://127.0.0.1:9", url])
            assert await stream.request("acquire", 1) == (200, 1)
            await stream.close()

    asyncio.run(scenario())


def test_too_many_in_flight__the_rest_waits_and_is_served() -> None:
    async def scenario() -> None:
        node = FakeNode(echo)
        async with running(node) as url:
            stream = LockStream([url])
            total = STREAM_IN_FLIGHT_MAX + 10
            answers = await asyncio.gather(*(stream.request("x", n) for n in range(total)))
            assert [body for _, body in answers] == list(range(total))
            await stream.close()
        assert max(len(items) for items in node.messages) <= STREAM_IN_FLIGHT_MAX

    asyncio.run(scenario())


def test_cancelled_request__is_not_sent_and_its_late_answer_harms_nobody() -> None:
    async def scenario() -> None:
        node = FakeNode(echo)
        async with running(node) as url:
            stream = LockStream([url])
            unsent = stream.request("x", "unsent")
            unsent.cancel()
            assert await stream.request("x", "kept") == (200, "kept")
            sent = stream.request("x", "sent")
            await asyncio.sleep(0)
            sent.cancel()
            assert await stream.request("x", "last") == (200, "last")
            await stream.close()
        assert next(args for items in node.messages for _, _, args in items) == "kept"

    asyncio.run(scenario())


def test_push__goes_to_its_listener() -> None:
    async def push(ws: web.WebSocketResponse, items: Items) -> None:
        await ws.send_bytes(msgspec.msgpack.encode([(0, "lock_lost", {"name": "a"})]))
        await echo(ws, items)

    async def scenario() -> None:
        seen: list[tuple[Any, Any]] = []
        async with running(FakeNode(push)) as url:
            stream = LockStream([url], on_push=lambda kind, body: seen.append((kind, body)))
            await stream.request("x", 1)
            await stream.close()
        assert seen == [("lock_lost", {"name": "a"})]

    asyncio.run(scenario())


def test_close__fails_what_is_pending() -> None:
    async def scenario() -> None:
        node = FakeNode(silence)
        async with running(node) as url:
            stream = LockStream([url])
            pending = stream.request("x", 1)
            await node.received.wait()
            await stream.close()
            with pytest.raises(Indeterminate):
                await pending
            with pytest.raises(Closed):
                stream.request("x", 2)

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthenticated), (403, Forbidden)])
def test_token_refused__said_as_such_and_not_as_an_unreachable_node(
    status: int, kind: type[Exception]
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async def main() -> None:
        node = FakeNode(echo)
        node.handle = refuse  # type: ignore[assignment,method-assign]
        async with running(node) as url:
            stream = LockStream([url], token="wrong")
            with pytest.raises(kind, match="DSS_TOKEN"):
                await stream.request("get", {})
            await stream.close()

    asyncio.run(main())
