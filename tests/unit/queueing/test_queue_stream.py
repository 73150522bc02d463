"""`/v1/queues:stream` over real WebSockets: the routes' answers, and what only a stream does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web
from queue_world import World, until

from dss.api import stream_calls
from dss.api.app import build_app, drain, serve
from dss.api.auth import Guard
from dss.api.queue_stream import PATH
from dss.api.queues import routes
from dss.api.stream import close_streams, leave_streams
from dss.base.errors import Conflict, Invalid, NotFound
from dss.base.limits import BODY_BYTES_MAX, STREAM_IN_FLIGHT_MAX
from dss.client import Message, connect
from dss.drivers.queues import QueueService
from dss.observe.metrics import Registry
from dss.testing.raw_stream import Answer, RawStream
from dss.topology.nodes import TokenSpec

LONG_MS = 20_000
"""A visibility, or a wait, that outlasts every test."""


class Setting:
    """A world of three queue nodes, each with its HTTP server."""

    def __init__(
        self,
        world: World,
        services: list[QueueService],
        runners: list[web.AppRunner],
        registries: list[Registry],
    ) -> None:
        self.world = world
        self.services = services
        self.runners = runners
        self.registries = registries
        self.urls = [f"http://127.0.0.1:{runner.addresses[0][1]}" for runner in runners]
        self.http = aiohttp.ClientSession()

    async def stream(self, node: int = 1) -> RawStream:
        return RawStream(await self.http.ws_connect(self.urls[node - 1] + PATH))

    async def post(self, path: str, json: Any, node: int = 1) -> Answer:
        url = f"{self.urls[node - 1]}/v1/queues/{path}"
        async with self.http.post(url, json=json) as answer:
            return answer.status, await answer.json()

    def routes_used(self) -> bool:
        """Whether any route was written to over HTTP; a stream's handshake is a GET."""
        seen = b"".join(registry.render() for registry in self.registries)
        return b'method="POST"' in seen or b'method="PUT"' in seen

    def entries(self) -> int:
        """Log entries of all partitions so far."""
        return sum(self.world.groups[number].index for number in self.world.queue_groups())


def run(scenario: Callable[[Setting], Awaitable[None]], guard: Guard | None = None) -> None:
    async def whole() -> None:
        async with AsyncExitStack() as stack:
            world = World()
            stack.push_async_callback(world.stop)
            services = await world.start()
            runners = []
            registries = [Registry() for _ in services]
            numbered = zip(services, registries, strict=True)
            for number, (service, registry) in enumerate(numbered, 1):
                app = build_app(
                    config=world.configs[f"queue-{number}"],
                    routes=routes(service),
                    readiness=service.readiness,
                    registry=registry,
                    cluster=dict,
                    guard=guard,
                )
                app.on_shutdown.append(close_streams)
                runner = await serve(app, "127.0.0.1", 0)
                stack.push_async_callback(runner.cleanup)
                runners.append(runner)
            setting = Setting(world, services, runners, registries)
            stack.push_async_callback(setting.http.close)
            await asyncio.wait_for(scenario(setting), 15)

    asyncio.run(whole())


def json_body(value: Any) -> bytes:
    return msgspec.json.encode(value)


def sends(count: int, **more: Any) -> list[tuple[str, Any]]:
    return [("send", {"queue": "q", "body_json": json_body(n), **more}) for n in range(count)]


