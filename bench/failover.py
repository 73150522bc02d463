"""Fail-over: kill -9 of the leader, then the time until an acquire begun after it is granted.

Peers are measured in the same way: a client of one surviving node begins a fresh acquire every
STEP_S and the first grant counts, so that no client's own time-out hides in the figure.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from bench.cluster import StreamLocks
from bench.etcd import Etcd, EtcdLocks
from bench.locknodes import LockNodes

STEP_S = 0.005
GIVE_UP_S = 20.0
SETTLE_S = 0.5
"""Between a restarted node's readiness and the next kill: it must be a follower in good order."""

Value = TypeVar("Value")
Acquire = Callable[[int], Awaitable[Any]]
"""acquire(n) takes a lock with a name of its own; any failure is a failed try."""


@dataclass(slots=True)
class Failovers:
    """Seconds without service, one a trial."""

    trials_s: list[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.trials_s)

    @property
    def p99_s(self) -> float:
        """With 20 trials the longest."""
        ordered = sorted(self.trials_s)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


async def patiently(ask: Callable[[], Awaitable[Value]]) -> Value:
    """Before a kill: a node that was only just started may not know the leader yet."""
    until = time.monotonic() + GIVE_UP_S
    while True:
        try:
            return await ask()
        except Exception:  # see above; what lasts is raised
            if time.monotonic() > until:
                raise
            await asyncio.sleep(SETTLE_S / 10)


async def first_grant_s(acquire: Acquire, first: int, since: float) -> float:
    """From `since` (perf_counter) to the first grant; tries are numbered from `first` on."""
    loop = asyncio.get_running_loop()
    granted: asyncio.Future[float] = loop.create_future()
    tries: set[asyncio.Task[None]] = set()

    async def one(n: int) -> None:
        try:
            await acquire(n)
        except Exception:  # a peer's client raises what it likes: the next try is on its way
            await asyncio.sleep(0)
            return
        if not granted.done():
            granted.set_result(time.perf_counter() - since)

    n = first
    while not granted.done():
        if time.perf_counter() - since > GIVE_UP_S:
            raise RuntimeError(f"no grant within {GIVE_UP_S:.0f} s of the leader's death")
        task = asyncio.create_task(one(n))
        tries.add(task)
        task.add_done_callback(tries.discard)
        n += 1
        await asyncio.wait([granted], timeout=STEP_S)
    for task in list(tries):
        task.cancel()
    await asyncio.gather(*tries, return_exceptions=True)
    return granted.result()


async def dss(nodes: LockNodes, trials: int) -> Failovers:
    """`nodes` must all run."""
    found = []
    for trial in range(trials):
        leader = await nodes.leader()
        survivor = next(node.url for node_id, node in nodes.nodes.items() if node_id != leader)
        locks = StreamLocks([survivor])
        try:
            session = await patiently(partial(locks.session, 0))

            def acquire(
                n: int, trial: int = trial, locks: StreamLocks = locks, session: str = session
            ) -> Awaitable[Any]:
                wanted = {"session": session, "name": f"failover/{trial}/{n}"}
                return locks.ask("acquire", wanted)

            await patiently(partial(acquire, -1))
            nodes.kill(leader)
            found.append(await first_grant_s(acquire, 0, time.perf_counter()))
        finally:
            await locks.close()
        nodes.start(leader)
        await nodes.ready(leader)
        await asyncio.sleep(SETTLE_S)
    return Failovers(found)


async def etcd(cluster: Etcd, trials: int) -> Failovers:
    """The same against etcd; its leader is the one that serves `cluster.leader()`."""
    found = []
    for trial in range(trials):
        leader = await cluster.leader()
        survivor = next(each for each in cluster.addresses() if each != leader)
        locks = EtcdLocks(survivor)
        try:
            lease = await patiently(partial(locks.lease, 0))

            def acquire(
                n: int, trial: int = trial, locks: EtcdLocks = locks, lease: int = lease
            ) -> Awaitable[Any]:
                return locks.acquire(f"failover/{trial}/{n}", lease)

            await patiently(partial(acquire, -1))
            number = cluster.kill(leader)
            found.append(await first_grant_s(acquire, 0, time.perf_counter()))
        finally:
            await locks.close()
        await cluster.restart(number)
        await asyncio.sleep(SETTLE_S)
    return Failovers(found)
