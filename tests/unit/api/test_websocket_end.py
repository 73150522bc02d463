"""base/websocket.py: an end on a transport that only writes down; RFC 6455."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from dss.base.websocket import (
    BINARY,
    CLOSE,
    CUT_OFF,
    NO_CODE,
    PING,
    PONG,
    TEXT,
    WebSocketEnd,
    frame,
    websocket_mask,
    xor_by_table,
)

MASK = b"\x01\x02\x03\x04"
MESSAGE_BYTES_MAX = 70_000


class Transport:
    """Of asyncio.Transport what an end uses."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.unsent = 0
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.aborted
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def taken(self) -> bytes:
        """What was written since the last time."""
        data, self.written = bytes(self.written), bytearray()
        return data


class Peer:
    """An end, its transport, and what it has received. It is a server's unless it masks."""

    def __init__(self, *, masks: bool = False, **more: Any) -> None:
        self.transport = Transport()
        self.messages: list[bytes] = []
        settings = {
            "message_bytes_max": MESSAGE_BYTES_MAX,
            "unread_bytes_max": 1_000_000,
            "heartbeat_s": 10.0,
            "close_s": 10.0,
            **more,
        }
        self.end = WebSocketEnd(
            cast(asyncio.Transport, self.transport),
            self.messages.append,
            masks=(lambda: MASK) if masks else None,
            **settings,
        )

    def hears(self, *frames: bytes) -> bytes:
        """What it writes when it reads these."""
        self.end.feed_data(b"".join(frames))
        return self.transport.taken()


def scenario(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        async with asyncio.timeout(5):
            await test()

    def wrapper() -> None:
        asyncio.run(run())

    wrapper.__name__ = test.__name__
    return wrapper


def part(opcode: int, payload: bytes, *, final: bool = False) -> bytes:
    """A frame of a message in several frames, or one with its FIN bit taken away."""
    whole = bytearray(frame(opcode, payload, MASK))
    if not final:
        whole[0] &= 0x7F
    return bytes(whole)


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason, MASK)


@scenario
async def test_messages_of_every_length__pass_from_end_to_end_and_back() -> None:
    client, server = Peer(masks=True), Peer()
    sent = [b"x" * size for size in (0, 1, 7, 125, 126, 127, 65_535, 65_536, MESSAGE_BYTES_MAX)]
    for message in sent:
        client.end.send(message)
        server.end.send(message)
    from_client, from_server = client.transport.taken(), server.transport.taken()
    assert server.hears(from_client) == client.hears(from_server) == b""
    assert server.messages == client.messages == sent
    assert b"xxxxxxx" not in from_client, "masked"


@scenario
async def test_any_cut_of_the_bytes__the_same_messages() -> None:
    pieces = [
        frame(BINARY, b"a" * 5, MASK),
        part(BINARY, b"b" * 130),
        frame(PING, b"between", MASK),
        part(0, b"c" * 3),
        part(0, b"d", final=True),
        frame(BINARY, b"", MASK),
        frame(BINARY, b"e" * 66_000, MASK),
    ]
    data = b"".join(pieces)
    expected = [b"a" * 5, b"b" * 130 + b"ccc" + b"d", b"", b"e" * 66_000]
    rng = random.Random(5)
    for trial in range(40):
        peer = Peer()
        if trial == 0:
            cuts = list(range(1, 400))  # byte by byte through every head
        else:
            cuts = sorted(rng.sample(range(1, len(data)), trial))
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            peer.end.feed_data(data[start:stop])
        assert peer.messages == expected
        assert peer.transport.taken() == frame(PONG, b"between")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(BINARY, b"not masked")], 1002),
        ([b"\xc2\x80" + MASK], 1002),  # a reserved bit
        ([b"\x83\x80" + MASK], 1002),  # an opcode that means nothing
        ([b"\x8b\x80" + MASK], 1002),
        ([part(PING, b"")], 1002),  # a control frame in parts
        ([b"\x89\xfe\x00\x7e" + MASK], 1002),  # a control frame of 126 bytes
        ([part(0, b"of nothing", final=True)], 1002),
        ([part(BINARY, b"a"), frame(BINARY, b"b", MASK)], 1002),
        ([frame(CLOSE, b"\x03", MASK)], 1002),
        ([close_frame(999)], 1002),
        ([close_frame(1005)], 1002),
        ([close_frame(1000, b"\xff")], 1002),
        ([frame(TEXT, b"[]", MASK)], 1003),
        ([part(TEXT, b"[")], 1003),
        ([b"\x82\xff" + (MESSAGE_BYTES_MAX + 1).to_bytes(8, "big")], 1009),
        ([b"\x82\xff" + b"\xff" * 8], 1009),
        ([part(BINARY, b"a" * 40_000), part(0, b"b" * 40_000)], 1009),
    ],
)
def test_what_is_no_binary_message__closes_with_its_code_and_is_not_received(
    frames: list[bytes], code: int
) -> None:
    @scenario
    async def run() -> None:
        peer = Peer()
        written = peer.hears(*frames, frame(BINARY, b"behind it", MASK))
        assert written[0] == 0x80 | CLOSE
        assert int.from_bytes(written[2:4], "big") == code
        assert peer.messages == []
        assert not peer.end.is_open
        peer.end.send(b"into the void")
        assert peer.hears(frame(PING, b"", MASK)) == b""

    run()


