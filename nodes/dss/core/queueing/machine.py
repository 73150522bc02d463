"""One partition's queues as a deterministic state machine.

A message is READY (in `fresh`, or in `returned` when it comes back), LEASED, DELAYED or DEAD. Among
the visible ones the oldest is delivered first, so messages of one key, which share a partition,
keep their order. Leases and delays end at a log time: whatever entry comes at or after it makes
them visible first, and `due` asks for an Expire when none comes by itself. After a failover log
time has stood still, so a lease may end late, never early.

What must not live here: which partition a message belongs to, who waits for messages (both in
drivers/queues.py). A seam for later: only `Record.message` holds a body; queue bodies outside
memory replace that field by their place in the WAL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, Final

from dss.base.levels import BASE_LEVEL
from dss.base.limits import (
    DUE_ITEMS_MAX,
    EXPIRY_RETRY_MS,
    PARTITION_BYTES_MAX,
    PARTITION_MESSAGES_MAX,
    QUEUES_MAX,
)
from dss.core.machine import CommandCodec, Result, Wake, swap_state
from dss.core.queueing.commands import (
    Ack,
    Configure,
    Delivered,
    Drop,
    Expire,
    Extend,
    Message,
    Nack,
    Receive,
    Send,
    Sent,
    Settled,
    queue_codec,
)
from dss.core.queueing.records import (
    DEAD,
    DELAYED,
    FORMAT,
    FORMAT_WITHOUT_LEVEL,
    GONE,
    LEASED,
    READY,
    Counters,
    Queue,
    QueueState,
    Record,
    check_queue,
    encode_state,
    queue_state,
    restore_queue,
    state_decoder,
)

_REPLACED: Final = (
    "level", "_sequence", "_queues", "_messages", "_bytes", "_due", "_due_tie", "_due_records",
    "_asked_ms", "_became_ready",
)  # fmt: skip
"""What a snapshot says, and what follows from it."""
_NO_MESSAGE: Final = Message(b"")
_DONE: Final[Result] = (200, Settled())


def _error(status: int, code: str, message: str, **extra: Any) -> Result:
    return status, {"code": code, "message": message, **extra}


def _unknown(queue: str) -> Result:
    return _error(404, "unknown_queue", f"queue {queue!r} does not exist in this partition")


class QueueMachine:
    """Implements `core.machine.Machine` for partition `partition`."""

    def __init__(self, partition: int) -> None:
        self.codec: CommandCodec = queue_codec()
        self.level = BASE_LEVEL
        self.partition = partition
        self._sequence = 0
        """Of the newest message; counts on for ever, over all queues of the partition."""
        self._queues: dict[str, Queue] = {}
        self._messages = 0
        self._bytes = 0
        self._due: list[tuple[int, int, Queue, list[Record]]] = []
        """(due_ms, tie, queue, records): one entry for all that one command made due at once.

        A record that was settled or moved since has another `due_ms` and is skipped.
        """
        self._due_tie = 0
        self._due_records = 0
        self._asked_ms: int | None = None
        """When `due` last asked for an Expire and no entry has been applied since."""
        self._became_ready: dict[str, None] = {}
        self._log_ms = 0
        self._handlers: dict[type, Callable[[Any], Result]] = {
            Configure: self._configure,
            Drop: self._drop,
            Send: self._send,
            Receive: self._receive,
            Ack: self._ack,
            Nack: self._nack,
            Extend: self._extend,
            Expire: self._expire,
        }

    # --- Machine ---

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        self._log_ms = log_ms
        self._asked_ms = None
        if self._due and self._due[0][0] <= log_ms:
            self._ripen()
        handlers = self._handlers
        return [handlers[type(command)](command) for command in commands]

    def take_wakes(self) -> list[Wake]:
        return []

    def leader_changed(self, index: int, log_ms: int) -> None:
        """Nothing to do: log time stood still while there was no leader."""

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        """See core.machine.Machine.set_level."""
        self.level = level

    def next_due_ms(self) -> int | None:
        if self._asked_ms is not None:
            return self._asked_ms + EXPIRY_RETRY_MS
        due = self._due
        while due:
            due_ms, _, queue, records = due[0]
            if queue.alive and any(record.due_ms == due_ms for record in records):
                return due_ms
            self._due_records -= len(records)
            heappop(due)
        return None

    def due(self, log_ms: int) -> list[Any]:
        at_ms = self.next_due_ms()
        if at_ms is None or at_ms > log_ms:
            return []
        self._asked_ms = log_ms
        return [Expire()]

    def snapshot(self) -> bytes:
        queues = [self._queues[name] for name in sorted(self._queues)]
        return encode_state(self._sequence, [queue_state(queue) for queue in queues], self.level)

    def restore(self, data: bytes) -> None:
        self.prepare(data)()

    def prepare(self, data: bytes) -> Callable[[], None]:
        """See core.machine.PreparedMachine."""
        fresh = QueueMachine(self.partition)
        fresh._fill(data)
        return partial(swap_state, self, fresh, _REPLACED)

    def _fill(self, data: bytes) -> None:
        """This machine is new."""
        state = state_decoder.decode(data)
        if state.format not in (FORMAT_WITHOUT_LEVEL, FORMAT):
            raise ValueError(
                f"queue snapshot of format {state.format}; this version reads up to {FORMAT}"
            )
        self.level = state.level
        self._sequence = state.sequence
        for saved in state.queues:
            self._restore_queue(saved)

    def check_invariants(self) -> None:
        messages = size = waiting = 0
        for queue in self._queues.values():
            check_queue(queue, self._sequence)
            messages += len(queue.records) + len(queue.dead)
            size += queue.bytes
            waiting += queue.leased + queue.delayed
        assert (self._messages, self._bytes) == (messages, size), self._story()
        held: dict[int, None] = {}
        for due_ms, _, queue, records in self._due:
            for record in records:
                if queue.alive and record.due_ms == due_ms:
                    held[record.sequence] = None
        assert len(held) == waiting, f"{self._story()}: {len(held)} due, {waiting} wait"
        assert self._due_records == sum(len(entry[3]) for entry in self._due), self._story()

    # --- reads: of the leader after a ReadIndex round exact, else a view of the past ---

    def ready(self, queue: str) -> int:
        """How many messages of `queue` are visible in this partition."""
        found = self._queues.get(queue)
        return len(found.fresh) + len(found.returned) if found else 0

    def length(self, queue: str) -> int:
        """How many messages of `queue` this partition keeps, dead letters included."""
        found = self._queues.get(queue)
        return len(found.records) + len(found.dead) if found else 0

    def queues(self) -> dict[str, tuple[int, int]]:
        """The queues configured here: name -> (incarnation, version)."""
        return {queue.name: (queue.incarnation, queue.version) for queue in self._queues.values()}

    def configured(self, queue: str) -> tuple[int, int] | None:
        """(incarnation, version) of `queue` here, or None."""
        found = self._queues.get(queue)
        return (found.incarnation, found.version) if found else None

    def ready_queues(self) -> list[str]:
        """The queues with visible messages."""
        return [queue.name for queue in self._queues.values() if queue.fresh or queue.returned]

    def take_ready(self) -> list[str]:
        """The queues in which a message became visible since the last call."""
        if not self._became_ready:
            return []
        names = list(self._became_ready)
        self._became_ready = {}
        return names

    def stats(self, queue: str) -> dict[str, int] | None:
        """Counts of `queue` in this partition, and `oldest_ms`: the oldest message's log time."""
        found = self._queues.get(queue)
        if found is None:
            return None
        counters = found.counters
        stats = {field: getattr(counters, field) for field in Counters.__struct_fields__}
        stats.update(
            ready=len(found.fresh) + len(found.returned),
            leased=found.leased,
            delayed=found.delayed,
            dead=len(found.dead),
            bytes=found.bytes,
        )
        oldest = next(iter(found.records.values()), None)
        if oldest is not None:
            stats["oldest_ms"] = oldest.sent_ms
        return stats

    # --- ops ---

    def _configure(self, command: Configure) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None:
            if len(self._queues) >= QUEUES_MAX:
                return _error(429, "too_many_queues", f"there are {QUEUES_MAX} queues, the limit")
        elif command.incarnation == queue.incarnation:
            if command.version > queue.version:
                queue.version, queue.settings = command.version, command.settings
            return _DONE
        elif command.incarnation < queue.incarnation:
            return _DONE
        else:
            self._forget(queue)
        self._queues[command.queue] = Queue(
            command.queue, command.incarnation, command.version, command.settings
        )
        return _DONE

    def _drop(self, command: Drop) -> Result:
        queue = self._queues.get(command.queue)
        if queue is not None and queue.incarnation <= command.incarnation:
            self._forget(queue)
        return _DONE

    def _send(self, command: Send) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None or queue.incarnation < command.incarnation:
            return _error(503, "not_configured", f"queue {command.queue!r} is not set up here yet")
        if queue.incarnation > command.incarnation:
            return _error(404, "unknown_queue", f"queue {command.queue!r} was deleted and remade")
        messages = command.messages
        size = 0
        for message in messages:
            size += len(message.body)
        if (
            self._messages + len(messages) > PARTITION_MESSAGES_MAX
            or self._bytes + size > PARTITION_BYTES_MAX
        ):
            return self._full(command.queue)
        first = sequence = self._sequence + 1
        now_ms = self._log_ms
        records, fresh = queue.records, queue.fresh
        visible = len(fresh)
        for message in messages:
            record = Record(sequence, message, now_ms)
            records[sequence] = record
            sequence += 1
            if message.delay_ms:
                self._wait(queue, [record], DELAYED, now_ms + message.delay_ms)
                queue.delayed += 1
            else:
                fresh.append(record)
        self._sequence = sequence - 1
        self._messages += len(messages)
        self._bytes += size
        queue.bytes += size
        queue.counters.sent += len(messages)
        if len(fresh) > visible:
            self._became_ready[queue.name] = None
        return 200, Sent(first)

    def _receive(self, command: Receive) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None:
            return _unknown(command.queue)
        fresh, returned = queue.fresh, queue.returned
        visibility_ms = command.visibility_ms or queue.settings.visibility_ms
        taken: list[Record] = []
        answer: list[Delivered] = []
        room = command.bytes_max
        for _ in range(min(command.max, len(fresh) + len(returned))):
            from_returned = bool(returned) and (not fresh or returned[0][0] < fresh[0].sequence)
            record = returned[0][1] if from_returned else fresh[0]
            message = record.message
            room -= len(message.body)
            if room < 0 and taken:
                break
            if from_returned:
                heappop(returned)
            else:
                fresh.popleft()
            deliveries = record.deliveries + 1
            record.deliveries = deliveries
            if deliveries > 1:
                queue.counters.redelivered += 1
            taken.append(record)
            answer.append(
                Delivered(
                    record.sequence,
                    deliveries,
                    message.body,
                    message.base64,
                    message.headers,
                    message.key,
                )
            )
        if taken:
            self._wait(queue, taken, LEASED, self._log_ms + visibility_ms)
            queue.leased += len(taken)
            queue.counters.received += len(taken)
        return 200, answer

    def _ack(self, command: Ack) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None:
            return _unknown(command.queue)
        records = queue.records
        stale = []
        size = 0
        for position, (sequence, deliveries) in enumerate(command.deliveries):
            record = records.get(sequence)
            if record is None or record.state != LEASED or record.deliveries != deliveries:
                stale.append(position)
                continue
            del records[sequence]
            size += len(record.message.body)
            record.state, record.due_ms, record.message = GONE, 0, _NO_MESSAGE
        done = len(command.deliveries) - len(stale)
        queue.leased -= done
        queue.counters.acked += done
        queue.bytes -= size
        self._messages -= done
        self._bytes -= size
        return (200, Settled(tuple(stale))) if stale else _DONE

    def _nack(self, command: Nack) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None:
            return _unknown(command.queue)
        held, stale = self._held(queue, command.deliveries)
        queue.counters.nacked += len(held)
        delayed = []
        for record in held:
            if command.delay_ms and record.deliveries < queue.settings.max_deliveries:
                delayed.append(record)
            else:
                self._return(queue, record)
        if delayed:
            queue.leased -= len(delayed)
            queue.delayed += len(delayed)
            self._wait(queue, delayed, DELAYED, self._log_ms + command.delay_ms)
        return 200, Settled(stale)

    def _extend(self, command: Extend) -> Result:
        queue = self._queues.get(command.queue)
        if queue is None:
            return _unknown(command.queue)
        held, stale = self._held(queue, command.deliveries)
        due_ms = self._log_ms + command.visibility_ms
        changed = [record for record in held if record.due_ms != due_ms]
        if changed:
            self._wait(queue, changed, LEASED, due_ms)
        return 200, Settled(stale)

    def _expire(self, command: Expire) -> Result:
        return _DONE  # `apply` has done it before the first command

    # --- parts ---

    def _held(
        self, queue: Queue, deliveries: Sequence[tuple[int, int]]
    ) -> tuple[list[Record], tuple[int, ...]]:
        """The leased records of `deliveries`, each once, and the positions of the stale ones."""
        held: dict[int, Record] = {}
        stale = []
        for position, (sequence, number) in enumerate(deliveries):
            record = queue.records.get(sequence)
            if (
                record is None
                or record.state != LEASED
                or record.deliveries != number
                or sequence in held
            ):
                stale.append(position)
            else:
                held[sequence] = record
        return list(held.values()), tuple(stale)

    def _wait(self, queue: Queue, records: list[Record], state: int, due_ms: int) -> None:
        """Put records into `state` until `due_ms`. The caller counts."""
        for record in records:
            record.state = state
            record.due_ms = due_ms
        self._due_tie += 1
        heappush(self._due, (due_ms, self._due_tie, queue, records))
        self._due_records += len(records)
        if self._due_records > 1_024 and self._due_records > 2 * self._messages:
            self._compact_due()

    def _compact_due(self) -> None:
        """Drop what is void: acked messages' leases would stay until they would have ended."""
        kept = []
        for due_ms, tie, queue, records in self._due:
            if queue.alive:
                valid = [record for record in records if record.due_ms == due_ms]
                if valid:
                    kept.append((due_ms, tie, queue, valid))
        heapify(kept)
        self._due = kept
        self._due_records = sum(len(entry[3]) for entry in kept)

    def _ripen(self) -> None:
        """End what is due, about DUE_ITEMS_MAX of it at once.

        All that ends in the same ms ends together: how entries of the heap are cut differs
        between a node that has replayed the log and one that was restored from a snapshot, and
        must not show.
        """
        due = self._due
        moved = 0
        last_ms = -1
        while due and due[0][0] <= self._log_ms:
            if moved >= DUE_ITEMS_MAX and due[0][0] != last_ms:
                break
            last_ms, _, queue, records = heappop(due)
            self._due_records -= len(records)
            if not queue.alive:
                continue
            for record in records:
                if record.due_ms != last_ms:
                    continue
                moved += 1
                if record.state == LEASED:
                    queue.counters.expired += 1
                self._return(queue, record)

    def _return(self, queue: Queue, record: Record) -> None:
        """A leased or delayed record becomes visible, or a dead letter when it was tried enough."""
        if record.state == LEASED:
            queue.leased -= 1
        else:
            queue.delayed -= 1
        record.due_ms = 0
        if record.deliveries >= queue.settings.max_deliveries:
            record.state = DEAD
            del queue.records[record.sequence]
            queue.dead[record.sequence] = record
            queue.counters.dead_lettered += 1
        else:
            record.state = READY
            heappush(queue.returned, (record.sequence, record))
            self._became_ready[queue.name] = None

    def _forget(self, queue: Queue) -> None:
        queue.alive = False
        self._messages -= len(queue.records) + len(queue.dead)
        self._bytes -= queue.bytes
        del self._queues[queue.name]
        self._became_ready.pop(queue.name, None)

    def _full(self, queue: str) -> Result:
        return _error(
            429,
            "queue_full",
            f"partition {self.partition} of queue {queue!r} is full: {self._messages} messages, "
            f"{self._bytes} bytes (at most {PARTITION_MESSAGES_MAX}, {PARTITION_BYTES_MAX}). "
            "Receive and acknowledge first.",
            retry_after_ms=1_000,
        )

    def _restore_queue(self, saved: QueueState) -> None:
        queue, waiting = restore_queue(saved)
        self._queues[queue.name] = queue
        self._messages += len(queue.records) + len(queue.dead)
        self._bytes += queue.bytes
        for record in waiting:
            self._wait(queue, [record], record.state, record.due_ms)

    def _story(self) -> str:
        return (
            f"partition {self.partition} at sequence {self._sequence}: {self._messages} messages, "
            f"{self._bytes} bytes, {self._due_records} records in {len(self._due)} due entries"
        )
