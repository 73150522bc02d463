"""A rolling upgrade while all else breaks: nodes that support less, one after the other replaced.

A seed has one of three stories: every node is of the old release and stays so; all are of the new
one from the start; or they are upgraded one by one at moments of the seed's own, the last ones
when everything is healed. Who replaces a lost node may take the old release once more. Leaders
raise their groups by the rule that real ones have (drivers/levels.py). What must not live here:
what must hold of levels (invariants.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from dss.base.levels import BASE_LEVEL, FEATURE_LEVEL
from dss.core.raft.messages import Member
from dss.drivers import levels
from dss.testing.simnode import SimNode

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation

LOOK_EVERY_MS: Final = 100.0
OLD, NEW, ROLLING = "old", "new", "rolling"


class Upgrades:
    """See the module. `story` may be changed before the simulation starts."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.world.rng("levels")
        self.story = self._rng.choice([OLD, NEW, ROLLING, ROLLING])
        self._stopped: dict[str, None] = {}

    @property
    def level(self) -> int:
        """What every group is at when all is over."""
        return BASE_LEVEL if self.story == OLD else FEATURE_LEVEL

    def start(self) -> None:
        for node in self._sim.nodes.values():
            node.supports = FEATURE_LEVEL if self.story == NEW else BASE_LEVEL
            if self.story == ROLLING:
                # A few are upgraded only in the end: the others must wait for them.
                at_ms = self._rng.uniform(0.0, 1_250.0 * self._sim.seconds)
                self._sim.world.after(at_ms, partial(self._upgrade, node))
        self._look()

    def end(self) -> None:
        """The rest of them."""
        if self.story != OLD:
            for node in self._sim.nodes.values():
                self._upgrade(node)

    def replaced(self, node: SimNode) -> None:
        """It has an empty disk. With the old release it is let in by a group that is not raised."""
        if self.story == OLD or not self._sim.chaos.breaking or self._rng.random() < 0.5:
            return
        node.supports = BASE_LEVEL
        at_ms = self._rng.uniform(1_000.0, 10_000.0)
        self._sim.world.after(at_ms, partial(self._upgrade, node))

    def lists(self, node: SimNode) -> bool:
        """Whether some group has this node, with the disk that it has now."""
        member = Member(node.node_id, node.incarnation)
        for gid in self._sim.workloads:
            rafts = [raft for each in self._sim.nodes.values() if (raft := each.raft(gid))]
            newest = max(rafts, key=lambda raft: raft.commit_index)
            if newest.membership.members.get(node.node_id) == member:
                return True
        return False

    def stopped(self, node: SimNode) -> None:
        """A new disk and an old release under a listed id: it was sent a raised log, and ended with
        78. It comes back when it is upgraded. (A real one gets no log before it is let in.)"""
        self._sim.chaos.counts["stopped_by_a_level"] += 1
        self._stopped[node.node_id] = None
        node.crash(power=False)

    def _upgrade(self, node: SimNode) -> None:
        if node.supports == FEATURE_LEVEL:
            return
        node.supports = FEATURE_LEVEL
        self._sim.chaos.counts["upgraded"] += 1
        self._sim.world.trace(node.node_id, "upgraded")
        self._sim.chaos.died(node, power=False)
        if node.node_id in self._stopped:
            del self._stopped[node.node_id]
            self._sim.chaos.restart(node)

    def _look(self) -> None:
        sim = self._sim
        sim.world.after(LOOK_EVERY_MS, self._look)
        for node in sim.nodes.values():
            if not node.alive or node.paused or node.engine is None:
                continue
            for gid, group in node.engine.groups.items():
                if not node.leads(gid) or group.level == node.supports:
                    continue
                level = levels.wanted(group, node.supports, partial(self._told, node))
                if level:
                    self._raise(node, gid, level)

    def _raise(self, node: SimNode, gid: int, level: int) -> None:
        engine = node.engine
        assert engine is not None

        def done(code: str) -> None:
            self._sim.chaos.counts[f"raise_{code or 'done'}"] += 1

        node.guard(lambda: engine.raise_level(gid, level, done))

    def _told(self, node: SimNode, member: Member) -> int:
        """What a member said when its link to `node` was made; 0 when there is none."""
        other = self._sim.nodes[member.node_id]
        linked = other.alive and not self._sim.net.is_cut(node.node_id, other.node_id)
        return other.supports if linked and other.incarnation == member.incarnation else 0
