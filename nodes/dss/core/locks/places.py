"""Waiters, their places in lines, and places that are kept for those who must ask again.

What must not live here: whose turn it is (lines.py), the lines themselves (state.py).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

from dss.base.limits import PRIORITY_STEP_MS

UPGRADE_RANK: Final = -(1 << 60)
"""An upgrade goes first: whoever stands before it waits for its holder anyway."""


class Waiter(msgspec.Struct, eq=False, gc=False):
    """One wait. `index` and `position` name the command that will get the answer."""

    ticket: int
    """In the order in which waits began: the largest of a cycle is its victim."""
    names: tuple[str, ...]
    """It stands in each one's line."""
    session: str
    owner: str
    kind: str
    """`one`, `many` (all its names or none), `upgrade`."""
    mode: str
    permits: int
    limit: int
    priority: int
    since_ms: int
    deadline_ms: int
    joined_ms: int
    """When its latest request came."""
    confirm_ms: int
    index: int
    position: int
    seq: int = 0
    key: str = ""
    also: list[tuple[int, int]] | None = None
    """The places of earlier questions of the same number or key: they get the same answer."""
    rank: int = 0
    size: int = 0
    """As kept.size_of_place counts: derived."""

    @property
    def questions(self) -> list[tuple[int, int]]:
        """The places of all that wait for its answer, the newest last."""
        newest = (self.index, self.position)
        return [*self.also, newest] if self.also else [newest]

    def __post_init__(self) -> None:
        self.rank = UPGRADE_RANK if self.kind == "upgrade" else rank(self.since_ms, self.priority)


def rank(since_ms: int, priority: int) -> int:
    """Places in a line: the smaller goes first, equal ones by ticket.

    A level of priority counts as having come PRIORITY_STEP_MS earlier. That is ageing (priority
    plus waiting time) written so that two waiters never change places.
    """
    return since_ms - priority * PRIORITY_STEP_MS


class Place(msgspec.Struct, eq=False, gc=False):
    """A place in line, kept for a while: its wait ended without its client's will."""

    ticket: int
    session: str
    owner: str
    names: tuple[str, ...]
    since_ms: int
    until_ms: int = 0
    """It lapses then; 0: with its session (kept below level 2)."""


def place_of(waiter: Waiter) -> tuple[int, int]:
    """What a line is sorted by."""
    return waiter.rank, waiter.ticket


def place_in(line: list[Waiter], waiter: Waiter) -> int:
    """Its index in a line that it stands in."""
    index = bisect_left(line, place_of(waiter), key=place_of)
    assert line[index] is waiter, f"stands in no line: {waiter}"
    return index
