"""client/stream.py against servers that answer late, wrongly, or not at all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from dss.base.errors import Indeterminate, TooLarge, Unavailable
from dss.base.limits import STREAM_MESSAGE_BYTES_MAX
from dss.base.websocket import BINARY, CLOSE, WebSocketEnd, frame
from dss.client import stream as stream_module
from dss.client.stream import LockStream

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
pack = msgspec.msgpack.encode


def accept(head: bytes) -> bytes:
    """The 101 to a handshake."""
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    answer = base64.b64encode(hashlib.sha1(lines[b"Sec-WebSocket-Key"] + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
    )


@asynccontextmanager
async def raw_server(serve: Serve) -> AsyncIterator[str]:
    """A server by hand: for what aiohttp's would not do."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**16)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def read_requests(reader: asyncio.StreamReader) -> list[list[Any]]:
    """The requests of one message of a client."""
    _, second = await reader.readexactly(2)
    assert second & 0x80, "a client masks"
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4)
    data = await reader.readexactly(size)
    plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    return list(msgspec.msgpack.decode(plain))


def answers(items: list[list[Any]]) -> bytes:
    return frame(BINARY, pack([[number, 200, args] for number, _, args in items]))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(main())


def test_frames_in_one_segment_with_the_handshake__heard() -> None:
    pushed: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        early = frame(BINARY, pack([[0, 200, "early"]]))
        writer.write(accept(head) + early + early[:3])
        items = await read_requests(reader)
        writer.write(early[3:] + answers(items))

    async def scenario() -> None:
        async with raw_server(serve) as url:
            stream = LockStream([url], on_push=lambda _, body: pushed.append(body))
            assert await stream.request("x", 1) == (200, 1)
            await stream.close()

    run(scenario)
    assert pushed == ["early", "early"]


@pytest.mark.parametrize("key", [b"", b"\r\nSec-WebSocket-Accept: AAAA"])
def test_101_of_something_else__no_websocket(key: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade"
            + key + b"\r\n\r\n"
        )  # fmt: skip

    async def scenario() -> None:
        async with raw_server(serve) as url:
            stream = LockStream([url])
            with pytest.raises(Unavailable, match="HTTP 101"):
                await stream.request("x", 1)
            assert stream.no_websockets
            await stream.close()

    run(scenario)


@pytest.mark.parametrize(
    "message",
    [
        frame(BINARY, b"garbage"),
        frame(BINARY, pack([["no number", 200, None]])),
        frame(BINARY, b"\x91\x93\x01\xcc\xc8\xa1\xff"),  # no UTF-8
        frame(0x1, b"[]"),
        frame(BINARY, b"masked", b"mask"),
        frame(CLOSE, b"\x03"),
    ],
)
def test_node_that_does_not_speak_the_protocol__sent_requests_are_indeterminate(
    message: bytes,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept(await reader.readuntil(b"\r\n\r\n")))
        await read_requests(reader)
        writer.write(message)
        await reader.read()
        writer.close()

    async def scenario() -> None:
        async with raw_server(serve) as url:
            broken: list[bool] = []
            stream = LockStream([url], on_broken=lambda: broken.append(True))
            with pytest.raises(Indeterminate):
                await stream.request("x", 1)
            assert broken == [True]
            await stream.close()

    run(scenario)


def test_push_that_its_listener_cannot_take__ends_the_connection_and_is_told() -> None:
    told: list[str] = []

    def listener(kind: Any, body: Any) -> None:
        raise KeyError(body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept(await reader.readuntil(b"\r\n\r\n")))
        await read_requests(reader)
        writer.write(frame(BINARY, pack([[0, 200, "strange"]])))

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
        async with raw_server(serve) as url:
            stream = LockStream([url], on_push=listener)
            with pytest.raises(Indeterminate):
                await stream.request("x", 1)
            await stream.close()

    run(scenario)
    assert told == ["KeyError('strange')"]


def test_node_that_falls_silent__given_up_by_drop_if_silent_alone() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept(await reader.readuntil(b"\r\n\r\n")))
        writer.write(answers(await read_requests(reader)))
        await read_requests(reader)

    async def scenario() -> None:
        async with raw_server(serve) as url:
            stream = LockStream([url])
            before = stream.mark()
            await stream.request("x", 1)
            stream.drop_if_silent(before)  # there was no connection then
            since = stream.mark()
            pending = stream.request("x", 2)
            await asyncio.sleep(0.05)
            stream.drop_if_silent((since[0] - 1, since[1]))  # something was heard since
            assert not pending.done()
            stream.drop_if_silent(since)
            with pytest.raises(Indeterminate):
                await pending
            await stream.close()

    run(scenario)


def test_node_that_does_not_read__requests_wait_here_and_go_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also to another node, since they have not been sent."""
    monkeypatch.setattr(stream_module, "UNSENT_BYTES_MAX", 100_000)
    body = b"x" * 900_000
    go_on = asyncio.Event()
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accept(await reader.readuntil(b"\r\n\r\n")))
        await go_on.wait()
        while len(seen) < 60:
            items = await read_requests_fast(reader)
            seen.extend(number for number, _, _ in items)
            writer.write(frame(BINARY, pack([[number, 200, None] for number, _, _ in items])))

    async def scenario() -> None:
        async with raw_server(serve) as url:
            stream = LockStream([url])
            pending = [stream.request("x", body) for _ in range(60)]
            await asyncio.sleep(0.2)
            waiting = len(stream._waiting)
            assert 0 < waiting < 60
            assert stream._end is not None
            assert stream._end.unsent_bytes < 2 * STREAM_MESSAGE_BYTES_MAX
            go_on.set()
            await asyncio.gather(*pending)
            assert sorted(seen) == list(range(1, 61))
            await stream.close()

    run(scenario)


async def read_requests_fast(reader: asyncio.StreamReader) -> list[Any]:
    """As `read_requests`, for megabytes."""
    head = await reader.readexactly(2)
    assert head[1] & 0x7F == 127
    size = int.from_bytes(await reader.readexactly(8), "big")
    mask = await reader.readexactly(4)
    data = await reader.readexactly(size)
    got: list[bytes] = []

    class Sink:
        def is_closing(self) -> bool:
            return False

    end = WebSocketEnd(
        Sink(),  # type: ignore[arg-type]
        got.append,
        message_bytes_max=STREAM_MESSAGE_BYTES_MAX,
        unread_bytes_max=1,
        heartbeat_s=10,
        close_s=10,
    )
    end.feed_data(head + size.to_bytes(8, "big") + mask + data)
    end.feed_eof()
    return list(msgspec.msgpack.decode(got[0]))


def test_request_larger_than_a_message__refused_before_it_is_sent() -> None:
    async def scenario() -> None:
        stream = LockStream(["http://127.0.0.1:9"])
        with pytest.raises(TooLarge):
            stream.request("x", b"x" * STREAM_MESSAGE_BYTES_MAX)
        await stream.close()

    run(scenario)
