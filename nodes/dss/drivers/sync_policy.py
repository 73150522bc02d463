"""Where fdatasync runs. What must not live here: running it (host.py)."""

from __future__ import annotations

from typing import Final

SYNC_WINDOW: Final = 128
"""Syncs between two looks at their mean time."""
SYNC_INLINE_MEAN_NS: Final = 1_000_000
"""Above this mean, fdatasync goes to a thread: then the loop gains more than the hop costs."""
THREADED_WINDOWS: Final = 16
"""So many windows in a thread, then one inline again, to see whether the disk has recovered."""


class SyncPolicy:
    """Where fdatasync runs: inline while its mean is below 1 ms, else in a thread.

    The mean, not the p99 of the design: one slow sync in a hundred costs less than a thread hop
    in each (docs/decisions/0002-inline-fdatasync.md). Only inline syncs are measured, because a
    thread's figure includes its wait for the interpreter lock.
    """

    def __init__(self) -> None:
        self.threaded = False
        self._seen = 0
        self._sum_ns = 0

    def note(self, ns: int) -> None:
        self._seen += 1
        if self.threaded:
            if self._seen == SYNC_WINDOW * THREADED_WINDOWS:
                self.threaded = False
                self._seen = self._sum_ns = 0
            return
        self._sum_ns += ns
        if self._seen == SYNC_WINDOW:
            self.threaded = self._sum_ns > SYNC_WINDOW * SYNC_INLINE_MEAN_NS
            self._seen = self._sum_ns = 0
