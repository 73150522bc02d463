"""Which copy goes when the cache is full: SIEVE, by bytes.

One queue in order of insertion and a hand that moves from old to new: a line read since the hand
last passed is spared once, the first other one goes. A hit only sets a flag, so that it costs
nothing. Source: Zhang et al., "SIEVE is Simpler than LRU" (NSDI 2024).

What must not live here: what a line means.
"""

from __future__ import annotations

from collections.abc import Callable


class Link:
    """A place in the queue. `visited` is set by a hit."""

    __slots__ = ("newer", "older", "size", "visited")

    def __init__(self) -> None:
        self.newer: Link | None = None
        self.older: Link | None = None
        self.size = 0
        self.visited = False


class Sieve:
    """The queue of all copies and its byte count.

    Args:
        capacity_bytes: `victim` names lines as long as more than this is held.
    """

    __slots__ = ("_hand", "_newest", "_oldest", "capacity_bytes", "count", "held_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.count = 0
        self._newest: Link | None = None
        self._oldest: Link | None = None
        self._hand: Link | None = None

    def add(self, link: Link, size: int) -> None:
        """Put a line of `size` bytes at the new end."""
        link.size = size
        link.visited = False
        link.newer = None
        link.older = self._newest
        if self._newest is not None:
            self._newest.newer = link
        self._newest = link
        if self._oldest is None:
            self._oldest = link
        self.held_bytes += size
        self.count += 1

    def remove(self, link: Link) -> None:
        """Take a line out, wherever it stands."""
        if self._hand is link:
            self._hand = link.newer
        if link.newer is not None:
            link.newer.older = link.older
        else:
            self._newest = link.older
        if link.older is not None:
            link.older.newer = link.newer
        else:
            self._oldest = link.newer
        link.newer = link.older = None
        self.held_bytes -= link.size
        self.count -= 1
        link.size = 0

    def victim(self, evictable: Callable[[Link], bool]) -> Link | None:
        """The next line to go, or None: it all fits, or nothing may go.

        Two rounds suffice: the first clears every flag.
        """
        if self.held_bytes <= self.capacity_bytes:
            return None
        link = self._hand or self._oldest
        for _ in range(2 * self.count + 1):
            if link is None:
                return None
            if not link.visited and evictable(link):
                self._hand = link.newer
                return link
            link.visited = False
            link = link.newer or self._oldest
        return None
