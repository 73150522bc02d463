"""One seed in a process of a pool (`__main__.py`): what it did, as plain values."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter

import msgspec

from dss.testing.raftsim import Simulation


class Outcome(msgspec.Struct):
    """What one seed did. `failure` is empty when all was well."""

    seed: int
    failure: str
    settle_ms: float
    cpu_s: float
    totals: dict[str, int]
    faults: dict[str, int]


def run_seed(work: tuple[int, float, bool]) -> Outcome:
    """One seed, in a process of the pool."""
    logging.getLogger("dss").setLevel(logging.ERROR)
    seed, seconds, twice = work
    simulation = Simulation(seed, seconds=seconds)
    failure = ""
    started = time.process_time()
    try:
        simulation.run()
        if twice:
            again = Simulation(seed, seconds=seconds)
            again.run()
            assert simulation.world.trace_hash == again.world.trace_hash, "not deterministic"
    except Exception:
        failure = traceback.format_exc()
    totals: Counter[str] = Counter(
        acknowledged=simulation.acknowledged,
        steps=simulation.world.steps,
        checks=simulation.checks,
        lost=simulation.net.lost,
        doubled=simulation.net.doubled,
        replayed=simulation.net.replayed,
        elections=simulation.elections,
        snapshots_taken=simulation.snapshots_taken,
        snapshots_installed=simulation.snapshots_installed,
    )
    for workload in simulation.workloads.values():
        totals.update(workload.counts)
    cpu_s = time.process_time() - started
    return Outcome(seed, failure, simulation.settle_ms, cpu_s, totals, simulation.chaos.counts)
