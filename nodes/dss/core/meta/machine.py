"""The metadata machine of group 0: registered nodes, the partition table, the queue registry.

One `version` counts all changes, so that a watcher can ask "anything after N?". What must not live
here: where partitions should be (core/ring), who proposes (drivers/metadata.py).

Room for later: ring epochs and node leases become fields of `State` behind the present ones (with
defaults) and ops of their own; `next_due_ms`/`due` will then expire leases. A node that comes back
with a new disk is only recorded now (`lost_disks`); its re-admission will be an op that puts the
new incarnation into the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.base.limits import QUEUES_MAX
from dss.core.machine import CommandCodec, Result, Wake
from dss.core.meta.commands import (
    LOST_DISKS_MAX,
    MEMBERS_MAX,
    DeleteQueue,
    Member,
    Partition,
    PutQueue,
    QueueEntry,
    RegisterNode,
    SetTable,
    State,
    Sync,
    meta_codec,
)

_state_encoder = msgspec.msgpack.Encoder()
_state_decoder = msgspec.msgpack.Decoder(State)


def _error(status: int, code: str, message: str) -> Result:
    return status, {"code": code, "message": message}


class MetaMachine:
    """Implements `core.machine.Machine`. Reads: the public attributes and `state()`.

    A result's body always carries `version`: the state that the answer is based on is in every
    copy of at least that version.
    """

    def __init__(self) -> None:
        self.codec: CommandCodec = meta_codec()
        self.level = BASE_LEVEL
        self.version = 0
        self.table_version = 0
        """The `version` at which the table was set; 0: there is none."""
        self.table: tuple[Partition, ...] = ()
        self.members: dict[str, Member] = {}
        self.queues: dict[str, QueueEntry] = {}
        self._state: State | None = None
        self._handlers: dict[type, Callable[[Any], Result]] = {
            RegisterNode: self._register_node,
            SetTable: self._set_table,
            PutQueue: self._put_queue,
            DeleteQueue: self._delete_queue,
            Sync: self._sync,
        }

    # --- Machine ---

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        handlers = self._handlers
        return [handlers[type(command)](command) for command in commands]

    def take_wakes(self) -> list[Wake]:
        return []

    def leader_changed(self, index: int, log_ms: int) -> None:
        """Nothing here is timed yet."""

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        """See core.machine.Machine.set_level."""
        self.level = level
        self._state = None

    def next_due_ms(self) -> int | None:
        return None

    def due(self, log_ms: int) -> list[Any]:
        return []

    def snapshot(self) -> bytes:
        return _state_encoder.encode(self.state())

    def restore(self, data: bytes) -> None:
        state = _state_decoder.decode(data)
        self.level = state.level
        self.version = state.version
        self.table_version = state.table_version
        self.table = state.table
        self.members = {member.node_id: member for member in state.members}
        self.queues = {queue.name: queue for queue in state.queues}
        self._state = None

    def check_invariants(self) -> None:
        story = f"metadata at version {self.version}"
        assert 0 <= self.table_version <= self.version, story
        assert bool(self.table) == (self.table_version > 0), story
        assert len(self.queues) <= QUEUES_MAX, story
        assert len(self.members) <= MEMBERS_MAX, story
        for partition in self.table:
            ids = [replica.node_id for replica in partition.replicas]
            assert len(ids) == len(dict.fromkeys(ids)), f"{story}: {partition}"
        incarnations = [queue.incarnation for queue in self.queues.values()]
        assert len(incarnations) == len(dict.fromkeys(incarnations)), story
        for queue in self.queues.values():
            assert queue.incarnation <= queue.version <= self.version, f"{story}: {queue}"

    # --- reads ---

    def state(self) -> State:
        """The whole state, sorted; the same object until the next change."""
        if self._state is None:
            self._state = State(
                version=self.version,
                table_version=self.table_version,
                table=self.table,
                members=tuple(self.members[key] for key in sorted(self.members)),
                queues=tuple(self.queues[key] for key in sorted(self.queues)),
                level=self.level,
            )
        return self._state

    # --- ops ---

    def _changed(self) -> int:
        self.version += 1
        self._state = None
        return self.version

    def _register_node(self, command: RegisterNode) -> Result:
        member = self.members.get(command.node_id)
        if member is None:
            if len(self.members) >= MEMBERS_MAX:
                return _error(429, "overloaded", f"{MEMBERS_MAX} nodes are registered already")
            self.members[command.node_id] = Member(
                command.node_id, command.role, command.incarnation
            )
            self._changed()
        elif member.incarnation != command.incarnation:
            if command.incarnation not in member.lost_disks:
                # The newest ones are kept: they say what happened last.
                lost = (*member.lost_disks, command.incarnation)[-LOST_DISKS_MAX:]
                self.members[command.node_id] = msgspec.structs.replace(member, lost_disks=lost)
                self._changed()
            return _error(
                409,
                "lost_disk",
                f"{command.node_id} is registered with the data of incarnation "
                f"{member.incarnation} and came with {command.incarnation}: its disk was lost or "
                "exchanged. Give it back its old data directory.",
            )
        return 200, {"version": self.version}

    def _set_table(self, command: SetTable) -> Result:
        if command.expected_version != self.table_version:
            return _error(
                409,
                "table_changed",
                f"the partition table is at version {self.table_version}, "
                f"not {command.expected_version}: read it again",
            )
        for number, partition in enumerate(command.partitions):
            ids = [replica.node_id for replica in partition.replicas]
            if len(ids) != len(dict.fromkeys(ids)):
                return _error(422, "invalid", f"partition {number} names a node twice: {ids}")
        if self.table and len(command.partitions) != len(self.table):
            return _error(
                422,
                "invalid",
                f"the number of partitions is fixed at {len(self.table)} (keys are placed by it)",
            )
        self.table = command.partitions
        self.table_version = self._changed()
        return 200, {"version": self.version, "table_version": self.table_version}

    def _put_queue(self, command: PutQueue) -> Result:
        queue = self.queues.get(command.name)
        if queue is not None and queue.settings == command.settings:
            return 200, {"version": self.version, "queue": queue, "created": False}
        if queue is None and len(self.queues) >= QUEUES_MAX:
            return _error(429, "too_many_queues", f"there are {QUEUES_MAX} queues, the limit")
        version = self._changed()
        # The version only rises, so the one at which a queue was made names that queue for ever.
        incarnation = version if queue is None else queue.incarnation
        entry = QueueEntry(command.name, incarnation, version, command.settings)
        self.queues[command.name] = entry
        created = queue is None
        return 201 if created else 200, {"version": version, "queue": entry, "created": created}

    def _delete_queue(self, command: DeleteQueue) -> Result:
        queue = self.queues.pop(command.name, None)
        if queue is None:
            return _error(404, "unknown_queue", f"queue {command.name!r} does not exist")
        return 200, {"version": self._changed(), "queue": queue}

    def _sync(self, command: Sync) -> Result:
        return 200, {"version": self.version}
