"""Snapshots of all groups of one engine: taking, sending, receiving and installing them.

What must not live here: files (storage/snapshots.py), which chunk a peer gets next (core/raft).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from dss.base import limits
from dss.core.machine import PiecewiseMachine
from dss.core.raft import effects as fx
from dss.core.raft.messages import Configuration, SnapshotChunk, SnapshotResponse
from dss.drivers import levels
from dss.drivers.arrivals import Arrivals, is_last
from dss.drivers.group import Group
from dss.storage.snapshots import SnapshotStore

if TYPE_CHECKING:
    from dss.drivers.engine import Engine

log = logging.getLogger("dss.raft")

SNAPSHOTS_PER_RECLAIM: Final = 2
"""Each may copy a machine's state on the loop: many in one turn would hold heartbeats up."""


class SnapshotMark(msgspec.Struct, frozen=True):
    """Where in the log a snapshot stands."""

    index: int
    term: int
    log_ms: int
    configuration: Configuration


class Snapshotting:
    """See the module.

    Args:
        every_entries, every_bytes: a group's snapshot is due after so much has been applied.

    Attributes:
        chunk_bytes: of one piece on the wire.
        inline_rows: a larger machine's state is encoded in a thread.
        refused: snapshots not saved because they were too large.
    """

    def __init__(
        self, engine: Engine, store: SnapshotStore, every_entries: int, every_bytes: int
    ) -> None:
        self._engine = engine
        self._store = store
        self._every_entries = every_entries
        self._every_bytes = every_bytes
        self.chunk_bytes = limits.SNAPSHOT_CHUNK_BYTES
        self.inline_rows = limits.SNAPSHOT_INLINE_ROWS
        self.taken = 0
        self.installed = 0
        self.refused = 0
        self._retry_at: dict[int, int] = {}
        self._arrivals = Arrivals(engine, store)

    def take_if_due(self, group: Group) -> None:
        if group.snapshot_busy or group.applied_index == group.snapshot_index:
            return
        align = self._engine.settings.apply_align_entries
        bytes_max = self._every_bytes + self._every_bytes // 4  # few, large entries do not wait
        if (
            group.applied_index % align
            and self._every_entries >= align
            and group.applied_bytes < bytes_max
        ):
            return  # soon: at an index where the other nodes take theirs
        if (
            group.entries_since_snapshot >= self._every_entries
            or group.applied_bytes >= self._every_bytes
        ):
            self.take(group)

    def take_pinned(self) -> None:
        """Snapshot quiet groups whose old entries keep WAL segments alive, a few at a time."""
        pinned = self._engine.wal.pinned()
        taken = 0
        for gid in sorted(pinned, key=lambda gid: (-pinned[gid], gid)):
            group = self._engine.groups.get(gid)
            if (
                group is not None
                and pinned[gid] >= 2
                and not group.snapshot_busy
                and group.applied_index > group.snapshot_index
                and taken < SNAPSHOTS_PER_RECLAIM
                and group.applied_index >= self._retry_at.get(gid, 0)
            ):
                taken += 1
                self.take(group)

    def take(self, group: Group) -> None:
        """Save the machine's state; the log up to here may then go.

        Not while this node does not know who the members were at that point: it has joined, and
        applied no configuration yet (drivers/founding.py).
        """
        if not group.configuration.voters:
            return
        index, log_ms = group.applied_index, group.applied_log_ms
        term = group.raft.log.term_at(index)
        assert term is not None, "what is applied is in the log or the snapshot"
        group.snapshot_busy = True
        group.entries_since_snapshot = 0
        group.applied_bytes = 0
        mark = SnapshotMark(index, term, log_ms, group.configuration)
        machine = group.machine
        if isinstance(machine, PiecewiseMachine) and machine.snapshot_rows() > self.inline_rows:
            self._cut(group, mark, machine.snapshot_pieces())
        else:
            self._save(group, mark, [machine.snapshot()])

    def _cut(self, group: Group, mark: SnapshotMark, pieces: Iterator[bytes]) -> None:
        """Encode a large state in a thread. The group goes on appending, acknowledging and beating
        meanwhile, but applies nothing: its clients wait a little, it loses no leadership."""
        group.cutting = True
        cut: list[bytes] = []

        def work() -> None:
            cut.extend(pieces)

        def done() -> None:
            if mark.index <= group.snapshot_index:
                group.snapshot_busy = False
                return  # the leader's snapshot overtook ours, and changed the state below it
            group.cutting = False
            self._save(group, mark, cut)
            applying = self._engine.applying
            applying.apply(group)
            applying.flush()
            self._engine.hooks.wake()

        self._engine.hooks.offload(work, done)

    def _save(self, group: Group, mark: SnapshotMark, pieces: list[bytes]) -> None:
        index, term, log_ms, configuration = msgspec.structs.astuple(mark)
        size = sum(map(len, pieces))
        if size > limits.SNAPSHOT_BYTES_MAX:
            self._refuse(group, index, size)
            return
        self._retry_at.pop(group.gid, None)

        def work() -> None:
            self._store.save(group.gid, index, term, log_ms, configuration, pieces)

        def done() -> None:
            group.snapshot_busy = False
            if index <= group.snapshot_index:
                return  # the leader's snapshot overtook ours
            group.snapshot_index = index
            self.taken += 1
            self._engine.wal.snapshot(group.gid, index, term, log_ms, configuration)
            self._engine.unsynced = True
            group.inbox.append(fx.SnapshotTaken(index, term, log_ms, size))
            self._engine.touch(group)
            self._engine.hooks.wake()

        self._engine.hooks.offload(work, done)

    def _refuse(self, group: Group, index: int, size: int) -> None:
        """The group goes on and its log grows: stopping would help nobody, and again not after a
        restart. The next try is when the next snapshot is due."""
        group.snapshot_busy = False
        self.refused += 1
        self._retry_at[group.gid] = index + self._every_entries
        log.error(
            "group %d: its state at %d takes %d MiB, a snapshot at most %d: none is saved and the "
            "log is kept, so watch the disk. Let clients release locks, end sessions, acknowledge "
            "answers (`ack`), empty queues",
            group.gid,
            index,
            size // limits.MIB,
            limits.SNAPSHOT_BYTES_MAX // limits.MIB,
        )

    def reclaim(self) -> None:
        """Free WAL segments and snapshot files that nothing needs, at a quiet moment."""
        self._engine.wal.reclaim()
        self.take_pinned()
        for gid, group in self._engine.groups.items():
            # Only behind a mark that is durable: recovery may still ask for the older file.
            keep_index = self._engine.wal.durable_snapshot(gid)
            in_transfer = group.raft.snapshot_in_transfer
            if in_transfer is not None:
                keep_index = min(keep_index, in_transfer)
            if keep_index:
                self._store.prune(gid, keep_index)

    def send_chunk(self, group: Group, effect: fx.SendSnapshot) -> None:
        meta = self._store.meta(group.gid, effect.index)
        if meta is None:
            return  # given up and pruned since: the core goes on with the newest one
        data, size = self._store.read(group.gid, effect.index, effect.offset, self.chunk_bytes)
        self._engine.hooks.send(
            effect.peer,
            SnapshotChunk(
                group.gid,
                effect.term,
                effect.index,
                meta.term,
                meta.log_ms,
                meta.configuration,
                size,
                effect.offset,
                data,
                self._store.checksum(group.gid, effect.index),
            ),
        )

    def end_unwanted(self, group: Group) -> None:
        """See Arrivals.end_unwanted."""
        self._arrivals.end_unwanted(group)

    def keeps_back(self, group: Group, peer: str, chunk: SnapshotChunk) -> bool:
        """See Arrivals.keeps_back."""
        return self._arrivals.keeps_back(group, peer, chunk)

    def store_chunk(self, group: Group, effect: fx.StoreChunk) -> None:
        """A piece that the core takes; the last one comes when all of it is ready (arrivals.py)."""
        chunk = effect.chunk
        level = chunk.configuration.feature_level
        levels.check_level(group.gid, level, self._engine.feature_level)
        if self._arrivals.is_ready(group, chunk):
            group.install = chunk
            return
        if group.arriving is not None:
            return  # a thread has the file open that another piece would begin anew
        receiver = self._arrivals.receiver(group, chunk)
        if chunk.offset == receiver.received and not is_last(chunk):
            receiver.write_chunk(chunk.offset, chunk.data)
        response = SnapshotResponse(group.gid, group.raft.term, chunk.index, receiver.received)
        self._engine.after_sync.append((effect.peer, response))

    def install(self, group: Group, chunk: SnapshotChunk) -> fx.SnapshotInstalled:
        """Put a whole received snapshot in the machine's place; the core must hear the event."""
        # The core asks only for snapshots beyond its commit index.
        assert chunk.index > group.applied_index
        assert not group.to_apply or chunk.index > group.to_apply[-1].index
        group.to_apply.clear()  # all of it is in the snapshot
        group.cutting = False
        self._engine.applying.end_flights(group)  # what became of them is inside the snapshot
        self._arrivals.put_in_place(group)
        level = chunk.configuration.feature_level
        assert group.machine.level == level, (group.gid, group.machine.level, level)
        group.applied_index = group.snapshot_index = chunk.index
        group.applied_log_ms = chunk.log_ms
        group.entries_since_snapshot = group.applied_bytes = 0
        group.configuration = chunk.configuration
        self._engine.wal.snapshot(
            group.gid, chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.configuration
        )
        self._engine.unsynced = True
        self.installed += 1
        log.info("group %d: installed the snapshot at %d", group.gid, chunk.index)
        return fx.SnapshotInstalled(
            chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.size, chunk.configuration
        )
