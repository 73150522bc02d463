"""The lock routes and the stream on a real aiohttp server, over a fake consensus."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType
from lock_fakes import FakeConsensus, FakeTransport
from lock_world import sid

from dss.api import stream as stream_module
from dss.api.app import build_app, serve
from dss.api.locks import routes
from dss.api.stream import close_streams
from dss.base.limits import STREAM_MESSAGE_BYTES_MAX
from dss.drivers.locks import LockService
from dss.observe.metrics import Registry
from dss.topology.nodes import NodeConfig, NodeSpec

pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


@asynccontextmanager
async def server():
    consensus = FakeConsensus()
    service = LockService(consensus, FakeTransport(), read_timeout_ms=100)
    config = NodeConfig(
        node_id="lock-1",
        role="lock",
        data_dir="/nowhere",
        raft_peers=(NodeSpec("lock-1", "127.0.0.1", 8001, 9001),),
    )
    app = build_app(
        config=config,
        routes=routes(service),
        readiness=service.readiness,
        registry=Registry(),
        cluster=dict,
    )
    app.on_shutdown.append(close_streams)
    runner = await serve(app, "127.0.0.1", 0)
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            yield consensus, http, app
    finally:
        await runner.cleanup()
        await service.stop()


def scenario(test):
    """Run a coroutine test(consensus, http, app) with a server, and end within 10 s."""

    async def run():
        async with asyncio.timeout(10), server() as parts:
            await test(*parts)

    def wrapper():
        asyncio.run(run())

    wrapper.__name__ = test.__name__
    return wrapper


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


async def handshake(http):
    """A WebSocket by hand, for what a well-behaved client does not do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http._base_url.port, limit=1_024)
    writer.write(
        b"GET /v1/locks:stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def post(http, path, body=None, method="POST"):
    async with http.request(method, path, json=body) as response:
        return response.status, await response.json(content_type=None)


async def get(http, path):
    return await post(http, path, method="GET")


def create(rid, number):
    return [rid, "session.create", {"session": sid(number), "ttl_ms": 10_000}]


def acquire(rid, number, name="a", **more):
    return [rid, "acquire", {"session": sid(number), "name": name, **more}]


async def answers(ws, count):
    found = {}
    while len(found) < count:
        message = await ws.receive(timeout=5)
        assert message.type is WSMsgType.BINARY, message
        for rid, status, body in unpack(message.data):
            assert rid not in found
            found[rid] = (status, body)
    return found


# --- HTTP ---------------------------------------------------------------------------------


@scenario
async def test_http__a_lock_from_session_to_release(consensus, http, app):
    status, session = await post(http, "/v1/sessions", {"ttl_ms": 5_000, "name": "worker-7"})
    assert (status, session["ttl_ms"]) == (201, 5_000)
    me = session["session"]
    status, held = await post(http, "/v1/locks/orders%2F42/acquire", {"session": me})
    assert (status, held["mode"], held["expires_in_ms"]) == (200, "exclusive", 5_000)
    status, lock = await get(http, "/v1/locks/orders%2F42")
    assert (lock["name"], lock["holders"][0]["label"]) == ("orders/42", "worker-7")
    status, page = await get(http, "/v1/locks?prefix=orders/&limit=10")
    assert (page["items"][0]["name"], page["next"]) == ("orders/42", None)
    assert (await post(http, f"/v1/sessions/{me}/keepalive"))[0] == 200
    assert (await get(http, f"/v1/sessions/{me}"))[1]["held"] == 1
    body = {"session": me, "token": held["token"]}
    assert await post(http, "/v1/locks/orders%2F42/release", body) == (200, {})
    status, problem = await post(http, "/v1/locks/orders%2F42/release", body)
    assert (status, problem["code"]) == (409, "not_holder")
    assert (await post(http, f"/v1/sessions/{me}", method="DELETE"))[0] == 200
    assert (await get(http, f"/v1/sessions/{me}"))[0] == 404


@scenario
async def test_http_wait__ends_with_the_grant(consensus, http, app):
    _, one = await post(http, "/v1/sessions", {})
    _, two = await post(http, "/v1/sessions", {})
    _, held = await post(http, "/v1/locks/a/acquire", {"session": one["session"]})
    body = {"session": two["session"], "wait_ms": 5_000}
    waiting = asyncio.ensure_future(post(http, "/v1/locks/a/acquire", body))
    await until(lambda: consensus.lock_machine.waiting)
    await post(http, "/v1/locks/a/release", {"session": one["session"], "token": held["token"]})
    status, granted = await waiting
    assert (status, granted["token"]) == (200, held["token"] + 1)


@scenario
async def test_http_wait_runs_out__problem_document_with_the_holder(consensus, http, app):
    _, one = await post(http, "/v1/sessions", {"name": "worker-7"})
    _, two = await post(http, "/v1/sessions", {})
    await post(http, "/v1/locks/a/acquire", {"session": one["session"]})
    body = {"session": two["session"], "wait_ms": 1_000}
    waiting = asyncio.ensure_future(post(http, "/v1/locks/a/acquire", body))
    await until(lambda: consensus.lock_machine.waiting)
    consensus.now_ms += 1_000
    consensus.expire()
    status, problem = await waiting
    assert (status, problem["code"], problem["holder"]) == (409, "lock_timeout", "worker-7")
    assert "you were 1st of 1" in problem["detail"]


@scenario
async def test_http_bad_requests__422_that_names_the_field(consensus, http, app):
    for path, body, word in (
        ("/v1/sessions", {"ttl_ms": 1}, "ttl_ms"),
        ("/v1/sessions", {"ttl": 1_000}, "ttl"),
        ("/v1/locks/a/acquire", {"session": "s", "wait_ms": 30_001}, "wait_ms"),
        ("/v1/locks/a/acquire", {"session": "s", "mode": "semaphore"}, "mode"),
        ("/v1/locks/a/acquire", {}, "session"),
        ("/v1/locks/a/release", {"session": "s"}, "token"),
        ("/v1/locks/%2F/acquire", {"session": "s"}, "segment"),
        ("/v1/locks/" + "x" * 257 + "/acquire", {"session": "s"}, "256"),
    ):
        status, problem = await post(http, path, body)
        assert (status, problem["code"]) == (422, "invalid"), path
        assert word in problem["detail"]
    status, problem = await get(http, "/v1/locks?limit=1001")
    assert status == 422
    status, problem = await get(http, "/v1/locks?limt=1")
    assert status == 422
    assert consensus.submitted == []


# --- stream -------------------------------------------------------------------------------


@scenario
async def test_stream__many_requests_in_one_message_one_answer_message(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(pack([create(1, 1), *(acquire(n, 1, f"n{n}") for n in range(2, 66))]))
        message = await ws.receive()
        found = unpack(message.data)
        assert [rid for rid, _, _ in found] == list(range(1, 66))
        assert [status for _, status, _ in found] == [201] + [200] * 64


@scenario
async def test_stream_answers_of_every_frame_size__arrive_whole(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream", max_msg_size=0) as ws:
        await ws.send_bytes(pack([create(1, 1)]))
        await answers(ws, 1)
        for count in (1, 2, 3, 1_000, 4_000):  # headers of 2, 4 and 10 bytes
            await ws.send_bytes(pack([acquire(n, 1, f"n{n}") for n in range(2, 2 + count)]))
            assert len(await answers(ws, count)) == count


@scenario
async def test_stream_pings__answered_between_our_own_frames(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream", autoping=False) as ws:
        await ws.ping(b"hello")
        await ws.send_bytes(pack([create(1, 1)]))
        kinds = {(await ws.receive()).type, (await ws.receive()).type}
        assert kinds == {WSMsgType.PONG, WSMsgType.BINARY}


@scenario
async def test_stream_text_message__closed_with_1003(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_str("[]")
        message = await ws.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1003)
        assert "binary" in message.extra


@pytest.mark.parametrize(
    "payload",
    [
        b"garbage",
        pack([create(0, 1)]),
        pack([create(1, 1), create(1, 2)]),
        pack("x" * 1_000),
    ],
)
def test_stream_garbage__closed_with_1007_and_a_reason(payload):
    @scenario
    async def run(consensus, http, app):
        async with http.ws_connect("/v1/locks:stream") as ws:
            await ws.send_bytes(payload)
            message = await ws.receive()
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1007)
            assert message.extra
        assert consensus.submitted == []

    run()


@scenario
async def test_stream_message_beyond_the_limit__closed_with_1009(consensus, http, app):
    reader, writer = await handshake(http)
    size = STREAM_MESSAGE_BYTES_MAX + 1
    writer.write(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))
    frame = await reader.readexactly(4)
    assert (frame[0], int.from_bytes(frame[2:], "big")) == (0x88, 1009)
    writer.close()


@scenario
async def test_stream_id_reused_while_unanswered__closed_with_1007(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        waiting = acquire(4, 2, wait_ms=5_000)
        await ws.send_bytes(pack([create(1, 1), create(2, 2), acquire(3, 1), waiting]))
        await answers(ws, 3)
        await ws.send_bytes(pack([acquire(4, 2, "b")]))
        message = await ws.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1007)


def test_stream_beyond_in_flight__429_per_item_and_room_again_after_answers(monkeypatch):
    monkeypatch.setattr(stream_module, "STREAM_IN_FLIGHT_MAX", 4)

    @scenario
    async def run(consensus, http, app):
        async with http.ws_connect("/v1/locks:stream") as ws:
            consensus.held = []
            await ws.send_bytes(pack([create(n, n) for n in range(1, 7)]))
            refused = await answers(ws, 2)
            assert {rid: status for rid, (status, _) in refused.items()} == {5: 429, 6: 429}
            consensus.release_held()
            assert {status for status, _ in (await answers(ws, 4)).values()} == {201}
            await ws.send_bytes(pack([create(n, 10 + n) for n in range(1, 5)]))
            assert {status for status, _ in (await answers(ws, 4)).values()} == {201}

    run()


def test_stream_client_that_does_not_read__cut_off_while_others_are_served(monkeypatch):
    monkeypatch.setattr(stream_module, "STREAM_OUTBOX_BYTES_MAX", 256 * 1024)

    @scenario
    async def run(consensus, http, app):
        _, writer = await handshake(http)
        payload = pack([[n, "acquire", {"session": "s", "name": "a"}] for n in range(1, 2_000)])
        frame = b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload

        async def talk_without_listening():
            for _ in range(400):  # each brings 300 KB of answers: far beyond the socket's buffers
                writer.write(frame)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await talk_without_listening()
        async with http.ws_connect("/v1/locks:stream") as ws:
            await ws.send_bytes(pack([create(1, 1)]))
            assert (await answers(ws, 1))[1][0] == 201
        writer.close()

    run()


@scenario
async def test_stream_closed_by_the_client__late_answers_are_dropped(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(pack([create(1, 1), create(2, 2), acquire(3, 1)]))
        token = (await answers(ws, 3))[3][1]["token"]
        await ws.send_bytes(pack([acquire(4, 2, wait_ms=5_000)]))
        await until(lambda: consensus.lock_machine.waiting)
        [(sink, _)] = consensus.waits.values()
    await until(lambda: not sink.in_flight)
    args = {"session": sid(1), "token": token}
    assert (await post(http, "/v1/locks/a/release", args))[0] == 200
    assert consensus.waits == {}  # the late answer went to the dead stream: nothing happened
    assert consensus.lock_machine.held == 1  # the session still lives and got the lock


@scenario
async def test_node_stops__streams_close_with_1001(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(pack([create(1, 1)]))
        await answers(ws, 1)
        closing = asyncio.ensure_future(close_streams(app))
        message = await ws.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await closing


@scenario
async def test_stream_route_without_an_upgrade__a_problem_not_a_hang(consensus, http, app):
    status, problem = await get(http, "/v1/locks:stream")
    assert status == 400
    assert problem["code"]
