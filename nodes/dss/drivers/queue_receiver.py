"""Receives: messages taken out of the partitions this node leads, asked of the others, waited for.

Order: own partitions first, starting at another one each time; then the nodes that lead the rest,
taking turns, those that had nothing a moment ago last; then a long poll. What must not live here:
who waits and gets hints (queue_polls.py), queues' existence and everything else a client asks for
(queues.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec

from dss.base.errors import DssError, NotFound, Unavailable
from dss.base.limits import QUEUES_MAX, RECEIVE_BYTES_MAX, TAKE_PARTITIONS_MAX
from dss.core.meta.commands import QueueEntry
from dss.core.queueing.commands import Delivered, Nack, Receive
from dss.drivers.queue_partitions import Answers, Partitions
from dss.drivers.queue_polls import Poll, Polls
from dss.transport.ports import Peer, Transport

log = logging.getLogger("dss.queues")

RECEIVE: Final = "queue.receive"
CALL_TIMEOUT_MS: Final = 5_000
EMPTY_LASTS_S: Final = 1.0
"""So long a node that had nothing is asked last, unless it hints; as long as a lost hint can
delay a poll (queue_polls.LOOK_ANYWAY_S)."""

Kind = TypeVar("Kind")

_encode = msgspec.msgpack.Encoder().encode


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """`queue.receive`: take from what the asked node leads, and hint when there is more later."""

    queue: str
    max: int
    visibility_ms: int | None
    interested: bool


class Taken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message out of `partition`."""

    partition: int
    delivered: Delivered


class Known(Protocol):
    """The registry, as far as a poll needs it."""

    queues: dict[str, QueueEntry]


_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_taken = msgspec.msgpack.Decoder(list[Taken]).decode


def as_kind(kind: type[Kind], body: Any) -> Kind:
    """A result of this node's machine as it is, one that came over a link converted."""
    return body if isinstance(body, kind) else msgspec.convert(body, kind)


def unknown_queue(name: str) -> NotFound:
    """404 for a queue that nobody has made."""
    error = NotFound(f"queue {name!r} does not exist: create it with PUT /v1/queues/{name}")
    error.code = "unknown_queue"
    return error


