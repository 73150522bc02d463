"""Where fdatasync runs. What must not live here: running it (host.py)."""

from __future__ import annotations

from typing import Final

SYNC_WINDOW: Final = 128
"""Syncs between two looks at how long they took."""
SYNC_SLOW_NS: Final = 1_000_000
"""A sync that takes longer is slow: then the loop gains more from a thread than the hop costs."""
SYNC_STALL_MEAN_NS: Final = 4_000_000
"""Above this mean it goes to a thread although most are quick: the loop stands still too long."""
THREADED_WINDOWS: Final = 16
"""So many windows in a thread, then one inline again, to see whether the disk has recovered."""


class SyncPolicy:
    """Where fdatasync runs: inline, and in a thread while most syncs are slow, or stalls are long.

    Neither the p99 of the design nor the mean: on a busy machine a twentieth of all syncs take some
    ms because the process waits for a processor, and a thread would wait for one twice
    (docs/decisions/0002-inline-fdatasync.md). Only inline syncs are measured, because a thread's
    figure includes its wait for the interpreter lock.
    """

    def __init__(self) -> None:
        self.threaded = False
        self._seen = 0
        self._slow = 0
        self._sum_ns = 0

    def note(self, ns: int) -> None:
        self._seen += 1
        if self.threaded:
            if self._seen == SYNC_WINDOW * THREADED_WINDOWS:
                self.threaded = False
                self._seen = self._slow = self._sum_ns = 0
            return
        self._sum_ns += ns
        self._slow += ns > SYNC_SLOW_NS
        if self._seen == SYNC_WINDOW:
            stalls = self._sum_ns > SYNC_WINDOW * SYNC_STALL_MEAN_NS
            self.threaded = stalls or self._slow > SYNC_WINDOW // 2
            self._seen = self._slow = self._sum_ns = 0
