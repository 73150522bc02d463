"""What the WAL knows about each group's log: marks, term runs, and which segments it needs.

The same bookkeeping runs while writing and while recovering, so that a segment's checkpoint can
be compared field by field with what replaying the older segments gives.

What lives here: bookkeeping. What must not: bytes, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dss.core.raft.messages import Configuration, Entry


class GroupState(msgspec.Struct):
    """What recovery found for one group.

    `configuration` is the one at `snapshot_index` (or the founding one); `entries` are those
    above `snapshot_index`, consecutive, void suffixes dropped.
    """

    group: int
    configuration: Configuration
    term: int
    voted_for: str | None
    snapshot_index: int
    snapshot_term: int
    snapshot_log_ms: int
    entries: list[Entry]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """A group as it stood when a segment began: the payload of a CHECKPOINT record."""

    group: int
    configuration: Configuration
    term: int
    voted_for: str | None
    snapshot_index: int
    snapshot_term: int
    snapshot_log_ms: int
    last_index: int


class GroupLog:
    """One group's marks. Impossible changes raise ValueError and change nothing.

    Attributes:
        last_index: the last entry stored, or `snapshot_index` when there is none above it.
        spans: (first_index, segment): from `first_index` on, entries stand in `segment`.
        runs: (first_index, term): from `first_index` on, entries have `term`.
    """

    __slots__ = (
        "configuration",
        "group",
        "last_index",
        "runs",
        "snapshot_index",
        "snapshot_log_ms",
        "snapshot_term",
        "spans",
        "term",
        "voted_for",
    )

    def __init__(self, group: int, configuration: Configuration) -> None:
        self.group = group
        self.configuration = configuration
        self.term = 0
        self.voted_for: str | None = None
        self.snapshot_index = 0
        self.snapshot_term = 0
        self.snapshot_log_ms = 0
        self.last_index = 0
        self.spans: list[tuple[int, int]] = []
        self.runs: list[tuple[int, int]] = []

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.group,
            self.configuration,
            self.term,
            self.voted_for,
            self.snapshot_index,
            self.snapshot_term,
            self.snapshot_log_ms,
            self.last_index,
        )

    @classmethod
    def from_checkpoint(cls, mark: Checkpoint) -> GroupLog:
        log = cls(mark.group, mark.configuration)
        log.term, log.voted_for = mark.term, mark.voted_for
        log.snapshot_index, log.snapshot_term = mark.snapshot_index, mark.snapshot_term
        log.snapshot_log_ms, log.last_index = mark.snapshot_log_ms, mark.last_index
        return log

    def save_state(self, term: int, voted_for: str | None) -> None:
        """Term and vote. A term never regresses, and a vote never changes within its term."""
        if term < self.term:
            raise ValueError(f"term goes back from {self.term} to {term}")
        if term == self.term and self.voted_for not in (None, voted_for):
            raise ValueError(f"vote in term {term} changes: {self.voted_for} to {voted_for}")
        self.term, self.voted_for = term, voted_for

    def append(self, entries: Sequence[Entry], segment: int) -> None:
        """`entries`, written into `segment`; what was stored from the first one on is void."""
        first = entries[0].index
        last = entries[-1].index
        if not self.snapshot_index < first <= self.last_index + 1:
            raise ValueError(
                f"entries from {first} do not follow {self.last_index}"
                f" (snapshot at {self.snapshot_index})"
            )
        if last - first + 1 != len(entries):
            raise ValueError(f"{len(entries)} entries cannot reach from {first} to {last}")
        self._void_from(first)
        if not self.spans or self.spans[-1][1] != segment:
            self.spans.append((first, segment))
        runs = self.runs
        term = runs[-1][1] if runs else -1
        if entries[0].term != term or entries[-1].term != term:
            for entry in entries:
                if entry.term != term:
                    term = entry.term
                    runs.append((entry.index, term))
        self.last_index = last

    def _void_from(self, first: int) -> None:
        while self.spans and self.spans[-1][0] >= first:
            self.spans.pop()
        while self.runs and self.runs[-1][0] >= first:
            self.runs.pop()

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None when it is not known here."""
        if index == self.snapshot_index:
            return self.snapshot_term
        if index > self.last_index:
            return None
        for first, term in reversed(self.runs):
            if first <= index:
                return term
        return None

    def last_after_snapshot(self, index: int, term: int) -> int:
        """The last index once a snapshot at (index, term) is in: Raft thesis §5.3.

        Entries behind it stay when the log agrees with the snapshot at `index`; a log that ends
        earlier or has another term there is void.
        """
        if index <= self.last_index and self.term_at(index) == term:
            return self.last_index
        return index

    def snapshot(
        self, index: int, term: int, log_ms: int, configuration: Configuration, last_index: int
    ) -> None:
        """Everything up to `index` is in a snapshot; `last_index` is the log's end after it."""
        if index < self.snapshot_index:
            raise ValueError(f"snapshot goes back from {self.snapshot_index} to {index}")
        if last_index < index:
            raise ValueError(f"snapshot at {index} beyond the log's end {last_index}")
        self.snapshot_index, self.snapshot_term = index, term
        self.snapshot_log_ms, self.configuration = log_ms, configuration
        self.last_index = last_index
        self._void_from(last_index + 1)
        if last_index == index:
            self.spans.clear()
            self.runs.clear()
        for marks in (self.spans, self.runs):
            while len(marks) > 1 and marks[1][0] <= index + 1:
                marks.pop(0)

    def oldest_segment(self) -> int | None:
        """The oldest segment that holds an entry above the snapshot; None: it needs none."""
        return self.spans[0][1] if self.spans else None
