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
from collections import Counter
from collections.abc import Iterator

from dss.testing.runner import Outcome, run_seed


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
