"""The cache service of one node: carries the coherence core's effects out.

Events (clients' misses and writes, peers' casts, answers of main memory) wait in an inbox; the
first one schedules a cycle, which steps the core once with all of them. What goes to one peer in a
cycle travels as one cast. A local hit is a plain function call: no task, no await, no cycle.

What must not live here: the protocol (core/mesi), HTTP (api/cache.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from dss.base import limits
from dss.base.errors import DssError
from dss.core.mesi.agent import Line
from dss.core.mesi.effects import (
    FOREVER_MS,
    Answer,
    Claimed,
    DeleteMemory,
    Effect,
    Event,
    FenceMemory,
    LinkDown,
    LinkUp,
    MemoryFailed,
    MemoryRead,
    MemoryWritten,
    Read,
    ReadMemory,
    Receive,
    Send,
    Tick,
    Write,
    WriteMemory,
)
from dss.core.mesi.messages import CacheMessage, Record
from dss.core.mesi.node import CacheNode
from dss.core.mesi.states import IllegalTransition, Phase
from dss.core.ring.ring import SLOTS, Ring, slot_of
from dss.memory.ports import Memory, MemoryLost, MemoryUnknown, Stamp, Stored
from dss.observe.metrics import Registry
from dss.topology.nodes import NodeConfig
from dss.transport.ports import Peer, Transport

log = logging.getLogger("dss.cache")

CAST: Final = "cache"
LINE_CALL: Final = "cache.line"
LINE_TIMEOUT_MS: Final = 1_000
CLAIM_PAUSE_S: Final = 0.5
SHUT_DOWN: Final = Answer(0, 503, "unavailable", "the node is stopping", retry_after_ms=500)

_encode = msgspec.msgpack.Encoder().encode
_messages: msgspec.msgpack.Decoder[list[CacheMessage]] = msgspec.msgpack.Decoder(list[CacheMessage])


class HomeView(msgspec.Struct, frozen=True, array_like=True):
    """A line as its home sees it."""

    owner: str | None
    sharers: list[str]
    phase: str


class LineView(msgspec.Struct, frozen=True):
    """`GET /v1/cache/{key}/line`. `state` is the copy on the answering node."""

    key: str
    state: str
    version: int
    home: str
    owner: str | None
    sharers: list[str] | None
    """None: the home could not be asked."""
    phase: str | None
    """What the home is doing with the key; None: the home could not be asked."""
    epoch: int
    lease_ms_left: int | None
    """None: no copy here, or a copy on its home node, which needs no lease."""
    node: str


class CacheStats(msgspec.Struct, frozen=True):
    """`GET /v1/cache:stats`, of the answering node."""

    node: str
    hits: int
    misses: int
    writes: int
    invalidations: int
    evictions: int
    lapsed: int
    hit_ratio: float
    lines: int
    bytes: int
    capacity_bytes: int
    states: dict[str, int]
    directory_lines: int
    open_requests: int
    memory: str
    warnings: list[str]


def boottime_ms() -> int:
    """CLOCK_BOOTTIME: it goes on while the machine is suspended, as leases must."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class CacheService:
    """Any key, on any cache node.

    Args:
        transport: links to the other cache nodes.
        memory: not started yet; this service starts and stops it.
        config: `node_id`, `cache_peers`, `cache_capacity_mib`, `cache_lease_ms`.
        boot_id: of this process, the one that peers see on the link.
        clock_ms: CLOCK_BOOTTIME in ms.
    """

    def __init__(
        self,
        transport: Transport,
        memory: Memory,
        config: NodeConfig,
        boot_id: str,
        *,
        clock_ms: Callable[[], int] = boottime_ms,
    ) -> None:
        self.node_id = config.node_id
        self.memory = memory
        self.capacity_bytes = config.cache_capacity_mib * limits.MIB
        self._transport = transport
        self._clock_ms = clock_ms
        self._peers = {peer.id: None for peer in config.cache_peers}
        self._ring = Ring(self._peers)
        self._owner = f"{config.node_id}/{boot_id}"
        self.core = CacheNode(
            config.node_id,
            boot_id,
            home_of=self._ring.home,
            slot_of=slot_of,
            lease_ms=config.cache_lease_ms,
            capacity_bytes=self.capacity_bytes,
            started_ms=clock_ms(),
        )
        self._agent = self.core.agent
        self._inbox: list[Event] = []
        self._scheduled = False
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._next_ref = 1
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = FOREVER_MS
        self._claiming: asyncio.Task[None] | None = None
        self._failed = ""
        self._claim_problem = ""
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life cycle -------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin. Main memory and peers may come later; `readiness` says what is missing."""
        self._loop = asyncio.get_running_loop()
        self._transport.on_cast(CAST, self._on_cast)
        self._transport.on_call(LINE_CALL, self._on_line_call)
        self._transport.on_link(self._on_link)
        await self.memory.start()
        self._claiming = asyncio.create_task(self._claim(), name="cache-claim")
        for node_id in self._peers:
            if node_id != self.node_id and self._transport.peer(node_id) is not None:
                self._on_link(node_id, True, "")
        self._schedule()

    async def stop(self) -> None:
        """Answer what is open with 503, release main memory."""
        self._stopped = True
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.gather(self._claiming, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        for future in self._answers.values():
            if not future.done():
                future.set_result(SHUT_DOWN)
        self._answers.clear()
        await self.memory.stop()

    def readiness(self) -> str | None:
        """None: ready; else why not."""
        why = self._failed or self.core.directory.why_not_serving(self._clock_ms())
        if why and self._claim_problem:
            return f"{why}: {self._claim_problem}"
        return why or None

    def status(self) -> dict[str, Any]:
        """For status pages: JSON-able."""
        return {
            "memory": self.memory.kind,
            "warnings": self.memory.warnings(),
            "ready": self.readiness() is None,
            "lines": self._agent.line_count,
            "bytes": self._agent.held_bytes,
            "directory_lines": self.core.directory.entry_count,
            "epoch": self.core.epoch,
        }

    # --- clients ----------------------------------------------------------------------------

    def lookup(self, key: str) -> Line | None:
        """A hit on this node, or None. The check and the read of the line's fields must happen
        without an await between them."""
        return self._agent.lookup(key, self._clock_ms())

    def read(self, key: str) -> asyncio.Future[Answer]:
        """Read through the key's home. Errors are in the answer's status."""
        ref, future = self._open()
        self._put(Read(ref, key))
        return future

    def write(
        self,
        key: str,
        op: int,
        value: bytes = b"",
        content_type: str = "",
        ttl_ms: int = 0,
        if_match: tuple[int, ...] | None = None,
        if_none_match: tuple[int, ...] | None = None,
        delta: int = 0,
    ) -> asyncio.Future[Answer]:
        """Put, delete or add (`op` of core/mesi/messages). Errors are in the answer's status."""
        ref, future = self._open()
        self._put(Write(ref, key, op, value, content_type, ttl_ms, if_match, if_none_match, delta))
        return future

    async def line(self, key: str) -> LineView:
        """Where `key` stands: the copy here, and what its home knows."""
        home = self._ring.home(key)
        view: HomeView | None
        if home == self.node_id:
            view = self._home_view(key)
        else:
            try:
                answer = await self._transport.call(home, LINE_CALL, key.encode(), LINE_TIMEOUT_MS)
                view = msgspec.msgpack.decode(answer, type=HomeView)
            except DssError:
                view = None
        state, version, left = self._agent.state_of(key, self._clock_ms())
        return LineView(
            key=key,
            state=state.name,
            version=version,
            home=home,
            owner=view.owner if view else None,
            sharers=view.sharers if view else None,
            phase=view.phase if view else None,
            epoch=self.core.epoch,
            lease_ms_left=left if 0 < left < FOREVER_MS // 2 else None,
            node=self.node_id,
        )

    def stats(self) -> CacheStats:
        """Counters since start. Walks all lines: not for every request."""
        counters, agent = self._agent.counters, self._agent
        reads = counters.hits + counters.misses
        return CacheStats(
            node=self.node_id,
            hits=counters.hits,
            misses=counters.misses,
            writes=counters.writes,
            invalidations=counters.invalidations,
            evictions=counters.evictions,
            lapsed=counters.lapsed,
            hit_ratio=round(counters.hits / reads, 4) if reads else 0.0,
            lines=agent.line_count,
            bytes=agent.held_bytes,
            capacity_bytes=self.capacity_bytes,
            states=agent.states(),
            directory_lines=self.core.directory.entry_count,
            open_requests=agent.pending_count,
            memory=self.memory.kind,
            warnings=self.memory.warnings(),
        )

    def register(self, registry: Registry) -> None:
        """Add `dss_cache_*` to `registry`, read on scrape."""
        counters, agent = self._agent.counters, self._agent
        for name, help_text in (
            ("hits", "Reads answered from a copy on this node."),
            ("misses", "Reads that asked the key's home."),
            ("writes", "Writes sent to the key's home."),
            ("invalidations", "Copies destroyed because another node wrote."),
            ("evictions", "Copies given up for room."),
            ("lapsed", "Copies lost because their home was silent for a lease."),
        ):
            registry.counter_callback(
                f"dss_cache_{name}_total", help_text, partial(getattr, counters, name)
            )
        registry.gauge("dss_cache_lines", "Copies on this node.", lambda: agent.line_count)
        registry.gauge("dss_cache_bytes", "Bytes of all copies.", lambda: agent.held_bytes)
        registry.gauge("dss_cache_capacity_bytes", "Room for copies.", lambda: self.capacity_bytes)
        registry.gauge(
            "dss_cache_directory_lines",
            "Keys this home keeps track of.",
            lambda: self.core.directory.entry_count,
        )

    # --- events in --------------------------------------------------------------------------

    def _open(self) -> tuple[int, asyncio.Future[Answer]]:
        assert self._loop is not None, "not started"
        ref = self._next_ref
        self._next_ref += 1
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._stopped or self._failed:
            future.set_result(SHUT_DOWN)
        else:
            self._answers[ref] = future
        return ref, future

    def _put(self, event: Event) -> None:
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._stopped and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._cycle)

    def _on_cast(self, peer: Peer, body: bytes) -> None:
        if peer.node_id not in self._peers:
            return
        for message in _messages.decode(body):
            self._inbox.append(Receive(peer.node_id, peer.boot_id, message))
        self._schedule()

    def _on_link(self, node_id: str, up: bool, reason: str) -> None:
        if node_id not in self._peers:
            return
        peer = self._transport.peer(node_id) if up else None
        self._put(LinkUp(node_id, peer.boot_id) if peer is not None else LinkDown(node_id))

    def _on_line_call(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        reply(200, _encode(self._home_view(bytes(body).decode())))

    def _home_view(self, key: str) -> HomeView:
        _, owner, sharers, phase = self.core.directory.view(key, self._clock_ms())
        return HomeView(owner, sharers, "" if phase is Phase.IDLE else phase.name)

    async def _claim(self) -> None:
        """Become the owner of this home's slots in main memory, however long it takes."""
        mine = [slot for slot in range(SLOTS) if self._ring.owner(slot) == self.node_id]
        while True:
            try:
                sequences = await self.memory.claim(self._owner, self.core.epoch, mine)
            except DssError as error:
                if self._claim_problem != error.message:
                    log.warning("not serving as home yet: %s", error.message)
                self._claim_problem = error.message
                await asyncio.sleep(CLAIM_PAUSE_S)
                continue
            self._claim_problem = ""
            self._put(Claimed(sequences))
            for warning in self.memory.warnings():
                log.warning("%s", warning)
            return

    # --- the cycle --------------------------------------------------------------------------

    def _cycle(self) -> None:
        """Step the core with everything that waits; carry its effects out."""
        self._scheduled = False
        if self._stopped or self._failed:
            return
        now_ms = self._clock_ms()
        events, self._inbox = self._inbox, []
        if now_ms >= self.core.next_deadline_ms():
            events.append(Tick())
        try:
            effects = self.core.step(events, now_ms)
        except (IllegalTransition, AssertionError) as error:
            self._fail(error)
            return
        self._carry_out(effects, now_ms)
        self._arm(now_ms)

    def _carry_out(self, effects: list[Effect], now_ms: int) -> None:
        outboxes: dict[str, list[CacheMessage]] = {}
        answers = self._answers
        for effect in effects:
            if isinstance(effect, Answer):
                future = answers.pop(effect.ref, None)
                if future is not None and not future.done():  # its client may have gone
                    future.set_result(effect)
            elif isinstance(effect, Send):
                outboxes.setdefault(effect.peer, []).append(effect.message)
            else:
                self._memory_effect(effect, now_ms)
        for peer, messages in outboxes.items():
            for body in _bodies(messages):
                self._transport.cast(peer, CAST, body)

    def _memory_effect(self, effect: Any, now_ms: int) -> None:
        memory, key, kind = self.memory, effect.key, type(effect)
        if kind is ReadMemory:
            memory.read(key).add_done_callback(partial(self._have_read, effect))
            return
        if kind is FenceMemory:
            stamp = Stamp(effect.slot, self._owner, effect.version)
            memory.fence(stamp, key).add_done_callback(partial(self._have_read, effect))
            return
        stamp = Stamp(effect.slot, self._owner, effect.version, effect.acknowledged)
        if kind is DeleteMemory:
            future = memory.delete(stamp, key)
        else:
            assert kind is WriteMemory, effect
            expires = effect.expires_ms
            if expires:
                expires += int(time.time() * 1000) - now_ms
            stored = Stored(effect.value, effect.version, effect.content_type, expires)
            future = memory.write(stamp, key, stored)
        future.add_done_callback(partial(self._have_written, effect))

    def _have_read(
        self, effect: ReadMemory | FenceMemory, future: asyncio.Future[Stored | None]
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._memory_failed(effect.key, effect.txn, error)
            return
        stored = future.result()
        record = None
        if stored is not None:
            expires = stored.expires_unix_ms
            if expires:
                # At least 1: 0 would mean "never".
                expires = max(1, expires - int(time.time() * 1000) + self._clock_ms())
            record = Record(stored.value, stored.version, stored.content_type, expires)
        self._put(MemoryRead(effect.key, effect.txn, record))

    def _have_written(
        self, effect: WriteMemory | DeleteMemory, future: asyncio.Future[bool]
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._memory_failed(effect.key, effect.txn, error)
        else:
            self._put(MemoryWritten(effect.key, effect.txn, future.result()))

    def _memory_failed(self, key: str, txn: int, error: BaseException) -> None:
        why = error.message if isinstance(error, DssError) else str(error)
        lost = isinstance(error, MemoryLost)
        if lost:
            log.error("this home withdraws: %s", why)
        unknown = isinstance(error, MemoryUnknown) or not isinstance(error, DssError)
        self._put(MemoryFailed(key, txn, unknown, why, lost))

    def _arm(self, now_ms: int) -> None:
        """One timer, at the core's next deadline; an early one is harmless."""
        due_ms = self.core.next_deadline_ms()
        if due_ms >= self._timer_ms or due_ms >= FOREVER_MS or self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = due_ms
        delay_s = max(1, due_ms - now_ms) / 1000
        self._timer = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._timer_ms = FOREVER_MS
        self._schedule()

    def _fail(self, error: AssertionError) -> None:
        """A defect of the core: serve nothing more rather than something wrong."""
        self._failed = f"the cache has stopped after an internal error: {error}".split("\n")[0]
        log.critical("coherence core: %s", error, exc_info=error)
        for future in self._answers.values():
            if not future.done():
                future.set_result(SHUT_DOWN)
        self._answers.clear()
        self._agent.drop_all()


def _bodies(messages: list[CacheMessage]) -> list[bytes]:
    """One msgpack array, cut in halves while it is larger than a cast should be."""
    body = _encode(messages)
    if len(body) <= limits.CACHE_CAST_BYTES_MAX or len(messages) == 1:
        return [body]
    half = len(messages) // 2
    return _bodies(messages[:half]) + _bodies(messages[half:])
