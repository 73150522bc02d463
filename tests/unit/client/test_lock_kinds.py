"""The SDK's kinds of locks, guards and repeats, over the real lock machine."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from fake_cluster import FakeCluster, run, running

from dss.base.errors import Conflict, Indeterminate
from dss.client import Client, DeadlockError, Held, Leader, LockLost, clock_s, connect, sync
from dss.client.sessions import DRIFT


def end_session(fake: FakeCluster, held: Held) -> None:
    args = msgspec.msgpack.encode({"session": held.session.id})
    fake.apply([fake.machine.codec.decode_args("session.end", args)])


def holders(fake: FakeCluster, name: str) -> int:
    return len(fake.machine.describe(name, 0)["holders"])


def test_several_locks__all_with_their_tokens_then_none() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.locks(["b", "a"]) as held:
            assert list(held.tokens) == ["b", "a"]
            assert fake.machine.held == 2
            with pytest.raises(Conflict, match="a"):
                async with client.locks(["c", "a"], wait=0.1):
                    raise AssertionError("not reached")
            assert holders(fake, "c") == 0
        assert fake.machine.held == 0

    run(scenario)


def test_readers__share_and_one_becomes_the_writer_and_back() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        lock = client.rwlock("rw")
        async with lock.read() as first:
            async with lock.read():
                assert holders(fake, "rw") == 2
                with pytest.raises(Conflict) as busy:
                    await first.upgrade(wait=0.1)
                assert busy.value.code == "lock_timeout"
            before = first.token
            assert await first.upgrade(wait=2) > before
            assert first.mode == "exclusive"
            with pytest.raises(Conflict):
                await client.rwlock("rw", wait=0).read().acquire()
            await first.downgrade()
            assert first.mode == "shared"
            async with lock.read():
                assert holders(fake, "rw") == 2
        assert fake.machine.held == 0

    run(scenario)


def test_semaphore__no_more_permits_than_its_limit() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.semaphore("pool", limit=3, permits=2):
            async with client.semaphore("pool", limit=3):
                with pytest.raises(Conflict):
                    await client.semaphore("pool", limit=3, wait=0).acquire()
            with pytest.raises(Conflict) as mismatch:
                await client.semaphore("pool", limit=4, wait=0).acquire()
            assert mismatch.value.code == "limit_mismatch"

    run(scenario)


def test_election__one_leads_until_it_resigns_and_observers_see_both() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with connect(fake.urls[0], name="other") as other:
            mine, theirs = client.election("job"), other.election("job")
            assert await mine.leader() is None
            first = await mine.campaign()
            seen = mine.observe(every=0.02)
            assert await anext(seen) == Leader(f"session {first.session.id[:8]}…", first.token)
            waiting = asyncio.create_task(theirs.campaign())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await mine.resign()
            second = await waiting
            async for leader in seen:
                if leader is not None:
                    assert leader == Leader("other", second.token)
                    break
            await seen.aclose()
            await theirs.resign()

    run(scenario)


def test_confirmed_lock__counts_after_its_confirmation() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("c", confirm=0.2):
            await asyncio.sleep(0.4)
            assert holders(fake, "c") == 1
        assert fake.ops.count("confirm") == 1

    run(scenario)


def test_priority__goes_first_among_those_that_wait() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        order: list[int] = []

        async def take(priority: int) -> None:
            async with client.lock("p", priority=priority):
                order.append(priority)

        async with client.lock("p"):
            tasks = []
            for priority in (0, 5):
                tasks.append(asyncio.create_task(take(priority)))
                await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        assert order == [5, 0]

    run(scenario)


def test_same_owner_of_one_session__holds_it_twice() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.session() as session:
            async with (
                client.lock("r", session=session, owner="me") as outer,
                client.lock("r", session=session, owner="me", wait=0) as inner,
            ):
                assert inner.token == outer.token
            assert fake.machine.held == 0

    run(scenario)


def test_deadlock__names_the_cycle_and_the_handle_keeps_its_place() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.session() as one, client.session() as two:
            first, second = (
                client.lock("a", session=one, owner="x"),
                client.lock("b", session=two, owner="x"),
            )
            await first.acquire()
            await second.acquire()
            waiting = asyncio.create_task(client.lock("b", session=one, owner="x").acquire())
            await asyncio.sleep(0.05)
            victim = client.lock("a", session=two, owner="x")
            with pytest.raises(Conflict) as caught:
                await victim.acquire()
            assert caught.value.code == "deadlock"
            assert caught.value.extra["cycle"]
            await second.release()
            await waiting
            await first.release()
            await victim.acquire()

    run(scenario)


def test_deadlock_with_oneself__shows_the_handle_of_the_session_and_not_its_id() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("a") as held:
            with pytest.raises(DeadlockError) as caught:
                async with client.lock("a"):
                    raise AssertionError("not reached")
            (step,) = caught.value.cycle
            assert step == {
                "session": held.session.id[:8], "owner": held.owner, "label": "this task",
                "name": "a",
            }  # fmt: skip
            assert held.session.id not in f"{caught.value} {caught.value.extra}"

    run(scenario)


def test_guard__cancels_its_block_when_the_session_ends() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        cancelled = False

        async def work() -> None:
            nonlocal cancelled
            async with client.lock("g", ttl=0.3) as held, held.guard():
                end_session(fake, held)
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    cancelled = True
                    raise

        with pytest.raises(LockLost) as lost:
            await work()
        assert cancelled
        assert lost.value.code == "lock_lost"
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    run(scenario)


def test_guard__unreachable_nodes_end_the_block_before_the_lease() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        no_quorum = (503, {"code": "no_quorum", "message": "electing", "retry_after_ms": 30})
        held = await client.lock("g", ttl=0.5).acquire()
        fake.refuse = [no_quorum] * 1_000
        with pytest.raises(LockLost, match="no lock node has confirmed"):
            async with held.guard():
                await asyncio.sleep(10)
        assert held.safe_until <= clock_s() < held.safe_until + 0.5 * DRIFT + 0.2
        fake.refuse = []

    run(scenario)


def test_guard__an_outer_cancel_stays_a_cancel() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async def work() -> None:
            async with client.lock("g") as held, held.guard():
                await asyncio.sleep(10)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fake.machine.held == 0

    run(scenario)


def test_pushed_loss__is_known_at_once() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        held = await client.lock("g", ttl=60).acquire()
        other = await client.lock("h", ttl=60).acquire()
        waiting = asyncio.create_task(held.until_lost())
        await asyncio.sleep(0.02)
        await fake.push({
            "event": "lock_lost", "session": held.session.id, "name": "g", "token": held.token,
            "owner": held.owner, "reason": "broken by ops",
        })  # fmt: skip
        lost = await asyncio.wait_for(waiting, 2)
        assert "broken by ops" in lost.message
        assert not held.is_safe
        assert other.is_safe

    run(scenario)


@pytest.mark.parametrize("op", ["acquire", "acquire_many", "upgrade", "downgrade", "release"])
def test_lost_answer__is_asked_for_again_and_nothing_happens_twice(op: str) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        fake.hang_up_on = op
        if op == "acquire_many":
            async with client.locks(["a", "b"]) as held:
                assert fake.machine.held == 2
        else:
            async with client.rwlock("a").read() as held:
                token = await held.upgrade()
                assert token == held.token
                await held.downgrade()
        assert fake.hang_up_on is None
        assert fake.ops.count(op) == (3 if op == "release" and len(held.tokens) == 2 else 2)
        assert fake.machine.held == 0

    run(scenario)


def test_outcome_that_stays_unknown__is_undone_when_somebody_can_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dss.client.sessions.RESOLVE_S", 0.3)

    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.session() as session:
            async with client.lock("other", session=session):
                fake.hang_up_on = "acquire"
                no_quorum = (503, {"code": "no_quorum", "message": "x", "retry_after_ms": 20})
                fake.refuse_after_hang_up = [no_quorum] * 60
                with pytest.raises(Indeterminate):
                    await client.lock("one", session=session, wait=0).acquire()
                assert holders(fake, "one") == 1
                fake.refuse = []
                for name in ("b", "c"):  # the answers of these move the floor on
                    async with client.lock(name, session=session):
                        pass
                async with client.lock("one", session=session, wait=3):
                    pass
            assert not session.lost

    run(scenario)


def test_cancelled_upgrade__leaves_a_reader() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.rwlock("rw").read() as mine:
            async with client.rwlock("rw").read():
                task = asyncio.create_task(mine.upgrade(wait=5))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.sleep(0.1)
            assert mine.mode == "shared"
            assert mine.is_safe
        assert fake.machine.held == 0

    run(scenario)


def in_thread(fake: FakeCluster, scenario: Any) -> None:
    """Run blocking code while the cluster serves."""

    def blocking() -> None:
        with sync.connect(fake.urls[0], name="blocking") as client:
            scenario(client)

    async def main() -> None:
        async with running(fake):
            await asyncio.to_thread(blocking)

    asyncio.run(asyncio.wait_for(main(), 15))


def test_blocking_client__the_same_surface() -> None:
    fake = FakeCluster()

    def scenario(client: sync.Client) -> None:
        with client.lock("a") as held:
            held.check()
            assert held.safe_until > clock_s()
            with pytest.raises(Conflict), client.lock("a", wait=0):
                raise AssertionError("not reached")
            with held.guard():
                pass
        with client.locks(["a", "b"]) as both:
            assert set(both.tokens) == {"a", "b"}
        with client.rwlock("rw").read() as reader:
            reader.upgrade()
            reader.downgrade()
            assert reader.mode == "shared"
        with client.semaphore("s", limit=2), client.semaphore("s", limit=2):
            pass
        election = client.election("e")
        with election as leading:
            assert election.leader() == Leader("blocking", leading.token)
            assert next(election.observe()) == Leader("blocking", leading.token)
        with client.session() as session, client.lock("a", session=session):
            assert session.is_safe
        client.queue("q").send({"n": 1})
        (message,) = client.queue("q").receive(wait=1)
        client.queue("q").ack(message)
        client.cache.put("k", {"n": 1})
        assert client.cache.get("k") == {"n": 1}
        assert client.cache.delete("k")

    in_thread(fake, scenario)
    assert fake.machine.held == 0


def test_blocking_guard__calls_back_and_raises_when_the_lock_is_lost() -> None:
    fake = FakeCluster()
    stopped = threading.Event()

    def scenario(client: sync.Client) -> None:
        def work() -> None:
            with client.lock("a", ttl=0.4) as held, held.guard(on_lost=stopped.set):
                fake.refuse = [(503, {"code": "no_quorum", "message": "x"})] * 1_000
                assert stopped.wait(5)
                fake.refuse = []

        with pytest.raises(LockLost):
            work()

    in_thread(fake, scenario)
