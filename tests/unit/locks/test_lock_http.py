"""The lock routes and the stream on a real aiohttp server, over a fake consensus."""

import asyncio
import socket
from contextlib import asynccontextmanager
from hashlib import sha256

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType
from declared import declared
from lock_fakes import FakeConsensus, FakeTransport
from machine_world import sid

from dss.api import stream as stream_module
from dss.api.app import build_app, serve
from dss.api.auth import Guard
from dss.api.locks import routes
from dss.api.stream import close_streams
from dss.base.limits import STREAM_MESSAGE_BYTES_MAX
from dss.drivers.locks import LockService
from dss.observe.metrics import Registry
from dss.topology.nodes import NodeConfig, NodeSpec, TokenSpec

pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


@asynccontextmanager
async def server(guard=None):
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
        guard=guard,
    )
    app.on_shutdown.append(close_streams)
    await service.start()
    runner = await serve(app, "127.0.0.1", 0)
    port = runner.addresses[0][1]
    try:
        trace = declared(routes(service), tokens=guard is not None)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", trace_configs=[trace]) as http:
            yield consensus, http, app
    finally:
        await service.stop()
        await runner.cleanup()


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


async def handshake(http, receive_bytes=None):
    """A WebSocket by hand, for what a well-behaved client does not do."""
    plug = socket.socket()
    if receive_bytes is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plug.connect(("127.0.0.1", http._base_url.port))
    reader, writer = await asyncio.open_connection(sock=plug, limit=1_024)
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
    await until(lambda: not sink._connection.in_flight)
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


# --- modes, several locks, reads, once ----------------------------------------------------


async def session_of(http, name=""):
    return (await post(http, "/v1/sessions", {"ttl_ms": 20_000, "name": name}))[1]["session"]


