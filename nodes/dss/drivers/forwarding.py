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
from dss.drivers.group import NULL_SINK, Flight
from dss.drivers.ports import Sink
from dss.drivers.waits import Place, Relay
from dss.transport.links import Links
from dss.transport.ports import Peer

if TYPE_CHECKING:
    from dss.drivers.host import Host

_encode = msgspec.msgpack.Encoder().encode

OUTGOING_MS_MAX: Final = limits.WAIT_MS_MAX + 5_000
"""A forwarded batch has its answers by then: the longest wait of a command, and some."""
SWEEP_EVERY_S: Final = 5.0
HOP_PAUSE_S: Final = 0.05
"""A batch that was sent on too often rests for so long: about one heartbeat."""
ANSWERS_BYTES_MAX: Final = limits.FRAME_BYTES_MAX // 2


class Forward(msgspec.Struct, frozen=True, array_like=True):
    """A batch on its way to the leader of `group`."""

    forward_id: int
    group: int
    hops: int
    payload: bytes


class Answers(msgspec.Struct, frozen=True, array_like=True):
    """Some of the answers to one Forward."""

    forward_id: int
    answers: list[tuple[int, int, Any]]
    placed: list[tuple[int, int, int]] = []
    """(request id, entry index, position) of those that wait."""


_forward = msgspec.msgpack.Decoder(Forward)
_answers = msgspec.msgpack.Decoder(Answers)


class _Batch(msgspec.Struct):
    """A submitted batch that this node answers for."""

    group: int
    rids: list[int]
    items: bytes
    commands: Sequence[Any]
    sink: Sink
    hops: int
    deadline_ms: int = 0


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


class _PeerSink(Relay):
    """Collects answers for a batch that came from another node's process.

    Only that process may get them: after its restart the same forward id means another batch.
    """

    __slots__ = ("_answers", "_forward_id", "_links", "_peer", "_placed", "hops")

    def __init__(self, links: Links, peer: Peer, forward_id: int, hops: int) -> None:
        self._links = links
        self._peer = peer
        self._forward_id = forward_id
        self._answers: list[tuple[int, int, Any]] = []
        self._placed: list[tuple[int, int, int]] = []
        self.hops = hops

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._answers.append((request_id, status, body))

    def placed(self, request_id: int, place: Place) -> None:
        self._placed.append((request_id, *place))

    def flush(self) -> None:
        answers, self._answers = self._answers, []
        placed, self._placed = self._placed, []
        if (answers or placed) and self._links.peer(self._peer.node_id) == self._peer:
            self._send(answers, placed)

    def _send(
        self, answers: list[tuple[int, int, Any]], placed: list[tuple[int, int, int]]
    ) -> None:
        body = _encode(Answers(self._forward_id, answers, placed))
        if len(body) > ANSWERS_BYTES_MAX and len(answers) > 1:
            middle = len(answers) // 2
            self._send(answers[:middle], placed)
            self._send(answers[middle:], [])
        else:
            self._links.cast(self._peer.node_id, "raft.answers", body)


