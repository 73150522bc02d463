"""`python -m bench.streams`: queues and cache over their streams beside the same over HTTP.

Both in the same run, round by round in turns, so that the machine's drift cancels out of the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from rich.console import Console

from bench import report
from bench.cluster import CACHE_KEYS, CACHE_VALUE, QUEUE, Cache, Cluster, Http, Queues, _checked
from bench.measure import Workload, measure
from dss.base.errors import DssError
from dss.client.stream import LockStream

IN_FLIGHT = 64
PAIRS = (
    ("queue-http", "queue-stream", "queue, send + receive + ack"),
    ("cache-http-1", "cache-stream-1", "cache hits, 1 in flight"),
    ("cache-http-64", "cache-stream-64", f"cache hits, {IN_FLIGHT} in flight"),
)

console = Console()


async def _ask(stream: LockStream, op: str, args: dict[str, Any]) -> Any:
    try:
        status, body = await stream.request(op, args)
    except DssError as error:
        raise RuntimeError(f"{op}: {error.code} {error.message}") from error
    return _checked(status, body, op)


class StreamQueues:
    """Send, receive and acknowledge one message a cycle; workers spread over the nodes."""

    def __init__(self, urls: list[str]) -> None:
        self._streams = [LockStream([url], path="/v1/queues:stream") for url in urls]

    async def cycle(self, worker: int, n: int) -> int:
        stream = self._streams[worker % len(self._streams)]
        body = msgspec.json.encode({"worker": worker, "n": n})
        await _ask(stream, "send", {"queue": QUEUE, "body_json": body})
        received = await _ask(stream, "receive", {"queue": QUEUE, "wait_ms": 1_000})
        for message in received["messages"]:
            await _ask(stream, "ack", {"queue": QUEUE, "receipt": message["receipt"]})
        return len(received["messages"])

    async def close(self) -> None:
        for stream in self._streams:
            await stream.close()


class StreamCache:
    """Reads of the keys that `Cache` has filled."""

    def __init__(self, url: str) -> None:
        self._stream = LockStream([url], path="/v1/cache:stream")

    async def cycle(self, worker: int, n: int) -> int:
        key = f"bench-{(worker * 7 + n) % CACHE_KEYS}"
        found = await _ask(self._stream, "get", {"key": key})
        if found["value"] != CACHE_VALUE:
            raise RuntimeError(f"the cache answered {found!r}")
        return 1

    async def close(self) -> None:
        await self._stream.close()


async def run(seconds: float, rounds: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="dss-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        http = Http()
        stack.push_async_callback(http.close)
        cluster = Cluster(folder)
        stack.callback(cluster.stop)
        with console.status("dss up"):
            await cluster.ready(["queues", "cache"])
        queues, cache = Queues(http, cluster.queue, 1), Cache(http, cluster.cache[0])
        stream_queues, stream_cache = StreamQueues(cluster.queue), StreamCache(cluster.cache[0])
        stack.push_async_callback(stream_queues.close)
        stack.push_async_callback(stream_cache.close)
        await queues.create()
        await cache.fill()
        workloads = [
            Workload("queue-http", "queue, HTTP", "messages", IN_FLIGHT, queues.cycle),
            Workload("queue-stream", "queue, stream", "messages", IN_FLIGHT, stream_queues.cycle),
            Workload("cache-http-1", "cache hits, HTTP", "reads", 1, cache.cycle),
            Workload("cache-stream-1", "cache hits, stream", "reads", 1, stream_cache.cycle),
            Workload("cache-http-64", "cache hits, HTTP", "reads", IN_FLIGHT, cache.cycle),
            Workload(
                "cache-stream-64", "cache hits, stream", "reads", IN_FLIGHT, stream_cache.cycle
            ),
        ]
        for number in range(rounds):
            for workload in workloads:
                with console.status(f"round {number + 1} of {rounds}: {workload.title}"):
                    await measure(workload, seconds)
    report.show(console, workloads, {})
    per_s = {workload.key: [r.per_s for r in workload.rounds] for workload in workloads}
    for plain, stream, title in PAIRS:
        ratio = statistics.median(b / a for a, b in zip(per_s[plain], per_s[stream], strict=True))
        console.print(f"{title}: stream / HTTP [bold]{ratio:.1f}x[/bold]")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per workload and round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    uvloop.run(run(arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
