"""`python -m bench.locks`: the lock service beside etcd and PySyncObj, in turns in one run.

Rates and hand-offs round by round, fail-over, what one node can carry. Prints what is to be
reached and whether it is; exits 0 all the same: a busy machine is no defect of the code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from bench import capacity, failover, goals
from bench.cluster import Http, HttpLocks, StreamLocks
from bench.locknodes import LockNodes, metric
from bench.measure import Cycle, Workload, measure

PARTS = ("rates", "handoff", "fsync", "failover", "memory", "keepalive", "recovery")
PEERS = ("etcd", "pysync")
IN_FLIGHT = (1, 16, 64, 256)
HTTP_IN_FLIGHT = 64
CLIENTS = 16
RESULTS = Path(__file__).parent / "results" / "locks.json"
BUSY_PER_CPU = 0.5

console = Console()


@dataclass(slots=True, frozen=True)
class Sizes:
    """How much is measured."""

    seconds: float
    rounds: int
    trials: int
    etcd_trials: int
    locks: int
    sessions: int
    keep_s: float
    entries: int


FULL = Sizes(2.0, 3, 20, 10, 100_000, 10_000, 10.0, 1_000_000)
QUICK = Sizes(0.5, 1, 2, 1, 10_000, 1_000, 4.0, 50_000)
"""A try of the benchmark itself: its figures say little."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.locks", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="a try: seconds instead of minutes")
    parser.add_argument("--seconds", type=float, help="per workload and round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--trials", type=int, help="of the fail-over")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = {}
    for option, known in (("only", PARTS), ("peers", PEERS)):
        named = [part.strip() for part in getattr(arguments, option).split(",") if part.strip()]
        if unknown := [part for part in named if part not in known]:
            parser.error(f"--{option}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        chosen[option] = named
    base = QUICK if arguments.quick else FULL
    sizes = Sizes(
        **asdict(base)
        | {
            name: getattr(arguments, name)
            for name in ("seconds", "rounds", "trials")
            if getattr(arguments, name) is not None
        }
    )
    if min(sizes.seconds, sizes.rounds, sizes.trials) <= 0:
        parser.error("--seconds, --rounds and --trials must be positive")
    uvloop.run(Run(chosen["only"], chosen["peers"], sizes).run(arguments.output))
    return 0


class Run:
    """One run: what has been found so far, and what must be stopped at its end."""

    def __init__(self, only: list[str], peers: list[str], sizes: Sizes) -> None:
        self.only = set(only)
        self.peers = set(peers)
        self.sizes = sizes
        self.workloads: list[Workload] = []
        self.found: dict[str, Any] = {}

    async def run(self, output: Path) -> None:
        load = os.getloadavg()[0]
        if load > BUSY_PER_CPU * (os.cpu_count() or 1):
            console.print(
                f"[bold red]This machine is busy (load {load:.1f} on {os.cpu_count()} CPUs): "
                "the rates are too low and the ratios uncertain.[/bold red]"
            )
        folder = Path(tempfile.mkdtemp(prefix="dss-bench-"))
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._measure(stack, folder)
        finally:  # what was measured before a failure is worth keeping
            shutil.rmtree(folder, ignore_errors=True)
            self._report(output, load)

    def _report(self, output: Path, load: float) -> None:
        judged = goals.judge(self.workloads, self.found)
        goals.show(console, self.workloads, judged)
        for key, value in self.found.items():
            console.print(f"{key}: {value}", highlight=False)
        settings = {"sizes": asdict(self.sizes), "load_before": load, "only": sorted(self.only)}
        goals.write(output, self.workloads, judged, self.found, settings)
        console.print(f"written to {output}")

    async def _measure(self, stack: contextlib.AsyncExitStack, folder: Path) -> None:
        nodes = LockNodes(folder / "dss")
        stack.push_async_callback(nodes.stop)
        with console.status("the lock nodes start"):
            await nodes.start_all()
        etcd = await self._etcd(stack, folder) if "etcd" in self.peers else None
        if {"rates", "handoff"} & self.only:
            await self._rates(nodes, etcd)
        await self._carry(nodes, folder)
        if "failover" in self.only:
            await self._failover(nodes, etcd)

    async def _etcd(self, stack: contextlib.AsyncExitStack, folder: Path) -> Any:
        binary = shutil.which("etcd")
        if binary is None:
            _left_out("etcd is not installed", "apt-get install etcd-server")
            return None
        try:
            from bench.etcd import Etcd
        except ImportError:
            _left_out("grpcio is not installed", ".venv/bin/pip install grpcio")
            return None
        etcd = Etcd(binary, folder)
        stack.callback(etcd.stop)
        with console.status("etcd starts"):
            await etcd.ready()
        return etcd

    # --- rates and hand-offs ------------------------------------------------------------------

    async def _rates(self, nodes: LockNodes, etcd: Any) -> None:
        """All in turns, round by round; a workload's fsyncs are those of its leader."""
        async with contextlib.AsyncExitStack() as stack:
            leader = await nodes.leader()
            url = nodes.nodes[leader].url
            stream, http = StreamLocks([url]), Http()
            stack.push_async_callback(stream.close)
            stack.push_async_callback(http.close)
            ours = Counted(nodes, f"{url}/metrics", "dss_raft_wal_syncs_total")
            theirs: Counted | None = None
            if etcd is not None:
                from bench.etcd import EtcdLocks

                address = await etcd.leader()
                locks = EtcdLocks(address)
                stack.push_async_callback(locks.close)
                theirs = Counted(
                    nodes,
                    f"http://{address}/metrics",
                    "etcd_disk_wal_fsync_duration_seconds_count",
                )
            plan: list[tuple[Workload, Counted]] = []
            if "rates" in self.only:
                plan += _plan("stream", "DSS stream", IN_FLIGHT, stream.cycle, ours)
                plain = HttpLocks(http, url)
                plan += _plan("http", "DSS HTTP", (HTTP_IN_FLIGHT,), plain.cycle, ours)
                if theirs is not None:
                    plan += _plan("etcd", "etcd v3lock", IN_FLIGHT, locks.cycle, theirs)
            if "handoff" in self.only:
                title = "hand-offs of one lock"
                one = Workload("handoff", f"DSS, {title}", "", CLIENTS, stream.hand_off)
                plan.append((one, ours))
                if theirs is not None:
                    other = Workload("etcd-handoff", f"etcd, {title}", "", CLIENTS, locks.hand_off)
                    plan.append((other, theirs))
            self.workloads = [workload for workload, _ in plan]
            pysync = self._pysync()
            for number in range(self.sizes.rounds):
                for workload, counted in plan:
                    with console.status(f"round {number + 1}: {workload.title}"):
                        await counted.measure(workload, self.sizes.seconds)
                await self._pysync_round(pysync)
            self.workloads += pysync
            if "handoff" in self.only:
                self.found["out_of_turn"] = stream.out_of_turn
            if "fsync" in self.only:
                self.found["fsyncs_per_cycle"] = {
                    workload.key: round(counted.per_cycle(workload), 3)
                    for workload, counted in plan
                }

    def _pysync(self) -> list[Workload]:
        if "pysync" not in self.peers or "rates" not in self.only:
            return []
        try:
            import pysyncobj  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            _left_out("PySyncObj is not installed", ".venv/bin/pip install pysyncobj")
            return []
        title = "PySyncObj tuned, no fsync"
        return [Workload(f"pysync-{n}", title, "", n, _never) for n in IN_FLIGHT]

    async def _pysync_round(self, workloads: list[Workload]) -> None:
        """Started for its turn only: its nodes poll all the time."""
        if not workloads:
            return
        from bench.pysync import PySync

        async with PySync() as cluster:
            for workload in workloads:
                with console.status(workload.title):
                    figures = await cluster.measure(workload.in_flight, self.sizes.seconds)
                    workload.rounds.append(figures)

    # --- the rest -----------------------------------------------------------------------------

    async def _carry(self, nodes: LockNodes, folder: Path) -> None:
        sizes = self.sizes
        if "memory" in self.only:
            with console.status(f"{sizes.locks} held locks"):
                self.found["lock_kib"] = await capacity.memory_kib(nodes, sizes.locks)
        if "keepalive" in self.only:
            with console.status(f"{sizes.sessions} sessions"):
                kept = await capacity.keep_alive(nodes, sizes.sessions, sizes.keep_s)
                self.found["keepalive"] = asdict(kept)
        if "recovery" in self.only:
            with console.status(f"recovery of {sizes.entries} entries"):
                took = await capacity.recovery_s(folder / "recovery", sizes.entries)
                self.found["recovery_s"] = took

    async def _failover(self, nodes: LockNodes, etcd: Any) -> None:
        with console.status("fail-over"):
            self.found["failover"] = _failovers(await failover.dss(nodes, self.sizes.trials))
            if etcd is not None:
                found = await failover.etcd(etcd, self.sizes.etcd_trials)
                self.found["etcd_failover"] = _failovers(found)


class Counted:
    """fsyncs of one node's log over the cycles of each workload, warm-up included."""

    def __init__(self, nodes: LockNodes, url: str, name: str) -> None:
        self._look: Callable[[], Any] = lambda: metric(nodes.http, url, name)
        self._cycles: dict[str, int] = {}
        self._syncs: dict[str, float] = {}

    def cycle(self, key: str, inner: Cycle) -> Cycle:
        """`inner`, counted."""
        cycles = self._cycles
        cycles[key] = 0

        async def counted(worker: int, n: int) -> int:
            cycles[key] += 1
            return await inner(worker, n)

        return counted

    async def measure(self, workload: Workload, seconds: float) -> None:
        if workload.key not in self._cycles:
            workload.cycle = self.cycle(workload.key, workload.cycle)
        before = await self._look()
        await measure(workload, seconds)
        grown = await self._look() - before
        self._syncs[workload.key] = self._syncs.get(workload.key, 0.0) + grown

    def per_cycle(self, workload: Workload) -> float:
        return self._syncs[workload.key] / max(1, self._cycles[workload.key])


def _plan(
    key: str, title: str, in_flight: tuple[int, ...], cycle: Cycle, counted: Counted
) -> list[tuple[Workload, Counted]]:
    return [(Workload(f"{key}-{n}", title, "", n, cycle), counted) for n in in_flight]


def _failovers(found: failover.Failovers) -> dict[str, Any]:
    trials = [round(each, 4) for each in found.trials_s]
    return {"median_s": found.median_s, "p99_s": found.p99_s, "trials_s": trials}


async def _never(worker: int, n: int) -> int:
    raise AssertionError("measured inside PySyncObj's leader")


def _left_out(why: str, remedy: str) -> None:
    console.print(
        f"[bold red]{why}: the comparison is LEFT OUT.[/bold red] Install it with: {remedy}"
    )


if __name__ == "__main__":
    sys.exit(main())
