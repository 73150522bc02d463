"""Snapshots that come from another node, until they stand in the machine's place.

The last piece is kept back from the core. Meanwhile a thread writes it, syncs the file, checks it
and decodes the state, which may take a second; then the core gets the piece, and if it still wants
the snapshot, that is installed within the same cycle (core/raft/raft.py). The node goes on
meanwhile; so does its leader, which repeats the piece until it is acknowledged.

What must not live here: sending and taking snapshots, their marks (snapshotting.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dss.base import limits
from dss.core.machine import PreparedMachine
from dss.core.raft import effects as fx
from dss.core.raft.messages import SnapshotChunk
from dss.drivers.group import Arriving, Group
from dss.storage.snapshots import SnapshotReceiver, SnapshotStore

if TYPE_CHECKING:
    from dss.drivers.engine import Engine


LARGE_BYTES: Final = limits.MIB
"""From here on decoding takes longer than a heartbeat."""


def is_last(chunk: SnapshotChunk) -> bool:
    return chunk.offset + len(chunk.data) >= chunk.size


def _prepare(machine: PreparedMachine, data: bytes) -> Callable[[], None]:
    """The collector is kept off the many new objects: its passes would hold the loop up."""
    if len(data) < LARGE_BYTES:
        return machine.prepare(data)
    gc.disable()
    try:
        return machine.prepare(data)
    finally:
        gc.freeze()
        gc.enable()


def _identity(chunk: SnapshotChunk) -> tuple[int, int, int, int]:
    return (chunk.index, chunk.snapshot_term, chunk.size, chunk.checksum)


class Arrivals:
    """For all groups of one engine."""

    def __init__(self, engine: Engine, store: SnapshotStore) -> None:
        self._engine = engine
        self._store = store

    def keeps_back(self, group: Group, peer: str, chunk: SnapshotChunk) -> bool:
        """Whether the core shall not hear of this piece (now)."""
        if group.arriving is not None:
            return True  # whoever sent it repeats it
        raft = group.raft
        if (
            not is_last(chunk)
            or chunk.term < raft.term
            or chunk.index <= raft.commit_index
            or chunk.configuration.feature_level > self._engine.feature_level
        ):
            return False  # for the core, or store_chunk, to refuse
        receiver = self.receiver(group, chunk)
        if receiver.received != chunk.offset:
            return False  # the core asks for what is missing
        self._make_ready(group, receiver, Arriving(peer, chunk))
        return True

    def end_unwanted(self, group: Group) -> None:
        """After a step of the core: what it was told of and did not install, it does not want."""
        arriving = group.arriving
        if arriving is not None and arriving.ready:
            self._drop(group, arriving)

    def receiver(self, group: Group, chunk: SnapshotChunk) -> SnapshotReceiver:
        """Of the snapshot that `chunk` is a piece of; another one's is thrown away."""
        receiver = group.receiver
        if receiver is not None and receiver.identity == _identity(chunk):
            return receiver
        if receiver is not None:
            receiver.abandon()
        receiver = group.receiver = self._store.begin_receive(
            group.gid,
            chunk.index,
            chunk.snapshot_term,
            chunk.log_ms,
            chunk.configuration,
            chunk.size,
            chunk.checksum,
        )
        return receiver

    def _make_ready(self, group: Group, receiver: SnapshotReceiver, arriving: Arriving) -> None:
        group.receiver = None
        group.arriving = arriving
        chunk, machine = arriving.chunk, group.machine

        def work() -> None:
            receiver.write_chunk(chunk.offset, chunk.data)
            receiver.finish()
            data = self._store.load(group.gid, chunk.index)
            if isinstance(machine, PreparedMachine):
                arriving.replace = _prepare(machine, data)
            else:
                arriving.replace = lambda: machine.restore(data)

        def done() -> None:
            arriving.ready = True
            group.inbox.append(fx.Receive(arriving.peer, chunk))
            self._engine.touch(group)
            self._engine.hooks.wake()

        self._engine.hooks.offload(work, done)

    def is_ready(self, group: Group, chunk: SnapshotChunk) -> bool:
        arriving = group.arriving
        return arriving is not None and arriving.chunk is chunk

    def put_in_place(self, group: Group) -> None:
        """Replace the machine's state by what is ready."""
        arriving = group.arriving
        assert arriving is not None
        assert arriving.replace is not None
        arriving.replace()
        self._drop(group, arriving)

    def _drop(self, group: Group, arriving: Arriving) -> None:
        """Free it, or the state that it has replaced, in a thread: there may be many objects."""
        group.arriving = None

        def free() -> None:
            arriving.replace = None

        self._engine.hooks.offload(free, lambda: None)
