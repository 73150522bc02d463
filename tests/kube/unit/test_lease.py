"""One holder of the Lease at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_api import FakeApi
from operator_lab import Clock, run

from dss_operator.kube import SECRETS, Kube, NotHolder
from dss_operator.lease import Leadership


class Two:
    """Two operators over one API server, with clocks of their own."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.clock = Clock()
        self.one, self.two = self.operator("one"), self.operator("two")

    def operator(self, identity: str) -> Leadership:
        kube = Kube(self.api, sleep=self.clock.sleep)
        return Leadership(
            kube, namespace="dss-system", name="dss-operator", identity=identity, lease_s=15,
            clock=self.clock,
        )  # fmt: skip

    def holder(self) -> str:
        spec: dict[str, Any] = self.api.get("leases", "dss-operator", "dss-system")["spec"]
        return str(spec["holderIdentity"])


def test_free_lease__first_takes_it_and_the_second_waits() -> None:
    async def scenario() -> None:
        pair = Two()
        assert await pair.one.try_once()
        assert not await pair.two.try_once()
        assert (pair.one.held, pair.two.held) == (True, False)
        assert pair.holder() == "one"

    run(scenario())


def test_holder_renews__second_never_gets_it() -> None:
    async def scenario() -> None:
        pair = Two()
        for _ in range(40):
            assert await pair.one.try_once()
            assert not await pair.two.try_once()
            pair.clock.now += 5

    run(scenario())


def test_holder_goes_silent__stops_before_the_second_takes_over() -> None:
    async def scenario() -> None:
        pair = Two()
        await pair.one.try_once()
        held = []
        for _ in range(20):
            await pair.two.try_once()
            held.append((pair.one.held, pair.two.held))
            pair.clock.now += 1
        assert (True, True) not in held
        assert held[0] == (True, False)
        assert held[-1] == (False, True)
        assert pair.holder() == "two"

    run(scenario())


def test_same_identity_comes_back__takes_it_at_once() -> None:
    async def scenario() -> None:
        pair = Two()
        await pair.one.try_once()
        again = pair.operator("one")
        assert await again.try_once()
        assert again.held

    run(scenario())


def test_both_try_at_the_same_moment__one_wins() -> None:
    async def scenario() -> None:
        for _ in range(5):
            pair = Two()
            await asyncio.gather(pair.one.try_once(), pair.two.try_once())
            assert [pair.one.held, pair.two.held].count(True) == 1

    run(scenario())


def test_api_server_away__holder_stops_in_time() -> None:
    async def scenario() -> None:
        pair = Two()
        task = asyncio.create_task(pair.one.run())
        await asyncio.wait_for(pair.one.wait(), 1)
        pair.api.fault_by = lambda call: "away"
        pair.clock.now += 12.5
        assert not pair.one.held
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario())


def test_answer_that_is_no_lease__tried_again_and_the_loop_lives() -> None:
    async def scenario() -> None:
        pair = Two()
        broken = [True]
        original = pair.one._kube.get

        async def get(*args: Any) -> Any:
            if broken:
                broken.pop()
                return {"spec": {}}  # no metadata at all
            return await original(*args)

        pair.one._kube.get = get  # type: ignore[method-assign]
        pair.one._lease_s = 0.3
        task = asyncio.create_task(pair.one.run())
        await asyncio.wait_for(pair.one.wait(), 5)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario())


def test_write_near_the_end_of_the_lease__is_given_up_with_it() -> None:
    async def scenario() -> None:
        pair = Two()
        kube = Kube(pair.api, sleep=pair.clock.sleep, write_s=lambda: pair.one.left_s)
        await pair.one.try_once()
        pair.clock.now += 10
        await kube.create(SECRETS, "ns", {"metadata": {"name": "a"}})
        assert pair.api.timeouts[-1] == pytest.approx(2)
        pair.clock.now += 2
        with pytest.raises(NotHolder):
            await kube.create(SECRETS, "ns", {"metadata": {"name": "b"}})

    run(scenario())


def test_clean_end__given_back_so_that_nobody_waits() -> None:
    async def scenario() -> None:
        pair = Two()
        task = asyncio.create_task(pair.one.run())
        await asyncio.wait_for(pair.one.wait(), 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert pair.holder() == ""
        assert not pair.one.held
        assert await pair.two.try_once()

    run(scenario())
