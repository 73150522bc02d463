"""Time to service under each fault, for the table at the end of a run (conftest prints it)."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """Times in ms."""

    fault: str
    nodes: int
    any_ms: int
    """Longest time without a grant by any sound node: the service was away."""
    each_ms: int
    """The same at the sound node that was worst off."""
    slowest_ms: int | None
    """The longest that a sound node let a request of the load wait, beyond its `wait_ms`."""

    def line(self) -> str:
        slowest = "" if self.slowest_ms is None else f"{self.slowest_ms:8}"
        return f"{self.fault:<58} {self.nodes:5} {self.any_ms:8} {self.each_ms:9} {slowest}"


report: list[Row] = []
HEADING = f"{'fault':<58} nodes  any, ms  each, ms  slowest request, ms"
