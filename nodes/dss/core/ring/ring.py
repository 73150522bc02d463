"""The consistent-hash ring: which node owns which slot of the key space.

128 points a node on a 64-bit circle (BLAKE2b-64), and a bounded load of 1.25: a node that is full
passes what comes next to its successor. The same nodes give the same ring in every process and in
whatever order they are named. What must not live here: membership, who may act on an answer.

Source: Karger et al. 1997, consistent hashing; Mirrokni, Thorup, Zadimoghaddam 2016, consistent
hashing with bounded loads (here over the fixed set of slots, in slot order, so that the result
depends on the nodes alone).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final

VIRTUAL_NODES: Final = 128
"""Points a node: the shares of equal nodes differ by about 1/sqrt(128) = 9 %."""
SLOTS: Final = 1_024
"""Parts of the key space that the ring hands out: enough for 9 nodes, few enough to list."""
LOAD_PERCENT_MAX: Final = 125
"""A node's load at most, in percent of the mean."""


def point(data: bytes) -> int:
    """The position of `data` on the circle: BLAKE2b-64, 0 <= position < 2**64."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def slot_of(key: str) -> int:
    """The slot of a cache key: BLAKE2b-64 of its UTF-8 modulo SLOTS."""
    return point(key.encode("utf-8", "surrogatepass")) % SLOTS


def load_max(items: int, nodes: int) -> int:
    """How many of `items` one of `nodes` may carry: 1.25 times the mean, rounded up."""
    return -(-items * LOAD_PERCENT_MAX // (100 * nodes))


class Ring:
    """The ring of a set of nodes; immutable.

    Args:
        nodes: node ids, in any order; repeats count once. At least one.

    Raises:
        ValueError: no nodes.
    """

    __slots__ = ("_owners", "_points", "_positions", "nodes")

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes: tuple[str, ...] = tuple(sorted(dict.fromkeys(nodes)))
        if not self.nodes:
            raise ValueError("a ring needs at least one node")
        self._points: list[tuple[int, str]] = sorted(
            (point(f"node\0{node}\0{number}".encode()), node)
            for node in self.nodes
            for number in range(VIRTUAL_NODES)
        )
        self._positions = [position for position, _ in self._points]
        self._owners = self._share_out()

    def owner(self, slot: int) -> str:
        """The node that owns `slot` (0 <= slot < SLOTS)."""
        return self._owners[slot]

    def home(self, key: str) -> str:
        """The node that owns `key`: the owner of its slot."""
        return self._owners[slot_of(key)]

    def walk(self, position: int) -> Iterator[str]:
        """Every node once, in the order in which they follow `position` on the circle."""
        points = self._points
        start = bisect_right(self._positions, position)
        seen: dict[str, None] = {}
        for step in range(len(points)):
            node = points[(start + step) % len(points)][1]
            if node not in seen:
                seen[node] = None
                yield node
                if len(seen) == len(self.nodes):
                    return

    def _share_out(self) -> tuple[str, ...]:
        bound = load_max(SLOTS, len(self.nodes))
        load = dict.fromkeys(self.nodes, 0)
        owners = []
        for slot in range(SLOTS):
            for node in self.walk(point(f"slot\0{slot}".encode())):
                if load[node] < bound:
                    load[node] += 1
                    owners.append(node)
                    break
        return tuple(owners)
