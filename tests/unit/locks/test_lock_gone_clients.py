"""Clients that hang up before their grant: it goes back, unless the request can be repeated."""

import asyncio

import aiohttp
import pytest
from lock_fakes import FakeConsensus, FakeTransport, ListSink
from machine_world import sid
from test_lock_http import keyed, post, server, session_of, until
from test_lock_service import acquire, create, pack

from dss.api import locks as api
from dss.api.lock_stream import LockStream
from dss.core.locks.commands import (
    Acquire,
    AcquireMany,
    Release,
    Upgrade,
)
from dss.drivers import gone_clients
from dss.drivers.gone_clients import undoing
from dss.drivers.locks import LockService


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr(gone_clients, "GONE_CLIENT_MS", 50)
    monkeypatch.setattr(api, "HANG_UP_LOOK_S", 0.02)


async def hang_up_while_waiting(http, consensus, path, body, key=""):
    """The node notices; what happens to the wait then is up to the test."""
    async with aiohttp.ClientSession(http._base_url) as other:
        ask = keyed(other, path, body, key) if key else post(other, path, body)
        asked = asyncio.create_task(ask)
        await until(lambda: consensus.lock_machine.waiting)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked


def run(test):
    async def inside():
        async with asyncio.timeout(10), server() as (consensus, http, _):
            await test(consensus, http)

    asyncio.run(inside())


@pytest.mark.parametrize("how", ["plain", "key", "seq"])
def test_granted_after_its_client_hung_up__goes_back_unless_a_repeat_may_come(how):
    async def test(consensus, http):
        one, two = await session_of(http), await session_of(http)
        _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
        body = {"session": two, "wait_ms": 30_000} | ({"seq": 1} if how == "seq" else {})
        key = "k" if how == "key" else ""
        await hang_up_while_waiting(http, consensus, "/v1/locks/a/acquire", body, key)
        # Granted at once, before the client's place is given up.
        await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
        assert consensus.lock_machine.held == 1
        if how == "plain":
            await until(lambda: not consensus.lock_machine.held)
            return
        await asyncio.sleep(0.3)
        assert consensus.lock_machine.held == 1
        again = await keyed(http, "/v1/locks/a/acquire", body, key or "x" * (how != "seq"))
        assert again[0] == 200
        assert consensus.lock_machine.describe("a", 0)["holders"][0]["count"] == 1

    run(test)


def test_client_comes_back_to_a_grant_that_goes_back__its_own_hold_stays():
    async def test(consensus, http):
        one, two = await session_of(http), await session_of(http)
        _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
        body = {"session": two, "wait_ms": 30_000}
        await hang_up_while_waiting(http, consensus, "/v1/locks/a/acquire", body)
        await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
        status, mine = await post(http, "/v1/locks/a/acquire", body)
        assert status == 200
        lock = consensus.lock_machine.find_lock("a")
        await until(lambda: next(iter(lock.holders.values())).count == 1)
        released = {"session": two, "token": mine["token"]}
        assert (await post(http, "/v1/locks/a/release", released))[0] == 200
        assert consensus.lock_machine.held == 0

    run(test)


def test_several_locks_granted_to_nobody__all_go_back():
    async def test(consensus, http):
        one, two = await session_of(http), await session_of(http)
        _, held = await post(http, "/v1/locks/a/acquire", {"session": one})
        body = {"session": two, "locks": ["a", "b"], "wait_ms": 30_000}
        await hang_up_while_waiting(http, consensus, "/v1/locks:acquire", body)
        await post(http, "/v1/locks/a/release", {"session": one, "token": held["token"]})
        assert consensus.lock_machine.held == 2
        await until(lambda: not consensus.lock_machine.held)

    run(test)


def test_upgrade_granted_to_nobody__stays_with_its_session():
    async def test(consensus, http):
        one, two = await session_of(http), await session_of(http)
        shared = {"mode": "shared"}
        _, first = await post(http, "/v1/locks/a/acquire", {"session": one, **shared})
        _, second = await post(http, "/v1/locks/a/acquire", {"session": two, **shared})
        body = {"session": two, "token": second["token"], "wait_ms": 30_000}
        await hang_up_while_waiting(http, consensus, "/v1/locks/a/upgrade", body)
        await post(http, "/v1/locks/a/release", {"session": one, "token": first["token"]})
        assert consensus.lock_machine.find_lock("a").mode == "exclusive"
        await asyncio.sleep(3 * gone_clients.GONE_CLIENT_MS / 1_000)
        assert consensus.lock_machine.find_lock("a").mode == "exclusive"

    run(test)


def test_grant_at_once_whose_client_is_gone_by_then__goes_back():
    async def test(consensus, http):
        me = await session_of(http)
        consensus.held = []
        async with aiohttp.ClientSession(http._base_url) as other:
            asked = asyncio.create_task(post(other, "/v1/locks/a/acquire", {"session": me}))
            await until(lambda: consensus.held)
            asked.cancel()
        await asyncio.sleep(0.05)
        consensus.release_held()
        assert consensus.lock_machine.held == 1
        await until(lambda: not consensus.lock_machine.held)

    run(test)


def test_undoing__what_was_granted_and_nothing_else():
    me = sid(1)
    granted = {"token": 7}
    assert undoing(Acquire(me, "a", owner="o"), granted) == [Release(me, "a", 7, "o")]
    assert undoing(Upgrade(me, "a", 5), granted) == [], "who came back may rely on it"
    confirmed = Acquire(me, "a", owner="o", confirm_ms=5_000)
    assert undoing(confirmed, granted) == [], "it passes on by itself, unless it is confirmed"
    many = {"locks": [{"name": "a", "token": 7}, {"name": "b", "token": 8}]}
    wanted = AcquireMany(me, ["a", "b"])
    assert undoing(wanted, many) == [Release(me, "a", 7), Release(me, "b", 8)]


@pytest.mark.parametrize("seq", [0, 1])
def test_stream_breaks_before_its_grant__it_goes_back_unless_it_is_numbered(seq):
    async def scenario():
        consensus = FakeConsensus()
        service = LockService(consensus, FakeTransport(), read_timeout_ms=50)
        holder, stream = ListSink(), LockStream(service, ListSink())
        service.submit_stream(holder, pack([create(1, 1), acquire(2, 1), create(3, 2)]))
        stream.submit(pack([acquire(4, 2, wait_ms=30_000, seq=seq)]))
        stream.end()
        token = holder.answers[2][1]["token"]
        release = {"session": sid(1), "name": "a", "token": token}
        service.submit_stream(holder, pack([[5, "release", release]]))
        assert consensus.lock_machine.held == 1
        await asyncio.sleep(0.15)
        assert consensus.lock_machine.held == seq
        await service.stop()

    asyncio.run(scenario())


def test_give_back_that_finds_no_quorum__is_tried_again(monkeypatch):
    monkeypatch.setattr(gone_clients, "GIVE_BACK_PAUSES_S", (0.0, 0.01, 0.01))
    tried = []

    async def write(command, key):
        tried.append((command, key))
        return (503, {}) if len(tried) == 1 else (504, {}) if len(tried) == 2 else (200, {})

    async def scenario():
        gone = gone_clients.GoneClients(FakeConsensus(), write, asyncio.ensure_future)
        gone.undelivered(Acquire(sid(1), "a"), {"token": 3})
        await asyncio.sleep(0.2)

    asyncio.run(scenario())
    [first, *others] = tried
    assert first[0] == Release(sid(1), "a", 3)
    assert others == [first, first], "under one key, so that it is carried out once"
    assert len(first[1]) == 32
