"""Batches that wait in this process for a leader that can be reached: one election timeout each.

What must not live here: where they go then (forwarding.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dss.base import limits
from dss.drivers.ports import Sink

if TYPE_CHECKING:
    from dss.drivers.host import Host


class Batch(msgspec.Struct):
    """A submitted batch that this node answers for."""

    group: int
    rids: list[int]
    items: bytes
    commands: Sequence[Any]
    sink: Sink
    hops: int
    deadline_ms: int = 0

    def answer(self, status: int, body: Any) -> None:
        """One for all."""
        for rid in self.rids:
            self.sink.answer(rid, status, body)
        self.sink.flush()


class Held:
    """Of all groups; bounded in items and bytes.

    Args:
        hold_ms: how long a batch is held, then it is answered 503 `no_quorum`.
    """

    def __init__(self, host: Host, hold_ms: int) -> None:
        self._host = host
        self._hold_ms = hold_ms
        self._batches: dict[int, list[Batch]] = {}
        self.items = 0
        self.bytes = 0

    def groups(self) -> list[int]:
        return list(self._batches)

    def hold(self, batch: Batch) -> None:
        if (
            self.items + len(batch.rids) > limits.STREAM_IN_FLIGHT_MAX * 4
            or self.bytes + len(batch.items) > limits.UNCOMMITTED_BYTES_MAX
        ):
            batch.answer(503, self._host.no_quorum(batch.group).body())
            return
        if not batch.deadline_ms:
            batch.deadline_ms = self._host.now_ms() + self._hold_ms
        self._batches.setdefault(batch.group, []).append(batch)
        self._count(batch, 1)
        delay_s = max(0, batch.deadline_ms - self._host.now_ms()) / 1000
        self._host.loop.call_later(delay_s, self.expire, batch.group)

    def take(self, group: int) -> list[Batch]:
        """Those of `group`, which are held no longer."""
        batches = self._batches.pop(group, [])
        for batch in batches:
            self._count(batch, -1)
        return batches

    def expire(self, group: int) -> None:
        """Answer those whose time is over."""
        now_ms = self._host.now_ms()
        batches = self._batches.pop(group, [])
        keep = [batch for batch in batches if batch.deadline_ms > now_ms]
        if keep:
            self._batches[group] = keep
            # Its own timer may have been this one, fired a little early by the loop's clock.
            soonest_ms = min(batch.deadline_ms for batch in keep)
            delay_s = max(1, soonest_ms - now_ms) / 1000
            self._host.loop.call_later(delay_s, self.expire, group)
        for batch in batches:
            if batch.deadline_ms <= now_ms:
                self._count(batch, -1)
                batch.answer(503, self._host.no_quorum(group).body())

    def _count(self, batch: Batch, sign: int) -> None:
        self.items += sign * len(batch.rids)
        self.bytes += sign * len(batch.items)
