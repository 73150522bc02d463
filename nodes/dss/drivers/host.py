"""The consensus driver of one process: the engine on an asyncio loop (implements ports.Consensus).

It wakes the engine once per loop iteration at most, chooses where the fsync runs, forwards
proposals to leaders on other nodes and holds them for one election timeout while there is none.
What must not live here: what commands mean, HTTP, effects (engine.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from dss.base import limits
from dss.base.errors import ConfigProblem, StorageFailed, Unavailable
from dss.base.levels import FEATURE_LEVEL
from dss.core.machine import Machine
from dss.core.raft.messages import Configuration, RaftMessage, VoteRequest
from dss.core.raft.settings import RaftSettings
from dss.drivers import levels
from dss.drivers.calls import CallSink
from dss.drivers.engine import Engine
from dss.drivers.forwarding import Forwarder
from dss.drivers.group import Flight
from dss.drivers.group_views import GroupViews
from dss.drivers.handover import HandOver
from dss.drivers.ports import Sink
from dss.drivers.split_vote import SplitVote
from dss.drivers.sync_policy import SyncPolicy
from dss.observe.logs import event
from dss.observe.metrics import Histogram
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import GroupState, Wal
from dss.transport.links import Links
from dss.transport.ports import Peer

log = logging.getLogger("dss.raft")

GATHER_FROM: Final = 4
"""Separate proposals answered in one cycle that make the next one wait for more."""
GATHER_TURNS: Final = 3
"""Loop turns it waits (docs/decisions/0003-gathering-cycles.md)."""
RECLAIM_EVERY_S: Final = 5.0


class Host(GroupViews):
    """All Raft groups of this process, on the running loop.

    Args:
        stop_node: called with a reason when the node must end: an fsync error, or a state that
            cannot be (AssertionError): going on could break what was promised.
        split_vote: TEST_MODE only.
    """

    def __init__(
        self,
        *,
        node_id: str,
        incarnation: str,
        wal: Wal,
        recovered: dict[int, GroupState],
        snapshots: SnapshotStore,
        settings: RaftSettings,
        links: Links,
        stop_node: Callable[[str], None],
        snapshot_every_entries: int = limits.SNAPSHOT_EVERY_ENTRIES,
        split_vote: SplitVote | None = None,
        feature_level: int = FEATURE_LEVEL,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.node_id = node_id
        self.incarnation = incarnation
        self.settings = settings
        self.links = links
        self.sync_policy = SyncPolicy()
        self.sync_seconds: Histogram | None = None
        self.split_vote = split_vote
        self._stop_node = stop_node
        self.unsupported = False
        """Stopped because a group is at a level that this node does not support."""
        self._wal = wal
        self._scheduled = False
        self._syncing = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0
        self._deferred_tick = False
        self._calls = CallSink(self.loop)
        self._role_listeners: list[Callable[[int, str, int, str | None], None]] = []
        self._applied_listeners: dict[int, list[Callable[[], None]]] = {}
        self._offloads = 0
        # A thread of its own: an fsync must not queue behind snapshots in the common pool.
        self._sync_thread = ThreadPoolExecutor(1, "wal-sync")
        seeds = random.SystemRandom()
        self.engine = Engine(
            node_id=node_id,
            incarnation=incarnation,
            wal=wal,
            recovered=recovered,
            snapshots=snapshots,
            settings=settings,
            rng=(
                (lambda gid: split_vote.timeouts())
                if split_vote is not None
                else (lambda gid: random.Random(seeds.getrandbits(64)))  # noqa: S311
            ),
            hooks=self,
            snapshot_every_entries=snapshot_every_entries,
            feature_level=feature_level,
        )
        self.forwarder = Forwarder(self, links, hold_ms=settings.election_max_ms)
        self._hand_over = HandOver(self, links)
        links.on_raft(self._received)
        links.on_link(lambda node_id, up, reason: self.engine.link_changed(node_id, up))
        self._reclaim_timer = self.loop.call_later(RECLAIM_EVERY_S, self._reclaim)

    # --- engine hooks -------------------------------------------------------------------

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def send(self, peer: str, message: RaftMessage) -> None:
        if self.split_vote is not None and isinstance(message, VoteRequest):
            self.loop.call_later(self.split_vote.vote_delay_s, self.links.send, peer, message)
            return
        self.links.send(peer, message)

    def flush(self) -> None:
        self.links.flush()

    def wake(self) -> None:
        if not self._scheduled and not self._syncing and not self._stopped:
            self._scheduled = True
            # Many clients were just answered: let the loop read what they ask next.
            turns = GATHER_TURNS if self.engine.applying.proposals_answered >= GATHER_FROM else 0
            self.loop.call_soon(self._gather, turns)

    def soon(self, step: Callable[[], None]) -> None:
        self.loop.call_soon(self._run_step, step)

    def _run_step(self, step: Callable[[], None]) -> None:
        if not self._stopped:
            try:
                step()
            except Exception as error:
                self._broken(error)

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        self.forwarder.refused(group, flight, code, leader)

    def role_changed(
        self, group: int, role: str, term: int, leader: str | None, reason: str
    ) -> None:
        event(log, "role_changed", group=group, role=role, term=term, leader=leader, reason=reason)
        self.forwarder.role_changed(group, leader)
        for listener in self._role_listeners:
            listener(group, role, term, leader)

    def applied(self, group: int) -> None:
        for listener in self._applied_listeners.get(group, ()):
            listener()

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self._offloads += 1
        future = self.loop.run_in_executor(None, work)

        def finished(result: asyncio.Future[None]) -> None:
            self._offloads -= 1
            error = result.exception()
            if error is not None:
                self._fail(f"writing beside the log failed: {error}")
            elif not self._stopped:
                try:
                    done()
                except Exception as failure:
                    self._broken(failure)

        future.add_done_callback(finished)

    # --- cycles and time ----------------------------------------------------------------

    def _gather(self, turns: int) -> None:
        if turns:
            self.loop.call_soon(self._gather, turns - 1)
        else:
            self._cycle()

    def _cycle(self) -> None:
        self._scheduled = False
        if self._stopped or self._syncing:
            return
        try:
            if self.engine.begin():
                if self.sync_policy.threaded:
                    self._syncing = True
                    future = self.loop.run_in_executor(self._sync_thread, self.engine.sync)
                    future.add_done_callback(self._synced)
                    return
                self.engine.sync()
                self._note_sync()
            self.engine.finish()
            self._arm()
        except Exception as error:
            self._broken(error)

    def _synced(self, future: asyncio.Future[None]) -> None:
        self._syncing = False
        error = future.exception()
        if error is not None:
            self._broken(error)
            return
        if self._stopped:
            return
        self._note_sync()
        try:
            self.engine.finish()
            self._arm()
        except Exception as failure:
            self._broken(failure)
            return
        if self.engine.pending:
            self.wake()

    def _note_sync(self) -> None:
        took_ns = self._wal.last_sync_ns
        self.sync_policy.note(took_ns)
        if self.sync_seconds is not None:
            self.sync_seconds.observe(took_ns / 1e9)

    def _broken(self, error: BaseException) -> None:
        if isinstance(error, ConfigProblem):
            self.unsupported = True
            self._fail(error.message)
        elif isinstance(error, OSError | StorageFailed):
            self._fail(f"the log cannot be written: {error}")
        else:
            # The core's text ends with its story; the traceback says which step.
            self._fail(f"a defect of DSS, please report it: {type(error).__name__}: {error}", error)

    def _fail(self, reason: str, defect: BaseException | None = None) -> None:
        """Stop for good: nothing is written, sent or acknowledged after this."""
        if self._stopped:
            return
        self._stopped = True
        log.error("%s; this node stops", reason, exc_info=defect)
        self._stop_node(reason)
        self._abandon()

    def _abandon(self) -> None:
        """Answer everything that still waits: nobody shall hang on a node that has ended."""
        self.forwarder.close()
        self.engine.abandon()
        self._calls.close(f"{self.node_id} stops: the write may or may not happen")

    def _arm(self) -> None:
        """Set the timer to the engine's next deadline, unless one at or before it is set."""
        at_ms = self.engine.next_tick_ms()
        if self._timer is not None:
            if self._timer_at_ms <= at_ms:
                return
            self._timer.cancel()
        self._timer_at_ms = at_ms
        delay_s = max(0, at_ms - self.now_ms()) / 1000
        self._timer = self.loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._stopped:
            return
        late_ms = self.now_ms() - self._timer_at_ms
        if late_ms > self.settings.heartbeat_ms and not self._deferred_tick:
            # The loop was held up: what peers sent meanwhile must be read before an election
            # timer may fire. One more turn of the loop reads it.
            self._deferred_tick = True
            self._timer_at_ms = self.now_ms()
            self._timer = self.loop.call_later(0.001, self._tick)
            return
        self._deferred_tick = False
        try:
            self.engine.tick()
            if not self.engine.pending:  # else the cycle that is due arms it
                self._arm()
        except Exception as error:
            self._broken(error)

    def _reclaim(self) -> None:
        if self._stopped:
            return
        if not self._wal.prepared:
            # Zero-filling a segment takes tens of ms: never on the loop.
            self.offload(self._prepare, lambda: None)
        if not self._syncing:
            try:
                self.engine.reclaim()
            except Exception as error:
                self._broken(error)
                return
        self._reclaim_timer = self.loop.call_later(RECLAIM_EVERY_S, self._reclaim)

    def _prepare(self) -> None:
        if not self._wal.prepare() and self._wal.prepare_error:
            log.warning("no spare log segment: %s", self._wal.prepare_error)

    def start(self) -> None:
        """Begin to tick (groups may be opened before or after)."""
        self._arm()

    async def stop(self) -> None:
        """Hand leadership over where possible, stop cycling, answer the rest, close the WAL."""
        await self.hand_over()
        failed, self._stopped = self._stopped, True
        self._reclaim_timer.cancel()
        if self._timer is not None:
            self._timer.cancel()
        # Polling is fine here: once in a process's life, and bounded by one fsync.
        while self._syncing or self._offloads:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if not failed:
            self._abandon()
        self._sync_thread.shutdown()
        self._wal.close()

    async def hand_over(self) -> None:
        """Before a planned stop: see handover.py."""
        if not self._stopped:
            await self._hand_over.run()

    @property
    def stopped(self) -> bool:
        """Nothing is written, sent or answered any more."""
        return self._stopped

    def _received(self, peer: Peer, messages: list[RaftMessage]) -> None:
        if self._stopped:
            return
        try:
            self.engine.receive(peer.node_id, peer.incarnation, messages)
        except Exception as error:  # a full disk, when a snapshot begins to arrive
            self._broken(error)

    # --- ports.Consensus ----------------------------------------------------------------

    def submit(
        self,
        group: int,
        request_ids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
    ) -> None:
        found = self.engine.groups.get(group)
        if found is not None and found.machine.codec.newest_level > found.level:
            # Here already: a leader of an older release would not know what it is asked for.
            admitted = levels.admitted(found, request_ids, items, commands, sink)
            request_ids, items, commands = admitted
            if not request_ids:
                return
        self.forwarder.submit(group, request_ids, items, commands, sink)

    def call(self, group: int, command: msgspec.Struct) -> Awaitable[tuple[int, Any]]:
        if group not in self.engine.groups:
            raise self.no_quorum(group)
        rid, future = self._calls.open()
        item = self.machine(group).codec.encode_item(rid, command)
        self.submit(group, (rid,), item, (command,), self._calls)
        return future

    def create_group(self, group: int, configuration: Configuration, machine: Machine) -> None:
        self.engine.create_group(group, configuration, machine)
        self._arm()

    def open_group(self, group: int, machine: Machine) -> bool:
        opened = self.engine.open_group(group, machine)
        self._arm()
        return opened

    def on_role(self, listener: Callable[[int, str, int, str | None], None]) -> None:
        self._role_listeners.append(listener)

    def on_applied(self, group: int, listener: Callable[[], None]) -> None:
        self._applied_listeners.setdefault(group, []).append(listener)

    async def durable(self) -> None:
        """Return once everything written to the WAL so far is synced."""
        if not self.engine.pending and not self._syncing and not self._stopped:
            return
        # What is buffered beside a running cycle belongs to the next one.
        cycle = self.engine.cycles + (1 if self.engine.pending else 0)
        while self.engine.cycles_finished < cycle:
            if self._stopped:
                raise Unavailable(f"{self.node_id} stops")
            await asyncio.sleep(0.001)  # cycles run by themselves; rare, so no event for it