def test_life_of_a_message__put_send_receive_extend_nack_ack_on_different_nodes() -> None:
    async def scenario(setting: Setting) -> None:
        one, two, three = [await setting.stream(node) for node in (1, 2, 3)]
        status, made = await one.one("queue.put", queue="q", settings={"visibility_ms": 5_000})
        assert (status, made["name"], made["visibility_ms"]) == (201, "q", 5_000)
        assert (await two.one("queue.put", queue="q", settings={"visibility_ms": 5_000}))[0] == 200
        assert await three.one("queue.get", queue="q") == (200, made)
        headers = {"trace": "1"}
        sent = {"body_json": b' {"a":1.0} ', "headers": headers, "key": "k"}
        status, answer = await one.one("send", queue="q", **sent)
        assert status == 201
        status, received = await two.one("receive", queue="q", wait_ms=5_000)
        [message] = received["messages"]
        receipt = message["receipt"]
        assert (status, message) == (
            200,
            {
                "id": answer["id"],
                "receipt": receipt,
                "deliveries": 1,
                "redelivered": False,
                "body_json": b'{"a":1.0}',
                "headers": headers,
                "key": "k",
            },
        )
        longer = {"queue": "q", "receipt": receipt, "visibility_ms": LONG_MS}
        assert await three.one("extend", **longer) == (200, {})
        assert await one.one("nack", queue="q", receipts=[receipt]) == (
            200,
            {"results": [{"ok": True}]},
        )
        status, stale = await one.one("ack", queue="q", receipt=receipt)
        assert (status, stale["code"]) == (409, "stale_receipt")
        status, received = await two.one("receive", queue="q", wait_ms=5_000)
        [again] = received["messages"]
        assert (again["redelivered"], again["deliveries"]) == (True, 2)
        assert await two.one("ack", queue="q", receipt=again["receipt"]) == (200, {})

    run(scenario)


def test_bodies__cross_between_http_and_the_stream_unchanged() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        every = bytes(range(256))
        await stream.ask(
            ("send", {"queue": "q", "body_bytes": every}),
            ("send", {"queue": "q", "body_json": b'{"n": 1e400}'}),
        )
        await setting.post("q/messages", {"body": "text", "key": "a"})
        await setting.post("q/messages", {"body_base64": "AAEC"})
        seen = set()
        while len(seen) < 4:
            _, received = await stream.one("receive", queue="q", max=10, wait_ms=5_000)
            for message in received["messages"]:
                seen.add((message.get("body_json"), message.get("body_bytes")))
        assert seen == {
            (None, every), (b'{"n": 1e400}', None), (b'"text"', None), (None, b"\x00\x01\x02"),
        }  # fmt: skip
        await stream.one("send", queue="q", body_bytes=b"\xff")
        status, received = await setting.post("q/receive", {"wait_ms": 5_000})
        assert (status, received["messages"][0]["body_base64"]) == (200, "/w==")

    run(scenario)


def test_requests_of_one_message__one_log_entry_and_one_answer_frame() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        before, stream.frames = setting.entries(), []
        answers = await stream.ask(*sends(64))
        assert {status for status, _ in answers} == {201}
        assert len({body["id"] for _, body in answers}) == 64
        assert (setting.entries() - before, len(stream.frames)) == (1, 1)
        receive = ("receive", {"queue": "q", "visibility_ms": LONG_MS})
        before, stream.frames = setting.entries(), []
        answers = await stream.ask(*[receive] * 64)
        bodies = [body["messages"][0]["body_json"] for _, body in answers]
        assert bodies == [json_body(n) for n in range(64)]
        assert (setting.entries() - before, len(stream.frames)) == (1, 1)
        receipts = [body["messages"][0]["receipt"] for _, body in answers]
        before, stream.frames = setting.entries(), []
        acks = [("ack", {"queue": "q", "receipt": receipt}) for receipt in [*receipts, "nonsense"]]
        *acked, bad = await stream.ask(*acks)
        assert acked == [(200, {})] * 64
        assert (bad[0], bad[1]["code"]) == (422, "invalid")
        assert (setting.entries() - before, len(stream.frames)) == (1, 1)

    run(scenario)


def test_keys__keep_their_order_when_sent_side_by_side() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        await stream.ask(*sends(50, key="same"))
        got: list[bytes] = []
        while len(got) < 50:
            _, received = await stream.one("receive", queue="q", max=7, wait_ms=5_000)
            got += [message["body_json"] for message in received["messages"]]
        assert got == [json_body(n) for n in range(50)]

    run(scenario)