class Forwarder:
    """See the module's docstring. `hold_ms` is how long a batch waits for a leader."""

    def __init__(self, host: Host, links: Links, *, hold_ms: int) -> None:
        self._host = host
        self._links = links
        self._hold_ms = hold_ms
        self._grace_ms = 2 * hold_ms  # a deposed leader without a successor gives up after one
        self._outgoing: dict[int, _Outgoing] = {}
        self._next_id = 1
        self._held: dict[int, list[_Batch]] = {}
        self._held_items = 0
        self._held_bytes = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.forwarded = 0
        self._echoes = Echoes(
            links, host.loop, allowed_ms=hold_ms, owes=self._owes, changed=self._hearing_changed
        )
        links.on_cast("raft.forward", self._on_forward)
        links.on_cast("raft.answers", self._on_answers)
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
            self._refuse_all(_Batch(group, list(rids), items, commands, sink, hops))
            return
        if host.is_leader(group):
            host.engine.propose(group, rids, items, commands, sink)
            return
        self._elsewhere(_Batch(group, list(rids), items, commands, sink, hops))

    def _elsewhere(self, batch: _Batch) -> None:
        leader = self._host.leader_of(batch.group)
        if leader == self._host.node_id and self._host.is_leader(batch.group):
            self._host.engine.propose(
                batch.group, batch.rids, batch.items, batch.commands, batch.sink
            )
        elif leader is not None and self._links.peer(leader) is not None:
            if batch.hops >= limits.FORWARD_HOPS_MAX:
                # Nodes disagree about the leader, as they do for a moment when it changes.
                self._hold(batch)
                self._host.loop.call_later(HOP_PAUSE_S, self._release, batch.group)
                return
            if self._echoes.hears(leader):
                self._forward(batch, leader)
            else:
                self._hold(batch)
                self._echoes.watch(leader)
        else:
            self._hold(batch)

    def hears(self, leader: str) -> bool:
        """Whether nothing says that `leader` does not hear this node."""
        return self._echoes.hears(leader)

    def _owes(self, leader: str) -> bool:
        """Whether `leader` has requests of this node unanswered, or shall have some."""
        return any(
            out.waiting and out.leader == leader for out in reversed(self._outgoing.values())
        ) or any(self._host.leader_of(group) == leader for group in self._held)

    def _hearing_changed(self, node_id: str, hears: bool) -> None:
        if hears:
            self._release_for(node_id)
        else:
            self._lose_all(node_id, "it does not hear this node any more")

    def _release_for(self, leader: str) -> None:
        for group in [g for g in self._held if self._host.leader_of(g) == leader]:
            self._release(group)

    def _lose_all(self, leader: str, reason: str) -> None:
        for forward_id in [fid for fid, out in self._outgoing.items() if out.leader == leader]:
            self._lose(forward_id, reason)

    def _forward(self, batch: _Batch, leader: str) -> None:
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
        self._links.cast(leader, "raft.forward", _encode(body))

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

    def _hold(self, batch: _Batch) -> None:
        if (
            self._held_items + len(batch.rids) > limits.STREAM_IN_FLIGHT_MAX * 4
            or self._held_bytes + len(batch.items) > limits.UNCOMMITTED_BYTES_MAX
        ):
            self._answer_all(batch, 503, self._host.no_quorum(batch.group).body())
            return
        if not batch.deadline_ms:
            batch.deadline_ms = self._host.now_ms() + self._hold_ms
        self._held.setdefault(batch.group, []).append(batch)
        self._count_held(batch, 1)
        delay_s = max(0, batch.deadline_ms - self._host.now_ms()) / 1000
        self._host.loop.call_later(delay_s, self._expire_held, batch.group)

    def _count_held(self, batch: _Batch, sign: int) -> None:
        self._held_items += sign * len(batch.rids)
        self._held_bytes += sign * len(batch.items)

    def _expire_held(self, group: int) -> None:
        now_ms = self._host.now_ms()
        batches = self._held.pop(group, [])
        keep = [batch for batch in batches if batch.deadline_ms > now_ms]
        if keep:
            self._held[group] = keep
            # Its own timer may have been this one, fired a little early by the loop's clock.
            soonest_ms = min(batch.deadline_ms for batch in keep)
            delay_s = max(1, soonest_ms - now_ms) / 1000
            self._host.loop.call_later(delay_s, self._expire_held, group)
        for batch in batches:
            if batch.deadline_ms <= now_ms:
                self._count_held(batch, -1)
                self._answer_all(batch, 503, self._host.no_quorum(group).body())

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
        if leader is not None and group in self._held:
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
        batches = self._held.pop(group, [])
        for batch in batches:
            self._count_held(batch, -1)
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
            hops = sink.hops if isinstance(sink, _PeerSink) else 0
            codec = self._host.machine(group).codec
            items = b"".join(
                codec.encode_item(rid, command) for rid, command in zip(rids, commands, strict=True)
            )
            batch = _Batch(group, rids, items, commands, sink, hops)
            if code == "overloaded":
                body = {
                    "code": "overloaded",
                    "message": "too many writes wait for a quorum; repeat later",
                    "retry_after_ms": 100,
                }
                self._answer_all(batch, 503, body)
            elif code == "transferring":
                self._hold(batch)
            else:
                self._elsewhere(batch)

    def _answer_all(self, batch: _Batch, status: int, body: Any) -> None:
        for rid in batch.rids:
            batch.sink.answer(rid, status, body)
        batch.sink.flush()

    def _refuse_all(self, batch: _Batch) -> None:
        message = f"{self._host.node_id} stops; nothing was done"
        self._answer_all(batch, 503, {"code": "unavailable", "message": message})

    def owed_groups(self) -> list[int]:
        """Whose batches are held, or have gone to a leader that has not answered all."""
        return [*self._held, *(out.group for out in self._outgoing.values() if out.waiting)]

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
        held, self._held = self._held, {}
        self._held_items = self._held_bytes = 0
        for batches in held.values():
            for batch in batches:
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
        forward = _forward.decode(body)
        sink = _PeerSink(self._links, peer, forward.forward_id, forward.hops)
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
        message = _answers.decode(body)
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
