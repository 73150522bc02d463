"""DSS under measurement: `dss up` in a temporary folder, and the cycles against it."""

from __future__ import annotations

import base64
import sys
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from bench.processes import Started, children, free_base_port, node_id, wait_ready
from dss.base.errors import DssError
from dss.base.limits import WAIT_MS_MAX
from dss.client.stream import LockStream

LOCK_OFFSETS = (1, 2, 3)
QUEUE_OFFSETS = (11, 12, 13)
CACHE_OFFSETS = (21, 22)
PEER_OFFSET = 1_000
SESSION_TTL_MS = 600_000
CACHE_KEYS = 256
CACHE_VALUE = b"x" * 100
QUEUE = "bench"

_JSON = {"Content-Type": "application/json"}
_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Cluster:
    """Eight node processes under one `dss up`."""

    def __init__(self, folder: Path) -> None:
        offsets = (*LOCK_OFFSETS, *QUEUE_OFFSETS, *CACHE_OFFSETS)
        base = free_base_port([*offsets, *(offset + PEER_OFFSET for offset in offsets)])
        self.lock = [f"http://127.0.0.1:{base + offset}" for offset in LOCK_OFFSETS]
        self.queue = [f"http://127.0.0.1:{base + offset}" for offset in QUEUE_OFFSETS]
        self.cache = [f"http://127.0.0.1:{base + offset}" for offset in CACHE_OFFSETS]
        dss = Path(sys.executable).with_name("dss")
        self.up = Started(
            [str(dss), "up", "--data-dir", str(folder / "dss"), "--base-port", str(base)],
            folder / "dss-up.log",
        )

    async def ready(self, only: list[str]) -> None:
        """All nodes of the roles that are measured; idle CPU is measured of all."""
        urls = list(self.lock)
        if {"queues", "idle"} & set(only):
            urls += self.queue
        if {"cache", "idle"} & set(only):
            urls += self.cache
        await wait_ready([f"{url}/readyz" for url in urls], self.up)

    def nodes(self) -> dict[str, int]:
        """Node id -> pid."""
        found = {node_id(pid): pid for pid in children(self.up.pid)}
        return {name: pid for name, pid in sorted(found.items(), key=str) if name}

    async def lock_leader(self, http: aiohttp.ClientSession) -> str:
        """The URL of the lock group's leader, as the SDK would choose it."""
        async with http.get(f"{self.lock[0]}/v1/raft/status") as response:
            status = await response.json()
        leader = next(group["leader"] for group in status["groups"] if group["group_id"] == 1)
        async with http.get(f"{self.lock[0]}/v1/cluster") as response:
            nodes = (await response.json())["nodes"]
        return next(str(node["url"]) for node in nodes if node["id"] == leader)

    def stop(self) -> None:
        self.up.stop()


def _checked(status: int, body: Any, what: str) -> Any:
    if status >= 300:
        raise RuntimeError(f"{what}: {status} {body!r}")
    return body


class Http:
    """One keep-alive connection pool; failures end the benchmark instead of being counted."""

    def __init__(self) -> None:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def post(self, url: str, body: Any) -> Any:
        target = URL(url, encoded=True)
        async with self.session.post(target, data=_encode(body), headers=_JSON) as response:
            return _checked(response.status, _decode(await response.read()), url)

    async def get(self, url: str) -> bytes:
        async with self.session.get(URL(url, encoded=True)) as response:
            data = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{url}: {response.status} {data[:300]!r}")
            return data

    async def close(self) -> None:
        await self.session.close()


