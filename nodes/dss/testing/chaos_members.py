"""What an operator does with members while all else breaks: replace, remove, add.

* A node with a new disk is removed as it was, and added anew under its new incarnation.
* A healthy voter is removed while it runs; once that is committed its disk is taken, and it is let
  in again as any new node.
* A node that founded nothing, with an id that no configuration has had, joins at some moment.

At most a minority is outside, or on its way in or out, at any moment: more is beyond any promise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dss.core.raft import effects as fx
from dss.core.raft.messages import Member
from dss.testing.simnode import SimNode

if TYPE_CHECKING:
    from dss.testing.chaos import Chaos

LOOK_EVERY_MS: Final = 200.0


class MemberChanges:
    """See the module.

    Attributes:
        endangered: nodes whose data directory is damaged or gone, found out or not, or that are
            on their way out.
    """

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.sim = chaos.sim
        self.endangered: dict[str, None] = {}

    def start(self) -> None:
        for node in self.sim.nodes.values():
            if node.absent:
                self.endangered[node.node_id] = None
        self._look()

    def may_lose(self, node: SimNode) -> bool:
        """Whether this node's disk may be damaged: never those of a majority."""
        if node.node_id in self.endangered:
            return True
        return len(self.endangered) < (len(self.sim.nodes) - 1) // 2

    def expel(self, node: SimNode) -> bool:
        """It is healthy, and is to leave."""
        if node.node_id in self.endangered or not self.may_lose(node):
            return False
        self.endangered[node.node_id] = None
        node.leaving = True
        return True

    def _look(self) -> None:
        self.sim.world.after(LOOK_EVERY_MS, self._look)
        for node in self.sim.nodes.values():
            if node.leaving:
                self._lead_out(node)
            if not node.absent or node.lost or not self._comes_now(node):
                continue
            steps = [self._let_in(node, gid) for gid in self.sim.workloads]
            if all(steps):
                node.absent = False
                self.endangered.pop(node.node_id, None)
                self.chaos.counts["readmitted"] += 1

    def _lead_out(self, node: SimNode) -> None:
        """One step; once no group lists it any more, its disk is somebody else's."""
        if node.lost or node.absent:
            node.leaving = False  # its disk went first
            return
        gone = []
        for gid in self.sim.workloads:
            leader = self._leader(gid)
            if leader is None:
                return
            raft = leader.raft(gid)
            assert raft is not None
            known = raft.membership.members.get(node.node_id)
            gone.append(known is None and raft.commit_index >= raft.membership.index)
            if known is not None and leader is not node:
                self._change(leader, gid, known, remove=True)
            elif known is not None and leader.engine is not None:
                leader.engine.event(gid, fx.Transfer(None))
        if all(gone):
            node.leaving = False
            self.chaos.counts["expelled"] += 1
            if node.alive:
                node.crash(power=False)
            node.wipe()
            delay = self.chaos.rng.uniform(1.0, 2_000.0)
            self.sim.world.after(delay, lambda: self.chaos.restart(node))

    def _comes_now(self, node: SimNode) -> bool:
        """A node that founded nothing waits for its moment."""
        return self.sim.world.now >= node.joins_ms or not self.chaos.breaking

    def _leader(self, gid: int) -> SimNode | None:
        leaders = [each for each in self.sim.leaders(gid) if not each.paused]
        return max(leaders, key=lambda each: each.term(gid)) if leaders else None

    def _change(self, leader: SimNode, gid: int, member: Member, *, remove: bool) -> None:
        engine = leader.engine
        assert engine is not None

        def done(code: str) -> None:
            self.chaos.counts[f"change_{code or 'done'}"] += 1

        supports = self.sim.nodes[member.node_id].supports
        leader.guard(
            lambda: engine.change_members(
                gid, member, remove=remove, done=done, feature_level=supports
            )
        )

    def _let_in(self, node: SimNode, gid: int) -> bool:
        """One step on its way into a group; True: it votes there, and that is committed."""
        leader = self._leader(gid)
        if leader is None:
            return False
        raft = leader.raft(gid)
        assert raft is not None
        membership = raft.membership
        known = membership.members.get(node.node_id)
        member = Member(node.node_id, node.incarnation)
        if known == member:
            return node.node_id in membership.voters and raft.commit_index >= membership.index
        self._change(leader, gid, member if known is None else known, remove=known is not None)
        return False
