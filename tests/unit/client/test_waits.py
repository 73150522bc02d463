"""Waits of any length, and deadlocks over what tasks hold, over the real lock machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_cluster import FakeCluster, run

from dss.base.errors import NoQuorum
from dss.client import Client, DeadlockError, LockTimeout, connect

SHORT = (503, {"code": "stopping", "message": "this node stops", "retry_after_ms": 20})


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if servers waited at most 0.4 s."""
    monkeypatch.setattr("dss.client.waits.WAIT_MS_MAX", 400)
    monkeypatch.setattr("dss.client.waits.ASK_AGAIN_S", 0.2)


def test_wait_beyond_what_servers_wait__keeps_its_place(short_waits: None) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        order: list[int] = []

        async def take(number: int) -> None:
            async with client.lock("a", wait=None):
                order.append(number)

        holder = client.lock("a")
        await holder.acquire()
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(take(number)))
            await asyncio.sleep(0.15)  # less than a wait, so that their repeats interleave
        await asyncio.sleep(1.0)
        assert fake.ops.count("acquire") > 10
        assert fake.machine.waiting == 3
        await holder.release()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]
        assert fake.machine.held == 0

    run(scenario)


def test_long_wait__ends_in_time_and_leaves_nobody_in_line(short_waits: None) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = client.lock("a")
        await holder.acquire()
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises(LockTimeout):
            await client.lock("a", wait=0.9).acquire()
        assert 0.8 < loop.time() - before < 2
        assert fake.machine.waiting == 0
        await holder.release()

    run(scenario)


def test_asked_again_just_as_it_is_granted__counts_once(short_waits: None) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = await client.lock("a").acquire()
        waiting = asyncio.create_task(client.lock("a", wait=5).acquire())
        await asyncio.sleep(0.1)
        fake.swallow_answers = True  # the grant's answer is late
        release = {"session": holder.session.id, "name": "a", "token": holder.token,
                   "owner": holder.owner}  # fmt: skip
        fake.apply([fake.command("release", release)])
        await fake.wake()
        await asyncio.sleep(0.3)  # it has asked again, and holds it twice for a moment
        await fake.give_swallowed()
        held = await waiting
        assert [hold["token"] for hold in fake.machine.describe("a", 0)["holders"]] == [held.token]
        async with client.lock("b"):
            pass
        await held._locks.release(held)
        assert not fake.machine.describe("a", 0)["holders"]

    run(scenario)


def test_long_upgrade__keeps_its_place_too(short_waits: None) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        reader = client.rwlock("a").read()
        await reader.acquire()
        async with client.rwlock("a").read() as mine:
            upgrading = asyncio.create_task(mine.upgrade(wait=5))
            await asyncio.sleep(0.7)
            assert fake.ops.count("upgrade") > 2
            await reader.release()
            assert await upgrading == mine.token
            assert mine.mode == "exclusive"
        assert fake.machine.held == 0

    run(scenario)


def test_cancelled_long_wait__is_undone(short_waits: None) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = client.lock("a")
        await holder.acquire()
        waiting = asyncio.create_task(client.lock("a", wait=None).acquire())
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.2)
        assert fake.machine.waiting == 0
        await holder.release()
        assert fake.machine.held == 0

    run(scenario)


def test_node_that_stops__its_waiters_ask_again_and_are_granted() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = client.lock("a")
        await holder.acquire()
        fake.refuse = [SHORT] * 3
        waiting = asyncio.create_task(client.lock("a", wait=5).acquire())
        await asyncio.sleep(0.3)
        assert fake.machine.waiting == 1
        await holder.release()
        assert (await waiting).is_safe

    run(scenario)


def test_wait_over_while_nodes_stop__stands_in_no_line_afterwards() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        holder = client.lock("a")
        await holder.acquire()
        fake.refuse = [(503, {"code": "no_quorum", "message": "x", "retry_after_ms": 100})] * 8
        with pytest.raises(NoQuorum):
            await client.lock("a", wait=0.3).acquire()
        await asyncio.sleep(2)
        assert fake.machine.waiting == 0
        await holder.release()
        assert fake.machine.held == 0

    run(scenario)


# --- deadlocks ------------------------------------------------------------------------------------


def test_two_tasks_in_opposite_order__one_is_told_of_the_deadlock() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with connect(fake.urls[0], name="other") as other:
            done: list[str] = []

            async def work(who: Client, first: str, second: str) -> None:
                async with who.lock(first, wait=10):
                    await asyncio.sleep(0.1)
                    async with who.lock(second, wait=10):
                        done.append(first)

            for another in (client, other):  # of one program, and of two
                done.clear()
                results = await asyncio.gather(
                    work(client, "a", "b"), work(another, "b", "a"), return_exceptions=True
                )
                (error,) = [each for each in results if each is not None]
                assert isinstance(error, DeadlockError)
                assert {step["name"] for step in error.cycle} == {"a", "b"}
                assert len(done) == 1
        assert fake.machine.held == 0

    run(scenario)


def test_victim__enters_the_same_handle_again_after_it_has_given_way() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        done: list[str] = []

        async def work(first: str, second: str) -> None:
            while True:
                try:
                    async with client.lock(first, wait=10):
                        await asyncio.sleep(0.05)
                        async with client.lock(second, wait=10):
                            done.append(first)
                            return
                except DeadlockError:
                    continue

        async with asyncio.timeout(10):
            await asyncio.gather(work("a", "b"), work("b", "c"), work("c", "a"))
        assert sorted(done) == ["a", "b", "c"]

    run(scenario)


def test_task_that_would_wait_for_itself__is_told_at_once() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("a"):
            with pytest.raises(DeadlockError, match="this task holds it already") as caught:
                async with client.lock("a", wait=None):
                    raise AssertionError("not reached")
            assert caught.value.cycle[0]["name"] == "a"
            with pytest.raises(LockTimeout):
                async with client.lock("a", wait=0):
                    raise AssertionError("not reached")
            with pytest.raises(DeadlockError):
                async with client.locks(["b", "a"]):
                    raise AssertionError("not reached")
            async with client.lock("b"):
                pass
        async with client.lock("a"), client.semaphore("s", limit=2), client.semaphore("s", limit=2):
            pass
        assert fake.machine.held == 0

    run(scenario)


def test_permits_taken_by_one_task_for_others__are_counted_each() -> None:
    """The loop that starts workers: what it takes, they give back."""

    async def scenario(fake: FakeCluster, client: Client) -> None:
        running = most = 0

        async def work(permit: Any) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.05)
            running -= 1
            await permit.release()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                permit = client.semaphore("pool", limit=3, wait=5)
                await permit.acquire()
                tasks.create_task(work(permit))
        assert most == 3
        assert fake.machine.held == 0

    run(scenario)


def test_lock_lost_inside_its_block__can_be_entered_again() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.session() as session:
            outer = client.lock("a", session=session)
            held = await outer.acquire_as(asyncio.current_task())
            fake.apply([fake.command("session.end", {"session": session.id})])
            session.lose("gone")
            assert not held.is_safe
            async with client.lock("a", wait=1) as again:
                assert again.token > held.token

    run(scenario)
