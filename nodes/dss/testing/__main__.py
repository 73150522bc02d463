"""`python -m dss.testing`: run seeds of the Raft simulation and say what they covered.

Exit code 1 and the failing seed when an invariant breaks; `--seed N` runs that one again, and
`--twice` runs every seed a second time and compares the trace hashes.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from dss.testing.raftsim import Simulation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dss.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds (default 50)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated seconds a seed")
    parser.add_argument("--twice", action="store_true", help="same seed, same trace hash?")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed else range(options.first, options.first + options.seeds)
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    started = time.perf_counter()
    passed = failed = 0
    settle_ms: list[float] = []
    for seed in seeds:
        simulation = Simulation(seed, seconds=options.seconds)
        try:
            simulation.run()
            if options.twice:
                again = Simulation(seed, seconds=options.seconds)
                again.run()
                assert simulation.world.trace_hash == again.world.trace_hash, "not deterministic"
        except Exception as error:
            failed += 1
            traceback.print_exc()
            print(f"seed {seed} FAILED: {type(error).__name__}: {error}", file=sys.stderr)
            print(f"  again: python -m dss.testing --seed {seed} --seconds {options.seconds}")
            continue
        passed += 1
        faults.update(simulation.faults)
        settle_ms.append(simulation.settle_ms)
        totals.update(
            acknowledged=simulation.acknowledged,
            reads=simulation.reads_served,
            steps=simulation.world.steps,
            checks=simulation.invariants.checks,
            lost=simulation.net.lost,
            doubled=simulation.net.doubled,
        )
    if settle_ms:
        print(f"converged after the heal: at most {max(settle_ms) / 1000:.1f} s (simulated)")
    took_s = time.perf_counter() - started
    print("  ".join(f"{name} {count:,}" for name, count in totals.items()))
    print("faults: " + "  ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    print(f"{took_s:.1f} s for {passed + failed} seeds of {options.seconds:g} simulated seconds")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