class StreamLocks:
    """Acquire and release over the stream; a session per worker."""

    def __init__(self, urls: list[str]) -> None:
        self._stream = LockStream(urls)
        self._sessions: dict[int, str] = {}
        self._line: deque[int] = deque()
        self.out_of_turn = 0
        """Grants of `hand_off` that did not go to the one who had waited longest."""

    async def ask(self, op: str, args: dict[str, Any]) -> Any:
        try:
            status, body = await self._stream.request(op, args)
        except DssError as error:
            raise RuntimeError(f"{op}: {error.code} {error.message}") from error
        return _checked(status, body, op)

    async def session(self, worker: int) -> str:
        """The worker's session."""
        session = self._sessions.get(worker)
        if session is None:
            made = await self.ask("session.create", {"ttl_ms": SESSION_TTL_MS})
            session = self._sessions[worker] = made["session"]
        return session

    async def cycle(self, worker: int, n: int) -> int:
        """A name of one's own."""
        session = await self.session(worker)
        name = f"bench/{worker}/{n}"
        held = await self.ask("acquire", {"session": session, "name": name})
        await self.ask("release", {"session": session, "name": name, "token": held["token"]})
        return 1

    async def hand_off(self, worker: int, n: int) -> int:
        """One lock for all workers."""
        session = await self.session(worker)
        wanted = {"session": session, "name": "bench/one", "wait_ms": WAIT_MS_MAX}
        self._line.append(worker)
        held = await self.ask("acquire", wanted)
        if self._line[0] == worker:
            self._line.popleft()
        else:
            self.out_of_turn += 1
            self._line.remove(worker)
        token = held["token"]
        await self.ask("release", {"session": session, "name": "bench/one", "token": token})
        return 1

    async def close(self) -> None:
        await self._stream.close()


class HttpLocks:
    """The same over HTTP: two requests a cycle."""

    def __init__(self, http: Http, url: str) -> None:
        self._http = http
        self._url = url
        self._sessions: dict[int, str] = {}

    async def cycle(self, worker: int, n: int) -> int:
        session = self._sessions.get(worker)
        if session is None:
            made = await self._http.post(f"{self._url}/v1/sessions", {"ttl_ms": SESSION_TTL_MS})
            session = self._sessions[worker] = made["session"]
        lock = f"{self._url}/v1/locks/bench-{worker}-{n}"
        held = await self._http.post(f"{lock}/acquire", {"session": session})
        await self._http.post(f"{lock}/release", {"session": session, "token": held["token"]})
        return 1


class Queues:
    """Send, receive and acknowledge `batch` messages a cycle; workers spread over the nodes."""

    def __init__(self, http: Http, urls: list[str], batch: int) -> None:
        self._http = http
        self._urls = [f"{url}/v1/queues/{QUEUE}" for url in urls]
        self._batch = batch

    async def create(self) -> None:
        async with self._http.session.put(self._urls[0], data=b"{}", headers=_JSON) as response:
            _checked(response.status, await response.text(), "create queue")

    async def cycle(self, worker: int, n: int) -> int:
        url = self._urls[worker % len(self._urls)]
        batch = self._batch
        if batch == 1:
            await self._http.post(f"{url}/messages", {"body": {"worker": worker, "n": n}})
        else:
            messages = [{"body": {"worker": worker, "n": n, "i": i}} for i in range(batch)]
            sent = await self._http.post(f"{url}/messages", {"messages": messages})
            if not all(result["ok"] for result in sent["results"]):
                raise RuntimeError(f"send: {sent['results']!r}")
        received = await self._http.post(f"{url}/receive", {"max": batch, "wait_ms": 1_000})
        receipts = [message["receipt"] for message in received["messages"]]
        if not receipts:
            return 0
        acked = await self._http.post(f"{url}/ack", {"receipts": receipts})
        return sum(1 for result in acked["results"] if result["ok"])


class Cache:
    """Reads of a few keys that the asked node holds after the first round."""

    def __init__(self, http: Http, url: str) -> None:
        self._http = http
        self._keys = [f"{url}/v1/cache/bench-{i}" for i in range(CACHE_KEYS)]

    async def fill(self) -> None:
        for key in self._keys:
            async with self._http.session.put(key, data=CACHE_VALUE) as response:
                _checked(response.status, await response.text(), "cache put")
            await self._http.get(key)

    async def cycle(self, worker: int, n: int) -> int:
        value = await self._http.get(self._keys[(worker * 7 + n) % CACHE_KEYS])
        if value != CACHE_VALUE:
            raise RuntimeError(f"the cache answered {base64.b64encode(value)!r}")
        return 1
