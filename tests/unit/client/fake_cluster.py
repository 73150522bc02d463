"""A cluster of one process for the SDK's tests: the real lock machine, fakes for the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from dss.client import Client, connect
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING


class FakeCluster:
    """One process that is all nodes of a cluster of three: `n0` locks, `n1` queues, `n2` cache."""

    def __init__(self) -> None:
        self.machine = LockMachine()
        self.index = 0
        self.ops: list[str] = []
        self.refuse: list[tuple[int, dict[str, Any]]] = []
        """Answers to give to the next stream requests instead of carrying them out."""
        self.hang_up_on: str | None = None
        """Carry this op out once, then break the connection instead of answering."""
        self.refuse_after_hang_up: list[tuple[int, dict[str, Any]]] = []
        self.waits: dict[tuple[int, int], tuple[web.WebSocketResponse, int]] = {}
        self.messages: list[Any] = []
        self.acked: list[str] = []
        self.values: dict[str, tuple[bytes, str]] = {}
        self.unready_puts = 0
        self.urls: list[str] = []
        self.streams: set[web.WebSocketResponse] = set()
        self.swallow_answers = False
        """Keep answers back until `give_swallowed`."""
        self.swallowed: list[tuple[web.WebSocketResponse, list[Any]]] = []

    def app(self, number: int) -> web.Application:
        app = web.Application()
        role = ("lock", "queue", "cache")[number]

        async def cluster(request: web.Request) -> web.Response:
            roles = zip(("n0", "n1", "n2"), ("lock", "queue", "cache"), self.urls, strict=True)
            nodes = [{"id": i, "role": r, "url": u, "up": True} for i, r, u in roles]
            return web.json_response({"node_id": f"n{number}", "nodes": nodes})

        app.router.add_get("/v1/cluster", cluster)
        if role == "lock":
            app.router.add_get("/v1/raft/status", self.raft_status)
            app.router.add_get("/v1/locks:stream", self.stream)
        elif role == "queue":
            app.router.add_post("/v1/queues/{q}/{verb}", self.queue)
        else:
            app.router.add_route("*", "/v1/cache/{key}", self.cache)
        return app

    async def raft_status(self, request: web.Request) -> web.Response:
        return web.json_response({"groups": [{"group_id": 1, "leader": "n0"}]})

    # --- locks ---

    def apply(self, commands: list[Any]) -> list[tuple[int, Any]]:
        self.index += 1
        return list(self.machine.apply(self.index, int(time.monotonic() * 1_000), commands))

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.streams.add(ws)
        async for message in ws:
            if message.type is not WSMsgType.BINARY:
                continue
            for request_id, op, args in msgspec.msgpack.decode(message.data):
                self.ops.append(op)
                if op in ("get", "verify"):
                    name = args["name"]
                    if op == "get":
                        view = self.machine.describe(name, int(time.monotonic() * 1_000))
                    else:
                        view = self.machine.verify(name, args["token"])
                    await self.answer(ws, request_id, 200, view)
                    continue
                if self.refuse:
                    await self.answer(ws, request_id, *self.refuse.pop(0))
                    continue
                if op == "session.create":
                    args["session"] = f"{self.index:032x}"
                command = self.machine.codec.decode_args(op, msgspec.msgpack.encode(args))
                (result,) = self.apply([command])
                if op == self.hang_up_on:
                    self.hang_up_on = None
                    self.refuse = self.refuse_after_hang_up
                    await ws.close()
                    return ws
                if result == PENDING:
                    self.waits[self.index, 0] = (ws, request_id)
                else:
                    await self.answer(ws, request_id, *result)
                await self.wake()
        return ws

    async def answer(self, ws: web.WebSocketResponse, request_id: int, *result: Any) -> None:
        if self.swallow_answers:
            self.swallowed.append((ws, [request_id, *result]))
        elif not ws.closed:
            await ws.send_bytes(msgspec.msgpack.encode([[request_id, *result]]))

    async def give_swallowed(self) -> None:
        """What was kept back, in its order."""
        self.swallow_answers = False
        kept, self.swallowed = self.swallowed, []
        for ws, answer in kept:
            await ws.send_bytes(msgspec.msgpack.encode([answer]))

    def command(self, op: str, args: dict[str, Any]) -> Any:
        """As a client's bytes give it."""
        return self.machine.codec.decode_args(op, msgspec.msgpack.encode(args))

    async def push(self, body: Any) -> None:
        """To every stream, unasked."""
        for ws in self.streams:
            if not ws.closed:
                await ws.send_bytes(msgspec.msgpack.encode([[0, 200, body]]))

    async def wake(self) -> None:
        for wake in self.machine.take_wakes():
            ws, request_id = self.waits.pop((wake.index, wake.position))
            await self.answer(ws, request_id, wake.status, wake.body)

    async def pass_time(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            commands = self.machine.due(int(time.monotonic() * 1_000))
            if commands:
                self.apply(commands)
                await self.wake()

    # --- queues and cache ---

    async def queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        match request.match_info["verb"]:
            case "messages":
                self.messages.append(body)
                return web.json_response({"id": f"m{len(self.messages)}"}, status=201)
            case "receive":
                taken, self.messages = self.messages[: body["max"]], self.messages[body["max"] :]
                items = [
                    {"id": f"m{i}", "receipt": f"r{i}", "deliveries": 1, "unknown": 1, **m}
                    for i, m in enumerate(taken)
                ]
                return web.json_response({"messages": items})
            case _:
                self.acked += body["receipts"]
                stale = {"ok": False, "code": "stale_receipt", "message": "too late"}
                results = [stale if r == "old" else {"ok": True} for r in body["receipts"]]
                return web.json_response({"results": results})

    async def cache(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if request.method == "PUT":
            if self.unready_puts:
                self.unready_puts -= 1
                problem = {"code": "unavailable", "detail": "x", "retry_after_ms": 20}
                return web.json_response(problem, status=503)
            self.values[key] = (await request.read(), request.headers["Content-Type"])
            return web.json_response({}, headers={"ETag": '"7"'})
        if key not in self.values:
            return web.json_response({"code": "not_found", "detail": "none"}, status=404)
        if request.method == "DELETE":
            del self.values[key]
            return web.json_response({})
        body, kind = self.values[key]
        return web.Response(body=body, headers={"Content-Type": kind})


@asynccontextmanager
async def running(fake: FakeCluster) -> AsyncIterator[None]:
    runners = []
    clock = asyncio.create_task(fake.pass_time())
    try:
        for number in range(3):
            runner = web.AppRunner(fake.app(number), access_log=None, shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            fake.urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield
    finally:
        clock.cancel()
        for runner in runners:
            await runner.cleanup()


def run(scenario: Callable[[FakeCluster, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        fake = FakeCluster()
        # Only the cache node is given: the cluster list must lead to the others.
        async with running(fake), connect(fake.urls[2]) as client:
            await scenario(fake, client)

    asyncio.run(asyncio.wait_for(main(), 15))
