"""A partition's records: what is kept of a message and a queue, their snapshot, their invariants.

What must not live here: what commands do to them (machine.py).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.core.queueing.commands import Message, QueueSettings

READY: Final = 0
LEASED: Final = 1
DELAYED: Final = 2
DEAD: Final = 3
GONE: Final = 4
"""Acknowledged; only stale entries of the due heap still know the record."""

FORMAT: Final = 2
FORMAT_WITHOUT_LEVEL: Final = 1
"""What a partition at BASE_LEVEL writes: nodes of a release without levels must read it."""


class Counters(msgspec.Struct, array_like=True, gc=False):
    """What has happened to a queue in this partition since it was made (part of the state)."""

    sent: int = 0
    received: int = 0
    redelivered: int = 0
    acked: int = 0
    nacked: int = 0
    expired: int = 0
    dead_lettered: int = 0


class Record(msgspec.Struct, gc=False):
    """One message and where it stands. `due_ms` is 0 unless it is leased or delayed."""

    sequence: int
    message: Message
    sent_ms: int
    state: int = READY
    due_ms: int = 0
    deliveries: int = 0


class Queue:
    """One queue's messages in this partition."""

    __slots__ = (
        "alive",
        "bytes",
        "counters",
        "dead",
        "delayed",
        "fresh",
        "incarnation",
        "leased",
        "name",
        "records",
        "returned",
        "settings",
        "version",
    )

    def __init__(self, name: str, incarnation: int, version: int, settings: QueueSettings) -> None:
        self.name = name
        self.incarnation = incarnation
        self.version = version
        self.settings = settings
        self.records: dict[int, Record] = {}
        """All but the dead ones, by sequence, in that order."""
        self.fresh: deque[Record] = deque()
        """Never delivered, never delayed, in sequence."""
        self.returned: list[tuple[int, Record]] = []
        """A heap of those that became visible later, by sequence."""
        self.dead: dict[int, Record] = {}
        """By sequence; in no order: those of one ms may come in another one after a restore."""
        self.leased = 0
        self.delayed = 0
        self.bytes = 0
        """Of all bodies, the dead letters' too."""
        self.counters = Counters()
        self.alive = True
        """False once dropped: what the due heap still holds of it is void."""


class RecordState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    sequence: int
    message: Message
    sent_ms: int
    state: int
    due_ms: int
    deliveries: int


class QueueState(msgspec.Struct, frozen=True, array_like=True):
    name: str
    incarnation: int
    version: int
    settings: QueueSettings
    counters: Counters
    records: list[RecordState]
    dead: list[RecordState]


class PartitionState(msgspec.Struct, frozen=True, array_like=True):
    """Format 2; format 1 ends before `level`. A new field goes last, with a default."""

    format: int
    sequence: int
    queues: list[QueueState]
    level: int = BASE_LEVEL


_encode = msgspec.msgpack.Encoder().encode
state_decoder = msgspec.msgpack.Decoder(PartitionState)


def encode_state(sequence: int, queues: list[QueueState], level: int) -> bytes:
    """A partition's snapshot."""
    if level == BASE_LEVEL:
        return _encode((FORMAT_WITHOUT_LEVEL, sequence, queues))
    return _encode(PartitionState(FORMAT, sequence, queues, level))


def _record(item: RecordState) -> Record:
    return Record(
        item.sequence, item.message, item.sent_ms, item.state, item.due_ms, item.deliveries
    )


def _record_state(record: Record) -> RecordState:
    return RecordState(
        record.sequence,
        record.message,
        record.sent_ms,
        record.state,
        record.due_ms,
        record.deliveries,
    )


def queue_state(queue: Queue) -> QueueState:
    return QueueState(
        queue.name,
        queue.incarnation,
        queue.version,
        queue.settings,
        queue.counters,
        [_record_state(record) for record in queue.records.values()],
        [_record_state(queue.dead[sequence]) for sequence in sorted(queue.dead)],
    )


def restore_queue(saved: QueueState) -> tuple[Queue, list[Record]]:
    """The queue, and its leased and delayed records: the caller makes them due again."""
    queue = Queue(saved.name, saved.incarnation, saved.version, saved.settings)
    queue.counters = saved.counters
    waiting = []
    for item in saved.dead:
        queue.dead[item.sequence] = _record(item)
        queue.bytes += len(item.message.body)
    for item in saved.records:
        record = queue.records[item.sequence] = _record(item)
        queue.bytes += len(item.message.body)
        if item.state == READY:
            queue.fresh.append(record)
        else:
            queue.leased += item.state == LEASED
            queue.delayed += item.state == DELAYED
            waiting.append(record)
    return queue, waiting


def check_queue(queue: Queue, newest: int) -> None:
    """Raise AssertionError when the queue is impossible; `newest` is the partition's sequence."""
    story = f"queue {queue.name!r}, incarnation {queue.incarnation}"
    assert queue.alive, story
    states = [0, 0, 0]
    last = size = 0
    for sequence, record in queue.records.items():
        assert last < sequence == record.sequence <= newest, f"{story}: {record}"
        assert (record.due_ms > 0) == (record.state in (LEASED, DELAYED)), f"{story}: {record}"
        assert record.state != LEASED or record.deliveries > 0, f"{story}: {record}"
        states[record.state] += 1
        size += len(record.message.body)
        last = sequence
    for record in queue.dead.values():
        assert record.state == DEAD, f"{story}: {record}"
        assert record.due_ms == 0, f"{story}: {record}"
        size += len(record.message.body)
    visible = [record.sequence for record in queue.fresh]
    assert visible == sorted(visible), story
    visible += [sequence for sequence, _ in queue.returned]
    assert len(visible) == len(dict.fromkeys(visible)) == states[READY], story
    assert all(queue.records[sequence].state == READY for sequence in visible), story
    assert (queue.leased, queue.delayed) == (states[LEASED], states[DELAYED]), story
    assert queue.bytes == size, story