def test_batches_and_singles_together__each_is_answered_as_if_alone() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        pair = [{"body_bytes": b"1"}, {"body_bytes": b"2", "key": "k"}]
        two, none, single, unknown = await stream.ask(
            ("send", {"queue": "q", "messages": pair}),
            ("send", {"queue": "q", "messages": []}),
            ("send", {"queue": "q", "body_bytes": b"3"}),
            ("send", {"queue": "nope", "body_bytes": b"4"}),
        )
        assert two[0] == 200
        assert [result["ok"] for result in two[1]["results"]] == [True, True]
        assert none == (200, {"results": []})
        assert single[0] == 201
        assert (unknown[0], unknown[1]["code"]) == (404, "unknown_queue")
        _, received = await stream.one("receive", queue="q", max=10)
        receipts = [message["receipt"] for message in received["messages"]]
        batch, missing = await stream.ask(
            ("ack", {"queue": "q", "receipts": [receipts[0], "x"]}),
            ("ack", {"queue": "nope", "receipts": receipts}),
        )
        assert (batch[0], [result["ok"] for result in batch[1]["results"]]) == (200, [True, False])
        assert (missing[0], missing[1]["code"]) == (404, "unknown_queue")

    run(scenario)


def test_several_receives__share_what_there_is_and_the_rest_waits() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        await stream.ask(*sends(5))
        receive = {"queue": "q", "max": 2, "visibility_ms": LONG_MS}
        waiting = {**receive, "wait_ms": LONG_MS}
        ids = await stream.send(
            *[("receive", receive)] * 3, ("receive", receive), ("receive", waiting)
        )
        answers = await stream.take(ids[:4])
        assert [len(body["messages"]) for _, body in answers] == [2, 2, 1, 0]
        await until(lambda: setting.services[0].polls.waiting == 1)
        assert (await stream.one("send", queue="q", body_json=b"9"))[0] == 201
        [(status, body)] = await stream.take(ids[4:])
        assert (status, [one["body_json"] for one in body["messages"]]) == (200, [b"9"])

    run(scenario)


@pytest.mark.parametrize("abrupt", [False, True])
def test_client_that_goes__its_long_polls_end_and_nothing_is_lost(abrupt: bool) -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        await stream.send(*[("receive", {"queue": "q", "wait_ms": LONG_MS})] * 10)
        polls = setting.services[0].polls
        await until(lambda: polls.waiting == 10)
        if abrupt:
            transport = stream.ws.get_extra_info("socket") and stream.ws._writer.transport
            assert transport is not None
            transport.abort()
        else:
            await stream.ws.close()
        await until(lambda: polls.waiting == 0)
        other = await setting.stream(2)
        await other.one("send", queue="q", body_json=b"1")
        _, received = await other.one("receive", queue="q", wait_ms=5_000)
        assert received["messages"][0]["deliveries"] == 1

    run(scenario)


@pytest.mark.parametrize("node", [1, 2])
def test_client_that_goes_while_messages_are_taken__they_come_back_at_once(node: int) -> None:
    async def scenario(setting: Setting) -> None:
        service = setting.services[node - 1]
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        await stream.ask(*sends(3))
        cancelled = 0
        for turns in range(12):  # whatever the take has come to
            task = asyncio.ensure_future(service.receive("q", 3, LONG_MS, LONG_MS))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                break
            task.cancel()
            cancelled += 1
            await asyncio.sleep(0.02)  # many turns: whatever was under way has come
            await until(lambda: leased(setting) == 0, 1.0)
        assert cancelled > 3
        taken = await task if task.done() else await service.receive("q", 3, 5_000, LONG_MS)
        assert len(taken) == 3
        assert taken[0].delivered.deliveries > 1, "nothing was ever under way"

    run(scenario)


