"""The workload of commands that are only counted: nothing acknowledged is lost, doubled, unseen.

Clients stay with a node that believes that it leads, so that its log diverges; they never repeat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dss.core.machine import Machine, Result, Wake
from dss.testing.simnode import SimNode
from dss.testing.tally import Add, Tally

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation


class TallyWorkload:
    """Implements workload.Workload, and its own (empty) rules."""

    def __init__(self, sim: Simulation, gid: int) -> None:
        self.sim = sim
        self.gid = gid
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self._rng = sim.world.rng("tally")
        self._running = False
        self._proposed = 0
        self._done: dict[int, None] = {}
        self._newest = (0, 0)
        """Of what was acknowledged, the last in the log: (its place there, its ident)."""

    # --- rules ---

    @property
    def rules(self) -> TallyWorkload:
        return self

    def level_raised(self, index: int, log_ms: int, level: int) -> None:
        """Its chain tells (tally.py)."""

    def leader_changed(self, index: int, log_ms: int) -> None:
        """Nothing."""

    def applied(
        self, index: int, log_ms: int, steps: Sequence[tuple[Any, Result, Sequence[Wake]]]
    ) -> None:
        """Nothing: the chain over all commands is compared at the end."""

    # --- clients ---

    def new_machine(self) -> Machine:
        return Tally()

    def start(self) -> None:
        self._running = True
        self.sim.world.after(self.sim.plan.proposal_every_ms, self._next)

    def stop(self) -> None:
        self._running = False

    def _next(self) -> None:
        if not self._running:
            return
        sim, rng = self.sim, self._rng
        sim.world.after(rng.expovariate(1.0) * sim.plan.proposal_every_ms, self._next)
        # A deposed leader that does not know it yet keeps its clients: its log must diverge.
        leaders = sim.leaders(self.gid)
        nodes = leaders if leaders and rng.random() < 0.9 else list(sim.nodes.values())
        node = rng.choice(nodes)
        if not node.alive:
            return
        if sim.plan.reads and rng.random() < 0.3:
            self._read(node)
        else:
            self._propose(node)

    def _propose(self, node: SimNode) -> None:
        self._proposed += 1
        command = Add(self._proposed, b"x" * self._rng.choice([0, 10, 200, 2_000]))
        node.at_once(lambda: node.propose(self.gid, command.ident, command, self))

    def answer(self, request_id: int, status: int, body: Any) -> None:
        """Implements drivers.ports.Sink."""
        if status == 200:
            self._done[request_id] = None
            if body > self._newest[0]:
                self._newest = (body, request_id)
            self.acknowledged += 1
            self.counts["commands"] += 1

    def flush(self) -> None:
        """Nothing is buffered."""

    def _read(self, node: SimNode) -> None:
        """A linearizable read must see every command acknowledged before it began."""
        place, ident = self._newest

        def done(machine: Machine | None) -> None:
            if machine is None:
                return
            assert isinstance(machine, Tally)
            self.counts["reads"] += 1
            # What comes before it in the log is there too: every state is hashed (observed.py).
            seen = machine.idents[place - 1 : place] if place else [ident]
            assert seen == [ident], f"a read on {node.node_id} does not see {ident}"

        node.at_once(lambda: node.read(self.gid, done))

    def burst(self, node: SimNode) -> None:
        for _ in range(self._rng.randint(1, 5)):
            self._propose(node)

    def probe(self, node: SimNode) -> None:
        self._propose(node)

    def quiet(self) -> bool:
        return True

    def final(self, machines: dict[str, Machine]) -> None:
        """Equal states on all nodes, and nothing acknowledged is lost."""
        first = next(iter(machines.values()))
        assert isinstance(first, Tally)
        for node, machine in machines.items():
            assert isinstance(machine, Tally)
            machine.check_invariants()
            assert machine.idents == first.idents, f"{node} diverged"
            assert machine.chain == first.chain, f"{node} has another history"
        present = dict.fromkeys(first.idents)
        lost = [ident for ident in self._done if ident not in present]
        assert not lost, f"acknowledged commands are gone: {lost[:5]}"
