"""`python -m dss.testing`: run seeds of the simulation, in several processes, and say what they
covered.

Exit code 1 and the failing seed when a check fails; `--seed N` runs that one again, and `--twice`
runs every seed a second time and compares the trace hashes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator

import msgspec

from dss.testing.raftsim import Simulation


class Outcome(msgspec.Struct):
    """What one seed did. `failure` is empty when all was well."""

    seed: int
    failure: str
    settle_ms: float
    totals: dict[str, int]
    faults: dict[str, int]


def run_seed(work: tuple[int, float, bool]) -> Outcome:
    """One seed, in a process of the pool."""
    seed, seconds, twice = work
    simulation = Simulation(seed, seconds=seconds)
    failure = ""
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
    )
    for workload in simulation.workloads.values():
        totals.update(workload.counts)
    return Outcome(seed, failure, simulation.settle_ms, totals, simulation.chaos.counts)


def outcomes(seeds: range, seconds: float, twice: bool, jobs: int) -> Iterator[Outcome]:
    """As they come, in no order when there are several jobs."""
    work = [(seed, seconds, twice) for seed in seeds]
    if jobs == 1:
        yield from map(run_seed, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, work)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dss.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds (default 50)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated seconds a seed")
    parser.add_argument("--twice", action="store_true", help="same seed, same trace hash?")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args()
    first, count = (options.seed, 1) if options.seed else (options.first, options.seeds)
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    settle_ms = [0.0]
    passed = failed = 0
    started = time.perf_counter()
    seeds = range(first, first + count)
    for outcome in outcomes(seeds, options.seconds, options.twice, options.jobs):
        if outcome.failure:
            failed += 1
            print(f"{outcome.failure}seed {outcome.seed} FAILED", file=sys.stderr, flush=True)
            print(
                f"  again: python -m dss.testing --seed {outcome.seed}"
                f" --seconds {options.seconds:g}",
                flush=True,
            )
            continue
        passed += 1
        totals.update(outcome.totals)
        faults.update(outcome.faults)
        settle_ms.append(outcome.settle_ms)
    print(f"converged after the heal: at most {max(settle_ms) / 1000:.1f} s (simulated)")
    print("  ".join(f"{name} {number:,}" for name, number in totals.items()))
    print("faults: " + "  ".join(f"{name} {number:,}" for name, number in sorted(faults.items())))
    took_s = time.perf_counter() - started
    print(f"{took_s:.1f} s for {count} seeds of {options.seconds:g} simulated seconds")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
