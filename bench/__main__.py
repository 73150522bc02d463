"""`python -m bench`: start everything on 127.0.0.1, measure in turns, print, write JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from bench import report
from bench.cluster import Cache, Cluster, Http, HttpLocks, Queues, StreamLocks
from bench.measure import Workload, measure
from bench.processes import Started, cpu_s, free_ports, rss_mib, wait_ready

PARTS = ("hello", "etcd", "locks", "queues", "cache", "idle")
IN_FLIGHT = (1, 64)
QUEUE_WORKERS = 16
SETTLE_S = 3.0
IDLE_S = 10.0
BUSY_PER_CPU = 0.5
"""Load average per CPU before we start, from which on the numbers say more about the others."""
RESULTS = Path(__file__).parent / "results" / "latest.json"

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="per workload and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    only = [part.strip() for part in arguments.only.split(",") if part.strip()]
    if unknown := [part for part in only if part not in PARTS]:
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    uvloop.run(run(only, arguments.seconds, arguments.rounds, arguments.output))
    return 0


async def run(only: list[str], seconds: float, rounds: int, output: Path) -> None:
    load = os.getloadavg()[0]
    if load > BUSY_PER_CPU * (os.cpu_count() or 1):
        console.print(
            f"[bold red]This machine is busy (load {load:.1f} on {os.cpu_count()} CPUs): "
            "the rates are too low and the ratios uncertain.[/bold red]"
        )
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="dss-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        http = Http()
        stack.push_async_callback(http.close)
        workloads: list[Workload] = []
        idle_pids: dict[str, dict[str, int]] = {}
        if "hello" in only:
            workloads += await _hello(stack, folder, http)
        if "etcd" in only:
            workloads += await _etcd(stack, folder, idle_pids)
        if {"locks", "queues", "cache", "idle"} & set(only):
            workloads += await _dss(stack, folder, http, only, idle_pids)
        for number in range(rounds):
            for workload in workloads:
                with console.status(f"round {number + 1} of {rounds}: {workload.title}"):
                    await measure(workload, seconds)
        idle = await _idle(idle_pids) if "idle" in only and idle_pids else {}
    settings = {"seconds": seconds, "rounds": rounds, "only": only, "load_before": load}
    report.show(console, workloads, idle)
    report.write(output, workloads, idle, settings)
    console.print(f"written to {output}")


async def _hello(stack: contextlib.AsyncExitStack, folder: Path, http: Http) -> list[Workload]:
    port = free_ports(1)[0]
    server = Started(
        [sys.executable, "-m", "bench.hello", str(port)],
        folder / "hello.log",
        cwd=Path(__file__).parent.parent,
    )
    stack.callback(server.stop)
    url = f"http://127.0.0.1:{port}/"
    await wait_ready([url], server)

    async def get(worker: int, n: int) -> int:
        await http.get(url)
        return 1

    async def post(worker: int, n: int) -> int:
        await http.post(url, {"name": "hello"})
        return 1

    return [
        Workload(f"{kind}-{n}", f"bare aiohttp hello, {title}", "requests", n, cycle)
        for kind, title, cycle in (("get", "GET", get), ("post", "JSON POST", post))
        for n in IN_FLIGHT
    ]


async def _etcd(
    stack: contextlib.AsyncExitStack, folder: Path, idle_pids: dict[str, dict[str, int]]
) -> list[Workload]:
    binary = shutil.which("etcd")
    if binary is None:
        console.print(
            "[bold red]etcd is not installed: the comparison is LEFT OUT.[/bold red] "
            "Install it with: apt-get install etcd-server"
        )
        return []
    try:
        from bench.etcd import Etcd, EtcdLocks
    except ImportError:
        console.print(
            "[bold red]grpcio is not installed: the comparison with etcd is LEFT OUT.[/bold red] "
            "Install it with: .venv/bin/pip install grpcio"
        )
        return []
    etcd = Etcd(binary, folder)
    stack.callback(etcd.stop)
    with console.status("etcd starts"):
        await etcd.ready()
        locks = EtcdLocks(await etcd.leader())
    stack.push_async_callback(locks.close)
    idle_pids["etcd"] = {f"etcd-{i}": node.pid for i, node in enumerate(etcd.nodes)}
    return [Workload(f"etcd-{n}", "etcd v3lock", "cycles", n, locks.cycle) for n in IN_FLIGHT]


async def _dss(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    http: Http,
    only: list[str],
    idle_pids: dict[str, dict[str, int]],
) -> list[Workload]:
    cluster = Cluster(folder)
    stack.callback(cluster.stop)
    with console.status("dss up"):
        await cluster.ready(only)
    idle_pids["dss"] = cluster.nodes()
    made: list[Workload] = []
    if "locks" in only:
        leader = await cluster.lock_leader(http.session)
        stream, plain = StreamLocks([leader]), HttpLocks(http, leader)
        stack.push_async_callback(stream.close)
        for n in IN_FLIGHT:
            made.append(Workload(f"stream-{n}", "DSS locks, stream", "cycles", n, stream.cycle))
        for n in IN_FLIGHT:
            made.append(Workload(f"http-{n}", "DSS locks, HTTP", "cycles", n, plain.cycle))
    if "queues" in only:
        for batch in (10, 1):
            queues = Queues(http, cluster.queue, batch)
            await queues.create()
            title = f"DSS queue, batch {batch}"
            made.append(Workload(f"queue-{batch}", title, "messages", QUEUE_WORKERS, queues.cycle))
    if "cache" in only:
        cache = Cache(http, cluster.cache[0])
        await cache.fill()
        for n in IN_FLIGHT:
            made.append(Workload(f"cache-{n}", "DSS cache hits", "reads", n, cache.cycle))
    return made


async def _idle(parts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """CPU in % of one core over IDLE_S, and resident memory."""
    with console.status(f"idle for {IDLE_S:.0f} s"):
        await asyncio.sleep(SETTLE_S)
        before = {pid: cpu_s(pid) for pids in parts.values() for pid in pids.values()}
        await asyncio.sleep(IDLE_S)
    idle: dict[str, Any] = {}
    for who, pids in parts.items():
        cpu = {name: 100 * (cpu_s(pid) - before[pid]) / IDLE_S for name, pid in pids.items()}
        cpu["all"] = sum(cpu.values())
        idle[who] = {
            "cpu_percent": cpu,
            "rss_mib": {name: rss_mib(pid) for name, pid in pids.items()},
        }
    return idle


if __name__ == "__main__":
    sys.exit(main())
