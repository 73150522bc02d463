"""How much one lock node can carry: memory per held lock, sessions kept alive, recovery.

What must not live here: rates of locking (locks.py), fail-over (failover.py).
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.cluster import StreamLocks
from bench.locknodes import LockNodes
from bench.processes import cpu_s, rss_mib
from dss.base.ids import LOCK_GROUP
from dss.base.limits import (
    SESSION_HOLDS_MAX,
    SESSION_TTL_MS_DEFAULT,
    SESSION_TTL_MS_MAX,
    STREAM_IN_FLIGHT_MAX,
)
from dss.client.sessions import KEEPALIVES_PER_TTL
from dss.core.locks.commands import LOG_CODEC, Acquire, Release, SessionCreate
from dss.core.machine import join_items
from dss.core.raft.messages import COMMAND, Entry
from dss.storage.files import OsFiles
from dss.storage.wal import Wal

EXPIRATIONS = "dss_lock_session_expirations_total"
BATCH = min(1_000, STREAM_IN_FLIGHT_MAX)
KIB_PER_MIB = 1_024
SETTLE_S = 1.0
CONNECTIONS = 20
"""Streams that carry the sessions' keepalives: one a process of a client's."""
TICK_S = 0.02
SESSION = "0" * 32
WRITE_ENTRIES = 2_000
RECOVERY_S_MAX = 120.0


async def memory_kib(nodes: LockNodes, held: int) -> float:
    """KiB of resident memory of the leader per held lock, the log of their acquires included."""
    leader = await nodes.leader()
    pid = nodes.running[leader].pid
    locks = StreamLocks([nodes.nodes[leader].url])
    try:
        sessions = [
            await locks.session(worker)
            for worker in range((held + SESSION_HOLDS_MAX - 1) // SESSION_HOLDS_MAX)
        ]
        before = rss_mib(pid)
        for first in range(0, held, BATCH):
            await asyncio.gather(
                *(
                    locks.ask(
                        "acquire",
                        {"session": sessions[n // SESSION_HOLDS_MAX], "name": f"held/{n}"},
                    )
                    for n in range(first, min(held, first + BATCH))
                )
            )
        await asyncio.sleep(SETTLE_S)
        return (rss_mib(pid) - before) * KIB_PER_MIB / held
    finally:
        await locks.close()


@dataclass(slots=True)
class Kept:
    """CPU while `sessions` were kept alive; `expired` must be 0."""

    leader_percent: float
    keepalives_per_s: float
    expired: int


async def keep_alive(nodes: LockNodes, sessions: int, seconds: float) -> Kept:
    """Sessions with the default TTL, each renewed KEEPALIVES_PER_TTL times a TTL, evenly spread."""
    leader = await nodes.leader()
    pid = nodes.running[leader].pid
    streams = [StreamLocks([nodes.nodes[leader].url]) for _ in range(CONNECTIONS)]
    try:
        made: list[tuple[StreamLocks, str]] = []
        for first in range(0, sessions, BATCH):
            asked = [
                (streams[n % CONNECTIONS], {"ttl_ms": SESSION_TTL_MS_DEFAULT})
                for n in range(first, min(sessions, first + BATCH))
            ]
            answers = await asyncio.gather(*(on.ask("session.create", a) for on, a in asked))
            made += [(on, a["session"]) for (on, _), a in zip(asked, answers, strict=True)]
        period_s = SESSION_TTL_MS_DEFAULT / 1_000 / KEEPALIVES_PER_TTL
        await _renew(made, period_s, period_s)
        expired = await nodes.metric(leader, EXPIRATIONS)
        cpu, began = cpu_s(pid), time.perf_counter()
        sent = await _renew(made, period_s, seconds)
        elapsed = time.perf_counter() - began
        percent = 100 * (cpu_s(pid) - cpu) / elapsed
        expired = await nodes.metric(leader, EXPIRATIONS) - expired
        await asyncio.gather(*(on.ask("session.end", {"session": each}) for on, each in made))
        return Kept(percent, sent / elapsed, int(expired))
    finally:
        for stream in streams:
            await stream.close()


async def _renew(made: list[tuple[StreamLocks, str]], period_s: float, seconds: float) -> int:
    """Renew all of `made` evenly over each period, for `seconds`; how many were renewed."""
    began = time.perf_counter()
    sent = 0
    pending: set[asyncio.Task[None]] = set()

    async def renew(share: list[tuple[StreamLocks, str]]) -> None:
        await asyncio.gather(*(on.ask("session.keepalive", {"session": s}) for on, s in share))

    while (elapsed := time.perf_counter() - began) < seconds:
        due = int(elapsed / period_s * len(made))
        if due > sent:
            share = [made[n % len(made)] for n in range(sent, due)]
            sent = due
            task = asyncio.create_task(renew(share))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.sleep(TICK_S)
    await asyncio.gather(*pending)
    return sent


async def recovery_s(folder: Path, entries: int) -> float:
    """A node with `entries` log entries behind its snapshot: from its start until all are applied.

    A running node takes snapshots long before; the log is written while the node is down.
    """
    nodes = LockNodes(folder, 1)
    try:
        await nodes.start_all()
        only = await nodes.leader()
        status = await nodes.status(only)
        nodes.running[only].process.send_signal(signal.SIGTERM)
        nodes.running[only].process.wait(20)
        data = Path(nodes.nodes[only].env["DATA_DIR"])
        last = await asyncio.to_thread(write_log, data / "wal", entries)
        assert last > status["commit_index"]
        began = time.perf_counter()
        nodes.start(only)
        while time.perf_counter() - began < RECOVERY_S_MAX:
            nodes.running[only].check()
            try:
                status = await nodes.status(only)
            except (aiohttp.ClientError, OSError, TimeoutError, StopIteration, KeyError):
                status = {"applied_index": 0}
            if status["applied_index"] >= last:
                took = time.perf_counter() - began
                released = await nodes.metric(only, "dss_lock_releases_total")
                assert released == (entries - 1) // 2, f"{released} releases were applied"
                return took
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{entries} entries are not applied after {RECOVERY_S_MAX:.0f} s")
    finally:
        await nodes.stop()


def write_log(wal_folder: Path, entries: int) -> int:
    """Acquires and releases in turn, an entry each, behind what is there; the last index."""
    wal, states = Wal.open(OsFiles(str(wal_folder)))
    state = states[LOCK_GROUP]
    index = state.entries[-1].index if state.entries else state.snapshot_index
    log_ms = state.entries[-1].log_ms if state.entries else state.snapshot_log_ms
    written = 0
    while written < entries:
        count = min(WRITE_ENTRIES, entries - written)
        batch = []
        for n in range(written, written + count):
            index += 1
            payload = join_items(1, [LOG_CODEC.encode_item(0, _command(n))])
            batch.append(Entry(index, state.term, COMMAND, log_ms, payload))
        wal.append(LOCK_GROUP, batch)
        wal.write()
        wal.sync()
        written += count
    wal.close()
    return index


def _command(n: int) -> SessionCreate | Acquire | Release:
    """The `n`-th: a session, then acquire and release in turn, each time of another lock."""
    if n == 0:
        return SessionCreate(session=SESSION, ttl_ms=SESSION_TTL_MS_MAX)
    turn = (n + 1) // 2  # also the token: a new group counts its grants from 1
    name = f"bench/{turn}"
    if n % 2:
        return Acquire(session=SESSION, name=name)
    return Release(session=SESSION, name=name, token=turn)