def leased(setting: Setting) -> int:
    total = 0
    for service in setting.services:
        for partition in service.partitions.led:
            stats = service.partitions.machines[partition].stats("q")
            total += stats["leased"] if stats else 0
    return total


@pytest.mark.parametrize(
    ("op", "args", "status", "field"),
    [
        ("send", {}, 422, "body_json"),
        ("send", {"body_json": b"1", "body_bytes": b"1"}, 422, "body_json"),
        ("send", {"body_json": b"{"}, 422, "body_json"),
        ("send", {"body_json": "1"}, 422, "body_json"),
        ("send", {"body": 1}, 422, "body"),
        ("send", {"body_json": b"1", "priority": 3}, 422, "priority"),
        ("send", {"messages": [{"body_json": b"1"}], "body_json": b"2"}, 422, "messages"),
        ("send", {"messages": [{"body_json": b"1"}, {}]}, 422, "messages[1].body_json"),
        ("send", {"messages": [{"body_json": b"1"}] * 1_001}, 422, "messages"),
        ("send", {"body_json": b"1", "delay_ms": -1}, 422, "delay_ms"),
        ("send", {"body_json": b"1", "key": "k" * 257}, 422, "key"),
        ("send", {"body_bytes": b"x" * BODY_BYTES_MAX}, 413, None),
        ("receive", {"max": 0}, 422, "max"),
        ("receive", {"wait_ms": 30_001}, 422, "wait_ms"),
        ("receive", {"visibility_ms": 0}, 422, "visibility_ms"),
        ("ack", {}, 422, "receipts"),
        ("ack", {"receipt": "1", "receipts": []}, 422, "receipts"),
        ("nack", {"receipt": "1", "delay_ms": -1}, 422, "delay_ms"),
        ("extend", {"receipt": "1", "visibility_ms": 0}, 422, "visibility_ms"),
        ("queue.put", {"settings": {"max_length": 0}}, 422, "settings.max_length"),
        ("send", {"queue": "a/../b", "body_json": b"1"}, 422, None),
        ("receive", {"queue": ""}, 422, None),
        ("frobnicate", {}, 422, None),
    ],
)
def test_wrong_request__its_own_error_and_the_others_go_on(
    op: str, args: dict[str, Any], status: int, field: str | None
) -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        wrong, right = await stream.ask((op, {"queue": "q", **args}), sends(1)[0])
        assert (wrong[0], wrong[1].get("field")) == (status, field), wrong
        assert wrong[1]["code"] == ("invalid" if status == 422 else "too_large")
        assert right[0] == 201

    run(scenario)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", msgspec.msgpack.encode([[1, "send"]])])
def test_not_the_protocol__closed_with_1007(payload: bytes) -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.ws.send_bytes(payload)
        message = await stream.ws.receive(5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1007)

    run(scenario)


def test_queue_nearly_full__those_that_fit_are_sent_and_the_others_refused() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q", settings={"max_length": 5})
        answers = await stream.ask(*sends(8))
        assert sorted(status for status, _ in answers) == [201] * 5 + [429] * 3
        assert {body["code"] for status, body in answers if status == 429} == {"queue_full"}
        _, stats = await setting.services[0].get("q"), await setting.services[0].stats(["q"])
        assert stats["q"]["ready"] == 5

    run(scenario)


def test_no_quorum__every_request_is_answered_503() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        for number in setting.world.queue_groups():
            setting.world.lead(number, None)
        answers = await stream.ask(*sends(3), ("receive", {"queue": "q", "wait_ms": LONG_MS}))
        assert [status for status, _ in answers] == [503] * 4

    run(scenario)


