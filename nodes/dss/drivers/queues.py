"""The queue service of one node: what a client asks for, turned into partition commands.

A message with a key goes to partition BLAKE2b-64(queue NUL key) mod P, so one key's messages keep
their order. Messages without a key go to a sticky partition, one this node leads when there is
any, which changes after STICKY_MESSAGES: a batch of them is one command in one partition.

Retries: a send that was answered 503 did nothing and may be repeated. After 504 (`indeterminate`)
the messages may be there: a repeat may add them twice, as at-least-once delivery allows; a message
with a key comes to the same partition again. Acks are safe to repeat: the second one is stale.

What must not live here: HTTP (api/queues.py), the groups themselves (queue_partitions.py), who
waits and takes (queue_polls.py, queue_receiver.py), what a command does (core/queueing).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Invalid, RemoteError, Unavailable
from dss.base.ids import partition_group
from dss.base.limits import QUEUE_LENGTH_MAX
from dss.core.meta.commands import DeleteQueue, PutQueue, QueueEntry
from dss.core.queueing.commands import (
    Ack,
    Drop,
    Extend,
    Message,
    Nack,
    QueueSettings,
    Send,
    Sent,
    Settled,
    parse_receipt,
)
from dss.core.ring.ring import point
from dss.drivers.metadata import MetadataView
from dss.drivers.ports import Consensus
from dss.drivers.queue_partitions import Partitions, configure
from dss.drivers.queue_polls import Polls
from dss.drivers.queue_receiver import Ask, Receiver, Taken, as_kind, unknown_queue
from dss.topology.nodes import NodeConfig
from dss.transport.ports import Peer, Transport

log = logging.getLogger("dss.queues")

STATS: Final = "queue.stats"
CALL_TIMEOUT_MS: Final = 5_000
STICKY_MESSAGES: Final = 100
"""Messages without a key that go to one partition before the next one's turn."""
SEND_ATTEMPTS: Final = 3
"""Of a send to a partition that has to be told of the queue first, or has no leader."""

Settle = Ack | Nack | Extend

