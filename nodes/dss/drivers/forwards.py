"""What nodes say to each other about batches that go to a leader and come back as answers.

What must not live here: where a batch goes, what becomes of it (forwarding.py).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.base import limits
from dss.drivers.waits import Place, Relay
from dss.transport.links import Links
from dss.transport.ports import Peer

FORWARD: Final = "raft.forward"
ANSWERS: Final = "raft.answers"
ANSWERS_BYTES_MAX: Final = limits.FRAME_BYTES_MAX // 2

encode = msgspec.msgpack.Encoder().encode


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


decode_forward = msgspec.msgpack.Decoder(Forward).decode
decode_answers = msgspec.msgpack.Decoder(Answers).decode


class PeerSink(Relay):
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
        body = encode(Answers(self._forward_id, answers, placed))
        if len(body) > ANSWERS_BYTES_MAX and len(answers) > 1:
            middle = len(answers) // 2
            self._send(answers[:middle], placed)
            self._send(answers[middle:], [])
        else:
            self._links.cast(self._peer.node_id, ANSWERS, body)
