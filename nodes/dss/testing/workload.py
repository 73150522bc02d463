"""What a group is for in the simulation: the machine, who uses it, and what must come of it."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from dss.core.machine import Machine
from dss.testing.observed import Rules
from dss.testing.simnode import SimNode


class Workload(Protocol):
    """One group's users and checks.

    Attributes:
        acknowledged: commands that a client was told are done.
        counts: what happened, for the ledger.
    """

    acknowledged: int
    counts: Counter[str]

    @property
    def rules(self) -> Rules:
        """What is checked in the order of the log."""

    def new_machine(self) -> Machine: ...

    def start(self) -> None:
        """Begin to use the group."""

    def stop(self) -> None:
        """Begin nothing new: everything was healed, and all nodes must become equal."""

    def burst(self, node: SimNode) -> None:
        """Commands to this node at once, whether it leads or only thinks so."""

    def probe(self, node: SimNode) -> None:
        """One command that must be acknowledged once all is well."""

    def quiet(self) -> bool:
        """Whether everything that ends by itself has ended."""

    def final(self, machines: dict[str, Machine]) -> None:
        """The verdict over the whole run. Raises AssertionError."""
