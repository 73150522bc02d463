"""Proposals on their way to the leader: here, on another node, or nowhere yet.

A batch for a leader elsewhere travels as the client's own bytes in one cast; its answers come
back in casts, and so do the places of those of its requests that wait in the machine: this node
can answer them by itself, whatever becomes of the leader (waits.py). While no leader is known, or
it does not hear this node (echo.py), a batch is held for one election timeout, then answered 503
`no_quorum`. A hop guard slows down loops between nodes that disagree about the leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dss.base import limits
from dss.base.errors import Indeterminate, Invalid
from dss.core.machine import strip_array_header
from dss.drivers.echo import Echoes
from dss.drivers.forwards import (
    ANSWERS,
    FORWARD,
    Forward,
    PeerSink,
    decode_answers,
    decode_forward,
    encode,
)
from dss.drivers.group import NULL_SINK, Flight
from dss.drivers.held import Batch, Held
from dss.drivers.ports import Sink
from dss.drivers.waits import Place
from dss.transport.links import Links
from dss.transport.ports import Peer

if TYPE_CHECKING:
    from dss.drivers.host import Host

OUTGOING_MS_MAX: Final = limits.WAIT_MS_MAX + 5_000
"""A forwarded batch has its answers by then: the longest wait of a command, and some."""
SWEEP_EVERY_S: Final = 5.0
HOP_PAUSE_S: Final = 0.05
"""A batch that was sent on too often rests for so long: about one heartbeat."""


class _Outgoing(msgspec.Struct):
    """A batch that went to `leader`; `waiting` are the request ids it has not answered yet.

    `placed` are those that wait in the machine, as this node knows.
    """

    leader: str
    group: int
    waiting: dict[int, None]
    sink: Sink
    deadline_ms: int
    doubtful_ms: int = 0
    """Since when `leader` is not the leader any longer; 0: it still is."""
    placed: dict[int, Place] = {}


class Forwarder:
    """See the module's docstring. `hold_ms` is how long a batch waits for a leader."""

    def __init__(self, host: Host, links: Links, *, hold_ms: int) -> None:
        self._host = host
        self._links = links
        self._grace_ms = 2 * hold_ms  # a deposed leader without a successor gives up after one
        self._outgoing: dict[int, _Outgoing] = {}
        self._next_id = 1
        self._held = Held(host, hold_ms)
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.forwarded = 0
        self._echoes = Echoes(
            links, host.loop, allowed_ms=hold_ms, owes=self._owes, changed=self._hearing_changed
        )
        links.on_cast(FORWARD, self._on_forward)
        links.on_cast(ANSWERS, self._on_answers)
        links.on_link(self._on_link)

    def submit(
        self,
        group: int,
        rids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
        hops: int = 0,
    ) -> None:
        """To the engine when this node leads, else to the leader, else hold."""
        host = self._host
        if self._closed:
            self._refuse_all(Batch(group, list(rids), items, commands, sink, hops))
            return
        if host.is_leader(group):
            host.engine.propose(group, rids, items, commands, sink)
            return
        self._elsewhere(Batch(group, list(rids), items, commands, sink, hops))

    def _elsewhere(self, batch: Batch) -> None:
        leader = self._host.leader_of(batch.group)
        if leader == self._host.node_id and self._host.is_leader(batch.group):
            self._host.engine.propose(
                batch.group, batch.rids, batch.items, batch.commands, batch.sink
            )
        elif leader is not None and self._links.peer(leader) is not None:
            if batch.hops >= limits.FORWARD_HOPS_MAX:
                # Nodes disagree about the leader, as they do for a moment when it changes.
                self._held.hold(batch)
                self._host.loop.call_later(HOP_PAUSE_S, self._release, batch.group)
                return
            if self._echoes.hears(leader):
                self._forward(batch, leader)
            else:
                self._held.hold(batch)
                self._echoes.watch(leader)
        else:
            self._held.hold(batch)

    def hears(self, leader: str) -> bool:
        """Whether nothing says that `leader` does not hear this node."""
        return self._echoes.hears(leader)

    def _owes(self, leader: str) -> bool:
        """Whether `leader` has requests of this node unanswered, or shall have some."""
        return any(
            out.waiting and out.leader == leader for out in reversed(self._outgoing.values())
        ) or any(self._host.leader_of(group) == leader for group in self._held.groups())

    def _hearing_changed(self, node_id: str, hears: bool) -> None:
        if hears:
            self._release_for(node_id)
        else:
            self._lose_all(node_id, "it does not hear this node any more")

    def _release_for(self, leader: str) -> None:
        for group in [g for g in self._held.groups() if self._host.leader_of(g) == leader]:
            self._release(group)

    def _lose_all(self, leader: str, reason: str) -> None:
        for forward_id in [fid for fid, out in self._outgoing.items() if out.leader == leader]:
            self._lose(forward_id, reason)

    def _forward(self, batch: Batch, leader: str) -> None:
        forward_id = self._next_id
        self._next_id += 1
        self._outgoing[forward_id] = _Outgoing(
            leader,
            batch.group,
            dict.fromkeys(batch.rids),
            batch.sink,
            self._host.now_ms() + OUTGOING_MS_MAX,
        )
        if self._sweep_timer is None:
            self._sweep_timer = self._host.loop.call_later(SWEEP_EVERY_S, self._sweep)
        self._echoes.watch(leader)
        self.forwarded += 1
        header = b"\xdd" + len(batch.rids).to_bytes(4, "big")
        body = Forward(forward_id, batch.group, batch.hops + 1, header + batch.items)
        self._links.cast(leader, FORWARD, encode(body))

    def _sweep(self) -> None:
        """A net under everything else: no batch stays unanswered for ever."""
        self._sweep_timer = None
        now_ms = self._host.now_ms()
        late = [fid for fid, out in self._outgoing.items() if out.deadline_ms <= now_ms]
        for forward_id in late:
            self._lose(forward_id, "it has not answered in time")
            self._forget_placed(forward_id)
        if self._outgoing:
            self._sweep_timer = self._host.loop.call_later(SWEEP_EVERY_S, self._sweep)

    def role_changed(self, group: int, leader: str | None) -> None:
        """A leader became known or unknown.

        A deposed leader still answers what it took, as soon as it learns what the next one
        committed (engine.py); but it may also be stopped or cut off.
        """
        now_ms = self._host.now_ms()
        doubtful = False
        for out in self._outgoing.values():
            if out.group != group:
                continue
            if out.leader == leader:
                out.doubtful_ms = 0
            elif not out.doubtful_ms:
                out.doubtful_ms = now_ms
                doubtful = True
        if doubtful:
            self._host.loop.call_later(self._grace_ms / 1000, self._give_up, group)
        if leader is not None and group in self._held.groups():
            # Soon, not now: we may be inside an engine step.
            self._host.loop.call_soon(self._release, group)

    def _give_up(self, group: int) -> None:
        oldest_ms = self._host.now_ms() - self._grace_ms
        late = [
            forward_id
            for forward_id, out in self._outgoing.items()
            if out.group == group and 0 < out.doubtful_ms <= oldest_ms + 1
        ]
        for forward_id in late:
            self._lose(forward_id, "the leader changed")

    def _release(self, group: int) -> None:
        for batch in self._held.take(group):
            batch.hops = min(batch.hops, limits.FORWARD_HOPS_MAX - 1)
            self._elsewhere(batch)

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        """The engine could not append these: try the leader, or say why not."""
        position = 0
        for count, sink in flight.sinks:
            rids = flight.rids[position : position + count]
            commands = flight.commands[position : position + count]
            position += count
            if sink is NULL_SINK:
                continue  # what is due is proposed again by whoever leads
            hops = sink.hops if isinstance(sink, PeerSink) else 0
            codec = self._host.machine(group).codec
            items = b"".join(
                codec.encode_item(rid, command) for rid, command in zip(rids, commands, strict=True)
            )
            batch = Batch(group, rids, items, commands, sink, hops)
            if code == "overloaded":
                body = {
                    "code": "overloaded",
                    "message": "too many writes wait for a quorum; repeat later",
                    "retry_after_ms": 100,
                }
                batch.answer(503, body)
            elif code == "transferring":
                self._held.hold(batch)
            else:
                self._elsewhere(batch)

    def _refuse_all(self, batch: Batch) -> None:
        message = f"{self._host.node_id} stops; nothing was done"
        batch.answer(503, {"code": "unavailable", "message": message})

    def owed_groups(self) -> list[int]:
        """Whose batches are held, or have gone to a leader that has not answered all."""
        return [
            *self._held.groups(),
            *(out.group for out in self._outgoing.values() if out.waiting),
        ]

    def close(self) -> None:
        """The node ends: answer everything held or forwarded, and refuse what still comes."""
        self._closed = True
        self._echoes.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for forward_id in list(self._outgoing):
            self._lose(forward_id, f"{self._host.node_id} stops")
        self._outgoing.clear()  # what waits is the engine's to answer
        for group in self._held.groups():
            for batch in self._held.take(group):
                self._refuse_all(batch)

    def _lose(self, forward_id: int, reason: str) -> None:
        """What is known to wait is not lost: this node hears of its end from the log."""
        out = self._outgoing[forward_id]
        waiting, out.waiting = out.waiting, {}
        for rid in waiting:
            out.sink.answer(rid, 504, _lost(out.leader, reason))
        out.sink.flush()
        if not out.placed:
            del self._outgoing[forward_id]

    def _forget_placed(self, forward_id: int) -> None:
        """A net as well: by now its wait has ended, or this node applies nothing any more."""
        out = self._outgoing.pop(forward_id, None)
        if out is None:
            return
        for rid, place in out.placed.items():
            if self._host.claim_wait(out.group, place):
                out.sink.answer(rid, 504, _lost(out.leader, "its wait did not end in time"))
        out.sink.flush()

    def _on_link(self, node_id: str, up: bool, reason: str) -> None:
        self._echoes.link_changed(node_id)
        if up:
            self._release_for(node_id)
        else:
            self._lose_all(node_id, f"the link broke ({reason})")

    def _on_forward(self, peer: Peer, body: bytes) -> None:
        forward = decode_forward(body)
        sink = PeerSink(self._links, peer, forward.forward_id, forward.hops)
        codec = self._codec(forward.group)
        triples = codec.split(forward.payload) if codec else []
        if codec is None:
            # Not a member of that group (yet): the sender must look again.
            items = msgspec.msgpack.decode(
                forward.payload, type=list[tuple[int, msgspec.Raw, msgspec.Raw]]
            )
            problem = self._host.no_quorum(forward.group).body()
            for rid, _, _ in items:
                sink.answer(rid, 503, problem)
            sink.flush()
            return
        try:
            commands = [codec.decode_args(op, args) for _, op, args in triples]
        except Invalid as error:
            for rid, _, _ in triples:
                sink.answer(rid, error.status, error.body())
            sink.flush()
            return
        rids = [rid for rid, _, _ in triples]
        _, items_bytes = strip_array_header(forward.payload)
        self.submit(forward.group, rids, items_bytes, commands, sink, forward.hops)

    def _codec(self, group: int) -> Any:
        try:
            return self._host.machine(group).codec
        except KeyError:
            return None

    def _on_answers(self, peer: Peer, body: bytes) -> None:
        message = decode_answers(body)
        out = self._outgoing.get(message.forward_id)
        if out is None or out.leader != peer.node_id:
            return
        for rid, index, position in message.placed:
            if rid in out.waiting:
                del out.waiting[rid]
                out.placed[rid] = (index, position)
                self._host.adopt_wait(out.group, (index, position), out.sink, rid)
        for rid, status, answer in message.answers:
            if rid in out.waiting:
                del out.waiting[rid]
                out.sink.answer(rid, status, answer)
            elif (
                rid in out.placed
                and status != Indeterminate.status  # its own word; this node will know
                and self._host.claim_wait(out.group, out.placed.pop(rid))
            ):
                out.sink.answer(rid, status, answer)
        if not out.waiting and not out.placed:
            del self._outgoing[message.forward_id]
        out.sink.flush()


def _lost(leader: str, reason: str) -> dict[str, Any]:
    return {
        "code": Indeterminate.code,
        "message": f"sent to {leader}, but {reason}: the write may or may not happen; "
        "read the state, or repeat it if it is idempotent",
    }
