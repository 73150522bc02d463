"""Events on a real server, pushes on streams, and what ends with a client."""

import asyncio
from contextlib import asynccontextmanager

import msgspec
from lock_fakes import FakeConsensus, ListSink
from machine_world import World, sid
from test_lock_http import (
    acquire,
    answers,
    create,
    get,
    pack,
    post,
    scenario,
    session_of,
    unpack,
    until,
)

from dss.api import lock_events as events_module
from dss.core.locks.commands import Acquire, Break, Release, SessionCreate
from dss.core.locks.machine import LockMachine
from dss.drivers.lock_events import LockEvents


class Events:
    """A client of server-sent events."""

    def __init__(self, response):
        self._response = response
        self._lines = response.content

    async def next(self):
        """(id, event, data) of the next event; comments and bare ids are skipped."""
        while True:
            block = {}
            while (line := (await self._lines.readline()).decode()) != "\n":
                assert line, "the stream has ended"
                field, _, value = line.rstrip("\n").partition(": ")
                block[field] = value
            if "data" in block:
                return int(block["id"]), block["event"], msgspec.json.decode(block["data"])


@asynccontextmanager
async def events_of(http, query="", **headers):
    async with http.get(f"/v1/locks:events{query}", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Events(response)


async def five_events(consensus, http):
    """granted a, granted b, waiting a, released a, granted a; the first one's token."""
    one, two = await session_of(http, "one"), await session_of(http, "two")
    _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
    await post(http, "/v1/locks/b/acquire", {"session": one})
    waiting = asyncio.create_task(
        post(http, "/v1/locks/a/acquire", {"session": two, "wait_ms": 900})
    )
    await until(lambda: consensus.lock_machine.waiting)
    await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
    await waiting
    return held["token"]


@scenario
async def test_events__grants_waits_and_releases_with_numbers_that_go_on(consensus, http, app):
    async with events_of(http, "?prefix=a") as events:
        token = await five_events(consensus, http)
        seen = [await events.next() for _ in range(4)]
    assert [(number, kind) for number, kind, _ in seen] == [
        (1, "granted"),
        (3, "waiting"),
        (4, "released"),
        (5, "granted"),
    ]
    assert seen[0][2] == {
        "index": 1, "event": "granted", "name": "a", "token": token, "holder": "one",
        "mode": "exclusive", "ago_ms": 0, "owner": "",
    }  # fmt: skip
    assert seen[1][2]["waiter"] == "two"
    assert seen[2][2]["reason"] == "released"


@scenario
async def test_events__a_client_that_comes_back_misses_nothing(consensus, http, app):
    one = await session_of(http)
    for number in range(3):
        await post(http, f"/v1/locks/{number}/acquire", {"session": one})
    for query, headers in (("?since=1", {}), ("", {"Last-Event-ID": "1"})):
        async with events_of(http, query, **headers) as events:
            assert [(await events.next())[0] for _ in range(2)] == [2, 3]
    assert (await get(http, "/v1/locks:events?since=x"))[0] == 422
    assert (await get(http, "/v1/locks:events?prefix=" + "x" * 257))[0] == 422


@scenario
async def test_events__what_a_node_has_forgotten_is_a_gap(consensus, http, app):
    one = await session_of(http)
    for number in range(5):
        await post(http, f"/v1/locks/{number}/acquire", {"session": one})
    data = consensus.lock_machine.snapshot()
    consensus.lock_machine = LockMachine()
    consensus.lock_machine.restore(data)
    await post(http, "/v1/locks/new/acquire", {"session": one})
    async with events_of(http, "?since=2") as events:
        assert (await events.next())[1:] == (
            "gap", {"index": 5, "event": "gap", "from": 3, "to": 5},
        )  # fmt: skip
        assert (await events.next())[0] == 6


def test_events__a_quiet_stream_gets_comments(monkeypatch):
    monkeypatch.setattr(events_module, "EVENTS_COMMENT_S", 0.02)

    @scenario
    async def run(consensus, http, app):
        parts = [b"retry: 1000\n", b"id: 0\n", b": connected\n", b"\n"]
        parts += [b"id: 0\n", b": nothing new\n", b"\n"] * 2
        async with http.get("/v1/locks:events") as response:
            for expected in parts:
                assert await response.content.readline() == expected

    run()


def test_no_leader_known__no_stream_opens_and_a_quiet_one_ends(monkeypatch):
    monkeypatch.setattr(events_module, "EVENTS_COMMENT_S", 0.02)

    @scenario
    async def run(consensus, http, app):
        async with http.get("/v1/locks:events") as response:
            assert await response.content.readline() == b"retry: 1000\n"
            consensus.leader = None
            assert (await response.content.read()).endswith(b"\n\n")  # and then its end
        status, problem = await get(http, "/v1/locks:events")
        assert (status, problem["code"]) == (503, "no_quorum")
        consensus.leader = "lock-2"
        async with http.get("/v1/locks:events") as response:
            assert response.status == 200

    run()


def test_event_streams__are_bounded(monkeypatch):
    monkeypatch.setattr("dss.drivers.lock_events.EVENT_STREAMS_MAX", 1)

    @scenario
    async def run(consensus, http, app):
        async with http.get("/v1/locks:events") as first:
            assert first.status == 200
            status, problem = await get(http, "/v1/locks:events")
            assert (status, problem["code"]) == (429, "overloaded")

    run()


def test_journal__forgets_the_oldest_and_keeps_the_numbers(monkeypatch):
    monkeypatch.setattr("dss.core.locks.journal.EVENTS_MAX", 10)
    world = World(sessions=1)
    for number in range(40):
        name = f"lock/{number}"
        world.release(1, world.token(1, name), name)
    journal = world.machine.journal
    assert journal.newest == 80
    assert 10 <= journal.newest - journal.oldest < 21
    [first] = journal.since(journal.oldest - 1, 1)
    assert first.name == f"lock/{(journal.oldest - 1) // 2}"


def test_event_numbers__are_the_same_on_a_node_that_took_over_a_snapshot():
    world = World(sessions=2)
    world.token(1)
    data = world.machine.snapshot()
    other = LockMachine()
    other.restore(data)
    for machine in (world.machine, other):
        machine.apply(9, 0, [Acquire(sid(2), "b")])
        assert machine.journal.newest == 2


# --- pushes -------------------------------------------------------------------------------


@scenario
async def test_stream__is_told_at_once_that_its_session_or_lock_is_lost(consensus, http, app):
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(pack([create(1, 1), acquire(2, 1, "a"), create(3, 2)]))
        found = await answers(ws, 3)
        consensus._apply([0], [Break("a", "ops", "test")], ListSink())
        push = unpack((await ws.receive(timeout=5)).data)
        assert push == [
            [0, 200, {
                "event": "lock_lost", "session": sid(1), "name": "a", "owner": sid(1),
                "token": found[2][1]["token"], "reason": "broken by ops: test",
            }],
        ]  # fmt: skip
        consensus.now_ms = 10_000
        consensus.expire()
        lost = unpack((await ws.receive(timeout=5)).data)
        assert [push[2] for push in lost] == [
            {"event": "session_lost", "session": sid(n), "reason": "session_expired"}
            for n in (1, 2)
        ]


@scenario
async def test_stream_that_watches__is_told_of_grants_to_others_of_its_session(
    consensus, http, app
):
    one, two = await session_of(http), await session_of(http)
    _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(
            pack([[1, "session.watch", {"session": two}], [2, "session.watch", {"session": "x"}]])
        )
        found = await answers(ws, 2)
        assert found[1] == (200, {})
        assert found[2][1]["code"] == "session_expired"
        waiting = asyncio.create_task(
            post(http, "/v1/locks/a/acquire", {"session": two, "wait_ms": 900})
        )
        await until(lambda: consensus.lock_machine.waiting)
        await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
        _, grant = await waiting
        [(rid, status, body)] = unpack((await ws.receive(timeout=5)).data)
        assert (rid, status) == (0, 200)
        assert body == {
            "event": "lock_granted", "session": two, "name": "a", "token": grant["token"],
            "owner": two, "mode": "exclusive",
        }  # fmt: skip


@scenario
async def test_stream_ends__its_waits_are_given_up_unless_it_comes_back(consensus, http, app):
    one = await session_of(http)
    await post(http, "/v1/locks/a/acquire", {"session": one})
    await post(http, "/v1/locks/b/acquire", {"session": one})
    consensus.now_ms = 1
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(
            pack(
                [
                    create(1, 7),
                    acquire(2, 7, "a", wait_ms=30_000),
                    acquire(3, 7, "b", wait_ms=30_000),
                ]
            )
        )
        await until(lambda: consensus.lock_machine.waiting == 2)
    consensus.now_ms = 5
    async with http.ws_connect("/v1/locks:stream") as ws:
        await ws.send_bytes(pack([acquire(1, 7, "b", wait_ms=30_000)]))
        await until(lambda: consensus.lock_machine.waiting == 1)
        lock = consensus.lock_machine.describe("b", 5)
        assert lock["waiters"][0]["waiting_ms"] == 4


def test_snapshot_taken_over__watchers_learn_which_sessions_are_gone():
    consensus = FakeConsensus()
    consensus.lock_machine.apply(1, 0, [SessionCreate(1_000, "", sid(n)) for n in (1, 2)])
    events = LockEvents(consensus)
    events.start()
    sink = ListSink()
    events.watch(sink, sid(1))
    events.watch(sink, sid(2))
    other = LockMachine()
    other.apply(1, 0, [SessionCreate(1_000, "", sid(2))])
    consensus.lock_machine.restore(other.snapshot())
    events.applied()
    assert sink.pushed == [{"event": "session_lost", "session": sid(1), "reason": "unknown"}]
    events.unwatch(sink)
    assert (events._watchers, events._watched) == ({}, {})


def test_watches_of_one_stream__are_bounded(monkeypatch):
    monkeypatch.setattr("dss.drivers.lock_events.STREAM_WATCHES_MAX", 2)
    events = LockEvents(FakeConsensus())
    sink = ListSink()
    for number in range(5):
        events.watch(sink, sid(number))
    assert len(events._watchers) == 2


def test_own_release__is_no_loss():
    world = World(sessions=1)
    world.do(Release(sid(1), "a", world.token(1)))
    assert world.machine.journal.take_losses() == []


@scenario
async def test_server_stops__event_streams_end(consensus, http, app):
    async with http.get("/v1/locks:events") as response:
        assert response.status == 200
        # The scenario's end stops service and server; it must not wait for this client.
