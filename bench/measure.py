"""Closed-loop measuring: N workers, each with one cycle in flight, for some seconds."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter

WARM_UP_S = 0.4

Cycle = Callable[[int, int], Awaitable[int]]
"""cycle(worker, n) does one cycle and returns how many units (requests, messages) it did."""


@dataclass(slots=True)
class Round:
    """One workload's numbers in one round."""

    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(slots=True)
class Workload:
    """What is measured: `cycle` at `in_flight`, counted in `unit`."""

    key: str
    title: str
    unit: str
    in_flight: int
    cycle: Cycle
    rounds: list[Round] = field(default_factory=list)

    def median(self) -> Round:
        return Round(
            per_s=statistics.median(r.per_s for r in self.rounds),
            p50_ms=statistics.median(r.p50_ms for r in self.rounds),
            p99_ms=statistics.median(r.p99_ms for r in self.rounds),
        )


async def measure(workload: Workload, seconds: float) -> None:
    """One round of `workload`, its result appended. Latencies are those of whole cycles."""
    await _run(workload, WARM_UP_S)
    units, latencies, elapsed = await _run(workload, seconds)
    workload.rounds.append(summary(units, latencies, elapsed))


def summary(units: int, latencies: list[float], elapsed_s: float) -> Round:
    """Rate and percentiles; `latencies` in s, in any order, at least one."""
    latencies.sort()
    return Round(
        per_s=units / elapsed_s,
        p50_ms=1_000 * latencies[len(latencies) // 2],
        p99_ms=1_000 * latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
    )


async def _run(workload: Workload, seconds: float) -> tuple[int, list[float], float]:
    started = perf_counter()
    until = started + seconds
    latencies: list[float] = []
    units = 0

    async def worker(number: int) -> None:
        nonlocal units
        n = 0
        while (before := perf_counter()) < until:
            done = await workload.cycle(number, n)
            units += done
            latencies.append(perf_counter() - before)
            n += 1

    async with asyncio.TaskGroup() as group:
        for number in range(workload.in_flight):
            group.create_task(worker(number))
    return units, latencies, perf_counter() - started
