"""Whole session ids are told to nobody but their own client and administrators."""

import asyncio
from hashlib import sha256

import msgspec
import pytest
from lock_fakes import FakeConsensus, FakeTransport, ListSink
from machine_world import World, sid
from test_lock_http import get, post, server, session_of
from test_lock_service import acquire, create, pack

from dss.api.auth import Guard
from dss.api.lock_stream import LockStream
from dss.core.locks.commands import Acquire
from dss.core.locks.history import HISTORY_PER_LOCK_MAX
from dss.core.locks.machine import LockMachine
from dss.core.locks.views import list_in_steps
from dss.drivers.lock_handles import shown
from dss.drivers.locks import LockService
from dss.topology.nodes import TokenSpec

TOKENS = [
    TokenSpec(name, sha256(name.encode()).hexdigest(), role)
    for name, role in (("ops", "admin"), ("app", "client"))
]


@pytest.mark.parametrize("token", ["", "app", "ops"])
def test_http__others_see_a_handle_and_an_administrator_the_whole_id(token):
    async def run():
        guard = Guard(TOKENS) if token else None
        async with asyncio.timeout(10), server(guard) as (consensus, http, _):
            if token:
                http.headers["Authorization"] = f"Bearer {token}"
            one, two = await session_of(http), await session_of(http)
            await post(http, "/v1/locks/a/acquire", {"session": one})
            asked = {"session": two, "owner": "task", "wait_ms": 900}
            waiting = asyncio.create_task(post(http, "/v1/locks/a/acquire", asked))
            while not consensus.lock_machine.waiting:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.005)
            whole = token == "ops"
            for path in ("/v1/locks/a", "/v1/locks/a/explain"):
                _, found = await get(http, path)
                [holder], [waiter] = found["holders"], found["waiters"]
                assert holder["session"] == (one if whole else one[:8])
                assert holder["owner"] == (one if whole else "")
                assert waiter["session"] == (two if whole else two[:8])
                assert waiter["owner"] == "task"
                assert whole or one not in str(found)
            for path in ("/v1/locks", "/v1/locks/a/history"):
                assert one not in str(await get(http, path))
            status, mine = await get(http, f"/v1/sessions/{one}")
            assert (status, mine["session"]) == (200, one), "who knows it may ask about it"
            await post(http, "/v1/locks/a/cancel", {"session": two, "owner": "task"})
            await waiting

    asyncio.run(run())


def deadlocked():
    """Sessions 1 and 2 hold `a` and `b`, 1 waits for `b`; what 2 is told that asks for `a`."""
    world = World(sessions=2)
    world.token(1, "a")
    world.token(2, "b")
    world.wait(1, "b")
    return world, Acquire(sid(2), "a", "exclusive", 5_000, seq=1)


def test_deadlock__its_cycle_names_handles_and_the_kept_answer_stays_as_it_is():
    world, ask = deadlocked()
    world.do(ask)
    wake = world.wakes()[world.index]
    status, body = shown((wake.status, wake.body))
    assert (status, body["code"]) == (409, "deadlock")
    assert [(step["session"], step["owner"]) for step in body["cycle"]] == [
        (sid(2)[:8], ""),
        (sid(1)[:8], ""),
    ]
    assert sid(1) not in str(body)
    assert world.do(ask) == (wake.status, wake.body)
    assert wake.body["cycle"][1]["session"] == sid(1)
    assert shown((200, {"cycle": 1})) == (200, {"cycle": 1})


