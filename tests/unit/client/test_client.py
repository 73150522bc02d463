"""The SDK against a real HTTP server: locks by the real lock machine, queues and cache by fakes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType, web

from dss.base.errors import Conflict, DssError, Unavailable
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
        self.waits: dict[tuple[int, int], tuple[web.WebSocketResponse, int]] = {}
        self.messages: list[Any] = []
        self.acked: list[str] = []
        self.values: dict[str, tuple[bytes, str]] = {}
        self.unready_puts = 0
        self.urls: list[str] = []

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
        async for message in ws:
            if message.type is not WSMsgType.BINARY:
                continue
            for request_id, op, args in msgspec.msgpack.decode(message.data):
                self.ops.append(op)
                if self.refuse:
                    await self.answer(ws, request_id, *self.refuse.pop(0))
                    continue
                if op == "session.create":
                    args["session"] = f"{self.index:032x}"
                command = self.machine.codec.decode_args(op, msgspec.msgpack.encode(args))
                (result,) = self.apply([command])
                if op == self.hang_up_on:
                    self.hang_up_on = None
                    await ws.close()
                    return ws
                if result == PENDING:
                    self.waits[self.index, 0] = (ws, request_id)
                else:
                    await self.answer(ws, request_id, *result)
                await self.wake()
        return ws

    async def answer(self, ws: web.WebSocketResponse, request_id: int, *result: Any) -> None:
        if not ws.closed:
            await ws.send_bytes(msgspec.msgpack.encode([[request_id, *result]]))

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


def test_lock__gives_tokens_that_grow_and_is_free_afterwards() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("orders/42") as first:
            assert fake.machine.held == 1
            assert first.is_safe
        async with client.lock("orders/42") as second:
            assert second.token > first.token
        assert fake.machine.held == 0
        assert fake.ops.count("session.create") == 1

    run(scenario)


def test_two_tasks_of_one_client__exclude_each_other_in_turn() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with client.lock("one", wait=5):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(8)))
        assert most == 1
        assert fake.machine.held == 0

    run(scenario)


def test_busy_lock__is_a_conflict_after_the_wait() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("one"):
            started = time.monotonic()
            with pytest.raises(Conflict) as caught:
                async with client.lock("one", wait=0.2):
                    raise AssertionError("not reached")
            assert caught.value.code == "lock_timeout"
            assert 0.15 < time.monotonic() - started < 2

    run(scenario)


def test_cancelled_wait__gives_a_late_grant_back() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async def wait_for_it() -> None:
            async with client.lock("one", wait=5):
                raise AssertionError("not reached")

        async with client.lock("one"):
            waiter = asyncio.create_task(wait_for_it())
            await asyncio.sleep(0.1)
            assert fake.ops.count("acquire") == 2
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with client.lock("one", wait=2):
            pass

    run(scenario)


def test_no_quorum_for_a_while__is_waited_out() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        no_quorum = {"code": "no_quorum", "message": "electing", "retry_after_ms": 30}
        fake.refuse = [(503, no_quorum)] * 4
        async with client.lock("one", wait=3):
            assert fake.machine.held == 1
        fake.refuse = [(503, no_quorum)] * 50
        with pytest.raises(DssError) as caught:
            async with client.lock("two", wait=0.1):
                raise AssertionError("not reached")
        assert caught.value.code == "no_quorum"
        fake.refuse = []

    run(scenario)


def test_acquire_of_unknown_outcome__is_asked_for_again_and_granted_once() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("other") as other:
            fake.hang_up_on = "acquire"
            async with client.lock("one") as held:
                assert held.session is other.session
                assert fake.machine.held == 2
            assert fake.ops.count("acquire") == 3
            assert other.is_safe
        assert fake.machine.held == 0

    run(scenario)


def test_release_of_unknown_outcome__is_repeated_and_counts_as_done() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("one"):
            fake.hang_up_on = "release"
        assert fake.ops.count("release") == 2
        assert fake.machine.held == 0

    run(scenario)


def test_keepalive__holds_a_lock_longer_than_its_ttl() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("one", ttl=0.3) as held:
            await asyncio.sleep(0.9)
            assert held.is_safe
            assert fake.machine.held == 1

    run(scenario)


def test_session_that_ended__is_noticed_and_replaced() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async def hold() -> None:
            async with client.lock("one", ttl=0.3) as held:
                fake.apply([fake.machine.codec.decode_args(
                    "session.end", msgspec.msgpack.encode({"session": held.session.id})
                )])  # fmt: skip
                await asyncio.sleep(0.3)
                assert not held.is_safe

        with pytest.raises(Conflict) as caught:
            await hold()
        assert caught.value.code == "session_expired"
        async with client.lock("one", ttl=0.3):
            assert fake.machine.held == 1

    run(scenario)


def test_client_closed__ends_its_sessions() -> None:
    async def scenario() -> None:
        fake = FakeCluster()
        async with running(fake):
            async with connect(fake.urls) as client:
                handle = client.lock("one")
                await handle.__aenter__()
                assert fake.machine.held == 1
            assert fake.machine.held == 0

    asyncio.run(scenario())


def test_own_session__ends_with_its_block() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with (
            client.session(ttl=5) as session,
            client.lock("one", session=session) as held,
        ):
            assert held.session is session
        assert fake.ops[-1] == "session.end"

    run(scenario)


def test_queue__sends_receives_and_acknowledges() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        queue = client.queue("jobs/a")
        assert await queue.send({"order": 42}, key="42", delay=1.5) == "m1"
        await queue.send(b"\x00\xff")
        assert fake.messages[0] == {"body": {"order": 42}, "key": "42", "delay_ms": 1_500}
        first, second = await queue.receive(2, wait=1)
        assert first.body == {"order": 42}
        assert second.data == b"\x00\xff"
        await queue.ack(first, second)
        assert fake.acked == ["r0", "r1"]
        with pytest.raises(Conflict) as caught:
            await queue.ack("old")
        assert caught.value.code == "stale_receipt"

    run(scenario)


@pytest.mark.parametrize("value", [{"a": [1, None]}, "text é", b"\x00\x01", 7, None])
def test_cached_value__comes_back_as_it_was_put(value: Any) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        assert await client.cache.get("a/b", "none") == "none"
        assert await client.cache.put("a/b", value, ttl=5) == '"7"'
        assert "a/b" in fake.values
        assert await client.cache.get("a/b", "none") == value
        assert await client.cache.delete("a/b") is True
        assert await client.cache.delete("a/b") is False

    run(scenario)


def test_unavailable_for_a_while__is_repeated() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        fake.unready_puts = 3
        await client.cache.put("k", 1)
        assert await client.cache.get("k") == 1

    run(scenario)


def test_nobody_there__is_unavailable_within_the_wait() -> None:
    async def scenario() -> None:
        async with connect("http://127.0.0.1:9") as client:
            with pytest.raises(Unavailable, match="no lock node can be reached"):
                async with client.lock("one", wait=0.3):
                    raise AssertionError("not reached")

    asyncio.run(scenario())
