"""`python -m dss.testing`: run seeds of the simulation, in several processes, and say what they
covered.

Exit code 1 and the failing seed when a check fails; `--seed N` runs that one again, and `--twice`
runs every seed a second time and compares the trace hashes. With `--ledger FILE` every seed leaves
a line there, and those that have one are not run again: a long run can be made in pieces.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dss.testing.ledger import Ledger, report
from dss.testing.runner import Outcome, run_seed

PROGRESS_EVERY_S = 30.0


def outcomes(seeds: Sequence[int], seconds: float, twice: bool, jobs: int) -> Iterator[Outcome]:
    """As they come, in no order when there are several jobs."""
    work = [(seed, seconds, twice) for seed in seeds]
    if jobs == 1:
        yield from map(run_seed, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, work)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dss.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds (default 50)")
    parser.add_argument(
        "--first", "--first-seed", type=int, default=1, help="the first seed (default 1)"
    )
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated seconds a seed")
    parser.add_argument("--twice", action="store_true", help="same seed, same trace hash?")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--ledger", type=Path, help="a file with one line for each seed")
    parser.add_argument("--for-s", type=float, help="begin no new seed after so many seconds")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    ledger = None
    try:
        ledger = Ledger(options.ledger, options.seconds) if options.ledger else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    first, count = (options.seed, 1) if options.seed else (options.first, options.seeds)
    known = ledger.outcomes if ledger else {}
    seeds = [seed for seed in range(first, first + count) if seed not in known]
    done: list[Outcome] = []
    started = said = time.perf_counter()
    for outcome in outcomes(seeds, options.seconds, options.twice, options.jobs):
        done.append(outcome)
        if ledger:
            ledger.add(outcome)
        if outcome.failure:
            print(f"{outcome.failure}seed {outcome.seed} FAILED", file=sys.stderr, flush=True)
            again = f"python -m dss.testing --seed {outcome.seed} --seconds {options.seconds:g}"
            print(f"  again: {again}", flush=True)
        now = time.perf_counter()
        if now - said > PROGRESS_EVERY_S:
            said = now
            print(f"{len(done)} of {len(seeds)} seeds, {now - started:.0f} s", flush=True)
        if options.for_s and now - started > options.for_s:
            print("time is over; the same command goes on from here", flush=True)
            break
    print(ledger.report() if ledger else report(done))
    took_s = time.perf_counter() - started
    print(f"{took_s:.1f} s for {len(done)} seeds of {options.seconds:g} simulated seconds")
    failed = sum(bool(each.failure) for each in (ledger.outcomes.values() if ledger else done))
    passed = (len(ledger.outcomes) if ledger else len(done)) - failed
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
