"""Queue services of several nodes over fakes: routing, receiving across nodes, hints, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from queue_world import World, until

from dss.base.errors import DssError
from dss.core.queueing.commands import Message, QueueSettings, receipt
from dss.drivers import queue_partitions, queue_polls
from dss.drivers.metadata import REGISTER
from dss.drivers.queue_receiver import RECEIVE, Taken
from dss.drivers.queues import STICKY_MESSAGES, Outcome, QueueService

Scenario = Callable[[World, list[QueueService]], Awaitable[None]]


def run(scenario: Scenario, **settings: Any) -> None:
    """The scenario over one lock node and three queue nodes that are ready."""

    async def whole() -> None:
        world = World(**settings)
        services = await world.start()
        try:
            async with asyncio.timeout(20):
                await scenario(world, services)
        finally:
            await world.stop()

    asyncio.run(whole())


def body(*values: int, key: str | None = None) -> list[Message]:
    return [Message(str(value).encode(), key=key) for value in values]


def bodies(taken: list[Taken]) -> list[int]:
    return [int(one.delivered.body) for one in taken]


def receipts(taken: list[Taken]) -> list[str]:
    return [receipt(t.partition, t.delivered.sequence, t.delivered.deliveries) for t in taken]


def ok(outcomes: list[Outcome]) -> bool:
    return all(outcome.status < 400 for outcome in outcomes)


def lead_all(world: World, node: str | None) -> None:
    for group in world.queue_groups():
        world.lead(group, node)


def test_put_on_one_node__send_and_receive_on_the_others() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        one, two, three = services
        _, created = await one.put("jobs", QueueSettings())
        assert created
        assert (await one.put("jobs", QueueSettings()))[1] is False
        assert ok(await two.send("jobs", body(1, 2, 3)))
        taken = await three.receive("jobs", 10, 0, None)
        assert bodies(taken) == [1, 2, 3]
        assert ok(await one.ack("jobs", receipts(taken)))
        assert [o.status for o in await two.ack("jobs", receipts(taken))] == [409] * 3
        stats = (await two.stats(["jobs"]))["jobs"]
        assert (stats["sent"], stats["acked"], stats["ready"], stats["leased"]) == (3, 3, 0, 0)

    run(scenario)


def test_unknown_queue__404_that_tells_how_to_make_it() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        for attempt in (
            services[0].send("nope", body(1)),
            services[1].receive("nope", 1, 0, None),
            services[2].ack("nope", ["1-1-1"]),
            services[2].delete("nope"),
        ):
            with pytest.raises(DssError, match="does not exist") as caught:
                await attempt
            assert (caught.value.status, caught.value.code) == (404, "unknown_queue")

    run(scenario)


def test_batch_without_keys__one_command_in_one_led_partition() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        before = {number: group.index for number, group in world.groups.items()}
        outcomes = await services[0].send("jobs", body(*range(10)))
        changed = [n for n, group in world.groups.items() if group.index != before[n]]
        assert len(changed) == 1
        assert world.groups[changed[0]].leader == "queue-1"
        assert world.groups[changed[0]].index == before[changed[0]] + 1
        assert [outcome.body[1] for outcome in outcomes] == list(range(1, 11))
        partitions = [outcomes[0].body[0]]
        for _ in range(2 * STICKY_MESSAGES // 10):
            partitions.append((await services[0].send("jobs", body(*range(10))))[0].body[0])
        assert sorted(dict.fromkeys(partitions)) == services[0].partitions.led
        assert len(services[0].partitions.led) > 1

    run(scenario)


def test_keyed_messages__same_partition_from_every_node_and_in_order() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        for number in range(30):
            service = services[number % 3]
            outcomes = await service.send(
                "jobs", body(number, key="a") + body(1_000 + number, key="b") + body(2_000)
            )
            assert outcomes[0].body[0] == service.partition_of("jobs", "a")
            assert outcomes[1].body[0] == service.partition_of("jobs", "b")
        taken: list[Taken] = []
        while some := await services[len(taken) % 3].receive("jobs", 7, 0, None):
            assert len(some) <= 7
            taken += some
        assert len(taken) == 90
        assert [v for v in bodies(taken) if v < 1_000] == list(range(30))
        assert [v for v in bodies(taken) if 1_000 <= v < 2_000] == list(range(1_000, 1_030))

    run(scenario)


@pytest.mark.parametrize("leader", ["queue-1", "queue-2"])
def test_long_poll__woken_by_a_hint_of_the_leading_node(
    leader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_polls, "LOOK_ANYWAY_S", 60.0)

    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_all(world, leader)
        poll = asyncio.ensure_future(services[0].receive("jobs", 5, 10_000, None))
        await until(lambda: services[0].polls.waiting == 1)
        await asyncio.sleep(0.02)
        asked = world.nodes["queue-1"].transport.called.count((leader, RECEIVE))
        await asyncio.sleep(0.1)
        assert world.nodes["queue-1"].transport.called.count((leader, RECEIVE)) == asked
        assert not poll.done()
        await services[2].send("jobs", body(7))
        assert bodies(await asyncio.wait_for(poll, 1)) == [7]
        assert services[0].polls.waiting == 0

    run(scenario)


def lead_by_two_others(world: World) -> None:
    """queue-1 leads nothing; the others every second partition."""
    for number, group in enumerate(world.queue_groups()):
        world.lead(group, ("queue-2", "queue-3")[number % 2])


def key_led_by(world: World, service: QueueService, node: str) -> str:
    keys = (str(number) for number in range(1_000))
    return next(
        key for key in keys if service.partitions.leader(service.partition_of("jobs", key)) == node
    )


def test_two_other_nodes_have_messages__they_take_turns() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_by_two_others(world)
        for first, node in ((0, "queue-2"), (100, "queue-3")):
            key = key_led_by(world, services[0], node)
            await services[0].send("jobs", body(*range(first, first + 10), key=key))
        got = [bodies(await services[0].receive("jobs", 1, 0, None))[0] for _ in range(10)]
        assert sorted(got) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]

    run(scenario)


def test_one_other_node_had_nothing__asked_last_until_it_hints() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_by_two_others(world)
        key = key_led_by(world, services[0], "queue-3")
        await services[0].send("jobs", body(*range(10), key=key))
        called = world.nodes["queue-1"].transport.called
        for _ in range(10):
            assert len(await services[0].receive("jobs", 1, 1_000, None)) == 1
        assert called.count(("queue-3", RECEIVE)) == 10
        assert called.count(("queue-2", RECEIVE)) <= 1
        poll = asyncio.ensure_future(services[0].receive("jobs", 1, 1_000, None))
        await until(lambda: services[0].polls.waiting == 1)
        await asyncio.sleep(0.02)
        key = key_led_by(world, services[0], "queue-2")
        asked = called.count(("queue-3", RECEIVE))
        await services[0].send("jobs", body(77, 78, key=key))
        assert bodies(await asyncio.wait_for(poll, 0.5)) == [77]
        assert called.count(("queue-3", RECEIVE)) == asked, "the one that hinted is asked first"
        assert bodies(await services[0].receive("jobs", 1, 0, None)) == [78]

    run(scenario)


def test_long_poll__ends_empty_after_its_time() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        began = world.loop.time()
        assert await services[1].receive("jobs", 5, 150, None) == []
        assert 0.1 < world.loop.time() - began < 1

    run(scenario)


def test_long_poll__woken_when_a_lease_ends_on_another_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_polls, "LOOK_ANYWAY_S", 60.0)

    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings(visibility_ms=200))
        lead_all(world, "queue-3")
        await services[0].send("jobs", body(1))
        assert bodies(await services[0].receive("jobs", 1, 0, None)) == [1]
        [again] = await services[1].receive("jobs", 1, 5_000, None)
        assert again.delivered.deliveries == 2

    run(scenario)


def test_many_polls_and_messages__each_message_to_one_and_nobody_sleeps_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_polls, "LOOK_ANYWAY_S", 60.0)

    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        got: list[int] = []

        async def consume(number: int) -> None:
            while len(got) < 300:
                taken = await services[number % 3].receive("jobs", 3, 300, None)
                assert len(taken) <= 3
                got.extend(bodies(taken))

        consumers = [asyncio.ensure_future(consume(number)) for number in range(9)]
        for number in range(150):
            service = services[number % 3]
            assert ok(await service.send("jobs", body(2 * number)))
            assert ok(await service.send("jobs", body(2 * number + 1, key=str(number))))
        await asyncio.wait_for(asyncio.gather(*consumers), 10)
        assert sorted(got) == list(range(300))

    run(scenario)


def test_woken_poll_gives_up__the_next_one_gets_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_polls, "LOOK_ANYWAY_S", 60.0)

    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_all(world, "queue-1")
        polls = []
        for number in range(2):
            polls.append(asyncio.ensure_future(services[0].receive("jobs", 1, 10_000, None)))
            await until(lambda number=number: services[0].polls.waiting == number + 1)
        await asyncio.sleep(0.05)
        original = services[0].polls.ready

        def ready(queue: str, count: int) -> None:
            original(queue, count)
            polls[0].cancel()

        monkeypatch.setattr(services[0].polls, "ready", ready)
        await services[0].send("jobs", body(1))
        assert bodies(await asyncio.wait_for(polls[1], 1)) == [1]
        assert polls[0].cancelled()

    run(scenario)


def test_wrong_leaders__handed_over_to_the_preferred_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_partitions, "REPAIR_EVERY_S", 0.02)

    async def scenario(world: World, services: list[QueueService]) -> None:
        lead_all(world, "queue-1")
        await until(
            lambda: all(row["leader"] == row["preferred_leader"] for row in services[0].placement())
        )

    run(scenario)


def test_leader_moves_while_a_poll_waits__the_message_still_arrives() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_all(world, "queue-2")
        poll = asyncio.ensure_future(services[0].receive("jobs", 5, 10_000, None))
        await until(lambda: services[0].polls.waiting == 1)
        lead_all(world, None)
        await asyncio.sleep(0.02)
        lead_all(world, "queue-3")
        await services[1].send("jobs", body(1))
        assert bodies(await asyncio.wait_for(poll, 3)) == [1]

    run(scenario)


def test_no_leaders__send_and_receive_answer_503_at_once() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_all(world, None)
        [outcome] = await services[0].send("jobs", body(1))
        assert (outcome.status, outcome.body["code"]) == (503, "no_quorum")
        with pytest.raises(DssError) as caught:
            await services[0].receive("jobs", 1, 0, None)
        assert caught.value.status == 503
        assert services[0].readiness() is not None

    run(scenario)


def test_one_partition_without_leader__keyless_messages_go_elsewhere() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        lead_all(world, "queue-2")
        groups = world.queue_groups()
        for group in groups[1:]:
            world.lead(group, None)
        assert ok(await services[0].send("jobs", body(1)))
        assert bodies(await services[2].receive("jobs", 1, 0, None)) == [1]

    run(scenario)


def test_partition_missed_the_put__set_up_by_the_first_send() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        lead_all(world, None)
        await services[0].put("jobs", QueueSettings())
        for group in world.queue_groups():
            world.groups[group].leader = "queue-1"  # nobody is told: no repair on its own
        outcomes = await services[1].send("jobs", body(1, key="k"))
        assert ok(outcomes)

    run(scenario)


def test_partition_missed_the_put__repaired_by_its_next_leader() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        lead_all(world, None)
        await services[0].put("jobs", QueueSettings())
        lead_all(world, "queue-3")
        machines = world.nodes["queue-1"].queues.partitions.machines
        await until(lambda: all(machine.configured("jobs") for machine in machines.values()))
        await services[1].delete("jobs")
        await until(lambda: not any(machine.queues() for machine in machines.values()))

    run(scenario)


def test_deleted_and_remade__old_messages_gone_everywhere() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings())
        await services[0].send("jobs", body(*range(10)))
        await services[1].delete("jobs")
        await services[2].put("jobs", QueueSettings())
        assert ok(await services[1].send("jobs", body(99)))
        assert bodies(await services[0].receive("jobs", 100, 0, None)) == [99]

    run(scenario)


def test_max_length__429_queue_full() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        await services[0].put("jobs", QueueSettings(max_length=3))
        assert ok(await services[1].send("jobs", body(1, 2, 3)))
        with pytest.raises(DssError, match="max_length is 3") as caught:
            await services[2].send("jobs", body(4))
        assert (caught.value.status, caught.value.code) == (429, "queue_full")

    run(scenario)


def test_fewer_replicas_than_nodes__every_node_still_serves_everything() -> None:
    async def scenario(world: World, services: list[QueueService]) -> None:
        assert all(0 < len(s.partitions.machines) < 8 for s in services)
        await services[0].put("jobs", QueueSettings())
        for number in range(24):
            assert ok(await services[number % 3].send("jobs", body(number, key=str(number))))
        got: list[int] = []
        while taken := await services[len(got) % 3].receive("jobs", 4, 50, None):
            got += bodies(taken)
            assert ok(await services[(len(got) + 1) % 3].ack("jobs", receipts(taken)))
        assert sorted(got) == list(range(24))
        assert (await services[1].stats(["jobs"]))["jobs"]["acked"] == 24

    run(scenario, replication_factor=1)


def test_queue_nodes_before_lock_nodes__everything_comes_up() -> None:
    async def whole() -> None:
        world = World(locks=2, queues=2)
        for name in ("queue-1", "queue-2"):
            await world.node(name).start()
        await asyncio.sleep(0.05)
        reason = world.nodes["queue-1"].readiness()
        assert reason is not None
        assert "lock" in reason
        for name in ("lock-1", "lock-2"):
            await world.node(name).start()
        await until(lambda: all(node.readiness() is None for node in world.nodes.values()))
        table = world.nodes["queue-1"].view.table
        assert len(table) == 8
        assert table == world.nodes["queue-2"].view.table
        await world.nodes["queue-1"].queues.put("jobs", QueueSettings())
        world.link("lock-1", up=False)
        assert ok(await world.nodes["queue-2"].queues.send("jobs", body(1)))
        await world.stop()

    asyncio.run(whole())


def test_node_with_another_disk__not_ready_and_founds_nothing() -> None:
    async def whole() -> None:
        world = World(queues=3)
        await world.start(queues=3)
        await world.nodes["queue-3"].stop()
        for group in world.groups.values():
            group.machines.pop("queue-3", None)
        reborn = world.node("queue-3", incarnation="new-disk")
        await reborn.start()
        await until(lambda: reborn.transport.called.count(("lock-1", REGISTER)) > 0)
        await until(lambda: "disk was lost" in (reborn.queues.readiness() or ""))
        assert "disk was lost" in (reborn.view.readiness() or "")
        assert reborn.queues.partitions.machines == {}
        machine = world.groups[0].machines["lock-1"]
        assert machine.members["queue-3"].lost_disks == ("new-disk",)
        await world.stop()

    asyncio.run(whole())