def test_stream__deadlocks_and_descriptions_tell_handles():
    async def scenario():
        service = LockService(FakeConsensus(), FakeTransport(), read_timeout_ms=50)
        sink = ListSink()
        stream = LockStream(service, sink)
        stream.submit(pack([create(1, 1), create(2, 2), acquire(3, 1), acquire(4, 2, "b")]))
        stream.submit(pack([acquire(5, 1, "b", wait_ms=5_000), acquire(6, 2, wait_ms=5_000)]))
        assert sink.answers[6][1]["code"] == "deadlock"
        assert sid(1) not in str(sink.answers[6])
        stream.submit(pack([[7, "get", {"name": "a"}], [8, "explain", {"name": "b"}]]))
        await asyncio.sleep(0.01)
        assert sink.answers[7][1]["holders"][0]["session"] == sid(1)[:8]
        assert sid(2) not in str(sink.answers[8])
        await service.stop()

    asyncio.run(scenario())


def test_self_deadlock_by_http__names_its_own_handle():
    async def run():
        async with asyncio.timeout(10), server() as (_, http, _app):
            me = await session_of(http)
            await post(http, "/v1/locks/a/acquire", {"session": me})
            status, problem = await post(
                http, "/v1/locks/a/acquire", {"session": me, "mode": "shared"}
            )
            assert (status, problem["code"]) == (409, "deadlock")
            assert problem["cycle"] == [{"session": me[:8], "owner": "", "name": "a"}]

    asyncio.run(run())


# --- reads in steps -----------------------------------------------------------------------


def test_list_in_steps__a_page_of_what_was_held_all_the_while(monkeypatch):
    monkeypatch.setattr("dss.core.locks.views.LIST_STEP_NAMES", 3)
    monkeypatch.setattr("dss.core.locks.views.LIST_STEP_ITEMS", 2)
    world = World(sessions=1)
    tokens = {f"{at:02d}": world.token(1, f"{at:02d}") for at in reversed(range(10))}
    steps = list_in_steps(world.machine, "", 4, "", 0)
    assert [next(steps), next(steps)] == [None, None]
    world.release(1, tokens["02"], "02")
    world.token(1, "00a")
    *between, page = steps
    assert between == [None] * 5, "three steps to look, two to describe"
    assert [item["name"] for item in page["items"]] == ["00", "01", "03", "04"]
    assert page["next"] == "04"
    rest = world.machine.list("", 100, page["next"], 0)
    assert [item["name"] for item in rest["items"]] == [f"{at:02d}" for at in range(5, 10)]
    assert rest["next"] is None
    assert world.machine.list("9", 5, "", 0) == {"items": [], "next": None}
    assert LockMachine().list("", 5, "", 0) == {"items": [], "next": None}


def test_history_that_is_read_now_and_then__is_what_a_look_through_all_of_it_gives(monkeypatch):
    monkeypatch.setattr("dss.core.locks.history.HISTORY_MAX", 60)
    world = World(sessions=1)
    for at in range(200):
        name = f"{at % 7}"
        world.release(1, world.token(1, name), name)
        if at % 11 == 0:
            for each in range(8):
                ended = [hold for hold in world.machine.past.rows() if hold.name == f"{each}"]
                found = world.machine.past.of(f"{each}")
                assert list(found) == ended[-HISTORY_PER_LOCK_MAX:]
        if at == 100:
            world.reload()


def test_many_reads_in_one_message__others_have_their_turn_in_between(monkeypatch):
    monkeypatch.setattr("dss.drivers.lock_reads.TURN_S", 0.0)

    async def scenario():
        service, sink = LockService(FakeConsensus(), FakeTransport()), ListSink()
        service.submit_stream(sink, pack([create(1, 1), acquire(2, 1)]))
        reads = [[rid, "verify", {"name": "a", "token": 1}] for rid in range(10, 30)]
        service.submit_stream(sink, msgspec.msgpack.encode([*reads, [30, "list", {}]]))
        turns = 0
        while 30 not in sink.answers:
            turns += 1
            await asyncio.sleep(0)
        assert turns > 20
        assert sink.answers[29] == (200, {"valid": True, "newest": 1})
        assert sink.answers[30][1]["items"][0]["name"] == "a"
        await service.stop()

    asyncio.run(scenario())
