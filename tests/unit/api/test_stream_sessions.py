"""api/stream.py and api/upgrade.py: a service of our own behind a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web

from dss.api.stream import StreamConnection, close_streams, leave_streams, session_handler
from dss.base.errors import Invalid
from dss.base.websocket import BINARY, frame

PATH = "/v1/x:stream"
HANDSHAKE = (
    b"GET /v1/x:stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
pack = msgspec.msgpack.encode


class Echo:
    """Answers each request with its args; ops that do otherwise say so."""

    def __init__(self, connection: StreamConnection) -> None:
        self.connection = connection
        self.ended = 0

    def submit(self, payload: bytes) -> None:
        connection = self.connection
        for request_id, op, args in msgspec.msgpack.decode(payload):
            connection.take([request_id])
            if op == "bug":
                raise RuntimeError("a bug")
            if op == "wrong":
                raise Invalid("not the protocol")
            if op != "never":
                connection.answer(request_id, 200, args)
            if op == "unsaid":
                return
        connection.flush()

    def end(self) -> None:
        self.ended += 1


class Setting:
    def __init__(self, app: web.Application, http: aiohttp.ClientSession, port: int) -> None:
        self.app, self.http, self.port = app, http, port
        self.sessions: list[Echo] = []

    def begin(self, connection: StreamConnection) -> Echo:
        self.sessions.append(Echo(connection))
        return self.sessions[-1]


@asynccontextmanager
async def running() -> AsyncIterator[Setting]:
    app = web.Application()
    settings: list[Setting] = []
    app.router.add_get(PATH, session_handler(lambda connection: settings[0].begin(connection)))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            settings.append(Setting(app, http, port))
            yield settings[0]
    finally:
        await runner.cleanup()


def scenario(test: Callable[[Setting], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        async with asyncio.timeout(10), running() as setting:
            await test(setting)

    def wrapper() -> None:
        asyncio.run(run())

    wrapper.__name__ = test.__name__
    return wrapper


async def told(ws: aiohttp.ClientWebSocketResponse) -> Any:
    """The answers of the next message, or the code it is closed with."""
    message = await ws.receive(5)
    if message.type is WSMsgType.CLOSE:
        return message.data
    return msgspec.msgpack.decode(message.data)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


@scenario
async def test_bug_in_a_service__closes_its_connection_with_1011_and_no_other(
    setting: Setting,
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("dss.http")
    log.addHandler(handler)
    try:
        async with setting.http.ws_connect(PATH) as bad, setting.http.ws_connect(PATH) as good:
            await bad.send_bytes(pack([[1, "bug", None]]))
            assert await told(bad) == 1011
            await good.send_bytes(pack([[1, "echo", "fine"]]))
            assert await told(good) == [[1, 200, "fine"]]
            await until(lambda: setting.sessions[0].ended)
    finally:
        log.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["unexpected_error"]
    await until(lambda: [session.ended for session in setting.sessions] == [1, 1])


@scenario
async def test_message_behind_one_that_is_refused__not_taken(setting: Setting) -> None:
    async with setting.http.ws_connect(PATH) as ws:
        await ws.send_bytes(pack([[1, "never", None], [2, "wrong", None]]))
        await ws.send_bytes(pack([[3, "echo", None]]))
        assert await told(ws) == 1007
    await until(lambda: setting.sessions[0].ended)
    assert setting.sessions[0].connection.in_flight == 0


@scenario
async def test_message_in_one_segment_with_the_handshake__answered(setting: Setting) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", setting.port)
    writer.write(HANDSHAKE + frame(BINARY, pack([[7, "echo", "early"]]), b"mask"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    # RFC 6455 §1.3: the base64 of SHA-1 over the key and the protocol's GUID.
    assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=" in head
    assert b"Content-Length" not in head
    assert b"Transfer-Encoding" not in head
    answer = frame(BINARY, pack([[7, 200, "early"]]))
    assert await reader.readexactly(len(answer)) == answer
    writer.close()
    await until(lambda: setting.sessions[0].ended)


@pytest.mark.parametrize(
    ("header", "instead"),
    [
        (b"Upgrade: websocket\r\n", b""),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: keep-alive, Upgrade", b"Connection: keep-alive"),
        (b"Version: 13", b"Version: 12"),
        (b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA"),
        (b"AAAAAAAAAAAAAAAAAAAAAA==", b"?" * 24),
    ],
)
def test_handshake_that_is_none__400(header: bytes, instead: bytes) -> None:
    @scenario
    async def run(setting: Setting) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", setting.port)
        assert header in HANDSHAKE
        writer.write(HANDSHAKE.replace(header, instead))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert setting.sessions == []
        writer.close()

    run()


@scenario
async def test_planned_stop__answers_that_are_ready_are_said_before_1001(
    setting: Setting,
) -> None:
    async def leave(app: web.Application) -> None:
        leave_streams(app)

    for stop in (leave, close_streams):
        async with setting.http.ws_connect(PATH) as ws:
            await ws.send_bytes(pack([[1, "unsaid", "done"]]))
            await asyncio.sleep(0.05)
            stopping = asyncio.ensure_future(stop(setting.app))
            assert await told(ws) == [[1, 200, "done"]]
            assert await told(ws) == 1001
            await stopping


@scenario
async def test_planned_stop_with_a_request_open__1001_after_its_answer_else_1012(
    setting: Setting,
) -> None:
    async with setting.http.ws_connect(PATH) as ws:
        await ws.send_bytes(pack([[1, "never", None]]))
        await until(lambda: setting.sessions and setting.sessions[0].connection.in_flight)
        leave_streams(setting.app)
        await ws.send_bytes(pack([[2, "echo", "too late"]]))
        await asyncio.sleep(0.02)
        connection = setting.sessions[0].connection
        connection.answer(1, 200, "at last")
        connection.flush()
        assert await told(ws) == [[1, 200, "at last"]]
        assert await told(ws) == 1001
    async with setting.http.ws_connect(PATH) as ws:
        await ws.send_bytes(pack([[1, "never", None]]))
        await until(lambda: setting.sessions[1:] and setting.sessions[1].connection.in_flight)
        stopping = asyncio.ensure_future(close_streams(setting.app))
        assert await told(ws) == 1012
        await stopping