def test_too_many_requests_in_flight__the_rest_is_429() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        receive = ("receive", {"queue": "q", "wait_ms": LONG_MS})
        ids = await stream.send(*[receive] * (STREAM_IN_FLIGHT_MAX + 2))
        for status, body in await stream.take(ids[-2:]):
            assert (status, body["code"], body["retry_after_ms"] > 0) == (429, "overloaded", True)
        await until(lambda: setting.services[0].polls.waiting == STREAM_IN_FLIGHT_MAX)

    run(scenario)


def test_too_many_bytes_in_flight__429_until_they_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_calls, "STREAM_IN_FLIGHT_BYTES_MAX", 1_000)

    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        big = ("send", {"queue": "q", "body_bytes": b"x" * 900})
        for _ in range(3):
            answers = await stream.ask(*[big] * 4)
            assert [status for status, _ in answers] == [201, 201, 429, 429]

    run(scenario)


def test_bug_in_the_service__500_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")

        async def broken(queue: str, messages: Any) -> Any:
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(setting.services[0], "send", broken)
            answers = await stream.ask(*sends(2))
        assert [(status, body["code"]) for status, body in answers] == [(500, "internal")] * 2
        assert "ZeroDivisionError" in str(caplog.records[-1].__dict__)
        assert (await stream.ask(*sends(1)))[0][0] == 201

    run(scenario)