class Receiver:
    """The receives of one node. Answers the call `queue.receive` of the others."""

    def __init__(
        self, transport: Transport, partitions: Partitions, polls: Polls, node_id: str
    ) -> None:
        self._transport = transport
        self._partitions = partitions
        self._polls = polls
        self._me = node_id
        self._claimed: dict[tuple[int, str], int] = {}
        """Messages that receives under way are about to take, per partition and queue."""
        self._turn = self._asked = 0
        self._empty_s: dict[str, dict[str, float]] = {}
        """queue -> node -> when it last had nothing; only of queues that others were asked for."""
        polls.on_hint(self._hinted)

    def start(self) -> None:
        self._transport.on_call(RECEIVE, self._on_receive)

    async def receive(self, ask: Ask, wait_ms: int, known: Known) -> list[Taken]:
        """See QueueService.receive; `known` tells when the queue is deleted under a poll."""
        taken = await self._collect(ask)
        if taken:
            return taken
        return await (self._poll(ask, wait_ms, known) if wait_ms else self._ask_others(ask, None))

    async def _poll(self, ask: Ask, wait_ms: int, known: Known) -> list[Taken]:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_ms / 1_000
        poll = self._polls.begin(ask.queue)
        try:
            while True:
                poll.arm()
                hinted, poll.hinted = poll.hinted, None
                taken = await self._collect(ask) or await self._ask_others(ask, hinted)
                if taken or not await _woken(poll, deadline_s - loop.time()):
                    return taken
                if ask.queue not in known.queues:
                    raise unknown_queue(ask.queue)
        finally:
            self._polls.end(ask.queue, poll)
            # A wake that this poll did not use belongs to the next one.
            self._pass_on(ask.queue)

    def _take(self, ask: Ask) -> list[tuple[int, asyncio.Future[Answers]]]:
        """Begin to take up to `ask.max` out of partitions that this node leads.

        Each is asked for no more than it can have left once the receives under way are served,
        so that no log entry is wasted and together they never give more than `ask.max`.
        """
        led = self._partitions.led
        if not led:
            return []
        self._turn = (self._turn + 1) % len(led)
        wanted = ask.max
        shares: list[tuple[int, int]] = []
        for partition in led[self._turn :] + led[: self._turn]:
            share = min(wanted, self._available(partition, ask.queue))
            if share > 0:
                shares.append((partition, share))
                wanted -= share
                if wanted == 0 or len(shares) == TAKE_PARTITIONS_MAX:
                    break
        return [(p, self._take_from(p, share, ask, len(shares))) for p, share in shares]

    def _take_from(
        self, partition: int, share: int, ask: Ask, shares: int
    ) -> asyncio.Future[Answers]:
        key = (partition, ask.queue)
        self._claimed[key] = self._claimed.get(key, 0) + share
        command = Receive(ask.queue, share, ask.visibility_ms, RECEIVE_BYTES_MAX // shares)
        future = self._partitions.submit(partition, command)

        def unclaim(_: asyncio.Future[Answers]) -> None:
            left = self._claimed[key] - share
            if left:
                self._claimed[key] = left
            else:
                del self._claimed[key]
            if partition in self._partitions.led:
                self.became_ready(ask.queue, partition)

        future.add_done_callback(unclaim)
        return future

    def _available(self, partition: int, queue: str) -> int:
        ready = self._partitions.machines[partition].ready(queue)
        return ready - self._claimed.get((partition, queue), 0) if ready else 0

    async def _collect(self, ask: Ask) -> list[Taken]:
        """Take out of the partitions that this node leads."""
        takes = self._take(ask)
        if not takes:
            return []
        partitions = [partition for partition, _ in takes]
        answers = asyncio.gather(*(future for _, future in takes))
        return _taken(
            partitions, await self._unless_gone(ask.queue, answers, partial(_taken, partitions))
        )

    async def _unless_gone(
        self, queue: str, answer: asyncio.Future[Kind], taken: Callable[[Kind], list[Taken]]
    ) -> Kind:
        """Wait for what takes messages. An asker who goes meanwhile leaves them as they were:
        they are given back as soon as they come, not at the end of their leases."""
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(partial(self._give_back, queue, taken))
            raise

    def _give_back(
        self, queue: str, taken: Callable[[Kind], list[Taken]], answer: asyncio.Future[Kind]
    ) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return
        deliveries: dict[int, list[tuple[int, int]]] = {}
        for one in taken(answer.result()):
            delivery = (one.delivered.sequence, one.delivered.deliveries)
            deliveries.setdefault(one.partition, []).append(delivery)
        for partition, some in deliveries.items():
            self._partitions.submit(partition, Nack(queue, tuple(some)))

    def became_ready(self, queue: str, partition: int) -> None:
        """A message is visible in `partition`, which this node leads: wake who waits for it."""
        count = self._available(partition, queue)
        if count > 0:
            self._polls.ready(queue, count)

    def _pass_on(self, queue: str) -> None:
        count = sum(max(0, self._available(p, queue)) for p in self._partitions.led)
        if count:
            self._polls.ready(queue, count)

    async def _ask_others(self, ask: Ask, hinted: str | None) -> list[Taken]:
        """Ask the nodes that lead the other partitions, one after another, until one has some.

        Raises:
            Unavailable: this node leads nothing and nobody answered.
        """
        nodes = self._order(ask.queue, hinted)
        body = _encode(ask)
        answered = bool(self._partitions.led)
        for node in nodes:
            try:
                call = self._transport.call(node, RECEIVE, body, CALL_TIMEOUT_MS)
                taken = _of_bytes(await self._unless_gone(ask.queue, call, _of_bytes))
            except DssError as error:
                log.debug("receive from %s: %s", node, error.message)
                continue
            answered = True
            if taken:
                return taken
            self._had_nothing(ask.queue, node)
        if not answered:
            raise Unavailable(
                f"{self._me} leads no partition and reaches no node that does; nothing was "
                "received",
                retry_after_ms=1_000,
            )
        return []

    def _order(self, queue: str, hinted: str | None) -> list[str]:
        """Whom to ask: who hinted, then in turn who may have some, then who had nothing."""
        nodes = list(self._partitions.leaders())
        if not nodes:
            return nodes
        self._asked += 1
        turn = self._asked % len(nodes)
        nodes = nodes[turn:] + nodes[:turn]
        empty_s = self._empty_s.get(queue)
        if empty_s is None and hinted is None:
            return nodes
        old_s = asyncio.get_running_loop().time() - EMPTY_LASTS_S
        times_s = empty_s or {}
        nodes.sort(key=lambda node: (node != hinted, times_s.get(node, old_s) > old_s))
        return nodes

    def _had_nothing(self, queue: str, node: str) -> None:
        empty_s = self._empty_s.get(queue)
        if empty_s is None:
            if len(self._empty_s) >= QUEUES_MAX:
                # Of queues that are gone, or asked for seldom: a wrong order only costs time.
                self._empty_s.clear()
            empty_s = self._empty_s[queue] = {}
        empty_s[node] = asyncio.get_running_loop().time()

    def _hinted(self, queue: str, node: str) -> None:
        """`node` has messages again."""
        empty_s = self._empty_s.get(queue)
        if empty_s is not None:
            empty_s.pop(node, None)

    def _on_receive(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        ask = _decode_ask(body)
        if ask.interested:
            self._polls.interested(peer.node_id, ask.queue)
        takes = self._take(ask)
        if not takes:
            reply(200, _encode([]))
            return

        def done(answers: asyncio.Future[list[Answers]]) -> None:
            if not answers.cancelled():
                reply(200, _encode(_taken([p for p, _ in takes], answers.result())))

        asyncio.gather(*(future for _, future in takes)).add_done_callback(done)


async def _woken(poll: Poll, wait_s: float) -> bool:
    """Wait for a wake at most `wait_s`; was there one?"""
    if wait_s <= 0:
        return False
    try:
        async with asyncio.timeout(wait_s):
            await poll.woken
    except TimeoutError:
        return False
    return True


def _of_bytes(body: bytes) -> list[Taken]:
    return _decode_taken(body)


def _taken(partitions: list[int], answers: list[Answers]) -> list[Taken]:
    """Those that failed gave nothing: what they may have leased comes back by itself."""
    return [
        Taken(partition, delivered)
        for partition, (status, body) in zip(partitions, answers, strict=True)
        if status < 400
        for delivered in (as_kind(Delivered, one) for one in body)
    ]
