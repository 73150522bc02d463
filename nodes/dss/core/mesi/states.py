"""The states of a line at a cache node and of a transaction at its home.

What lives here: names, what each state allows, the error of an impossible step. What must not:
transitions (agent.py, directory.py).

Source: Nagarajan, Sorin, Hill, Wood, "A Primer on Memory Consistency and Cache Coherence"
(2nd ed.), ch. 8 (directory protocols, blocking directory, transient states as `FROM_TO`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final


class State(IntEnum):
    """A line here. Readable exactly when `0 < state <= M` (and its lease and TTL hold)."""

    I = 0  # noqa: E741 (the field's own name)
    """No copy."""
    S = 1
    """A copy; others may have one."""
    E = 2
    """The only copy."""
    M = 3
    """The only copy, written here, and (write-through) already in main memory."""
    I_S = 4
    """Asked the home to read."""
    I_M = 5
    """Asked the home to write; no copy."""
    S_M = 6
    """Asked the home to write; the old copy is kept in case of a refusal, and not served."""


STABLE_MAX: Final = State.M


class Phase(IntEnum):
    """Where the one open transaction of a key stands at its home."""

    IDLE = 0
    READING = 1
    """Main memory is being read."""
    FETCHING = 2
    """The owner gives up exclusivity and sends its value."""
    INVALIDATING = 3
    """Other copies are being destroyed."""
    WRITING = 4
    EXPIRING = 5
    """A value whose TTL has ended is being deleted."""
    RESOLVING = 6
    """A write's outcome is unknown: fenced and re-read until main memory answers."""
    GRANTED = 7
    """Waits for GrantAck (or for the end of the requester's lease)."""


class IllegalTransition(AssertionError):
    """An event that its state can not have: a defect here, never a peer's doing."""

    def __init__(self, where: str, state: str, event: str, story: Sequence[str]) -> None:
        lines = "\n  ".join(story)
        super().__init__(f"{where}: {event} in state {state}. Story, oldest first:\n  {lines}")
