"""One Raft group as the engine keeps it, and what the engine asks of whoever runs it.

What must not live here: what happens to a group (engine.py, applying.py, snapshotting.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from dss.core.machine import Machine
from dss.core.raft import effects as fx
from dss.core.raft.messages import Configuration, Entry, RaftMessage, SnapshotChunk
from dss.core.raft.raft import Raft
from dss.drivers.ports import Sink
from dss.drivers.waits import Waits
from dss.storage.snapshots import SnapshotReceiver


class Flight(msgspec.Struct):
    """Proposals that share one log entry, until it is applied or lost."""

    rids: list[int]
    sinks: list[tuple[int, Sink]]
    """(how many of the following commands, where their answers go), in order."""
    commands: list[Any]
    items: list[bytes]
    size: int = 0
    term: int = 0


class Arriving(msgspec.Struct):
    """A whole snapshot that has come, on its way into the machine."""

    peer: str
    chunk: SnapshotChunk
    """The last piece: kept back from the core until all is ready."""
    replace: Callable[[], None] | None = None
    """Puts it in the machine's place."""
    ready: bool = False
    """The core has the piece among its next events: that step tells whether it wants it."""


class EngineHooks(Protocol):
    """What the engine needs from whoever runs it."""

    def now_ms(self) -> int:
        """Monotonic ms."""

    def send(self, peer: str, message: RaftMessage) -> None:
        """Queue it; `flush` follows before anything else happens."""

    def flush(self) -> None:
        """Send everything handed to `send` now."""

    def wake(self) -> None:
        """Run a cycle soon: something is pending."""

    def soon(self, step: Callable[[], None]) -> None:
        """Run `step` when the loop has turned: between two cycles, or while a sync runs."""

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        """These proposals were not appended anywhere."""

    def role_changed(
        self, group: int, role: str, term: int, leader: str | None, reason: str
    ) -> None: ...

    def applied(self, group: int) -> None:
        """Entries of `group` were applied in this cycle."""

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        """Run blocking `work` off the loop, then `done` between two cycles."""


class _Null:
    """Where the answers to the engine's own proposals (expiry) go."""

    def answer(self, request_id: int, status: int, body: Any) -> None: ...

    def flush(self) -> None: ...


NULL_SINK = _Null()


def incarnations(configuration: Configuration) -> dict[str, str]:
    return {
        member.node_id: member.incarnation
        for member in configuration.voters + configuration.learners
    }


ChangeDone = Callable[[str], None]
"""done(code): "" when the change is made, `indeterminate`, or the core's refusal."""


class Group:
    """One Raft group on this node: its core, its machine and what waits for them."""

    __slots__ = (
        "applied_bytes",
        "applied_index",
        "applied_log_ms",
        "arriving",
        "changes",
        "changes_by_ref",
        "commit_heard",
        "configuration",
        "cutting",
        "due_in_flight",
        "entries_since_snapshot",
        "flights",
        "flights_by_ref",
        "gid",
        "inbox",
        "install",
        "leaderless_ms",
        "level",
        "listed",
        "machine",
        "members",
        "pending",
        "raft",
        "read_waiters",
        "reads",
        "receiver",
        "snapshot_busy",
        "snapshot_index",
        "synced_upto",
        "to_apply",
        "waits",
    )

    def __init__(
        self, gid: int, raft: Raft, machine: Machine, configuration: Configuration
    ) -> None:
        self.gid = gid
        self.raft = raft
        self.machine = machine
        self.configuration = configuration  # at `applied_index`
        self.members = incarnations(raft.membership.configuration)
        self.level = raft.membership.configuration.feature_level
        """Of the log as it stands; the machine's is that of what is applied. What a leader appends
        comes behind the entry that raised it, or, with that entry, not at all."""
        self.changes_by_ref: dict[int, ChangeDone] = {}
        self.changes: dict[int, tuple[int, ChangeDone]] = {}
        self.inbox: list[fx.Event] = []
        self.listed = False
        self.pending: list[Flight] = []
        self.flights_by_ref: dict[int, Flight] = {}
        self.flights: dict[int, Flight] = {}
        self.waits = Waits()
        self.reads: dict[int, Callable[[str | None, bool], None]] = {}
        self.read_waiters: list[tuple[int, Callable[[str | None, bool], None]]] = []
        self.to_apply: list[Entry] = []
        self.synced_upto: tuple[int, int] | None = None
        self.applied_index = 0
        self.applied_log_ms = 0
        self.commit_heard: int | None = None
        self.leaderless_ms: int | None = None  # since when no leader is known
        self.due_in_flight = False
        self.entries_since_snapshot = 0
        self.applied_bytes = 0
        self.snapshot_busy = False
        self.cutting = False  # its snapshot is being encoded in a thread: nothing is applied
        self.snapshot_index = 0
        self.receiver: SnapshotReceiver | None = None
        self.install: SnapshotChunk | None = None
        self.arriving: Arriving | None = None  # a whole one that is made ready in a thread
