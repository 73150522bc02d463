"""The in-memory Raft log of one group: entries after a compacted base, plus the last snapshot.

What must not live here: who may append or commit (raft.py), the disk (storage). Indexes are
1-based; `base_index` is the entry just before the first one held, whose term is still known.
Source: Raft thesis §3.5, §5.1; conflict search after etcd-io/raft's `findConflictByTerm` idea.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec

from dss.core.raft.messages import Entry

ENTRY_OVERHEAD_BYTES: Final = 24
"""What an entry costs beside its payload on the wire, roughly."""


class SnapshotMeta(msgspec.Struct, frozen=True, gc=False):
    """The newest durable snapshot: the state after `index`, whose entry had `term`."""

    index: int
    term: int
    log_ms: int
    size: int


def _term(entry: Entry) -> int:
    return entry.term


def _cost(entry: Entry) -> int:
    return len(entry.payload) + ENTRY_OVERHEAD_BYTES


class RaftLog:
    """Entries `base_index + 1 .. last_index`.

    `_bytes[i]` is the running cost of entries up to and including `_entries[i]`, so that byte
    limits need a bisection, not a loop.
    """

    __slots__ = (
        "_base_bytes",
        "_bytes",
        "_entries",
        "base_index",
        "base_log_ms",
        "base_term",
        "last_index",
        "snapshot",
    )

    def __init__(self, snapshot: SnapshotMeta | None, entries: Sequence[Entry]) -> None:
        """Continue from recovery: entries may overlap the snapshot (its tail) but have no gap."""
        self.snapshot = snapshot
        self.base_index = self.base_term = self.base_log_ms = 0
        self._base_bytes = 0
        self._entries: list[Entry] = []
        self._bytes: list[int] = []
        held = list(entries)
        for left, right in pairwise(held):
            assert right.index == left.index + 1, f"recovered log has a gap at {right.index}"
        if snapshot is not None:
            self._set_base(snapshot.index, snapshot.term, snapshot.log_ms)
            held = self._fit(held, snapshot)
        assert not held or held[0].index == self.base_index + 1, (
            f"recovered log starts at {held[0].index}, after base {self.base_index}"
        )
        self.last_index = self.base_index
        if held:
            self.extend(held)

    def _set_base(self, index: int, term: int, log_ms: int) -> None:
        self.base_index, self.base_term, self.base_log_ms = index, term, log_ms

    def _fit(self, held: list[Entry], snapshot: SnapshotMeta) -> list[Entry]:
        """Keep the tail before the snapshot if it leads up to it, else only what follows."""
        if not held or held[0].index > snapshot.index:
            return held
        position = snapshot.index - held[0].index
        if position >= len(held):
            return []
        if held[position].term != snapshot.term:
            # The snapshot was installed over a log of another history: what follows in `held`
            # belongs to that history too, unless it was appended after the installation.
            later = held[position + 1 :]
            return later if later and later[0].term >= snapshot.term else []
        first = held[0]
        if first.index == 1:
            self._set_base(0, 0, 0)
            return held
        self._set_base(first.index, first.term, first.log_ms)
        return held[1:]

    # --- reading ---------------------------------------------------------------------------

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def last_log_ms(self) -> int:
        return self._entries[-1].log_ms if self._entries else self.base_log_ms

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None if it is compacted away or not there yet."""
        offset = index - self.base_index
        if offset == 0:
            return self.base_term
        if offset < 0 or index > self.last_index:
            return None
        return self._entries[offset - 1].term

    def log_ms_at(self, index: int) -> int:
        """The log time of the entry at `index`, which must be the base or held."""
        offset = index - self.base_index
        return self.base_log_ms if offset == 0 else self._entries[offset - 1].log_ms

    def slice(self, first: int, last: int) -> tuple[Entry, ...]:
        """Entries `first..last`, both held."""
        base = self.base_index
        assert base < first, f"entry {first} is compacted (base {base})"
        assert last <= self.last_index, f"entry {last} is not there yet"
        return tuple(self._entries[first - base - 1 : last - base])

    def bytes_between(self, after: int, last: int) -> int:
        """Cost of the entries `after + 1 .. last`."""
        return self._bytes_to(last) - self._bytes_to(after)

    def _bytes_to(self, index: int) -> int:
        offset = index - self.base_index
        return self._bytes[offset - 1] if offset > 0 else self._base_bytes

    def last_within(self, first: int, bytes_max: int) -> int:
        """The last index such that `first..it` costs at most `bytes_max`; at least `first`."""
        limit = self._bytes_to(first - 1) + bytes_max
        if self._bytes[-1] <= limit:
            return self.last_index
        return max(first, self.base_index + bisect_right(self._bytes, limit))

    def last_with_term_at_most(self, index: int, term: int) -> int:
        """The largest index <= `index` whose term is <= `term`: where two logs could agree.

        base_index - 1 when even the base is of a later term (the caller needs a snapshot).
        """
        index = min(index, self.last_index)
        if index < self.base_index:
            return index
        held = index - self.base_index
        found = bisect_right(self._entries, term, hi=held, key=_term)
        if found == 0 and self.base_term > term:
            return max(0, self.base_index - 1)
        return self.base_index + found

    def first_conflict(self, entries: Sequence[Entry]) -> int:
        """How many of `entries` are already here with the same term.

        `entries` continue a matching prev. By log matching, agreement at one index means
        agreement before it, so the matching ones are a prefix: usually all or none.
        """
        first = entries[0].index
        overlap = min(len(entries), self.last_index - first + 1)
        if overlap <= 0:
            return 0
        shift = first - self.base_index - 1
        held = self._entries
        if held[shift + overlap - 1].term == entries[overlap - 1].term:
            return overlap
        return bisect_left(
            range(overlap), True, key=lambda i: held[shift + i].term != entries[i].term
        )

    # --- writing ---------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Add one entry; `entry.index` is last_index + 1."""
        costs = self._bytes
        before = costs[-1] if costs else self._base_bytes
        costs.append(before + len(entry.payload) + ENTRY_OVERHEAD_BYTES)
        self._entries.append(entry)
        self.last_index = entry.index

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add consecutive entries; the first one's index is last_index + 1."""
        assert entries[0].index == self.last_index + 1, (entries[0].index, self.last_index)
        before = self._bytes[-1] if self._bytes else self._base_bytes
        running = accumulate(map(_cost, entries), initial=before)
        next(running)
        self._bytes.extend(running)
        self._entries.extend(entries)
        self.last_index = entries[-1].index

    def truncate_from(self, index: int) -> None:
        """Forget the entries from `index` on."""
        keep = index - self.base_index - 1
        assert keep >= 0, f"cannot truncate compacted entry {index}"
        del self._entries[keep:]
        del self._bytes[keep:]
        self.last_index = self.base_index + len(self._entries)

    def compact(
        self, snapshot: SnapshotMeta, tail_entries: int, keep_after: int | None = None
    ) -> None:
        """Note a newer snapshot; drop what precedes it, except a tail for slow followers.

        Nothing after `keep_after` is dropped.
        """
        assert self.term_at(snapshot.index) == snapshot.term, "snapshot of another history"
        self.snapshot = snapshot
        base = snapshot.index - tail_entries
        if keep_after is not None:
            base = min(base, keep_after)
        base = max(base, self.base_index)
        drop = base - self.base_index
        if drop:
            last = self._entries[drop - 1]
            self._base_bytes = self._bytes[drop - 1]
            del self._entries[:drop]
            del self._bytes[:drop]
            self._set_base(base, last.term, last.log_ms)

    def reset(self, snapshot: SnapshotMeta) -> None:
        """Start again after an installed snapshot."""
        self.snapshot = snapshot
        self._base_bytes = 0
        self._entries.clear()
        self._bytes.clear()
        self._set_base(snapshot.index, snapshot.term, snapshot.log_ms)
        self.last_index = snapshot.index

    def check_invariants(self) -> None:
        """Cheap enough for after every simulated step: the ends of the log, not all of it."""
        entries = self._entries
        assert len(entries) == len(self._bytes) == self.last_index - self.base_index
        if self.snapshot is not None:
            assert self.base_index <= self.snapshot.index <= self.last_index
        term, log_ms, index = self.base_term, self.base_log_ms, self.base_index
        if len(entries) > 16:
            first = entries[-16]
            term, log_ms, index = first.term, first.log_ms, first.index - 1
        for entry in entries[-16:]:
            assert entry.index == index + 1, f"gap at {entry.index}"
            assert entry.term >= term, f"term falls at {entry.index}"
            assert entry.log_ms >= log_ms, f"log time falls at {entry.index}"
            term, log_ms, index = entry.term, entry.log_ms, entry.index
