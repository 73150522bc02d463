"""Who waits for messages of which queue, here and on other nodes; whom to wake.

A long poll registers first and looks second, so that no message can come between. The node tells
the others of its interest (`queue.interest`); where a message becomes visible for an interested
node, that node gets a hint (`queue.hint`) and one of its polls looks again. Casts may be lost with
a link: a link that comes up repeats the interest, and once a second one poll of each waiting queue
looks anyway. What must not live here: looking for messages (queues.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from dss.base.errors import Overloaded
from dss.base.limits import INTERESTS_MAX
from dss.transport.ports import Peer, Transport

INTEREST: Final = "queue.interest"
HINT: Final = "queue.hint"
LOOK_ANYWAY_S: Final = 1.0
INTEREST_EVERY_S: Final = 10.0
INTEREST_LASTS_S: Final = 45.0
"""Longer than INTEREST_EVERY_S and the longest poll (30 s) together."""

_encode = msgspec.msgpack.Encoder().encode


class Interest(msgspec.Struct, frozen=True, array_like=True):
    queue: str
    on: bool = True


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """`count` messages of `queue` are visible at the sender, beyond what its own polls take."""

    queue: str
    count: int


_decode_interest = msgspec.msgpack.Decoder(Interest).decode
_decode_hint = msgspec.msgpack.Decoder(Hint).decode


class Poll:
    """One waiting receive. `woken` is done when it should look again."""

    __slots__ = ("hinted", "woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.woken: asyncio.Future[None] = loop.create_future()
        self.hinted: str | None = None
        """The node whose hint woke it: the first one to ask."""

    def arm(self) -> None:
        """Before a look: what becomes visible from now on will wake this poll."""
        if self.woken.done():
            self.woken = self.woken.get_loop().create_future()

    def wake(self, hinted: str | None = None) -> bool:
        if self.woken.done():
            return False
        self.hinted = hinted
        self.woken.set_result(None)
        return True


class Polls:
    """The polls of this node and the interests of the others.

    Args:
        others: the other queue nodes' ids.
    """

    def __init__(self, transport: Transport, others: list[str]) -> None:
        self._transport = transport
        self._others = others
        self._polls: dict[str, dict[Poll, None]] = {}
        self._count = 0
        self._told_s: dict[str, float] = {}
        """When the others were last told of a queue's interest, on the loop's clock."""
        self._interests: dict[str, dict[str, float]] = {}
        """queue -> node -> until when, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._hint_listener: Callable[[str, str], None] | None = None

    def on_hint(self, listener: Callable[[str, str], None]) -> None:
        """listener(queue, node): `node` says that it has messages of `queue`."""
        self._hint_listener = listener

    @property
    def waiting(self) -> int:
        """Long polls under way on this node."""
        return self._count

    def start(self) -> None:
        self._transport.on_cast(INTEREST, self._on_interest)
        self._transport.on_cast(HINT, self._on_hint)
        self._transport.on_link(self._on_link)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for polls in self._polls.values():
            for poll in polls:
                poll.wake()

    # --- polls of this node -------------------------------------------------------------

    def begin(self, queue: str) -> Poll:
        """Register a poll and tell the others. Raises Overloaded beyond INTERESTS_MAX."""
        if self._count >= INTERESTS_MAX:
            raise Overloaded(
                f"{INTERESTS_MAX} receives wait on this node already", retry_after_ms=1_000
            )
        loop = asyncio.get_running_loop()
        poll = Poll(loop)
        self._polls.setdefault(queue, {})[poll] = None
        self._count += 1
        if loop.time() - self._told_s.get(queue, -INTEREST_EVERY_S) >= INTEREST_EVERY_S:
            self._told_s[queue] = loop.time()
            self._tell(queue, self._others)
        if self._timer is None:
            self._timer = loop.call_later(LOOK_ANYWAY_S, self._look_anyway)
        return poll

    def end(self, queue: str, poll: Poll) -> None:
        polls = self._polls[queue]
        del polls[poll]
        self._count -= 1
        if not polls:
            del self._polls[queue]

    def _tell(self, queue: str, nodes: list[str]) -> None:
        body = _encode(Interest(queue))
        for node in nodes:
            self._transport.cast(node, INTEREST, body)

    def _look_anyway(self) -> None:
        self._timer = None
        for queue in list(self._polls):
            self._wake(queue, 1, None)
        now_s = asyncio.get_running_loop().time()
        for queue in [q for q, told_s in self._told_s.items() if now_s - told_s > INTEREST_LASTS_S]:
            del self._told_s[queue]
        if self._polls:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_ANYWAY_S, self._look_anyway)

    def _wake(self, queue: str, count: int, hinted: str | None) -> int:
        """Wake up to `count` polls, the longest waiting first; how many it were."""
        woken = 0
        for poll in self._polls.get(queue, ()):
            if woken == count:
                break
            woken += poll.wake(hinted)
        return woken

    # --- news ---------------------------------------------------------------------------

    def ready(self, queue: str, count: int) -> None:
        """`count` messages of `queue` can be taken on this node: wake polls, hint at others."""
        left = count - self._wake(queue, count, None)
        if left <= 0:
            return
        nodes = self._interests.get(queue)
        if not nodes:
            return
        now_s = asyncio.get_running_loop().time()
        body = _encode(Hint(queue, left))
        for node, until_s in list(nodes.items()):
            if until_s < now_s:
                del nodes[node]
            else:
                self._transport.cast(node, HINT, body)
        if not nodes:
            del self._interests[queue]

    def interested(self, node: str, queue: str) -> None:
        """`node` has polls that wait for `queue`. Beyond INTERESTS_MAX queues it is not noted:
        that node's polls then look once a second."""
        nodes = self._interests.get(queue)
        if nodes is None:
            if len(self._interests) >= INTERESTS_MAX:
                return
            nodes = self._interests[queue] = {}
        nodes[node] = asyncio.get_running_loop().time() + INTEREST_LASTS_S

    def _on_interest(self, peer: Peer, body: bytes) -> None:
        interest = _decode_interest(body)
        if peer.node_id not in self._others:
            return
        if interest.on:
            self.interested(peer.node_id, interest.queue)
        elif interest.queue in self._interests:
            self._interests[interest.queue].pop(peer.node_id, None)

    def _on_hint(self, peer: Peer, body: bytes) -> None:
        hint = _decode_hint(body)
        if self._hint_listener is not None:
            self._hint_listener(hint.queue, peer.node_id)
        if hint.queue in self._polls:
            self._wake(hint.queue, hint.count, peer.node_id)
        else:
            self._told_s.pop(hint.queue, None)
            self._transport.cast(peer.node_id, INTEREST, _encode(Interest(hint.queue, False)))

    def _on_link(self, node_id: str, up: bool, reason: str) -> None:
        if not up or node_id not in self._others:
            return
        for queue in list(self._polls):
            self._tell(queue, [node_id])
            self._wake(queue, 1, node_id)