async def keyed(http, path, body, key, method="POST"):
    headers = {"Idempotency-Key": key}
    async with http.request(method, path, json=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


@scenario
async def test_http_semaphore__as_many_holders_as_its_limit(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    body = {"mode": "semaphore", "limit": 3, "permits": 2}
    status, held = await post(http, "/v1/locks/s/acquire", {"session": one, **body})
    assert (status, held["mode"]) == (200, "semaphore")
    assert (await post(http, "/v1/locks/s/acquire", {"session": two, **body}))[0] == 409
    less = {"session": two, **body, "permits": 1}
    assert (await post(http, "/v1/locks/s/acquire", less))[0] == 200
    other = {"session": two, **body, "limit": 5, "owner": "x"}
    assert (await post(http, "/v1/locks/s/acquire", other))[1]["code"] == "limit_mismatch"
    _, lock = await get(http, "/v1/locks/s")
    assert (lock["limit"], lock["permits_used"], len(lock["holders"])) == (3, 3, 2)


@scenario
async def test_http_upgrade_and_downgrade__answer_the_token(consensus, http, app):
    me = await session_of(http)
    _, held = await post(http, "/v1/locks/a/acquire", {"session": me, "mode": "shared"})
    body = {"session": me, "token": held["token"]}
    status, upgraded = await post(http, "/v1/locks/a/upgrade", body)
    assert (status, upgraded["mode"]) == (200, "exclusive")
    assert upgraded["token"] > held["token"]
    body["token"] = upgraded["token"]
    status, down = await post(http, "/v1/locks/a/downgrade", body)
    assert (status, down["mode"], down["token"]) == (200, "shared", upgraded["token"])


@scenario
async def test_http_several_locks__all_or_none(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    _, held = await post(http, "/v1/locks/b/acquire", {"session": one})
    ask = {"session": two, "locks": ["a", "b", "c"]}
    status, problem = await post(http, "/v1/locks:acquire", ask)
    assert (status, problem["code"], problem["name"]) == (409, "lock_timeout", "b")
    assert (await get(http, "/v1/locks"))[1]["items"][0]["name"] == "b"
    waiting = asyncio.create_task(post(http, "/v1/locks:acquire", ask | {"wait_ms": 5_000}))
    await until(lambda: consensus.lock_machine.waiting)
    await post(http, "/v1/locks/b/release", {"session": one, "token": held["token"]})
    status, all_of_them = await waiting
    assert status == 200
    assert [each["name"] for each in all_of_them["locks"]] == ["a", "b", "c"]
    for wrong in (["a", "a"], [], ["a"] * 101, ["a", ".."]):
        assert (await post(http, "/v1/locks:acquire", ask | {"locks": wrong}))[0] == 422


@scenario
async def test_http_deadlock__the_later_waiter_gets_the_cycle(consensus, http, app):
    one, two = await session_of(http, "one"), await session_of(http, "two")
    await post(http, "/v1/locks/a/acquire", {"session": one})
    await post(http, "/v1/locks/b/acquire", {"session": two})
    first = asyncio.create_task(post(http, "/v1/locks/b/acquire", {"session": one, "wait_ms": 900}))
    await until(lambda: consensus.lock_machine.waiting)
    status, problem = await post(http, "/v1/locks/a/acquire", {"session": two, "wait_ms": 5_000})
    assert (status, problem["code"]) == (409, "deadlock")
    assert [(each["label"], each["name"]) for each in problem["cycle"]] == [
        ("two", "a"),
        ("one", "b"),
    ]
    assert (await get(http, "/v1/locks/b/explain"))[1]["summary"] == [
        "held exclusive by two for 0 ms (token 2).",
        "1st in line: one, exclusive, for 0 ms, blocked by two.",
    ]
    await post(http, f"/v1/sessions/{two}", method="DELETE")
    assert (await first)[0] == 200


@scenario
async def test_http_verify_history_and_break__tell_who_held_it(consensus, http, app):
    one, two = await session_of(http, "one"), await session_of(http, "two")
    path = "/v1/locks/orders%2F1"
    _, held = await post(http, f"{path}/acquire", {"session": one})
    token = held["token"]
    assert await post(http, f"{path}/verify", {"token": token}) == (
        200, {"valid": True, "newest": token},
    )  # fmt: skip
    waiting = asyncio.create_task(post(http, f"{path}/acquire", {"session": two, "wait_ms": 900}))
    await until(lambda: consensus.lock_machine.waiting)
    status, broken = await post(http, f"{path}?reason=stuck", method="DELETE")
    assert (status, broken["broken"][0]["token"]) == (200, token)
    assert (await waiting)[1]["token"] == token + 1
    assert (await post(http, f"{path}/verify", {"token": token}))[1] == {
        "valid": False, "newest": token + 1,
    }  # fmt: skip
    _, past = await get(http, f"{path}/history")
    assert [(each["holder"], each["token"]) for each in past["items"]] == [
        ("two", token + 1),
        ("one", token),
    ]
    assert past["items"][0]["ended"] is None
    assert past["items"][1]["ended"] == "broken by 127.0.0.1: stuck"
    assert (await post(http, "/v1/locks/free", method="DELETE"))[0] == 404


@scenario
async def test_http_confirm__a_grant_that_nobody_confirms_passes_on(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    body = {"session": one, "confirm_ms": 200}
    _, first = await post(http, "/v1/locks/a/acquire", body)
    assert first["confirm_in_ms"] == 200
    waiting = asyncio.create_task(
        post(http, "/v1/locks/a/acquire", {"session": two, "wait_ms": 900, "confirm_ms": 200})
    )
    await until(lambda: consensus.lock_machine.waiting)
    consensus.now_ms += 200
    consensus.expire()
    status, second = await waiting
    assert (status, second["token"]) == (200, first["token"] + 1)
    confirm = {"session": two, "token": second["token"]}
    status, confirmed = await post(http, "/v1/locks/a/confirm", confirm)
    assert (status, confirmed["token"], "confirm_in_ms" in confirmed) == (
        200, second["token"], False,
    )  # fmt: skip
    consensus.now_ms += 500
    consensus.expire()
    assert (await get(http, "/v1/locks/a"))[1]["token"] == second["token"]


@scenario
async def test_http_cancel__ends_the_wait(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    await post(http, "/v1/locks/a/acquire", {"session": one})
    waiting = asyncio.create_task(
        post(http, "/v1/locks/a/acquire", {"session": two, "wait_ms": 900})
    )
    await until(lambda: consensus.lock_machine.waiting)
    assert await post(http, "/v1/locks/a/cancel", {"session": two}) == (200, {"cancelled": True})
    assert (await waiting)[1]["code"] == "cancelled"
    assert await post(http, "/v1/locks/a/cancel", {"session": two}) == (200, {"cancelled": False})


@scenario
async def test_http_client_hangs_up_while_it_waits__its_place_is_given_up(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    await post(http, "/v1/locks/a/acquire", {"session": one})
    async with aiohttp.ClientSession(http._base_url) as other:
        waiting = asyncio.create_task(
            post(other, "/v1/locks/a/acquire", {"session": two, "wait_ms": 30_000})
        )
        await until(lambda: consensus.lock_machine.waiting)
        consensus.now_ms = 1
        waiting.cancel()
    await until(lambda: not consensus.lock_machine.waiting)


@scenario
async def test_idempotency_key__the_same_answer_and_one_effect(consensus, http, app):
    me = await session_of(http)
    path, body = "/v1/locks/a/acquire", {"session": me}
    first = await keyed(http, path, body, "k1")
    assert first[0] == 200
    assert await keyed(http, path, body, "k1") == first
    released = {"session": me, "token": first[1]["token"]}
    assert (await keyed(http, "/v1/locks/a/release", released, "k2"))[0] == 200
    assert (await keyed(http, "/v1/locks/a/release", released, "k2"))[0] == 200
    assert consensus.lock_machine.held == 0
    status, problem = await keyed(http, path, {"session": me, "mode": "shared"}, "k1")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    assert (await keyed(http, path, body, "ü"))[0] == 422
    made = await keyed(http, "/v1/sessions", {"ttl_ms": 9_000}, "k3")
    assert await keyed(http, "/v1/sessions", {"ttl_ms": 9_000}, "k3") == made
    assert made[0] == 201


@scenario
async def test_idempotency_key_of_a_wait__the_repeat_joins_it(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
    body = {"session": two, "wait_ms": 900}
    first = asyncio.create_task(keyed(http, "/v1/locks/a/acquire", body, "k"))
    await until(lambda: consensus.lock_machine.waiting)
    second = asyncio.create_task(keyed(http, "/v1/locks/a/acquire", body, "k"))
    assert (await first)[1]["code"] == "superseded"
    assert consensus.lock_machine.waiting == 1
    await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
    answer = await second
    assert answer[0] == 200
    assert await keyed(http, "/v1/locks/a/acquire", body, "k") == answer
    assert consensus.lock_machine.held == 1


def test_http_break_with_tokens__an_administrators_alone_and_it_is_audited(caplog):
    tokens = [
        TokenSpec(name, sha256(name.encode()).hexdigest(), role)
        for name, role in (("ops", "admin"), ("app", "client"))
    ]
    caplog.set_level("INFO", logger="dss.locks")

    async def run():
        async with asyncio.timeout(10), server(Guard(tokens)) as (_, http, _):
            http.headers["Authorization"] = "Bearer app"
            me = await session_of(http, "worker-7")
            assert (await post(http, "/v1/locks/a/acquire", {"session": me}))[0] == 200
            status, problem = await post(http, "/v1/locks/a", method="DELETE")
            assert (status, problem["code"]) == (403, "forbidden")
            http.headers["Authorization"] = "Bearer ops"
            assert (await post(http, "/v1/locks/a?reason=night", method="DELETE"))[0] == 200
            _, past = await get(http, "/v1/locks/a/history")
            assert past["items"][0]["ended"] == "broken by ops: night"

    asyncio.run(run())
    [line] = [record for record in caplog.records if record.getMessage() == "lock_broken"]
    assert "ops" in str(vars(line))
    assert "worker-7" in str(vars(line))


EXAMPLES = {"session": sid(1), "token": 1, "owner": "o", "locks": ["a"]}


def example_of(api, schema):
    """The required members of a request body, with values that parse."""
    named = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return {name: EXAMPLES[name] for name in named.get("required", [])}


@scenario
async def test_every_route__reads_the_idempotency_key_just_where_the_document_says_so(
    consensus, http, app
):
    async with http.get("/openapi.json") as reply:
        api = await reply.json()
    too_long = {"Idempotency-Key": "k" * 1_000}
    declared, read = set(), set()
    for path, operations in api["paths"].items():
        if path.startswith(("/v1/locks:events", "/v1/locks:stream")):
            continue  # they have no end
        if not path.startswith(("/v1/locks", "/v1/sessions")):
            continue
        for method, operation in operations.items():
            headers = [p["name"] for p in operation.get("parameters", []) if p["in"] == "header"]
            if "Idempotency-Key" in headers:
                declared.add((method, path))
            body = operation.get("requestBody")
            sent = example_of(api, body["content"]["application/json"]["schema"]) if body else None
            url = path.replace("{name}", "a").replace("{session}", sid(1))
            async with http.request(method, url, json=sent, headers=too_long) as reply:
                if reply.status == 422 and "Idempotency-Key has" in await reply.text():
                    read.add((method, path))
    assert read == declared
    assert len(declared) == 11
    events = api["paths"]["/v1/locks:events"]["get"]["parameters"]
    assert "Last-Event-ID" in [p["name"] for p in events if p["in"] == "header"]


# --- sequence numbers ---------------------------------------------------------------------


@scenario
async def test_sequenced_requests__each_carried_out_once_without_a_key(consensus, http, app):
    me = await session_of(http)
    steps = [
        ("/v1/locks/a/acquire", {"session": me}),
        ("/v1/locks/a/downgrade", {"session": me, "token": 0}),
        ("/v1/locks/a/upgrade", {"session": me, "token": 0}),
        ("/v1/locks/a/release", {"session": me, "token": 0}),
        ("/v1/locks:acquire", {"session": me, "locks": ["b", "c"]}),
    ]
    token = 0
    for seq, (path, body) in enumerate(steps, start=1):
        if "token" in body:
            body["token"] = token
        body |= {"seq": seq, "ack": seq - 1}
        first = await post(http, path, body)
        assert first[0] == 200, (path, first)
        assert await post(http, path, body) == first, path
        token = first[1].get("token", token)
    assert consensus.lock_machine.held == 2
    assert not consensus.lock_machine.keys
    status, problem = await post(http, *steps[3])
    assert (status, problem["code"]) == (409, "sequence_too_old"), "acknowledged by a later ack"


@scenario
async def test_sequenced_wait__the_repeat_waits_with_it(consensus, http, app):
    one, two = await session_of(http), await session_of(http)
    _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
    body = {"session": two, "wait_ms": 900, "seq": 1}
    first = asyncio.create_task(post(http, "/v1/locks/a/acquire", body))
    await until(lambda: consensus.lock_machine.waiting)
    second = asyncio.create_task(post(http, "/v1/locks/a/acquire", body))
    await until(lambda: len(consensus.waits) == 2 or first.done())
    assert consensus.lock_machine.waiting == 1
    await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
    answer = await second
    assert answer[0] == 200
    assert await post(http, "/v1/locks/a/acquire", body) == answer
    await first
    assert consensus.lock_machine.held == 1


@scenario
async def test_sequenced_and_keyed__422(consensus, http, app):
    me = await session_of(http)
    for path, body in (
        ("/v1/locks/a/acquire", {"session": me}),
        ("/v1/locks/a/release", {"session": me, "token": 1}),
    ):
        status, problem = await keyed(http, path, body | {"seq": 1}, "k")
        assert (status, problem["code"]) == (422, "invalid")
        assert "seq" in problem["detail"]
    assert consensus.lock_machine.held == 0
    status, problem = await post(http, "/v1/locks/a/confirm", {"session": me, "token": 1, "seq": 1})
    assert status == 422
    assert "seq" in problem["detail"], "a confirmation may always be repeated"
