"""One simulated process: the real engine, cores and WAL on a simulated disk, clock and net.

Its disk outlives it, everything else dies in a crash. What must not live here: when to break what
(chaos.py), what the groups are for (the workloads).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dss.base.errors import ConfigProblem, CorruptData, StorageFailed
from dss.base.levels import FEATURE_LEVEL
from dss.core.machine import Machine
from dss.core.raft.messages import Configuration, RaftMessage, VoteResponse
from dss.core.raft.raft import Raft
from dss.drivers.engine import Engine
from dss.drivers.group import Flight
from dss.drivers.ports import Sink
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.disk import SimCrash, SimFiles
from dss.testing.observed import Observed

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RaftMessage)

RECLAIM_CHANCE = 0.01
"""Per cycle; the real host does it every few seconds."""


class SimNode:
    """See the module.

    Attributes:
        alive: its process runs (or is paused).
        lost: its data directory is damaged beyond use: it does not come up any more.
        absent: its disk was replaced or it is new, and it is no voter of every group yet.
        leaving: it runs, and is being removed from its groups.
        joins_ms: a node that founded nothing is let in from then on.
        stall_ms: every sync takes so much longer now.
        supports: the feature level of its release, from its next start on (upgrades.py).
    """

    def __init__(self, sim: Simulation, node_id: str) -> None:
        self.sim = sim
        self.node_id = node_id
        self.wipes = 0
        self._incarnation = incarnation_of(node_id, 0)
        self.rng = sim.world.rng(f"node/{node_id}")
        self.drift = 1.0 + self.rng.uniform(-0.5, 0.5) * sim.plan.drift
        self.offset_ms = self.rng.uniform(0.0, 100_000.0)
        self.wal_files = SimFiles(self.rng)
        self.snapshot_files = SimFiles(self.rng)
        self.alive = False
        self.paused = False
        self.lost = False
        self.absent = False
        self.leaving = False
        self.joins_ms = 0.0
        self.stall_ms = 0.0
        self.supports = FEATURE_LEVEL
        self.life = 0
        self.engine: Engine | None = None
        self._held: list[Callable[[], None]] = []
        self._cycle_due = False
        self._tick_at: float | None = None

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def raft(self, gid: int) -> Raft | None:
        """The core of a group; None: not running, or not a member."""
        group = self.engine.groups.get(gid) if self.engine is not None else None
        return group.raft if group is not None else None

    def machine(self, gid: int) -> Machine:
        """The machine of a group that this node has, as the workload made it."""
        assert self.engine is not None
        observed = self.engine.groups[gid].machine
        assert isinstance(observed, Observed)
        return observed.inner

    def term(self, gid: int) -> int:
        raft = self.raft(gid)
        return raft.term if raft is not None else 0

    def leads(self, gid: int) -> bool:
        raft = self.raft(gid)
        return raft is not None and raft.role == "leader"

    # --- engine hooks ---

    def now_ms(self) -> int:
        return int(self.offset_ms + self.sim.world.now * self.drift)

    def send(self, peer: str, message: RaftMessage) -> None:
        if type(message) is VoteResponse and message.granted and not message.pre:
            self.sim.invariants[message.group].voted(self.incarnation, message.term, peer)
        self.sim.net.send(self.node_id, peer, (self.incarnation, _encode(message)))

    def flush(self) -> None:
        """The simulated net takes every message at once."""

    def wake(self) -> None:
        if not self._cycle_due:
            self._cycle_due = True
            self.later(self.rng.random() * 0.3, self._cycle)

    def soon(self, step: Callable[[], None]) -> None:
        self.later(self.rng.random() * 0.3, step)

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        position = 0
        for count, sink in flight.sinks:
            for rid in flight.rids[position : position + count]:
                sink.answer(rid, 503, {"code": code, "leader": leader})
            position += count

    def role_changed(
        self, group: int, role: str, term: int, leader: str | None, reason: str
    ) -> None:
        self.sim.world.trace(self.node_id, group, role, term, leader)
        if role == "leader":
            assert self.engine is not None
            raft = self.engine.groups[group].raft
            self.sim.invariants[group].elected(self.incarnation, term, raft)
            self.sim.elections += 1
            self.sim.chaos.new_leader(self)

    def applied(self, group: int) -> None:
        assert self.engine is not None
        index = self.engine.groups[group].applied_index
        self.sim.world.trace(self.node_id, group, "applied", index)

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        def both() -> None:
            work()
            done()

        self.later(self.rng.uniform(0.5, 30.0), both)

    # --- life ---

    def start(self) -> None:
        """Recover from the disk and run. The first start founds the groups."""
        self.life += 1
        self.alive, self.paused = True, False
        self._held = []
        self._cycle_due, self._tick_at = False, None
        plan = self.sim.plan
        wal, recovered = Wal.open(self.wal_files, segment_bytes=plan.segment_bytes)
        self.engine = Engine(
            node_id=self.node_id,
            incarnation=self.incarnation,
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(self.snapshot_files),
            settings=plan.settings,
            rng=lambda gid: random.Random(self.rng.getrandbits(64)),
            hooks=self,
            snapshot_every_entries=plan.snapshot_every_entries,
            feature_level=self.supports,
        )
        self.engine.snapshotting.chunk_bytes = plan.chunk_bytes
        self.engine.snapshotting.inline_rows = plan.inline_rows
        for gid in self.sim.workloads:
            self._open(self.engine, gid)
        self.arm()

    def _open(self, engine: Engine, gid: int) -> None:
        machine = self.sim.new_machine(gid, self.node_id)
        if not engine.open_group(gid, machine):
            if self.wipes:  # no founder: it waits to be let in
                engine.create_group(gid, Configuration(()), machine)
            else:
                self.sim.invariants[gid].founding(self.incarnation)
                engine.create_group(gid, self.sim.configuration, machine)
        self.sim.invariants[gid].restarted(self.incarnation, engine.groups[gid].raft)

    def crash(self, *, power: bool = True) -> None:
        """Power loss: unsynced sectors may be kept, lost or torn. Without: as by kill -9."""
        if not self.alive:
            return
        self.alive = False
        self.life += 1
        if self.engine is not None:
            self.sim.note_end_of(self.engine)
        self.engine = None
        if power:
            self.wal_files = self.wal_files.crash(self.rng)
            self.snapshot_files = self.snapshot_files.crash(self.rng)
        else:
            self.wal_files = self.wal_files.kill()
            self.snapshot_files = self.snapshot_files.kill()
        for invariants in self.sim.invariants.values():
            invariants.crashed(self.incarnation)
        self.sim.world.trace(self.node_id, "crash")

    def wipe(self) -> None:
        """A new disk in the place of the old one. Only while it is down."""
        assert not self.alive
        self.wipes += 1
        self._incarnation = incarnation_of(self.node_id, self.wipes)
        self.lost, self.absent, self.leaving = False, True, False
        if self.sim.world.now:
            self.sim.upgrades.replaced(self)
        self.wal_files = SimFiles(self.rng)
        self.snapshot_files = SimFiles(self.rng)

    def pause(self) -> None:
        """Nothing runs until `resume`; what arrives waits in the sockets' buffers."""
        self.paused = True

    def resume(self) -> None:
        """What came while it stood still, in the order in which it came; timers after that."""
        self.paused = False
        held, self._held = self._held, []
        for action in held:
            self.later(0.0, action)
        self._tick_at = None
        self.later(0.0, self.arm)

    def jump(self, by_ms: float) -> None:
        """Its monotonic clock is set forward (a virtual machine that was suspended)."""
        self.offset_ms += by_ms
        if self.engine is not None:
            self._tick_at = None
            self.arm()

    def later(self, delay_ms: float, action: Callable[[], None], *, timer: bool = False) -> None:
        """Run `action` in this life only, and not while paused."""
        life = self.life

        def run() -> None:
            if self.life != life or not self.alive:
                return
            if not self.paused:
                self.guard(action)
            elif not timer:  # `resume` sets the timer anew
                self._held.append(action)

        self.sim.world.after(delay_ms, run)

    def guard(self, action: Callable[[], None]) -> None:
        """Run a piece of the process; what kills the real one kills this one."""
        try:
            action()
        except SimCrash:
            self.sim.chaos.died(self)
        except ConfigProblem:
            if self.sim.upgrades.lists(self):
                raise  # no member is ever given what it does not support
            self.sim.upgrades.stopped(self)
        except CorruptData:
            self.sim.chaos.damaged(self)
        except (OSError, StorageFailed):
            # A failed fsync or write: the real node stops, and its disk keeps what it has.
            if not {"disk_error", "disk_full"} & set(self.sim.plan.kinds):
                raise
            self.sim.chaos.died(self)

    # --- cycles and time ---

    def _cycle(self) -> None:
        self._cycle_due = False
        assert self.engine is not None
        if not self.engine.begin():
            self._finish()
            return
        delay = self.sim.plan.sync_ms * self.rng.expovariate(1.0) + self.stall_ms
        if delay < 0.05:
            self._sync_and_finish()
        else:
            # As with the threaded fdatasync: nothing else cycles until it is done.
            self._cycle_due = True
            self.later(delay, self._sync_and_finish)

    def _sync_and_finish(self) -> None:
        self._cycle_due = False
        assert self.engine is not None
        self.engine.sync()
        self._finish()

    def _finish(self) -> None:
        engine = self.engine
        assert engine is not None
        engine.finish()
        for gid, group in engine.groups.items():
            self.sim.invariants[gid].stepped(self.incarnation, group.raft)
            self.sim.invariants[gid].levelled(
                self.incarnation, group.raft, group.applied_index, group.machine.level
            )
        if self.rng.random() < RECLAIM_CHANCE:
            engine.wal.prepare()
            engine.reclaim()
        if engine.pending:
            self.wake()
        self.arm()

    def arm(self) -> None:
        assert self.engine is not None
        at = (self.engine.next_tick_ms() - self.offset_ms) / self.drift
        if self._tick_at is not None and self._tick_at <= at:
            return
        self._tick_at = at
        self.later(at - self.sim.world.now + 0.01, lambda: self._tick(at), timer=True)

    def _tick(self, at: float) -> None:
        if self._tick_at != at:
            return
        self._tick_at = None
        assert self.engine is not None
        self.engine.tick()
        if not self.engine.pending:  # else the cycle that is due arms it
            self.arm()

    # --- what comes in ---

    def receive(self, sender: str, payload: tuple[str, bytes]) -> None:
        """A datagram of a peer: its incarnation, which the link proved, and a message."""
        if not self.alive:
            return
        incarnation, data = payload

        def handle() -> None:
            assert self.engine is not None
            self.engine.receive(sender, incarnation, [_decode.decode(data)])

        self.at_once(handle)

    def at_once(self, action: Callable[[], None]) -> None:
        """Now, or when the pause ends; never when it is down."""
        if not self.alive:
            return
        if self.paused:
            self._held.append(action)
        else:
            self.guard(action)

    def propose(self, gid: int, rid: int, command: msgspec.Struct, sink: Sink) -> None:
        """A client's command, as the driver would hand it to the engine."""
        assert self.engine is not None
        group = self.engine.groups.get(gid)
        if group is None:
            sink.answer(rid, 503, {"code": "no_quorum", "leader": None})
            return
        item = group.machine.codec.encode_item(rid, command)
        self.engine.propose(gid, [rid], item, [command], sink)

    def read(self, gid: int, done: Callable[[Any], None]) -> None:
        """A linearizable read: `done` gets the machine, or None when this node cannot tell."""
        engine = self.engine
        assert engine is not None
        if gid not in engine.groups:
            done(None)
            return
        life = self.life

        def ready(leader: str | None, ok: bool) -> None:
            done(self.machine(gid) if ok and self.life == life else None)

        engine.read(gid, ready)


def incarnation_of(node_id: str, wipes: int) -> str:
    return f"inc-{node_id}-{wipes}"
