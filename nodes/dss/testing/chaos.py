"""When to break what: crashes, partitions, pauses, disks, clocks, leadership fights.

The fault model of the parts stands where they are (disk.py, world.py); here is what a seed does
with them. At most a minority of nodes ever loses its disk for good: more is beyond any promise.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dss.core.raft import effects as fx
from dss.testing.chaos_members import MemberChanges
from dss.testing.simnode import SimNode
from dss.testing.world import NetFaults

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation

CALM_EVERY_MS = 10_000.0
ROOM_BYTES_MAX = 20_000
"""A disk that fills up has at most this much left."""


class Chaos:
    """Draws faults from a stream of its own while `breaking`."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.breaking = True
        self.counts: Counter[str] = Counter()
        self.rng = self._rng = sim.world.rng("chaos")
        self.members = MemberChanges(self)
        self._was_calm = False
        self._kinds = list(sim.plan.kinds)
        if {"partition", "slow_link"} & set(self._kinds):
            self._kinds.append("heal")
        if "locks" not in sim.plan.workloads:
            self._kinds = [kind for kind in self._kinds if not kind.startswith("client_")]

    def start(self) -> None:
        self._next()
        self.members.start()

    def _next(self) -> None:
        self.sim.world.after(
            self._rng.expovariate(1.0) * self.sim.plan.fault_every_ms, self._break_something
        )

    def _break_something(self) -> None:
        if not self.breaking:
            return
        self._next()
        if not self._kinds or self._calm():
            return
        kind = self._rng.choice(self._kinds)
        self.sim.world.trace("fault", kind)
        if getattr(self, f"_{kind}")() is not False:
            self.counts[kind] += 1

    def _calm(self) -> bool:
        """Now and then everything is mended for a while (nodes that are down come up then)."""
        calm = self.sim.plan.calms and self.sim.world.now % CALM_EVERY_MS < CALM_EVERY_MS / 3
        if calm and not self._was_calm:
            self._mend()
        self._was_calm = calm
        return calm

    def _leaders(self) -> list[SimNode]:
        return self.sim.leaders(self._rng.choice(list(self.sim.workloads)))

    def _pick(self) -> SimNode:
        leaders = self._leaders()
        if leaders and self._rng.random() < self.sim.plan.aims_at_leader:
            return self._rng.choice(leaders)
        return self._rng.choice(list(self.sim.nodes.values()))

    # --- processes ---

    def _crash(self) -> None:
        node = self._pick()
        if self._rng.random() < 0.2:
            self.died(node, power=False)
        elif self._rng.random() < 0.5:
            # In the middle of a later disk operation, inside an fsync perhaps.
            node.wal_files.crash_after(self._rng.randrange(1, 30))
        else:
            self.died(node)

    def died(self, node: SimNode, *, power: bool = True) -> None:
        """Power it off (or kill only its process) and start it again after a while."""
        if not node.alive:
            return
        node.crash(power=power)
        for other in self.sim.nodes.values():
            self._link(other, node.node_id, up=False)
        if node.lost:
            self.sim.world.after(
                self._rng.uniform(500.0, 5_000.0), lambda: self._replace_disk(node)
            )
            return
        delay = self._rng.uniform(1.0, self.sim.plan.down_ms_max)
        self.sim.world.after(delay, lambda: self.restart(node))

    def damaged(self, node: SimNode) -> None:
        """It found its data damaged where it was durable: it must not serve any more."""
        assert node.node_id in self.members.endangered, f"{node.node_id}: damage that nobody did"
        node.lost = True
        self.counts["damage_found"] += 1
        self.died(node)

    def restart(self, node: SimNode) -> None:
        if node.alive or node.lost:
            return
        node.guard(node.start)
        for other in self.sim.nodes.values():
            self._link(other, node.node_id, up=True)
            self._link(node, other.node_id, up=True)

    def _stop(self) -> bool:
        """As by SIGTERM: its clients' waits are withdrawn, its groups handed over, then it ends."""
        node = self._pick()
        engine = node.engine
        if not node.alive or node.paused or engine is None:
            return False
        life = node.life
        for gid, group in engine.groups.items():
            places = group.waits.here()
            leaders = [each for each in self.sim.leaders(gid) if not each.paused]
            if places and leaders and self.sim.workloads[gid] is self.sim.clients:
                self.sim.clients.withdraw(max(leaders, key=lambda each: each.term(gid)), places)
                self.counts["withdrawals"] += 1

        def hand_over() -> None:
            if node.life == life and node.engine is not None:
                for gid in node.engine.groups:
                    node.engine.event(gid, fx.Transfer(None))

        def end() -> None:
            if node.life == life and node.engine is not None:
                node.engine.abandon()
                self.died(node, power=False)

        self.sim.world.after(self._rng.uniform(0.0, 100.0), hand_over)
        self.sim.world.after(self._rng.uniform(100.0, 600.0), end)
        return True

    def _restart_all(self) -> None:
        for node in self.sim.nodes.values():
            self.died(node)

    def new_leader(self, node: SimNode) -> None:
        """It has just won: perhaps it dies before the others have all of its log (fig. 8)."""
        plan = self.sim.plan
        if not self.breaking or self._rng.random() >= plan.kills_new_leaders:
            return
        life = node.life
        round_trip_ms = 2 * (plan.net.delay_ms_min + plan.net.delay_ms_mean)

        def die() -> None:
            if node.life == life and self.breaking:
                self.counts["new_leader_killed"] += 1
                self.died(node)

        self.sim.world.after(self._rng.expovariate(1.0) * 3 * round_trip_ms, die)

    def _pause(self) -> None:
        node = self._pick()
        if not node.alive or node.paused:
            return
        node.pause()
        life = node.life

        def resume() -> None:
            if node.life == life:
                node.resume()

        self.sim.world.after(self._rng.uniform(10.0, 5_000.0), resume)

    def _transfer(self) -> None:
        for node in self.sim.nodes.values():
            if node.alive and node.engine and not node.paused:
                for gid in node.engine.groups:
                    target = self._rng.choice(list(self.sim.nodes))
                    node.engine.event(gid, fx.Transfer(target))

    def _fight(self) -> None:
        """A leader that reaches too few writes on; then it vanishes, and others take over."""
        leaders = self._leaders()
        if not leaders:
            return
        rng, net = self._rng, self.sim.net
        leader = rng.choice(leaders)
        others = [name for name in self.sim.nodes if name != leader.node_id]
        reached = rng.sample(others, rng.randint(0, max(0, len(self.sim.nodes) // 2 - 1)))
        net.heal()
        for other in others:
            if other not in reached:
                net.cut(leader.node_id, other)
                net.cut(other, leader.node_id)
        for workload in self.sim.workloads.values():
            if leader.alive and not leader.paused:
                workload.burst(leader)
        life = leader.life

        def end() -> None:
            if not self.breaking or leader.life != life:
                return
            net.heal()
            if rng.random() < 0.5:
                self.died(leader)
            else:
                for other in others:
                    net.cut(leader.node_id, other)
                    net.cut(other, leader.node_id)

        self.sim.world.after(rng.uniform(1.0, 100.0), end)

    def _client_crash(self) -> None:
        self.sim.clients.crash_one()

    def _client_pause(self) -> None:
        self.sim.clients.pause_one()

    # --- clocks ---

    def _clock_jump(self) -> None:
        node = self._pick()
        node.jump(self._rng.choice([50.0, 1_000.0, 20_000.0]))

    # --- net ---

    def _link(self, node: SimNode, peer: str, *, up: bool) -> None:
        """The node's transport says that a link broke, or is there again."""
        if node.node_id == peer or node.engine is None or not node.alive:
            return
        engine = node.engine
        node.later(self._rng.uniform(0.1, 5.0), lambda: engine.link_changed(peer, up))

    def _partition(self) -> None:
        rng, net, nodes = self._rng, self.sim.net, self.sim.nodes
        names = list(nodes)
        shape = rng.choice(["isolate", "split", "one_way", "bridge"])
        self.counts[f"partition_{shape}"] += 1
        if shape == "isolate":
            victim = self._pick().node_id
            pairs = [(victim, other) for other in names if other != victim]
        elif shape == "split":
            # In place of earlier cuts: leadership then moves from side to side (Raft fig. 8).
            net.heal()
            side = [name for name in names if rng.random() < 0.5]
            pairs = [(a, b) for a in side for b in names if b not in side]
        elif shape == "one_way":
            victim = self._pick().node_id
            for other in names:
                if other != victim and rng.random() < 0.7:
                    net.cut(victim, other)
            return
        else:
            pairs = [(a, b) for a in names for b in names if a < b and rng.random() < 0.4]
        for a, b in pairs:
            net.cut(a, b)
            net.cut(b, a)
            if rng.random() < 0.5:
                self._link(nodes[a], b, up=False)
                self._link(nodes[b], a, up=False)

    def _slow_link(self) -> None:
        """All that reaches a node is old; then nobody hears it any more, but it does not know."""
        net, others = self.sim.net, list(self.sim.nodes)
        victim = self._pick().node_id
        others.remove(victim)
        by_ms = self._rng.uniform(100.0, 2_000.0)
        for other in others:
            net.slow(other, victim, by_ms)

        def cut() -> None:
            if self.breaking:
                for other in others:
                    net.cut(victim, other)

        self.sim.world.after(by_ms, cut)
        self.sim.world.after(3 * by_ms, net.heal)

    def _heal(self) -> None:
        self.sim.net.heal()
        for node in self.sim.nodes.values():
            for peer in self.sim.nodes:
                self._link(node, peer, up=True)

    # --- disks ---

    def _disk_error(self) -> None:
        self._pick().wal_files.fail_after(self._rng.randrange(1, 20))

    def _disk_full(self) -> None:
        node = self._pick()
        files = self._rng.choice([node.wal_files, node.snapshot_files])
        files.capacity_bytes = files.used_bytes() + self._rng.randrange(ROOM_BYTES_MAX)

        def room_again() -> None:
            for each in (node.wal_files, node.snapshot_files):
                each.capacity_bytes = None

        self.sim.world.after(self._rng.uniform(100.0, 3_000.0), room_again)

    def _bit_rot(self) -> bool:
        """A stored bit flips; the process is killed, and so reads what it has.

        One flip a disk, and no power loss with it: the side file that tells damage from a torn
        tail is not synced (storage/durable.py), so both at once can hide the loss of a tail.
        """
        node, rng = self._pick(), self._rng
        files = rng.choice([node.wal_files, node.wal_files, node.snapshot_files])
        names = [name for name in files.names() if files.written_bytes(name)]
        if not names or node.node_id in self.members.endangered or not self.members.may_lose(node):
            return False
        self.members.endangered[node.node_id] = None
        name = rng.choice(names)
        written = files.written_bytes(name)
        near_end = max(0, written - 4_096) if rng.random() < 0.5 else 0
        files.flip(name, rng.randrange(near_end, written), rng.randrange(8))
        self.died(node, power=False)
        return True

    def _wipe(self) -> bool:
        """Its disk is replaced by an empty one."""
        node = self._pick()
        if node.absent or not self.members.may_lose(node):
            return False
        self.members.endangered[node.node_id] = None
        self.died(node)
        node.wipe()
        return True

    def _replace_disk(self, node: SimNode) -> None:
        if node.lost and not node.alive:
            node.wipe()
            self.restart(node)

    def _slow_disk(self) -> None:
        """Every sync of a node takes long for a while: a disk that somebody else uses up."""
        node = self._pick()
        node.stall_ms = self._rng.uniform(50.0, 1_000.0)

        def fast_again() -> None:
            node.stall_ms = 0.0

        self.sim.world.after(self._rng.uniform(100.0, 5_000.0), fast_again)

    # --- members ---

    def _expel(self) -> bool:
        return self.members.expel(self._pick())

    # --- the end ---

    def end(self) -> None:
        """Stop breaking things, for good."""
        self.breaking = False
        self.sim.net.faults = NetFaults()
        # Where entries go one by one, thousands that piled up behind a partition are a matter of
        # the disk alone (seed 456: 3,400 of them, 13 s with syncs of 3 ms), not of convergence.
        piecemeal = self.sim.plan.settings.max_append_bytes == 1
        self.sim.plan.sync_ms = min(self.sim.plan.sync_ms, 0.3 if piecemeal else 3.0)
        self._mend()

    def _mend(self) -> None:
        """The net, the disks, and every node that has its data."""
        for node in self.sim.nodes.values():
            node.wal_files.heal()
            node.snapshot_files.heal()
            node.stall_ms = 0.0
            if node.paused:
                node.resume()
            if not node.alive:
                self.restart(node)
        self._heal()