@scenario
async def test_peer_closes__answered_with_its_code_and_over() -> None:
    for payload, code in ((b"\x03\xe9gone", 1001), (b"", NO_CODE), (b"\x0f\xa0", 4000)):
        peer = Peer()
        behind = frame(BINARY, b"behind it", MASK)
        written = peer.hears(frame(CLOSE, payload, MASK), behind)
        assert written == frame(CLOSE, payload[:2])
        assert (await peer.end.over, peer.messages) == (code, [])
        assert peer.transport.closed
        assert not peer.transport.aborted


@scenario
async def test_own_close__what_comes_before_the_peers_is_dropped() -> None:
    peer = Peer()
    peer.end.close(1001, "this node stops")
    peer.end.close(1012, "said once")
    assert peer.transport.taken() == frame(CLOSE, b"\x03\xe9this node stops")
    assert peer.hears(frame(BINARY, b"late", MASK), frame(PING, b"", MASK)) == b""
    assert not peer.end.over.done()
    assert peer.hears(close_frame(1001)) == b""
    assert (await peer.end.over, peer.messages) == (1001, [])


@scenario
async def test_reason_that_is_too_long__cut_between_characters() -> None:
    peer = Peer()
    peer.end.close(1007, "é" * 100)
    assert peer.transport.taken() == frame(CLOSE, b"\x03\xef" + "é".encode() * 61)


@scenario
async def test_peer_that_does_not_close__cut_off_in_time() -> None:
    peer = Peer(close_s=0.02)
    peer.end.close(1001)
    assert await peer.end.over == CUT_OFF
    assert peer.transport.aborted


@scenario
async def test_silent_peer__pinged_and_then_cut_off() -> None:
    peer = Peer(masks=True, heartbeat_s=0.04)
    assert await peer.end.over == CUT_OFF
    assert peer.transport.taken() == frame(PING, b"", MASK)
    assert peer.transport.aborted


@scenario
async def test_peer_that_answers_pings__stays() -> None:
    peer = Peer(heartbeat_s=0.04)
    pings = 0
    for _ in range(60):
        await asyncio.sleep(0.005)
        if peer.transport.taken() == frame(PING, b""):
            pings += 1
            peer.hears(frame(PONG, b"", MASK))
    assert pings >= 2
    assert peer.end.is_open


@scenario
async def test_loop_that_stood_still__asks_the_peer_before_it_gives_it_up() -> None:
    peer = Peer(heartbeat_s=0.2)
    for _ in range(2):  # the second time with a ping of before, which was answered
        time.sleep(0.35)  # noqa: ASYNC251 - what is tested
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not peer.transport.aborted
        assert peer.transport.taken() == frame(PING, b"")
        peer.hears(frame(PONG, b"", MASK))
    assert await peer.end.over == CUT_OFF  # now it says nothing
    assert peer.transport.taken() == frame(PING, b"")


@scenario
async def test_peer_that_does_not_read__cut_off() -> None:
    for provoke in (
        lambda peer: peer.end.send(b"answer"),
        lambda peer: peer.hears(frame(PING, b"", MASK)),
    ):
        peer = Peer(unread_bytes_max=1_000)
        peer.transport.unsent = 1_001
        provoke(peer)
        assert await peer.end.over == CUT_OFF
        assert peer.transport.aborted
        peer.end.send(b"into the void")


@scenario
async def test_lost_connection__over_and_nothing_is_written_any_more() -> None:
    peer = Peer()
    peer.hears(b"\x82\xff")  # in the middle of a frame
    peer.end.feed_eof()
    assert await peer.end.over == CUT_OFF
    peer.end.send(b"late")
    peer.end.close(1001)
    peer.end.abort()
    assert peer.transport.taken() == b""


def test_masks__in_c_and_by_table_alike() -> None:
    for size in range(20):
        ours = bytearray(range(100, 100 + size))
        theirs = bytearray(ours)
        xor_by_table(b"\xff\x00\x55\x12", ours)
        websocket_mask(b"\xff\x00\x55\x12", theirs)
        assert ours == theirs
