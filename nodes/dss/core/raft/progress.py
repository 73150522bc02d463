"""What a leader knows about one follower, and how much it may send to it.

Three states: PROBE (one request at a time until the logs meet), REPLICATE (a pipelined window),
SNAPSHOT (chunks, one in flight). What must not live here: messages and the log.
Source: Raft thesis §10.2.1 (pipelining), §5.1; the three states as in etcd-io/raft's tracker.
"""

from __future__ import annotations

from collections import deque
from typing import Final

PROBE: Final = "probe"
REPLICATE: Final = "replicate"
SNAPSHOT: Final = "snapshot"


class Progress:
    """One follower or learner in the leader's term.

    `match` is durable there; `next` is the next index to send; `waiting` (PROBE) means a request
    is out; `contact_ms` is when it last answered, at first when the leader began; `heard` says
    whether it ever did in this term; `read_context` is the last ReadIndex round it confirmed;
    `stuck_at` is the match seen at the last heartbeat response. `round_target` and
    `round_began_ms` are a learner's catch-up round: what it must have, and since when (§4.2.1).
    `snapshot_moved_ms` is when a piece of the snapshot last arrived, or its first one left.
    """

    __slots__ = (
        "contact_ms",
        "heard",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "node_id",
        "read_context",
        "round_began_ms",
        "round_target",
        "snapshot_index",
        "snapshot_moved_ms",
        "snapshot_offset",
        "snapshot_sent_ms",
        "snapshot_size",
        "state",
        "stuck_at",
        "waiting",
    )

    def __init__(self, node_id: str, next_index: int, now_ms: int) -> None:
        self.node_id = node_id
        self.match = 0
        self.next = next_index
        self.state = PROBE
        self.waiting = False
        self.contact_ms = now_ms
        self.heard = False
        self.read_context = 0
        self.begin_round(next_index - 1, now_ms)
        self.stuck_at = -1
        self.inflight: deque[tuple[int, int]] = deque()
        self.inflight_bytes = 0
        self.snapshot_index = self.snapshot_size = 0
        self.snapshot_offset = 0
        self.snapshot_sent_ms = self.snapshot_moved_ms = 0

    def answered(self, now_ms: int) -> None:
        """Any answer from it, whatever it says."""
        self.contact_ms = now_ms
        self.heard = True

    def begin_round(self, target: int, now_ms: int) -> None:
        """A learner must now reach `target` within an election timeout."""
        self.round_target = target
        self.round_began_ms = now_ms

    def _clear_window(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0

    def become_probe(self, next_index: int) -> None:
        """Find where the logs meet, starting before `next_index`."""
        self.state = PROBE
        self.waiting = False
        self.next = max(next_index, self.match + 1)
        self._clear_window()

    def become_replicate(self) -> None:
        """The logs meet at `match`: send all that follows."""
        self.state = REPLICATE
        self.waiting = False
        self.next = self.match + 1
        self._clear_window()

    def become_snapshot(self, index: int, size: int, now_ms: int) -> None:
        """It needs entries that are compacted: send the snapshot at `index` from its start."""
        self.state = SNAPSHOT
        self.waiting = False
        self._clear_window()
        self.snapshot_index, self.snapshot_size = index, size
        self.snapshot_moved_ms = now_ms
        self.snapshot_sent(0, now_ms)

    def snapshot_sent(self, offset: int, now_ms: int) -> None:
        self.snapshot_offset = offset
        self.snapshot_sent_ms = now_ms

    def has_room(self, count_max: int, bytes_max: int) -> bool:
        """Whether another request may leave (a lone one may be larger than the window)."""
        return len(self.inflight) < count_max and self.inflight_bytes < bytes_max

    def sent(self, last_index: int, size: int) -> None:
        """Entries up to `last_index`, costing `size` bytes, are on their way."""
        self.next = last_index + 1
        self.inflight.append((last_index, size))
        self.inflight_bytes += size

    def acknowledged(self, index: int) -> bool:
        """Everything up to `index` is durable there. True when that is news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        return True

    def is_stale_rejection(self, rejected: int) -> bool:
        """A delayed or repeated refusal of a prev_index we no longer wonder about."""
        if self.state == PROBE:
            return rejected != self.next - 1
        return rejected <= self.match

    def check_invariants(self) -> None:
        assert self.match < self.next, (self.node_id, self.match, self.next)
        assert self.inflight_bytes == sum(size for _, size in self.inflight)
        assert self.state == REPLICATE or not self.inflight
        last = self.match
        for index, _ in self.inflight:
            assert index > last, f"window of {self.node_id} not ascending"
            last = index
        assert last < self.next