_encode = msgspec.msgpack.Encoder().encode


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one message of a batch, or of one receipt."""

    status: int
    body: Any = None
    """From 400 on `{code, message, …}`; of a sent message its (partition, sequence)."""


Stats = dict[str, int]

_decode_names = msgspec.msgpack.Decoder(list[str]).decode
_decode_stats = msgspec.msgpack.Decoder(dict[int, dict[str, Stats]]).decode


class Counts:
    """What this node has done for one queue since the process started."""

    __slots__ = ("acked", "extended", "nacked", "received", "redelivered", "sent")

    def __init__(self) -> None:
        self.sent = self.received = self.redelivered = 0
        self.acked = self.nacked = self.extended = 0


class QueueService:
    """Any queue node answers any request. `start`, `stop`, `readiness` as all services."""

    def __init__(
        self,
        consensus: Consensus,
        transport: Transport,
        view: MetadataView,
        config: NodeConfig,
    ) -> None:
        self._transport = transport
        self._view = view
        self._me = config.node_id
        others = [node.id for node in config.queue_nodes if node.id != self._me]
        self.polls = Polls(transport, others)
        self.partitions = Partitions(consensus, transport, view, config, self._became_ready)
        self._receiver = Receiver(transport, self.partitions, self.polls, config.node_id)
        self.counts: dict[str, Counts] = {}
        self._sticky = -1
        self._sticky_left = 0

    async def start(self) -> None:
        self._receiver.start()
        self._transport.on_call(STATS, self._on_stats)
        self.polls.start()
        self.partitions.start()
        self._view.on_change(self._forget_counts)

    async def stop(self) -> None:
        """End the long polls: they answer what they have, which is nothing."""
        self.polls.stop()
        self.partitions.stop()

    def readiness(self) -> str | None:
        return self.partitions.readiness()

    def status(self) -> dict[str, Any]:
        return {
            "partitions": len(self.partitions.machines),
            "leading": len(self.partitions.led),
            "metadata_version": self._view.version,
            "queues": len(self._view.queues),
            "waiting_receives": self.polls.waiting,
        }

    # --- queues -------------------------------------------------------------------------

    async def put(self, name: str, settings: QueueSettings) -> tuple[QueueEntry, bool]:
        """Make a queue or change its settings; (entry, was it made).

        It is committed in the registry and set up in every partition that has a quorum; the
        others follow when they have one.
        """
        self.partitions.count  # noqa: B018 - a cluster without partitions cannot keep messages
        body = _checked(*await self._view.propose(PutQueue(name, settings)))
        entry = as_kind(QueueEntry, body["queue"])
        command = configure(entry)
        await asyncio.gather(
            *(self.partitions.submit(p, command) for p in range(self.partitions.count))
        )
        return entry, bool(body["created"])

    async def delete(self, name: str) -> None:
        """Delete a queue and all its messages. Raises RemoteError 404 `unknown_queue`."""
        body = _checked(*await self._view.propose(DeleteQueue(name)))
        command = Drop(name, as_kind(QueueEntry, body["queue"]).incarnation)
        await asyncio.gather(
            *(self.partitions.submit(p, command) for p in range(self.partitions.count))
        )

    async def get(self, name: str) -> QueueEntry:
        """The queue's registry entry.

        A name that this node does not know is looked up in the metadata group, for it may have
        been made through another node a moment ago.

        Raises:
            NotFound: `unknown_queue`.
            Unavailable: it is not known here and the lock nodes cannot be asked.
        """
        entry = self._view.queues.get(name)
        if entry is None:
            current = await self._view.refresh()
            entry = self._view.queues.get(name)
            if entry is None and not current:
                raise Unavailable(
                    f"queue {name!r} is not known on {self._me}, and no lock node with a quorum "
                    "answers",
                    retry_after_ms=1_000,
                )
        if entry is None:
            raise unknown_queue(name)
        return entry

    async def list_queues(self) -> list[QueueEntry]:
        """All queues, by name, as of now if the lock nodes answer."""
        await self._view.refresh()
        return sorted(self._view.queues.values(), key=lambda entry: entry.name)

    # --- sending ------------------------------------------------------------------------

    def partition_of(self, queue: str, key: str) -> int:
        """BLAKE2b-64 of `queue NUL key`, modulo the number of partitions."""
        return point(f"{queue}\0{key}".encode("utf-8", "surrogatepass")) % self.partitions.count

    async def send(self, queue: str, messages: Sequence[Message]) -> list[Outcome]:
        """Send a batch; one outcome per message, in order.

        Messages of one partition go in together or not at all; 200 means: on the disks of a
        quorum.
        """
        entry = await self.get(queue)
        self._check_length(entry, len(messages))
        groups: dict[int, list[int]] = {}
        for position, message in enumerate(messages):
            partition = -1 if message.key is None else self.partition_of(queue, message.key)
            groups.setdefault(partition, []).append(position)
        if -1 in groups:
            keyless = groups.pop(-1)
            groups.setdefault(self._sticky_partition(len(keyless)), []).extend(keyless)
        outcomes: list[Outcome] = [Outcome(500)] * len(messages)
        pending = list(groups.items())
        for attempt in range(SEND_ATTEMPTS):
            pending = await self._send_round(entry, messages, pending, outcomes, attempt)
            if not pending:
                break
        return outcomes

    async def _send_round(
        self,
        entry: QueueEntry,
        messages: Sequence[Message],
        groups: list[tuple[int, list[int]]],
        outcomes: list[Outcome],
        attempt: int,
    ) -> list[tuple[int, list[int]]]:
        """Send each group to its partition; the groups that another round may help."""
        futures = []
        for partition, positions in groups:
            command = Send(
                entry.name, entry.incarnation, tuple(messages[position] for position in positions)
            )
            futures.append(self.partitions.submit(partition, command))
        again: list[tuple[int, list[int]]] = []
        for (partition, positions), (status, body) in zip(
            groups, await asyncio.gather(*futures), strict=True
        ):
            if status < 400:
                first = as_kind(Sent, body).first
                for offset, position in enumerate(positions):
                    outcomes[position] = Outcome(status, (partition, first + offset))
                self._count(entry.name).sent += len(positions)
                continue
            for position in positions:
                outcomes[position] = Outcome(status, body)
            if body.get("code") == "not_configured":
                await self.partitions.submit(partition, configure(entry))
                again.append((partition, positions))
            elif status == 503 and all(messages[p].key is None for p in positions):
                # Nothing was done, and no key binds these messages to that partition.
                self._sticky_left = 0
                again.append((self._sticky_partition(len(positions)), positions))
        return again if attempt + 1 < SEND_ATTEMPTS else []

    def _sticky_partition(self, count: int) -> int:
        """Where `count` messages without a key go now."""
        if self._sticky_left <= 0 or not self._good(self._sticky):
            candidates: Sequence[int] = self.partitions.led or [
                partition
                for partition in range(self.partitions.count)
                if self.partitions.leader(partition) is not None
            ]
            candidates = candidates or range(self.partitions.count)
            later = [partition for partition in candidates if partition > self._sticky]
            self._sticky = (later or candidates)[0]
            self._sticky_left = STICKY_MESSAGES
        self._sticky_left -= count
        return self._sticky

    def _good(self, partition: int) -> bool:
        return partition in self.partitions.led or not self.partitions.led

    def _check_length(self, entry: QueueEntry, count: int) -> None:
        """Refuse beyond `max_length`, by what this node's replicas hold.

        Approximate by what is in flight, and by the partitions that this node has no replica
        of, which are taken to hold as many as the others.
        """
        bound = entry.settings.max_length
        if bound == QUEUE_LENGTH_MAX:
            return
        machines = self.partitions.machines
        held = sum(machine.length(entry.name) for machine in machines.values())
        held = held * self.partitions.count // max(1, len(machines))
        if held + count > bound:
            raise RemoteError(
                429,
                {
                    "code": "queue_full",
                    "message": f"queue {entry.name!r} holds {held} messages, dead letters "
                    f"included; its max_length is {bound}. Receive and acknowledge first.",
                    "retry_after_ms": 1_000,
                },
            )

    # --- receiving ----------------------------------------------------------------------

    async def receive(
        self, queue: str, max_messages: int, wait_ms: int, visibility_ms: int | None
    ) -> list[Taken]:
        """Up to `max_messages`, leased; with `wait_ms` wait so long for the first of them."""
        await self.get(queue)
        ask = Ask(queue, max_messages, visibility_ms, wait_ms > 0)
        taken = await self._receiver.receive(ask, wait_ms, self._view)
        if taken:
            counts = self._count(queue)
            counts.received += len(taken)
            counts.redelivered += sum(one.delivered.deliveries > 1 for one in taken)
        return taken

    def _became_ready(self, queue: str, partition: int) -> None:
        self._receiver.became_ready(queue, partition)

    # --- settling -----------------------------------------------------------------------

    async def ack(self, queue: str, receipts: Sequence[str]) -> list[Outcome]:
        """Messages are done; one outcome per receipt, 409 `stale_receipt` for a late one."""
        outcomes = await self._settle(queue, receipts, lambda some: Ack(queue, some))
        self._count(queue).acked += sum(outcome.status < 400 for outcome in outcomes)
        return outcomes

    async def nack(self, queue: str, receipts: Sequence[str], delay_ms: int) -> list[Outcome]:
        """Give messages back, to be visible again after `delay_ms`."""
        outcomes = await self._settle(queue, receipts, lambda some: Nack(queue, some, delay_ms))
        self._count(queue).nacked += sum(outcome.status < 400 for outcome in outcomes)
        return outcomes

    async def extend(
        self, queue: str, receipts: Sequence[str], visibility_ms: int
    ) -> list[Outcome]:
        """The leases end `visibility_ms` from now."""
        outcomes = await self._settle(
            queue, receipts, lambda some: Extend(queue, some, visibility_ms)
        )
        self._count(queue).extended += sum(outcome.status < 400 for outcome in outcomes)
        return outcomes

    async def _settle(
        self,
        queue: str,
        receipts: Sequence[str],
        command: Callable[[tuple[tuple[int, int], ...]], Settle],
    ) -> list[Outcome]:
        await self.get(queue)
        count = self.partitions.count
        outcomes = [Outcome(200)] * len(receipts)
        groups: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        for position, text in enumerate(receipts):
            try:
                partition, sequence, deliveries = parse_receipt(text)
                if partition >= count:
                    raise Invalid(f"{text!r} is not a receipt: use the one that receive gave")
            except Invalid as error:
                outcomes[position] = Outcome(error.status, error.body())
                continue
            groups.setdefault(partition, []).append((position, (sequence, deliveries)))
        answers = await asyncio.gather(
            *(
                self.partitions.submit(partition, command(tuple(one for _, one in group)))
                for partition, group in groups.items()
            )
        )
        for group, (status, body) in zip(groups.values(), answers, strict=True):
            stale = as_kind(Settled, body).stale if status < 400 else ()
            for offset in stale:
                outcomes[group[offset][0]] = _STALE
            if status >= 400:
                for position, _ in group:
                    outcomes[position] = Outcome(status, body)
        return outcomes

    # --- looking ------------------------------------------------------------------------

    async def stats(self, names: Sequence[str]) -> dict[str, Stats]:
        """Sums over all partitions, per queue: each from its leader, or, when that does not
        answer, from this node's replica. `oldest_age_ms` is that of the oldest message kept."""
        nodes = list(self.partitions.leaders())
        body = _encode(list(names))
        answers = await asyncio.gather(
            *(self._transport.call(node, STATS, body, CALL_TIMEOUT_MS) for node in nodes),
            return_exceptions=True,
        )
        found: dict[int, dict[str, Stats]] = {
            partition: self._stats_of(partition, names) for partition in self.partitions.machines
        }
        for answer in answers:
            if isinstance(answer, bytes):
                found.update(_decode_stats(answer))
            elif not isinstance(answer, DssError):
                raise answer
        found.update((p, self._stats_of(p, names)) for p in self.partitions.led)
        return {name: _sum_stats(part.get(name) for part in found.values()) for name in names}

    def _stats_of(self, partition: int, names: Sequence[str]) -> dict[str, Stats]:
        machine = self.partitions.machines[partition]
        found = {}
        for name in names:
            stats = machine.stats(name)
            if stats is not None:
                oldest_ms = stats.pop("oldest_ms", None)
                if oldest_ms is not None:
                    stats["oldest_age_ms"] = max(0, self.partitions.log_ms(partition) - oldest_ms)
                found[name] = stats
        return found

    def _on_stats(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        names = _decode_names(body)
        reply(200, _encode({p: self._stats_of(p, names) for p in self.partitions.led}))

    def placement(self) -> list[dict[str, Any]]:
        """Per partition: where it should be, and who leads it as far as this node knows."""
        return [
            {
                "partition": partition,
                "group": partition_group(partition),
                "replicas": [replica.node_id for replica in row.replicas],
                "preferred_leader": row.replicas[0].node_id,
                "leader": self.partitions.leader(partition),
            }
            for partition, row in enumerate(self._view.table)
        ]

    def _count(self, queue: str) -> Counts:
        counts = self.counts.get(queue)
        if counts is None:
            counts = self.counts[queue] = Counts()
        return counts

    def _forget_counts(self) -> None:
        for name in [name for name in self.counts if name not in self._view.queues]:
            del self.counts[name]


_STALE: Final = Outcome(
    409,
    {
        "code": "stale_receipt",
        "message": "the lease has ended, or the message was settled before: it may have been "
        "delivered again, under another receipt",
    },
)
_SUMMED: Final = (
    "ready", "leased", "delayed", "dead", "bytes",
    "sent", "received", "redelivered", "acked", "nacked", "expired", "dead_lettered",
)  # fmt: skip


def _sum_stats(parts: Any) -> Stats:
    total = dict.fromkeys(_SUMMED, 0)
    oldest: int | None = None
    for part in parts:
        if part is None:
            continue
        for name in _SUMMED:
            total[name] += part[name]
        age = part.get("oldest_age_ms")
        if age is not None and (oldest is None or age > oldest):
            oldest = age
    if oldest is not None:
        total["oldest_age_ms"] = oldest
    return total


def _checked(status: int, body: Any) -> Any:
    if status >= 400:
        raise RemoteError(status, body)
    return body
