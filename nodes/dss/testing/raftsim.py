"""Raft under faults: real cores, real engine, real WAL, on a simulated net, disk and clock.

One `Simulation` is one seed: it draws the cluster's size, timeouts and which faults are on, runs a
workload while it breaks things (`faults.py`), heals everything, and requires convergence. What is
checked after every cycle of every node stands in `invariants.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from dss.base.errors import StorageFailed
from dss.core.machine import Machine
from dss.core.raft import effects as fx
from dss.core.raft.messages import Configuration, Member, RaftMessage, VoteResponse
from dss.core.raft.settings import RaftSettings
from dss.drivers.engine import Engine, Flight
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.disk import SimCrash, SimFiles
from dss.testing.invariants import Invariants
from dss.testing.tally import Add, Tally
from dss.testing.world import Net, NetFaults, World

GROUP = 1
SETTLE_MS_MAX = 15_000.0
"""After a heal, converged within 15 s."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RaftMessage)


class SimNode:
    """One simulated process: its disk outlives it, everything else dies in a crash."""

    def __init__(self, sim: Simulation, node_id: str) -> None:
        self.sim = sim
        self.node_id = node_id
        self.incarnation = f"inc-{node_id}"
        self.rng = sim.world.rng(f"node/{node_id}")
        self.drift = 1.0 + self.rng.uniform(-1, 1) * sim.plan.drift
        self.offset_ms = self.rng.uniform(0.0, 100_000.0)
        self.wal_files = SimFiles(self.rng)
        self.snapshot_files = SimFiles(self.rng)
        self.alive = False
        self.paused = False
        self.life = 0
        self.engine: Engine | None = None
        self.machine: Machine = sim.new_machine()
        self._cycle_due = False
        self._tick_at: float | None = None

    # --- engine hooks ---

    def now_ms(self) -> int:
        return int(self.offset_ms + self.sim.world.now * self.drift)

    def send(self, peer: str, message: RaftMessage) -> None:
        if type(message) is VoteResponse and message.granted and not message.pre:
            self.sim.invariants.voted(self.node_id, message.term, peer)
        self.sim.net.send(self.node_id, peer, _encode(message))

    def flush(self) -> None:
        """The simulated net takes every message at once."""

    def wake(self) -> None:
        if not self._cycle_due:
            self._cycle_due = True
            self._later(self.rng.uniform(0.0, 0.3), self._cycle)

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        position = 0
        for count, sink in flight.sinks:
            for rid in flight.rids[position : position + count]:
                sink.answer(rid, 503, code)
            position += count

    def role_changed(
        self, group: int, role: str, term: int, leader: str | None, reason: str
    ) -> None:
        self.sim.world.trace(self.node_id, role, term, leader)
        if role == "leader":
            assert self.engine is not None
            raft = self.engine.groups[group].raft
            self.sim.invariants.elected(self.node_id, term, raft)

    def applied(self, group: int) -> None:
        assert self.engine is not None
        self.sim.world.trace(self.node_id, "applied", self.engine.groups[group].applied_index)

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        def both() -> None:
            work()
            done()

        self._later(self.rng.uniform(0.5, 30.0), both)

    # --- life ---

    def start(self) -> None:
        """Recover from the disk and run. The first start founds the group."""
        self.life += 1
        self.alive, self.paused = True, False
        self._cycle_due, self._tick_at = False, None
        wal, recovered = Wal.open(self.wal_files, segment_bytes=self.sim.plan.segment_bytes)
        self.engine = Engine(
            node_id=self.node_id,
            incarnation=self.incarnation,
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(self.snapshot_files),
            settings=self.sim.plan.settings,
            rng=lambda gid: random.Random(self.rng.getrandbits(64)),
            hooks=self,
            snapshot_every_entries=self.sim.plan.snapshot_every_entries,
        )
        self.machine = self.sim.new_machine()
        if not self.engine.open_group(GROUP, self.machine):
            self.sim.invariants.founding(self.node_id)
            self.engine.create_group(GROUP, self.sim.configuration, self.machine)
        self.sim.invariants.restarted(self.node_id, self.engine.groups[GROUP].raft)
        self._arm()

    def crash(self) -> None:
        """Power loss: unsynced sectors may be kept, lost or torn."""
        if not self.alive:
            return
        self.alive = False
        self.life += 1
        self.engine = None
        self.wal_files = self.wal_files.crash(self.rng)
        self.snapshot_files = self.snapshot_files.crash(self.rng)
        self.sim.invariants.crashed(self.node_id)
        self.sim.world.trace(self.node_id, "crash")

    def _later(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Run `action` in this life only, and only while not paused."""
        life = self.life

        def run() -> None:
            if self.life != life or not self.alive:
                return
            if self.paused:
                self.sim.world.after(5.0, run)
                return
            self._guard(action)

        self.sim.world.after(delay_ms, run)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SimCrash:
            self.sim.node_died(self)
        except (OSError, StorageFailed):
            # A failed fsync or write: the real node stops, and its disk keeps what it has.
            if not self.sim.plan.disk_errors:
                raise
            self.sim.disk_errors += 1
            self.sim.node_died(self)

    def _cycle(self) -> None:
        self._cycle_due = False
        assert self.engine is not None
        if not self.engine.begin():
            self._finish()
            return
        delay = self.sim.plan.sync_ms * self.rng.expovariate(1.0)
        if delay < 0.05:
            self._sync_and_finish()
        else:
            # As with the threaded fdatasync: nothing else cycles until it is done.
            self._cycle_due = True
            self._later(delay, self._sync_and_finish)

    def _sync_and_finish(self) -> None:
        self._cycle_due = False
        assert self.engine is not None
        self.engine.sync()
        self._finish()

    def _finish(self) -> None:
        assert self.engine is not None
        self.engine.finish()
        self.sim.invariants.stepped(self.node_id, self.engine.groups[GROUP].raft)
        if self.rng.random() < 0.01:
            self.engine.reclaim()
        if self.engine.pending:
            self.wake()
        self._arm()

    def _arm(self) -> None:
        assert self.engine is not None
        at = (self.engine.next_tick_ms() - self.offset_ms) / self.drift
        if self._tick_at is not None and self._tick_at <= at:
            return
        self._tick_at = at
        self._later(at - self.sim.world.now + 0.01, lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if self._tick_at != at:
            return
        self._tick_at = None
        assert self.engine is not None
        self.engine.tick()
        if not self.engine.pending:  # else the cycle that is due arms it
            self._arm()

    def receive(self, sender: str, payload: bytes) -> None:
        if not self.alive:
            return
        message = _decode.decode(payload)

        def handle() -> None:
            assert self.engine is not None
            self.engine.receive(sender, f"inc-{sender}", [message])

        if self.paused:
            self._later(0.0, handle)  # it waits in the socket's buffer
        else:
            self._guard(handle)


class Plan:
    """What one seed turns on. Everything is drawn from the seed's own stream."""

    def __init__(self, rng: random.Random) -> None:
        self.nodes = rng.choice([1, 2, 3, 3, 3, 4, 5, 5, 7])
        election_min = rng.choice([150, 300, 600])
        self.settings = RaftSettings(
            heartbeat_ms=rng.choice([20, 50]),
            election_min_ms=election_min,
            # Nearly equal timeouts make split votes and rival candidates.
            election_max_ms=int(election_min * rng.choice([1.05, 2, 3])),
            pre_vote=rng.random() < 0.7,
            log_tail_entries=rng.choice([5, 1_000]),
        )
        self.net = NetFaults.drawn(rng)
        # One seed in ten breaks nothing but the net; the others at least two kinds of thing.
        kinds = ["crashes", "partitions", "pauses", "disk_errors", "restart_all", "transfers"]
        on = [] if rng.random() < 0.1 else rng.sample(kinds, rng.randint(2, 5))
        self.crashes = "crashes" in on
        self.partitions = "partitions" in on
        self.pauses = "pauses" in on
        self.disk_errors = "disk_errors" in on
        self.restart_all = "restart_all" in on
        self.transfers = "transfers" in on
        self.drift = rng.choice([0.0, 0.001, 0.2])
        self.sync_ms = rng.choice([0.0, 0.3, 3.0, 20.0])
        self.segment_bytes = rng.choice([16_384, 65_536])
        self.snapshot_every_entries = rng.choice([20, 100, 100_000])
        self.fault_every_ms = rng.choice([100.0, 400.0, 1_000.0, 3_000.0])
        self.down_ms_max = rng.choice([100.0, 1_000.0, 4_000.0])
        self.aims_at_leader = rng.choice([0.0, 0.5, 0.9])
        self.proposal_every_ms = rng.choice([2.0, 10.0, 50.0])
        self.reads = rng.random() < 0.5


class _ClientSink:
    """Where a simulated client hears what became of its command."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim

    def answer(self, request_id: int, status: int, body: Any) -> None:
        if status == 200:
            self.sim.invariants.acknowledged(request_id)
            self.sim.acknowledged += 1

    def flush(self) -> None:
        """Nothing is buffered."""


class Simulation:
    """One seed from start to verdict. `run()` raises AssertionError on any violation."""

    def __init__(self, seed: int, *, seconds: float = 60.0) -> None:
        self.world = World(seed)
        self.seconds = seconds
        self.plan = Plan(self.world.rng("plan"))
        self.invariants = Invariants(self.plan.nodes)
        self.acknowledged = 0
        self.proposed = 0
        self.disk_errors = 0
        self.reads_served = 0
        self.settle_ms = 0.0
        self.faults: dict[str, int] = {}
        names = [f"n{i}" for i in range(1, self.plan.nodes + 1)]
        self.configuration = Configuration(tuple(Member(n, f"inc-{n}") for n in names))
        self.net = Net(self.world, self._deliver, faults=self.plan.net)
        self.nodes = {name: SimNode(self, name) for name in names}
        self._rng = self.world.rng("workload")
        self._chaos = self.world.rng("chaos")
        self._breaking = True
        self._sink = _ClientSink(self)

    def new_machine(self) -> Machine:
        return Tally()

    def run(self) -> None:
        for node in self.nodes.values():
            node._guard(node.start)
        self.world.after(self.plan.proposal_every_ms, self._workload)
        self.world.after(self.plan.fault_every_ms, self._break_something)
        self.world.run_until(self.seconds * 1000)
        self._heal()
        healed = self.world.now
        self._settle()
        self.settle_ms = self.world.now - healed
        self._serves_again()
        self._converged()

    def _deliver(self, sender: str, receiver: str, payload: bytes) -> None:
        self.nodes[receiver].receive(sender, payload)

    # --- workload ---

    def _workload(self) -> None:
        rng = self._rng
        if not self._breaking:
            return  # what is under way may end; then all nodes must be equal
        self.world.after(rng.expovariate(1.0) * self.plan.proposal_every_ms, self._workload)
        # A deposed leader that does not know it yet keeps its clients: its log must diverge.
        leaders = self._leaders()
        node = rng.choice(leaders if leaders and rng.random() < 0.9 else list(self.nodes.values()))
        if not node.alive or node.paused or node.engine is None:
            return
        if self.plan.reads and rng.random() < 0.2:
            self._read(node)
            return
        self._propose(node)

    def _propose(self, node: SimNode) -> None:
        assert node.engine is not None
        self.proposed += 1
        command = Add(self.proposed, b"x" * self._rng.choice([0, 10, 200, 2_000]))
        item = node.machine.codec.encode_item(self.proposed, command)
        node.engine.propose(GROUP, [self.proposed], item, [command], self._sink)

    def _read(self, node: SimNode) -> None:
        """A linearizable read must see every command acknowledged before it began."""
        assert node.engine is not None
        expected = self.invariants.acknowledged_count
        machine, life = node.machine, node.life

        def done(leader: str | None, ok: bool) -> None:
            if ok and node.life == life:
                self.reads_served += 1
                assert isinstance(machine, Tally)
                self.invariants.read(node.node_id, machine, expected)

        node.engine.read(GROUP, done)

    # --- faults ---

    def _break_something(self) -> None:
        if not self._breaking:
            return
        chaos, plan = self._chaos, self.plan
        self.world.after(chaos.expovariate(1.0) * plan.fault_every_ms, self._break_something)
        kinds = [
            name
            for name, on in (
                ("crash", plan.crashes),
                ("partition", plan.partitions),
                ("heal", plan.partitions),
                ("pause", plan.pauses),
                ("disk_error", plan.disk_errors),
                ("restart_all", plan.restart_all),
                ("transfer", plan.transfers),
            )
            if on
        ]
        if not kinds:
            return
        kind = chaos.choice(kinds)
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.world.trace("fault", kind)
        getattr(self, f"_fault_{kind}")()

    def _leaders(self) -> list[SimNode]:
        return [
            node
            for node in self.nodes.values()
            if node.engine is not None and node.engine.groups[GROUP].raft.role == "leader"
        ]

    def _pick(self) -> SimNode:
        leaders = self._leaders()
        if leaders and self._chaos.random() < self.plan.aims_at_leader:
            return self._chaos.choice(leaders)
        return self._chaos.choice(list(self.nodes.values()))

    def _fault_crash(self) -> None:
        node = self._pick()
        if self._chaos.random() < 0.5:
            # In the middle of a later disk operation, inside an fsync perhaps.
            node.wal_files.crash_after(self._chaos.randrange(1, 30))
        else:
            self.node_died(node)

    def node_died(self, node: SimNode) -> None:
        """Power it off and back on after a while."""
        if not node.alive:
            return
        node.crash()
        for other in self.nodes.values():
            self._link(other, node.node_id, up=False)
        delay = self._chaos.uniform(1.0, self.plan.down_ms_max)
        self.world.after(delay, lambda: self._restart(node))

    def _restart(self, node: SimNode) -> None:
        if node.alive:
            return
        node._guard(node.start)
        for other in self.nodes.values():
            self._link(other, node.node_id, up=True)
            self._link(node, other.node_id, up=True)

    def _link(self, node: SimNode, peer: str, *, up: bool) -> None:
        if node.node_id == peer or node.engine is None or not node.alive:
            return
        engine, life = node.engine, node.life

        def changed() -> None:
            if node.life == life:
                engine.link_changed(peer, up)

        node._later(self._chaos.uniform(0.1, 5.0), changed)

    def _fault_partition(self) -> None:
        chaos = self._chaos
        names = list(self.nodes)
        shape = chaos.choice(["isolate", "split", "one_way", "bridge"])
        if shape == "isolate":
            victim = self._pick().node_id
            pairs = [(victim, other) for other in names if other != victim]
        elif shape == "split":
            # In place of earlier cuts: leadership then moves from side to side (Raft fig. 8).
            self.net.heal()
            side = [name for name in names if chaos.random() < 0.5]
            pairs = [(a, b) for a in side for b in names if b not in side]
        elif shape == "one_way":
            victim = self._pick().node_id
            for other in names:
                if other != victim and chaos.random() < 0.7:
                    self.net.cut(victim, other)
            return
        else:
            pairs = [(a, b) for a in names for b in names if a < b and chaos.random() < 0.4]
        for a, b in pairs:
            self.net.cut(a, b)
            self.net.cut(b, a)
            if chaos.random() < 0.5:
                self._link(self.nodes[a], b, up=False)
                self._link(self.nodes[b], a, up=False)

    def _fault_heal(self) -> None:
        self.net.heal()
        for node in self.nodes.values():
            for peer in self.nodes:
                self._link(node, peer, up=True)

    def _fault_pause(self) -> None:
        node = self._pick()
        if node.alive and not node.paused:
            node.paused = True
            life = node.life

            def resume() -> None:
                if node.life == life:
                    node.paused = False

            self.world.after(self._chaos.uniform(10.0, 5_000.0), resume)

    def _fault_disk_error(self) -> None:
        self._pick().wal_files.fail_after(self._chaos.randrange(1, 20))

    def _fault_restart_all(self) -> None:
        for node in self.nodes.values():
            self.node_died(node)

    def _fault_transfer(self) -> None:
        for node in self.nodes.values():
            if node.alive and node.engine and not node.paused:
                node.engine.event(GROUP, fx.Transfer(self._chaos.choice(list(self.nodes))))

    # --- the end ---

    def _heal(self) -> None:
        """Stop breaking things, and mend the net, the disks and every node."""
        self._breaking = False
        self.net.faults = NetFaults()
        self.plan.sync_ms = min(self.plan.sync_ms, 3.0)
        for node in self.nodes.values():
            node.wal_files.heal()
            node.snapshot_files.heal()
            node.paused = False
            if not node.alive:
                self._restart(node)
        self._fault_heal()

    def _settle(self) -> None:
        until = self.world.now + SETTLE_MS_MAX
        while not self._settled() and self.world.now < until:
            self.world.run_until(self.world.now + 100.0)
        assert self._settled(), (
            f"not converged {SETTLE_MS_MAX / 1000:g} s after the heal: leaders "
            f"{[node.node_id for node in self._leaders()]}"
        )

    def _serves_again(self) -> None:
        """Commands proposed after the heal are acknowledged."""
        before = self.acknowledged
        until = self.world.now + SETTLE_MS_MAX
        while self.acknowledged == before and self.world.now < until:
            for leader in self._leaders():  # a client repeats: a hand-over may be under way
                self._propose(leader)
            self.world.run_until(self.world.now + 200.0)
        assert self.acknowledged > before, "no command is acknowledged after the heal"
        self._settle()

    def _settled(self) -> bool:
        """One leader, and everybody has applied all of its log."""
        leaders = self._leaders()
        if len(leaders) != 1 or not all(node.alive for node in self.nodes.values()):
            return False
        assert leaders[0].engine is not None
        last_index = leaders[0].engine.groups[GROUP].raft.last_index
        return all(
            node.engine is not None and node.engine.groups[GROUP].applied_index == last_index
            for node in self.nodes.values()
        )

    def _converged(self) -> None:
        """Everybody up, one leader, equal states, and everything acknowledged is there."""
        machines: dict[str, Tally] = {}
        for name, node in self.nodes.items():
            assert isinstance(node.machine, Tally)
            node.machine.check_invariants()
            machines[name] = node.machine
        self.invariants.final(machines)