def test_node_that_stops__takes_no_more_and_closes_when_all_it_took_is_answered() -> None:
    async def scenario(setting: Setting) -> None:
        stream, other = await setting.stream(), await setting.stream(2)
        await stream.one("queue.put", queue="q")
        ids = await stream.send(("receive", {"queue": "q", "wait_ms": LONG_MS}))
        await until(lambda: setting.services[0].polls.waiting == 1)
        leave_streams(setting.runners[0].app)
        before = setting.entries()
        await stream.send(sends(1)[0])
        with pytest.raises(TimeoutError):
            await stream.ws.receive(0.1)
        assert setting.entries() == before
        await other.one("send", queue="q", body_json=b"1")
        [(status, body)] = await stream.take(ids)
        assert (status, len(body["messages"])) == (200, 1)
        message = await stream.ws.receive(5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        assert (await other.one("receive", queue="q"))[1] == {"messages": []}

    run(scenario)


def test_node_that_stops_at_once__says_whether_something_it_took_is_unanswered() -> None:
    async def scenario(setting: Setting) -> None:
        idle, busy = await setting.stream(), await setting.stream()
        await idle.one("queue.put", queue="q")
        await busy.send(("receive", {"queue": "q", "wait_ms": LONG_MS}))
        polls = setting.services[0].polls
        await until(lambda: polls.waiting == 1)
        closing = asyncio.ensure_future(setting.runners[0].cleanup())
        for stream, code in ((idle, 1001), (busy, 1012)):
            message = await stream.ws.receive(5)
            assert (message.type, message.data) == (WSMsgType.CLOSE, code)
        await closing
        await until(lambda: polls.waiting == 0)

    run(scenario)


def test_sdk_nodes_stop_one_after_another__no_send_fails_and_none_happens_twice() -> None:
    async def scenario(setting: Setting) -> None:
        async with connect(setting.urls) as client:
            jobs = client.queue("jobs")
            await jobs.create()
            sent: list[str] = []
            stop = asyncio.Event()

            async def produce() -> None:
                while not stop.is_set():
                    sent.append(await jobs.send(len(sent)))

            producers = [asyncio.create_task(produce()) for _ in range(20)]
            for runner in setting.runners[:2]:
                before = len(sent)
                await until(lambda enough=before + 200: len(sent) > enough)
                await drain(runner)
            before = len(sent)
            await until(lambda: len(sent) > before + 200)
            stop.set()
            await asyncio.gather(*producers)
            stats = await setting.services[2].stats(["jobs"])
            assert stats["jobs"]["sent"] == len(set(sent)) == len(sent)
        assert not setting.routes_used()

    run(scenario)


def test_tokens__asked_for_at_the_handshake() -> None:
    guard = Guard([TokenSpec("app", sha256(b"secret").hexdigest(), "client")])

    async def scenario(setting: Setting) -> None:
        url = setting.urls[0] + PATH
        for headers in ({}, {"Authorization": "Bearer other"}):
            async with setting.http.get(url, headers=headers) as refused:
                assert refused.status == 401
        headers = {"Authorization": "Bearer secret"}
        stream = RawStream(await setting.http.ws_connect(url, headers=headers))
        assert (await stream.one("queue.put", queue="q"))[0] == 201

    run(scenario, guard)


def test_sdk__whole_life_over_the_stream_alone() -> None:
    async def scenario(setting: Setting) -> None:
        async with connect(setting.urls) as client:
            jobs = client.queue("jobs")
            await jobs.create(visibility_ms=LONG_MS)
            before = setting.entries()
            ids = await asyncio.gather(
                *(jobs.send({"n": n}, headers={"h": "1"}) for n in range(20))
            )
            assert setting.entries() - before == 1
            await jobs.send(b"\x00\xff", key="k")
            taken: list[Message] = []
            while len(taken) < 21:
                taken += await jobs.receive(30, wait=5.0)
            by_id = {message.id: message for message in taken}
            assert [by_id[one].body for one in ids] == [{"n": n} for n in range(20)]
            assert (by_id[ids[0]].headers, by_id[ids[0]].deliveries) == ({"h": "1"}, 1)
            [raw] = [message for message in taken if message.key == "k"]
            assert (raw.body, raw.body_bytes, raw.data) == (None, b"\x00\xff", b"\x00\xff")
            await jobs.nack(raw)
            [again] = await jobs.receive(wait=5.0)
            assert (again.id, again.deliveries) == (raw.id, 2)
            with pytest.raises(Conflict) as stale:
                await jobs.ack(raw)
            assert stale.value.code == "stale_receipt"
            await asyncio.gather(*(jobs.ack(message) for message in taken if message is not raw))
            await jobs.ack(again)
            with pytest.raises(NotFound) as unknown:
                await client.queue("nope").receive()
            assert unknown.value.code == "unknown_queue"
            with pytest.raises(Invalid, match="delay_ms"):
                await jobs.send(1, delay=-1.0)
        assert not setting.routes_used()

    run(scenario)


def test_sdk_receive_that_is_cancelled__its_messages_go_to_the_next() -> None:
    async def scenario(setting: Setting) -> None:
        async with connect(setting.urls[0]) as client:
            jobs = client.queue("jobs")
            await jobs.create(visibility_ms=LONG_MS)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await jobs.receive(wait=20.0)
            assert setting.services[0].polls.waiting == 1
            await jobs.send(1)  # goes to the one who waits no longer
            [message] = await jobs.receive(wait=5.0)
            assert message.deliveries == 2

    run(scenario)


def test_sdk_node_that_breaks_down_under_a_receive__another_one_is_asked() -> None:
    async def scenario(setting: Setting) -> None:
        async with connect(setting.urls) as client:
            jobs = client.queue("jobs")
            await jobs.create()
            receiving = asyncio.ensure_future(jobs.receive(wait=10.0))
            await until(lambda: setting.services[0].polls.waiting == 1)
            await setting.runners[0].cleanup()  # with 1012: what it took is unanswered
            await until(lambda: setting.services[1].polls.waiting == 1)
            await jobs.send(1)
            [message] = await receiving
            assert (message.body, message.deliveries) == (1, 1)

    run(scenario)


def test_sdk_body_that_python_cannot_hold__comes_as_text() -> None:
    async def scenario(setting: Setting) -> None:
        stream = await setting.stream()
        await stream.one("queue.put", queue="q")
        await stream.one("send", queue="q", body_json=b"[1e400]")
        async with connect(setting.urls[0]) as client:
            [message] = await client.queue("q").receive(wait=5.0)
        assert (message.body, message.data) == (None, b"[1e400]")

    run(scenario)
