"""A competitor: PySyncObj's ReplLockManager on three processes, tuned to a 10 ms period.

It keeps nothing on disk, and has no line to wait in: a held lock is asked for again and again, so
hand-offs are not measured. Its fastest client is one inside the leader, so that is measured:
`python -m bench.pysync PORT OTHER OTHER` is a node that takes one JSON order a line and answers
with one. What must not live here: what the figures mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from typing import Any

from bench.measure import Round, summary
from bench.processes import free_ports

PERIOD_S = 0.01
READY_S = 15.0


class Driver:
    """Cycles in callbacks on PySyncObj's own thread: no hop between threads."""

    def __init__(self, node: Any, locks: Any) -> None:
        self._node = node
        self._locks = locks

    def is_leader(self) -> bool:
        status = self._node.getStatus()
        return bool(status["leader"] is not None and status["leader"] == status["self"])

    def run(self, in_flight: int, seconds: float) -> list[float]:
        """Cycle times in s of `in_flight` clients, each with names of its own."""
        locks = self._locks
        until = time.perf_counter() + seconds
        latencies: list[float] = []
        left = in_flight
        ended = threading.Event()

        def start(worker: int, n: int) -> None:
            nonlocal left
            began = time.perf_counter()
            if began >= until:
                left -= 1
                if left == 0:
                    ended.set()
                return
            name = f"bench/{worker}/{n}"

            def acquired(result: bool, error: int) -> None:
                if not result:
                    raise RuntimeError(f"PySyncObj refused {name}: {error}")
                locks.release(name, callback=released)

            def released(result: Any, error: int) -> None:
                latencies.append(time.perf_counter() - began)
                start(worker, n + 1)

            locks.tryAcquire(name, callback=acquired)

        for worker in range(in_flight):
            start(worker, 0)
        if not ended.wait(seconds + 30):
            raise RuntimeError("PySyncObj does not come to an end")
        return latencies


def serve(port: str, others: list[str]) -> None:
    from pysyncobj import SyncObj, SyncObjConf  # type: ignore[import-untyped]
    from pysyncobj.batteries import ReplLockManager  # type: ignore[import-untyped]

    manager = ReplLockManager(autoUnlockTime=75)
    node = SyncObj(
        f"127.0.0.1:{port}",
        [f"127.0.0.1:{other}" for other in others],
        consumers=[manager],
        conf=SyncObjConf(autoTickPeriod=PERIOD_S, appendEntriesPeriod=PERIOD_S),
    )
    driver = Driver(node, manager)
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = driver.is_leader()
        if "seconds" in order:
            answer = driver.run(order["in_flight"], order["seconds"])
        print(json.dumps(answer), flush=True)
    manager.destroy()
    node.destroy()


class PySync:
    """Three nodes; `measure` asks the leader."""

    def __init__(self) -> None:
        self._nodes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> PySync:
        ports = [str(port) for port in free_ports(3)]
        for port in ports:
            others = [other for other in ports if other != port]
            self._nodes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bench.pysync", port, *others,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL, limit=1 << 26,
                )
            )  # fmt: skip
        return self

    async def _ask(self, node: asyncio.subprocess.Process, order: dict[str, Any]) -> Any:
        assert node.stdin is not None
        assert node.stdout is not None
        node.stdin.write(json.dumps(order).encode() + b"\n")
        return json.loads(await node.stdout.readline())

    async def _leader(self) -> asyncio.subprocess.Process:
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            for node in self._nodes:
                if await self._ask(node, {}):
                    return node
            await asyncio.sleep(0.1)
        raise RuntimeError("PySyncObj has no leader")

    async def measure(self, in_flight: int, seconds: float) -> Round:
        leader = await self._leader()
        order = {"in_flight": in_flight, "seconds": seconds}
        began = time.perf_counter()
        latencies = await self._ask(leader, order)
        return summary(len(latencies), latencies, time.perf_counter() - began)

    async def __aexit__(self, *_: object) -> None:
        for node in self._nodes:
            with contextlib.suppress(ProcessLookupError):
                node.kill()
            await node.wait()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
