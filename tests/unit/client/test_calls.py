"""client/calls.py: what is repeated, what is not, and when HTTP takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web

from dss.base.errors import Forbidden, Indeterminate, NotFound
from dss.client import calls as calls_module
from dss.client.calls import Calls
from dss.client.errors import Closed
from dss.client.nodes import Nodes

PATH = "/v1/queues:stream"


class FakeNode:
    """Gives the next of `answers` to each request; None hangs up; () says nothing."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any] | tuple[()] | None] = []
        self.asked: list[tuple[str, Any]] = []
        self.handshakes = 0
        self.refuse = 0
        self.sockets: list[web.WebSocketResponse] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        if self.refuse:
            return web.Response(status=self.refuse)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.sockets.append(ws)
        async for message in ws:
            assert message.type is WSMsgType.BINARY
            for request_id, op, args in msgspec.msgpack.decode(message.data):
                self.asked.append((op, args))
                answer = self.answers.pop(0)
                if answer is None:
                    await ws.close()
                    return ws
                if answer:
                    await ws.send_bytes(msgspec.msgpack.encode([(request_id, *answer)]))
        return ws


@asynccontextmanager
async def running(node: FakeNode) -> AsyncIterator[Calls]:
    app = web.Application()
    app.router.add_get(PATH, node.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as http:
        nodes = Nodes(http, [f"http://127.0.0.1:{runner.addresses[0][1]}"])
        calls = Calls(http, nodes, "queue", PATH)
        try:
            yield calls
        finally:
            await calls.close()
            await runner.cleanup()


def run(scenario: Callable[[FakeNode, Calls], Awaitable[None]]) -> None:
    async def main() -> None:
        node = FakeNode()
        async with running(node) as calls:
            await scenario(node, calls)

    asyncio.run(asyncio.wait_for(main(), 10))


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


def test_answers__below_400_and_those_accepted_are_returned_others_raise() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        missing = (404, {"code": "unknown_queue", "message": "no"})
        node.answers = [(201, {"id": "1"}), missing, missing]
        assert await calls.ask("send", {}) == (201, {"id": "1"})
        assert await calls.ask("get", {}, accept=(404,)) == missing
        with pytest.raises(NotFound, match="no"):
            await calls.ask("get", {})

    run(scenario)


def test_nothing_was_done__repeated_after_the_time_that_the_node_says() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        busy = {"code": "no_quorum", "message": "x", "retry_after_ms": 30}
        node.answers = [(503, busy), (429, {**busy, "code": "overloaded"}), (200, {})]
        started_s = asyncio.get_running_loop().time()
        assert await calls.ask("send", {"n": 1}) == (200, {})
        assert asyncio.get_running_loop().time() - started_s >= 0.06
        assert node.asked == [("send", {"n": 1})] * 3

    run(scenario)


def test_connection_breaks__a_read_is_repeated_and_a_write_is_indeterminate() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        node.answers = [None, (200, {}), None]
        assert await calls.ask("get", {}, read=True) == (200, {})
        with pytest.raises(Indeterminate):
            await calls.ask("send", {})
        assert len(node.asked) == 3

    run(scenario)


@pytest.mark.parametrize("status", [404, 426, 502])
def test_no_stream_there__http_is_used_and_the_stream_tried_again_later(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "HTTP_S", 0.2)

    async def scenario(node: FakeNode, calls: Calls) -> None:
        node.refuse = status
        assert await calls.ask("send", {}) is None
        assert await calls.ask("send", {}) is None
        assert node.handshakes == 1
        node.refuse, node.answers = 0, [(200, {})]
        await asyncio.sleep(0.25)
        assert await calls.ask("send", {}) == (200, {})
        assert node.handshakes == 2

    run(scenario)


def test_refused_token__is_not_hidden_by_http() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        node.refuse = 403
        with pytest.raises(Forbidden):
            await calls.ask("send", {})

    run(scenario)


def test_cancelled_caller__what_comes_later_is_handed_over_unless_refused() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        unwanted: list[Any] = []
        for number, (status, body) in enumerate(((200, {"messages": [1]}), (409, {}))):
            node.answers = [(), ()]
            task = asyncio.ensure_future(calls.ask("receive", {}, unwanted=unwanted.append))
            await until(lambda wanted=number + 1: len(node.asked) == wanted)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            answer = msgspec.msgpack.encode([(number + 1, status, body)])
            await node.sockets[0].send_bytes(answer)
            await asyncio.sleep(0.05)
        assert unwanted == [{"messages": [1]}]

    run(scenario)


def test_closed__requests_are_refused_and_told_ones_are_dropped() -> None:
    async def scenario(node: FakeNode, calls: Calls) -> None:
        node.answers = [(), (200, {})]
        calls.tell("nack", {})
        await until(lambda: node.asked)
        await calls.close()
        calls.tell("nack", {})
        with pytest.raises(Closed):
            await calls.ask("send", {})
        assert len(node.asked) == 1

    run(scenario)
