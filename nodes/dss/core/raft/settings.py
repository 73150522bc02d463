"""Settings of the Raft core and what it needs from outside: timings, bounds, randomness."""

from __future__ import annotations

from typing import Protocol

import msgspec

from dss.base import limits


class RandomSource(Protocol):
    """A seeded source; `random.Random` fits."""

    def randrange(self, start: int, stop: int, /) -> int: ...


class RaftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Timings in ms of monotonic time; bounds default to base/limits.py."""

    heartbeat_ms: int = 50
    election_min_ms: int = 300
    election_max_ms: int = 900
    pre_vote: bool = True
    link_failover: bool = True
    """A follower whose link to the leader's process breaks does not wait its whole timeout."""
    link_lost_min_ms: int = 20
    link_lost_max_ms: int = 100
    promote_learners: bool = True
    """A leader makes a learner that has caught up a voter, by itself."""
    quiesce_after: int = 0
    """A leader lets its group rest after so many idle heartbeats in a row; 0: never. Whoever runs
    the cores must then watch the nodes (effects.Rouse)."""
    lazy_ms: int = 0
    """For so long entries may gather for the voters that the quorum does not need; 0: everybody
    gets everything at once. A request costs its receiver a wake-up, an fsync and an answer, which
    many entries then share (docs/decisions/0011-thrifty-replication.md)."""
    lazy_bytes: int = limits.LAZY_BYTES_MAX
    max_inflight: int = limits.INFLIGHT_APPENDS_MAX
    max_inflight_bytes: int = limits.INFLIGHT_BYTES_MAX
    max_append_bytes: int = limits.APPEND_BYTES_MAX
    max_uncommitted_bytes: int = limits.UNCOMMITTED_BYTES_MAX
    max_apply_entries: int = limits.APPLY_ENTRIES_MAX
    max_pending_reads: int = limits.READS_PENDING_MAX
    log_tail_entries: int = limits.LOG_TAIL_ENTRIES
    apply_align_entries: int = limits.SNAPSHOT_ALIGN_ENTRIES
    """Entries before and after a multiple of this index are never handed out together."""
    snapshot_keep_ms: int = limits.SNAPSHOT_KEEP_MS
    transfer_log_bytes_max: int = limits.TRANSFER_LOG_BYTES_MAX

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ms < self.election_min_ms < self.election_max_ms:
            raise ValueError("expected 0 < heartbeat_ms < election_min_ms < election_max_ms")
