"""The stream's ops `events` and `events.stop`, on a real server and over a list of answers."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSMsgType
from lock_fakes import FakeConsensus, ListSink
from machine_world import sid
from test_lock_events import events_of, five_events
from test_lock_http import (
    acquire,
    answers,
    create,
    handshake,
    pack,
    post,
    scenario,
    session_of,
    unpack,
    until,
)

from dss.api import stream
from dss.api.stream import StreamConnection
from dss.base.websocket import BINARY, WebSocketEnd, frame
from dss.core.locks.commands import Acquire, FollowEvents, SessionCreate, UnfollowEvents
from dss.core.locks.machine import LockMachine
from dss.drivers import lock_subscriptions as module
from dss.drivers.lock_events import BATCH, LockEvents
from dss.drivers.lock_subscriptions import Subscriptions


class Following:
    """A client of one subscription."""

    def __init__(self, ws, number, index):
        self.ws, self.number, self.index = ws, number, index
        self.told = []

    async def push(self):
        """The next one; several may come in one message."""
        while not self.told:
            message = await self.ws.receive(timeout=5)
            assert message.type is WSMsgType.BINARY, message
            for request_id, status, body in unpack(message.data):
                assert (request_id, status) == (0, 200)
                self.told.append(body)
        body = self.told.pop(0)
        assert body["subscription"] == self.number
        self.index = body["index"]
        return body

    async def next(self, count):
        """So many events."""
        found = []
        while len(found) < count:
            body = await self.push()
            assert body["event"] == "events", body
            found += body["events"]
        assert len(found) == count
        return found


@asynccontextmanager
async def following(http, number=1, **args):
    async with http.ws_connect("/v1/locks:stream") as ws:
        yield await follow(ws, number, **args)


async def follow(ws, number, **args):
    await ws.send_bytes(pack([[number, "events", args]]))
    message = await ws.receive(timeout=5)
    [(request_id, status, body), *pushes] = unpack(message.data)
    assert (request_id, status) == (number, 200), body
    assert set(body) == {"subscription", "index"}
    assert body["subscription"] == number
    found = Following(ws, number, body["index"])
    found.told = [push[2] for push in pushes]
    return found


@scenario
async def test_subscription__tells_what_server_sent_events_tell_with_their_numbers(
    consensus, http, app
):
    async with following(http, prefix="a") as stream, events_of(http, "?prefix=a") as others:
        assert stream.index == 0
        await five_events(consensus, http)
        told = await stream.next(4)
        assert told == [(await others.next())[2] for _ in range(4)]
        assert [event["index"] for event in told] == [1, 3, 4, 5]
        assert stream.index == 5


@scenario
async def test_subscription__goes_on_after_the_event_seen_last(consensus, http, app):
    await five_events(consensus, http)
    async with following(http, since=3) as stream:
        assert stream.index == 3
        assert [event["index"] for event in await stream.next(2)] == [4, 5]
    async with following(http) as stream:
        assert stream.index == 5  # from now on
        await stream.ws.send_bytes(pack([create(2, 9), acquire(3, 9, "c")]))
        found = await answers_and_pushes(stream, 2)
        assert found[3][0] == 200
        assert [event["index"] for event in await stream.next(1)] == [6]


async def answers_and_pushes(stream, count):
    found = {}
    while len(found) < count:
        for request_id, status, body in unpack((await stream.ws.receive(timeout=5)).data):
            if request_id:
                found[request_id] = (status, body)
            else:
                stream.told.append(body)
    return found


@scenario
async def test_subscription__what_a_node_has_forgotten_is_a_gap(consensus, http, app):
    await five_events(consensus, http)
    data = consensus.lock_machine.snapshot()
    consensus.lock_machine = LockMachine()
    consensus.lock_machine.restore(data)
    async with following(http, since=2, prefix="zzz") as stream:
        assert await stream.next(1) == [{"index": 5, "event": "gap", "from": 3, "to": 5}]


@scenario
async def test_stopped_subscription__is_told_nothing_more_and_its_id_is_free(consensus, http, app):
    async with following(http, 7, prefix="a") as stream:
        ws = stream.ws
        await ws.send_bytes(pack([create(1, 1), [2, "events.stop", {"subscription": 7}]]))
        assert (await answers(ws, 2))[2] == (200, {})
        await ws.send_bytes(pack([acquire(3, 1, "a"), [4, "events.stop", {"subscription": 7}]]))
        assert (await answers(ws, 2))[4] == (200, {})  # it has none: no error
        again = await follow(ws, 7, since=0)
        assert [event["name"] for event in await again.next(1)] == ["a"]


@scenario
async def test_subscriptions_of_one_stream__are_told_apart_and_refused_when_wrong(
    consensus, http, app
):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(
            pack(
                [
                    [1, "events", {"prefix": "a"}],
                    [2, "events", {"prefix": "b"}],
                    [3, "events", {"since": -1}],
                    [4, "events", {"prefix": "x" * 257}],
                    [5, "events.stop", {}],
                ]
            )
        )
        found = await answers(ws, 5)
        assert [found[number][0] for number in range(1, 6)] == [200, 200, 422, 422, 422]
        await ws.send_bytes(pack([[1, "events", {}]]))
        status, body = (await answers(ws, 1))[1]
        assert (status, body["code"]) == (422, "invalid")
        assert "subscription 1 is open" in body["message"]
        mine = await session_of(http)
        for name in ("a", "b", "c"):
            await post(http, f"/v1/locks/{name}/acquire", {"session": mine})
        told = {}
        while len(told) < 2:
            for _, _, body in unpack((await ws.receive(timeout=5)).data):
                for event in body["events"]:
                    told[body["subscription"]] = event["name"]
        assert told == {1: "a", 2: "b"}


@pytest.mark.parametrize(
    "bound", ["dss.drivers.lock_events.EVENT_STREAMS_MAX", "STREAM_EVENTS_MAX"]
)
def test_subscriptions__are_bounded_and_give_their_room_back(monkeypatch, bound):
    monkeypatch.setattr(bound if "." in bound else f"{module.__name__}.{bound}", 1)

    @scenario
    async def run(consensus, http, app):
        async with following(http) as stream:
            await stream.ws.send_bytes(pack([[2, "events", {}]]))
            status, body = (await answers(stream.ws, 1))[2]
            assert (status, body["code"]) == (429, "overloaded")
            await stream.ws.send_bytes(pack([[3, "events.stop", {"subscription": 1}]]))
            await answers(stream.ws, 1)
            await follow(stream.ws, 2)
        # The stream has ended, and its subscription with it.
        async with asyncio.timeout(5):
            while True:
                async with http.get("/v1/locks:events") as response:
                    if response.status == 200:
                        break

    run()


def test_no_leader_known__no_subscription_begins_and_a_quiet_one_ends(monkeypatch):
    monkeypatch.setattr(module, "EVENTS_COMMENT_S", 0.02)

    @scenario
    async def run(consensus, http, app):
        async with following(http, since=0) as stream:
            quiet = {"event": "events", "subscription": 1, "index": 0, "events": []}
            assert [await stream.push() for _ in range(2)] == [quiet, quiet]
            consensus.leader = None
            while (body := await stream.push()) == quiet:
                pass
            assert body.pop("message")
            assert body == {
                "event": "events_end", "subscription": 1, "index": 0, "code": "no_quorum",
                "retry_after_ms": 1_000,
            }  # fmt: skip
            await stream.ws.send_bytes(pack([[1, "events", {}]]))
            status, body = (await answers(stream.ws, 1))[1]
            assert (status, body["code"]) == (503, "no_quorum")
            consensus.leader = "lock-2"
            await follow(stream.ws, 1)

    run()


def test_a_bug_behind_a_subscription__ends_it_and_says_so(monkeypatch, caplog):
    def broken(self, number, prefix):
        raise RuntimeError("a bug")

    monkeypatch.setattr(LockEvents, "since", broken)

    @scenario
    async def run(consensus, http, app):
        async with following(http) as stream:
            body = await stream.push()
            assert (body["event"], body["code"]) == ("events_end", "internal")

    run()
    assert "unexpected_error" in caplog.text


def many_events(count):
    consensus = FakeConsensus()
    locks = [Acquire(sid(1), f"lock/{number}") for number in range(count)]
    consensus.lock_machine.apply(1, 0, [SessionCreate(10_000, "", sid(1)), *locks])
    events = LockEvents(consensus)
    events.start()
    return events


def test_a_client_behind_with_reading__is_told_no_more_until_it_has_read(monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.001)

    async def run():
        subscriptions = Subscriptions(many_events(4 * BATCH))
        sink = ListSink()
        sink.unread_bytes = module.STREAM_EVENTS_UNREAD_BYTES + 1
        subscriptions.ask(sink, 5, FollowEvents(since=0))
        await until(lambda: sink.pushed)
        await asyncio.sleep(0.05)
        assert [len(body["events"]) for body in sink.pushed] == [BATCH]
        sink.unread_bytes = module.STREAM_EVENTS_UNREAD_BYTES
        await until(lambda: len(sink.pushed) == 4)
        numbers = [event["index"] for body in sink.pushed for event in body["events"]]
        assert numbers == list(range(1, 4 * BATCH + 1))
        subscriptions.end(sink)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_stream_ends__nothing_is_kept_of_its_subscriptions():
    async def run():
        events = many_events(1)
        subscriptions = Subscriptions(events)
        sink, other = ListSink(), ListSink()
        for number in range(1, 4):
            subscriptions.ask(sink, number, FollowEvents(since=0))
        subscriptions.ask(other, 1, FollowEvents(since=0))
        subscriptions.ask(sink, 9, UnfollowEvents(2))
        subscriptions.end(sink)
        await until(lambda: events._streams == 1)
        assert sink.pushed == []
        assert set(subscriptions._tasks) == {other}
        events.stop()
        await until(lambda: not events._streams)
        assert not subscriptions._tasks
        assert [len(body["events"]) for body in other.pushed] == [1]

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_client_that_reads_nothing__is_cut_off_with_little_kept_for_it(monkeypatch):
    monkeypatch.setattr("dss.api.stream.STREAM_HEARTBEAT_S", 0.4)
    unread = []

    def noting(connection):
        unread.append(WebSocketEnd.unsent_bytes.fget(connection._end))
        return unread[-1]

    monkeypatch.setattr(StreamConnection, "unread_bytes", property(noting))

    @scenario
    async def run(consensus, http, app):
        # Twice 10,000 events of over 400 bytes: more than a socket takes whose reader takes little.
        for number in (1, 2):
            names = [f"{number}-{each}{'x' * 240}" for each in range(10_000)]
            locks = [Acquire(sid(number), name) for name in names]
            consensus.lock_machine.apply(
                number, 0, [SessionCreate(10_000, "", sid(number)), *locks]
            )
        _, writer = await handshake(http, receive_bytes=4_096)
        writer.transport.pause_reading()
        payload = pack([[1, "events", {"since": 0}]])
        writer.write(frame(BINARY, payload, b"\0\0\0\0"))
        await until(lambda: unread and unread[-1] > module.STREAM_EVENTS_UNREAD_BYTES)
        [connection] = [each for each in stream._connections if each.app is app]
        await connection._end.over
        writer.close()
        assert max(unread) < 2 * module.STREAM_EVENTS_UNREAD_BYTES

    run()
