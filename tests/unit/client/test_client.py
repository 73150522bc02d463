"""The SDK against a real HTTP server: a lock, sessions, queues and cache."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from fake_cluster import FakeCluster, run, running

from dss.base.errors import Conflict, DssError, Unavailable
from dss.client import Client, LockTimeout, connect


def test_lock__gives_tokens_that_grow_and_is_free_afterwards() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("orders/42") as first:
            assert fake.machine.held == 1
            assert first.is_safe
        async with client.lock("orders/42") as second:
            assert second.token > first.token
        assert fake.machine.held == 0
        assert fake.ops.count("session.create") == 1

    run(scenario)


def test_two_tasks_of_one_client__exclude_each_other_in_turn() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with client.lock("one", wait=5):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(8)))
        assert most == 1
        assert fake.machine.held == 0

    run(scenario)


def test_busy_lock__is_a_conflict_after_the_wait() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = client.lock("one")
        await holder.acquire()
        started = time.monotonic()
        with pytest.raises(LockTimeout) as caught:
            async with client.lock("one", wait=0.2):
                raise AssertionError("not reached")
        assert caught.value.code == "lock_timeout"
        assert 0.15 < time.monotonic() - started < 2
        await holder.release()

    run(scenario)


def test_cancelled_wait__gives_a_late_grant_back() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async def wait_for_it() -> None:
            async with client.lock("one", wait=5):
                raise AssertionError("not reached")

        async with client.lock("one"):
            waiter = asyncio.create_task(wait_for_it())
            await asyncio.sleep(0.1)
            assert fake.ops.count("acquire") == 2
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with client.lock("one", wait=2):
            pass

    run(scenario)


def test_no_quorum_for_a_while__is_waited_out() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        no_quorum = {"code": "no_quorum", "message": "electing", "retry_after_ms": 30}
        fake.refuse = [(503, no_quorum)] * 4
        async with client.lock("one", wait=3):
            assert fake.machine.held == 1
        fake.refuse = [(503, no_quorum)] * 50
        with pytest.raises(DssError) as caught:
            async with client.lock("two", wait=0.1):
                raise AssertionError("not reached")
        assert caught.value.code == "no_quorum"
        fake.refuse = []

    run(scenario)


def test_acquire_of_unknown_outcome__is_asked_for_again_and_granted_once() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("other") as other:
            fake.hang_up_on = "acquire"
            async with client.lock("one") as held:
                assert held.session is other.session
                assert fake.machine.held == 2
            assert fake.ops.count("acquire") == 3
            assert other.is_safe
        assert fake.machine.held == 0

    run(scenario)


def test_release_of_unknown_outcome__is_repeated_and_counts_as_done() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("one"):
            fake.hang_up_on = "release"
        assert fake.ops.count("release") == 2
        assert fake.machine.held == 0

    run(scenario)


def test_keepalive__holds_a_lock_longer_than_its_ttl() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("one", ttl=0.3) as held:
            await asyncio.sleep(0.9)
            assert held.is_safe
            assert fake.machine.held == 1

    run(scenario)


def test_session_that_ended__is_noticed_and_replaced() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async def hold() -> None:
            async with client.lock("one", ttl=0.3) as held:
                fake.apply([fake.machine.codec.decode_args(
                    "session.end", msgspec.msgpack.encode({"session": held.session.id})
                )])  # fmt: skip
                await asyncio.sleep(0.3)
                assert not held.is_safe

        with pytest.raises(Conflict) as caught:
            await hold()
        assert caught.value.code == "session_expired"
        async with client.lock("one", ttl=0.3):
            assert fake.machine.held == 1

    run(scenario)


def test_client_closed__ends_its_sessions() -> None:
    async def scenario() -> None:
        fake = FakeCluster()
        async with running(fake):
            async with connect(fake.urls) as client:
                handle = client.lock("one")
                await handle.__aenter__()
                assert fake.machine.held == 1
            assert fake.machine.held == 0

    asyncio.run(scenario())


def test_own_session__ends_with_its_block() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with (
            client.session(ttl=5) as session,
            client.lock("one", session=session) as held,
        ):
            assert held.session is session
        assert fake.ops[-1] == "session.end"

    run(scenario)


def test_queue__sends_receives_and_acknowledges() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        queue = client.queue("jobs/a")
        assert await queue.send({"order": 42}, key="42", delay=1.5) == "m1"
        await queue.send(b"\x00\xff")
        assert fake.messages[0] == {"body": {"order": 42}, "key": "42", "delay_ms": 1_500}
        first, second = await queue.receive(2, wait=1)
        assert first.body == {"order": 42}
        assert second.data == b"\x00\xff"
        await queue.ack(first, second)
        assert fake.acked == ["r0", "r1"]
        with pytest.raises(Conflict) as caught:
            await queue.ack("old")
        assert caught.value.code == "stale_receipt"

    run(scenario)


@pytest.mark.parametrize("value", [{"a": [1, None]}, "text é", b"\x00\x01", 7, None])
def test_cached_value__comes_back_as_it_was_put(value: Any) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        assert await client.cache.get("a/b", "none") == "none"
        assert await client.cache.put("a/b", value, ttl=5) == '"7"'
        assert "a/b" in fake.values
        assert await client.cache.get("a/b", "none") == value
        assert await client.cache.delete("a/b") is True
        assert await client.cache.delete("a/b") is False

    run(scenario)


def test_unavailable_for_a_while__is_repeated() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        fake.unready_puts = 3
        await client.cache.put("k", 1)
        assert await client.cache.get("k") == 1

    run(scenario)


def test_nobody_there__is_unavailable_within_the_wait() -> None:
    async def scenario() -> None:
        async with connect("http://127.0.0.1:9") as client:
            with pytest.raises(Unavailable, match="no lock node answers"):
                async with client.lock("one", wait=0.3):
                    raise AssertionError("not reached")

    asyncio.run(scenario())
