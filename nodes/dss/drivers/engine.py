"""The engine: carries out the Raft cores' effects for all groups of one process. No asyncio.

One cycle serves everything that is pending in all groups (docs/architecture.md § Hot path):

    begin()   step every group that has events; hand sends to the transport; write the WAL
    sync()    one fdatasync for all groups (inline or in a thread: the host's choice)
    finish()  release what had to wait for the sync, apply what is committed, answer

`drivers/host.py` runs it on an asyncio loop, `dss.testing` in the simulator: the same code.
What must not live here: sockets, the loop, forwarding to a leader, HTTP.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from dss.base import limits
from dss.core.machine import PENDING, Machine, join_items
from dss.core.raft import effects as fx
from dss.core.raft import membership as members
from dss.core.raft.log import SnapshotMeta
from dss.core.raft.messages import (
    ANSWERS,
    COMMAND,
    NODE_BEAT,
    NOOP,
    AppendRequest,
    Configuration,
    Entry,
    Member,
    RaftMessage,
    SnapshotChunk,
    SnapshotResponse,
)
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings, RandomSource
from dss.drivers.ports import Sink
from dss.storage.snapshots import SnapshotReceiver, SnapshotStore
from dss.storage.wal import GroupState, Wal

log = logging.getLogger("dss.raft")

SNAPSHOTS_PER_RECLAIM: Final = 2
"""Each copies a machine's state on the loop: many in one turn would hold heartbeats up."""


class Flight(msgspec.Struct):
    """Proposals that share one log entry, until it is applied or lost."""

    rids: list[int]
    sinks: list[tuple[int, Sink]]
    """(how many of the following commands, where their answers go), in order."""
    commands: list[Any]
    items: list[bytes]
    size: int = 0
    term: int = 0


class EngineHooks(Protocol):
    """What the engine needs from whoever runs it."""

    def now_ms(self) -> int:
        """Monotonic ms."""

    def send(self, peer: str, message: RaftMessage) -> None: ...

    def flush(self) -> None:
        """Send everything handed to `send` now."""

    def wake(self) -> None:
        """Run a cycle soon: something is pending."""

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None:
        """These proposals were not appended anywhere."""

    def role_changed(
        self, group: int, role: str, term: int, leader: str | None, reason: str
    ) -> None: ...

    def applied(self, group: int) -> None:
        """Entries of `group` were applied in this cycle."""

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        """Run blocking `work` off the loop, then `done` between two cycles."""


class _Null:
    """Where the answers to the engine's own proposals (expiry) go."""

    def answer(self, request_id: int, status: int, body: Any) -> None: ...

    def flush(self) -> None: ...


NULL_SINK = _Null()


def _incarnations(configuration: Configuration) -> dict[str, str]:
    return {
        member.node_id: member.incarnation
        for member in configuration.voters + configuration.learners
    }


ChangeDone = Callable[[str], None]
"""done(code): "" when the change is made, `indeterminate`, or the core's refusal."""


class Group:
    """One Raft group on this node: its core, its machine and what waits for them."""

    __slots__ = (
        "applied_bytes",
        "applied_index",
        "applied_log_ms",
        "changes",
        "changes_by_ref",
        "commit_heard",
        "configuration",
        "due_in_flight",
        "entries_since_snapshot",
        "flights",
        "flights_by_ref",
        "gid",
        "inbox",
        "install",
        "leaderless_ms",
        "listed",
        "machine",
        "members",
        "pending",
        "raft",
        "read_waiters",
        "reads",
        "receiver",
        "snapshot_busy",
        "snapshot_index",
        "synced_upto",
        "to_apply",
        "waits",
    )

    def __init__(
        self, gid: int, raft: Raft, machine: Machine, configuration: Configuration
    ) -> None:
        self.gid = gid
        self.raft = raft
        self.machine = machine
        self.configuration = configuration  # at `applied_index`
        self.members = _incarnations(raft.membership.configuration)
        self.changes_by_ref: dict[int, ChangeDone] = {}
        self.changes: dict[int, tuple[int, ChangeDone]] = {}
        self.inbox: list[fx.Event] = []
        self.listed = False
        self.pending: list[Flight] = []
        self.flights_by_ref: dict[int, Flight] = {}
        self.flights: dict[int, Flight] = {}
        self.waits: dict[tuple[int, int], tuple[Sink, int]] = {}
        self.reads: dict[int, Callable[[str | None, bool], None]] = {}
        self.read_waiters: list[tuple[int, Callable[[str | None, bool], None]]] = []
        self.to_apply: list[Entry] = []
        self.synced_upto: tuple[int, int] | None = None
        self.applied_index = 0
        self.applied_log_ms = 0
        self.commit_heard: int | None = None
        self.leaderless_ms: int | None = None  # since when no leader is known
        self.due_in_flight = False
        self.entries_since_snapshot = 0
        self.applied_bytes = 0
        self.snapshot_busy = False
        self.snapshot_index = 0
        self.receiver: SnapshotReceiver | None = None
        self.install: SnapshotChunk | None = None


class Engine:
    """All Raft groups of one process over one WAL.

    Args:
        node_id: this node's id.
        incarnation: of its data directory: groups that list another do not count this node.
        wal: opened; everything recovered is in `recovered`.
        recovered: what `Wal.open` gave, by group id.
        snapshots: where snapshots live.
        rng: gives each group its own seeded randomness.
    """

    def __init__(
        self,
        *,
        node_id: str,
        incarnation: str,
        wal: Wal,
        recovered: dict[int, GroupState],
        snapshots: SnapshotStore,
        settings: RaftSettings,
        rng: Callable[[int], RandomSource],
        hooks: EngineHooks,
        snapshot_every_entries: int = limits.SNAPSHOT_EVERY_ENTRIES,
        snapshot_every_bytes: int = limits.SNAPSHOT_EVERY_BYTES,
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.wal = wal
        self.recovered = dict(recovered)
        self.snapshots = snapshots
        self.settings = settings
        self.groups: dict[int, Group] = {}
        self.snapshot_every_entries = snapshot_every_entries
        self.snapshot_every_bytes = snapshot_every_bytes
        self._rng = rng
        self._hooks = hooks
        self._dirty: list[Group] = []
        self._after_sync: list[tuple[str, RaftMessage]] = []
        self._appended: list[Group] = []
        self._to_apply: list[Group] = []
        self._sinks: dict[Sink, None] = {}
        self._unsynced = False
        self._next_ref = 1
        self.cycles = 0
        self.cycles_finished = 0
        self.proposals_answered = 0
        self.entries_applied = 0
        self.commands_applied = 0
        self.mismatched_incarnations = 0
        self._heard_ms: dict[str, int] = {}
        self._node_beat_due_ms = 0
        self.snapshots_taken = 0
        self.snapshots_installed = 0
        self._warned: dict[tuple[int, str], str] = {}

    # --- groups -------------------------------------------------------------------------

    def create_group(self, gid: int, configuration: Configuration, machine: Machine) -> None:
        """Found `gid` with its first configuration; durable with the next cycle's sync."""
        if gid in self.groups or gid in self.recovered:
            return
        self.wal.create_group(gid, configuration)
        self._unsynced = True
        self._start(GroupState(gid, configuration, 0, None, 0, 0, 0, []), machine)
        self._hooks.wake()

    def open_group(self, gid: int, machine: Machine) -> bool:
        """Start `gid` from what the WAL and snapshots hold; False when they hold nothing."""
        state = self.recovered.pop(gid, None)
        if state is None:
            return False
        if state.snapshot_index:
            machine.restore(self.snapshots.load(gid, state.snapshot_index))
        self._start(state, machine)
        return True

    def _start(self, state: GroupState, machine: Machine) -> None:
        snapshot = None
        if state.snapshot_index:
            _, size = self.snapshots.read(state.group, state.snapshot_index, 0, 0)
            snapshot = SnapshotMeta(
                state.snapshot_index, state.snapshot_term, state.snapshot_log_ms, size
            )
        raft = Raft(
            group=state.group,
            node_id=self.node_id,
            incarnation=self.incarnation,
            configuration=state.configuration,
            term=state.term,
            voted_for=state.voted_for,
            snapshot=snapshot,
            entries=state.entries,
            settings=self.settings,
            rng=self._rng(state.group),
            now_ms=self._hooks.now_ms(),
        )
        group = Group(state.group, raft, machine, state.configuration)
        group.applied_index = group.snapshot_index = state.snapshot_index
        group.applied_log_ms = state.snapshot_log_ms
        self.groups[state.group] = group

    # --- input --------------------------------------------------------------------------

    def _touch(self, group: Group) -> None:
        if not group.listed:
            group.listed = True
            self._dirty.append(group)

    def receive(self, peer: str, incarnation: str, messages: Sequence[RaftMessage]) -> None:
        """Messages from an authenticated link, in order."""
        groups = self.groups
        if self.settings.quiesce_after:
            self._heard_ms[peer] = self._hooks.now_ms()
        for message in messages:
            group = groups.get(message.group)
            if group is None:
                continue
            if group.members.get(peer) != incarnation and isinstance(message, ANSWERS):
                self._mismatch(group, peer, incarnation)
                continue
            if not group.listed:
                group.listed = True
                self._dirty.append(group)
            group.inbox.append(fx.Receive(peer, message))
            if group.commit_heard is None and isinstance(message, AppendRequest):
                group.commit_heard = message.commit
        if self._dirty:
            self._hooks.wake()

    def _mismatch(self, group: Group, peer: str, incarnation: str) -> None:
        self.mismatched_incarnations += 1
        if self._warned.get((group.gid, peer)) != incarnation:
            self._warned[(group.gid, peer)] = incarnation
            log.warning(
                "group %d: %s has incarnation %s, the group knows %s: its disk was lost or "
                "replaced; it may not vote until it is re-admitted",
                group.gid,
                peer,
                incarnation[:8],
                (group.members.get(peer) or "no such member")[:8],
            )

    def propose(
        self,
        gid: int,
        rids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
    ) -> None:
        """Join these commands to the entry that the next cycle appends."""
        group = self.groups[gid]
        pending = group.pending
        if (
            not pending
            or pending[-1].size + len(items) > limits.ENTRY_BYTES_MAX
            or len(pending[-1].rids) + len(rids) > limits.BATCH_ITEMS_MAX
        ):
            pending.append(Flight([], [], [], []))
        flight = pending[-1]
        flight.rids.extend(rids)
        flight.sinks.append((len(rids), sink))
        flight.commands.extend(commands)
        flight.items.append(items)
        flight.size += len(items)
        self._touch(group)
        self._hooks.wake()

    def read(self, gid: int, done: Callable[[str | None, bool], None]) -> None:
        """ReadIndex: done(leader, ok) once the machine of `gid` may be read (ok), or not."""
        group = self.groups[gid]
        ref = self._next_ref
        self._next_ref += 1
        group.reads[ref] = done
        group.inbox.append(fx.Read(ref))
        self._touch(group)
        self._hooks.wake()

    def change_members(self, gid: int, member: Member, *, remove: bool, done: ChangeDone) -> None:
        """Add `member` as a learner, or remove it: `done` once that is committed, or is not."""
        group = self.groups[gid]
        ref = self._next_ref
        self._next_ref += 1
        group.changes_by_ref[ref] = done
        self.event(gid, fx.ChangeMembers(ref, member, remove))

    def event(self, gid: int, event: fx.Event) -> None:
        """Any other event for one group (Transfer, …)."""
        group = self.groups[gid]
        group.inbox.append(event)
        self._touch(group)
        self._hooks.wake()

    def link_changed(self, peer: str, up: bool) -> None:
        for group in self.groups.values():
            if peer in group.members:
                group.inbox.append(fx.LinkChanged(peer, up))
                self._touch(group)
        if self._dirty:
            self._hooks.wake()

    def tick(self) -> None:
        """Give Tick to every group whose deadline has passed, and propose what is due."""
        now_ms = self._hooks.now_ms()
        for group in self.groups.values():
            raft = group.raft
            if raft.next_deadline_ms <= now_ms:
                group.inbox.append(fx.Tick())
                self._touch(group)
            if group.leaderless_ms is not None and self._gives_up_ms(group) <= now_ms:
                self._end_flights(group)
            if raft.role == "leader" and not group.due_in_flight:
                self._propose_due(group, now_ms)
        if self.settings.quiesce_after and self._node_beat_due_ms <= now_ms:
            self._watch_nodes(now_ms)
        if self._dirty:
            self._hooks.wake()

    def _watch_nodes(self, now_ms: int) -> None:
        """For quiescent groups one message between two nodes stands for all their heartbeats."""
        every_ms = self.settings.heartbeat_ms
        self._node_beat_due_ms = now_ms - now_ms % every_ms + every_ms
        heard_since_ms = now_ms - self.settings.election_min_ms
        peers: dict[str, None] = {}
        for group in self.groups.values():
            raft = group.raft
            if not raft.quiescent:
                continue
            watched = raft.membership.members if raft.role == "leader" else (raft.leader,)
            for peer in watched:
                if peer is None or peer == self.node_id:
                    continue
                peers[peer] = None
                if self._heard_ms.get(peer, 0) < heard_since_ms:
                    group.inbox.append(fx.Rouse())
                    self._touch(group)
        for peer in peers:
            self._hooks.send(peer, NODE_BEAT)

    def _propose_due(self, group: Group, now_ms: int) -> None:
        machine = group.machine
        due_ms = machine.next_due_ms()
        if due_ms is None:
            return
        log_ms = group.raft.log_ms(now_ms)
        if due_ms > log_ms:
            return
        commands = machine.due(log_ms)
        if not commands:
            return
        encode = machine.codec.encode_item
        group.due_in_flight = True
        self.propose(
            group.gid,
            [0] * len(commands),
            b"".join([encode(0, command) for command in commands]),
            commands,
            NULL_SINK,
        )

    def next_tick_ms(self) -> int:
        """Monotonic ms at which `tick` next has something to do."""
        now_ms = self._hooks.now_ms()
        soonest = now_ms + 1_000
        for group in self.groups.values():
            raft = group.raft
            soonest = min(soonest, raft.next_deadline_ms)
            if raft.quiescent:
                soonest = min(soonest, self._node_beat_due_ms)
            if group.leaderless_ms is not None:
                soonest = min(soonest, self._gives_up_ms(group))
            if raft.role == "leader" and not group.due_in_flight:
                due_ms = group.machine.next_due_ms()
                if due_ms is not None:
                    soonest = min(soonest, now_ms + due_ms - raft.log_ms(now_ms))
        return soonest

    def answers_due(self) -> bool:
        """Whether proposals wait for their commit (waits inside a machine do not count)."""
        return any(
            group.pending or group.flights or group.flights_by_ref for group in self.groups.values()
        )

    # --- one cycle ----------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return bool(self._dirty or self._unsynced)

    def begin(self) -> bool:
        """Step all groups that have events. True: the WAL must be synced before `finish`."""
        self.cycles += 1
        self.proposals_answered = 0
        now_ms = self._hooks.now_ms()
        dirty, self._dirty = self._dirty, []
        for group in dirty:
            group.listed = False
            events, group.inbox = group.inbox, []
            if group.pending:
                self._take_pending(group, events)
            self._carry_out(group, group.raft.step(events, now_ms), now_ms)
        if self._unsynced:
            self.wal.write()
        self._hooks.flush()
        # From here on it says what the *next* sync is for: groups may be created, and snapshots
        # noted, while this one runs in a thread.
        must_sync, self._unsynced = self._unsynced, False
        return must_sync

    def sync(self) -> None:
        """Make everything written durable. Raises StorageFailed: the node must stop."""
        self.wal.sync()

    def finish(self) -> None:
        """After the sync: acknowledge, apply, answer."""
        now_ms = self._hooks.now_ms()
        send = self._hooks.send
        after_sync, self._after_sync = self._after_sync, []
        for peer, message in after_sync:
            send(peer, message)
        appended, self._appended = self._appended, []
        for group in appended:
            upto, group.synced_upto = group.synced_upto, None
            if upto is not None:
                event = fx.Synced(upto[0], upto[1])
                self._carry_out(group, group.raft.step([event], now_ms), now_ms)
        if after_sync or appended:
            self._hooks.flush()
        to_apply, self._to_apply = self._to_apply, []
        for group in to_apply:
            self._apply(group)
        if self._sinks:
            sinks, self._sinks = self._sinks, {}
            for sink in sinks:
                sink.flush()
        self.cycles_finished = self.cycles
        if self._unsynced or self._dirty:
            self._hooks.wake()

    def _take_pending(self, group: Group, events: list[fx.Event]) -> None:
        for flight in group.pending:
            ref = self._next_ref
            self._next_ref += 1
            group.flights_by_ref[ref] = flight
            payload = join_items(len(flight.rids), flight.items)
            events.append(fx.Propose(ref, payload))
        group.pending = []

    def _carry_out(self, group: Group, effects: Sequence[fx.Effect], now_ms: int) -> None:
        send = self._hooks.send
        for effect in effects:
            if isinstance(effect, fx.Send):
                send(effect.peer, effect.message)
            elif isinstance(effect, fx.SendAfterSync):
                self._after_sync.append((effect.peer, effect.message))
            elif isinstance(effect, fx.Append):
                entries = effect.entries
                if group.flights and group.raft.role != "leader":
                    self._lose_from(group, entries[0].index)
                self.wal.append(group.gid, entries)
                self._unsynced = True
                if group.synced_upto is None:
                    self._appended.append(group)
                group.synced_upto = (entries[-1].index, entries[-1].term)
            elif isinstance(effect, fx.Apply):
                if not group.to_apply:
                    self._to_apply.append(group)
                group.to_apply.extend(effect.entries)
            elif isinstance(effect, fx.Proposed):
                flight = group.flights_by_ref.pop(effect.ref)
                flight.term = group.raft.term
                group.flights[effect.index] = flight
            else:
                self._carry_out_rare(group, effect)
        if group.install is not None:
            # Only now: what this step appended must be in the WAL before the snapshot's mark.
            chunk, group.install = group.install, None
            self._install(group, chunk, now_ms)

    def _carry_out_rare(self, group: Group, effect: fx.Effect) -> None:
        """The effects that are not on the path of every request."""
        if isinstance(effect, fx.SaveState):
            self.wal.save_state(group.gid, effect.term, effect.voted_for)
            self._unsynced = True
        elif isinstance(effect, fx.Refused):
            flight = group.flights_by_ref.pop(effect.ref)
            if any(sink is NULL_SINK for _, sink in flight.sinks):
                group.due_in_flight = False  # it may have joined clients' proposals
            self._hooks.refused(group.gid, flight, effect.code, effect.leader)
        elif isinstance(effect, fx.ReadReady):
            reader = group.reads.pop(effect.ref)
            if group.applied_index >= effect.index:
                reader(self.node_id, True)
            else:
                group.read_waiters.append((effect.index, reader))
        elif isinstance(effect, fx.ReadFailed):
            group.reads.pop(effect.ref)(effect.leader, False)
        elif isinstance(effect, fx.RoleChanged):
            self._role_changed(group, effect)
        elif isinstance(effect, fx.SendSnapshot):
            self._send_chunk(group, effect)
        elif isinstance(effect, fx.StoreChunk):
            self._store_chunk(group, effect)
        elif isinstance(effect, fx.MembersChanged):
            group.members = _incarnations(effect.configuration)
        elif isinstance(effect, fx.ChangeProposed):
            done = group.changes_by_ref.pop(effect.ref)
            group.changes[effect.index] = (group.raft.term, done)
        elif isinstance(effect, fx.ChangeRefused):
            group.changes_by_ref.pop(effect.ref)(effect.code)
        else:
            raise AssertionError(f"unknown effect {effect!r}")

    # --- applying -----------------------------------------------------------------------

    def _apply(self, group: Group) -> None:
        entries, group.to_apply = group.to_apply, []
        machine = group.machine
        applied = False
        for entry in entries:
            if entry.index != group.applied_index + 1:
                if entry.index <= group.applied_index:
                    continue  # a snapshot overtook it within this cycle
                raise AssertionError(
                    f"group {group.gid}: applied {group.applied_index}, then {entry.index}"
                )
            if entry.kind == COMMAND:
                self._apply_commands(group, entry)
            elif entry.kind == NOOP:
                machine.leader_changed(entry.index, entry.log_ms)
                # The core starts its log time when it hears that the no-op is applied.
                self._touch(group)
            else:
                self._apply_configuration(group, entry)
            group.applied_index = entry.index
            group.applied_log_ms = entry.log_ms
            group.entries_since_snapshot += 1
            group.applied_bytes += len(entry.payload)
            applied = True
        if not applied:
            return
        self.entries_applied += len(entries)
        group.inbox.append(fx.Applied(group.applied_index))
        if group.raft.commit_index > group.applied_index or group.raft.quiescent:
            # The core hands out a bounded number of entries at a time; and a resting group has no
            # next step of its own in which it would hear of this one.
            self._touch(group)
        for wake in machine.take_wakes():
            waiting = group.waits.pop((wake.index, wake.position), None)
            if waiting is not None:
                sink, rid = waiting
                sink.answer(rid, wake.status, wake.body)
                self._sinks[sink] = None
        if group.read_waiters:
            self._release_reads(group)
        self._hooks.applied(group.gid)
        self._maybe_snapshot(group)

    def _apply_commands(self, group: Group, entry: Entry) -> None:
        flight = group.flights.pop(entry.index, None)
        machine = group.machine
        if flight is None or flight.term != entry.term:
            # On a follower, or another leader's entry took our index: nobody here to answer.
            commands = machine.codec.decode(entry.payload)
            self.commands_applied += len(commands)
            machine.apply(entry.index, entry.log_ms, commands)
            if flight is not None:
                self._lose(flight)
            return
        self.commands_applied += len(flight.commands)
        self.proposals_answered += len(flight.sinks)
        results = machine.apply(entry.index, entry.log_ms, flight.commands)
        position = 0
        rids = flight.rids
        for count, sink in flight.sinks:
            if sink is NULL_SINK:
                group.due_in_flight = False
                position += count
                continue
            self._sinks[sink] = None
            answer = sink.answer
            for at in range(position, position + count):
                result = results[at]
                if result is PENDING:
                    group.waits[(entry.index, at)] = (sink, rids[at])
                else:
                    answer(rids[at], result[0], result[1])
            position += count

    def _apply_configuration(self, group: Group, entry: Entry) -> None:
        group.configuration = members.decode(entry.payload)
        term, done = group.changes.pop(entry.index, (entry.term, None))
        if done is not None:
            done("" if term == entry.term else "indeterminate")

    def _release_reads(self, group: Group) -> None:
        waiting, group.read_waiters = group.read_waiters, []
        for index, done in waiting:
            if group.applied_index >= index:
                done(self.node_id, True)
            else:
                group.read_waiters.append((index, done))

    def _lose(self, flight: Flight) -> None:
        position = 0
        body = {
            "code": "indeterminate",
            "message": "the leader changed before the write was committed: it may or may not "
            "happen; read the state, or repeat it if it is idempotent",
        }
        for count, sink in flight.sinks:
            if sink is not NULL_SINK:
                self._sinks[sink] = None
                for rid in flight.rids[position : position + count]:
                    sink.answer(rid, 504, body)
            position += count

    def abandon(self) -> None:
        """The node ends: answer everything that waits. No cycle may follow."""
        stops = {"code": "unavailable", "message": f"{self.node_id} stops; nothing was done"}
        for group in self.groups.values():
            pending, group.pending = group.pending, []
            for flight in pending:
                rids = iter(flight.rids)
                for count, sink in flight.sinks:
                    self._sinks[sink] = None
                    for rid in itertools.islice(rids, count):
                        sink.answer(rid, 503, stops)
            unplaced, group.flights_by_ref = group.flights_by_ref, {}
            for flight in unplaced.values():
                self._lose(flight)
            self._lose_from(group, 0)
            self._end_waits(group)
            self._end_readers(group, None)
            refs, group.changes_by_ref = group.changes_by_ref, {}
            for change in refs.values():
                change("indeterminate")
            reads, group.reads = group.reads, {}
            for done in reads.values():
                done(None, False)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks:
            sink.flush()

    def _role_changed(self, group: Group, effect: fx.RoleChanged) -> None:
        """What a deposed leader has in its log is not lost yet: as a rule the next one commits it.

        Its proposals and waits are answered when that is applied here, which index and term tell
        for certain; they end when their entries are overwritten, or no leader comes in time.
        """
        if effect.role != "leader":
            group.due_in_flight = False
            self._end_readers(group, effect.leader)
        if effect.leader is not None:
            group.leaderless_ms = None
        elif group.leaderless_ms is None:
            group.leaderless_ms = self._hooks.now_ms()
        self._hooks.role_changed(group.gid, effect.role, effect.term, effect.leader, effect.reason)

    def _gives_up_ms(self, group: Group) -> int:
        """When a group without a leader gives up on what was proposed here."""
        assert group.leaderless_ms is not None
        return group.leaderless_ms + self.settings.election_max_ms

    def _lose_from(self, group: Group, index: int) -> None:
        """Another leader's entries replace ours from `index` on."""
        for at in [at for at in group.flights if at >= index]:
            self._lose(group.flights.pop(at))
        for at in [at for at in group.changes if at >= index]:
            group.changes.pop(at)[1]("indeterminate")

    def _end_flights(self, group: Group) -> None:
        """The outcome of everything that was proposed or waits here will not be known here."""
        group.leaderless_ms = None
        self._lose_from(group, 0)
        self._end_waits(group)
        if self._sinks:
            self._hooks.wake()  # the cycle flushes them

    def _end_waits(self, group: Group) -> None:
        waits, group.waits = group.waits, {}
        body = {
            "code": "indeterminate",
            "message": "the leader changed while this request waited; repeat it: it joins "
            "its own place in the queue if it still has one",
        }
        for sink, rid in waits.values():
            sink.answer(rid, 504, body)
            self._sinks[sink] = None

    def _end_readers(self, group: Group, leader: str | None) -> None:
        readers, group.read_waiters = group.read_waiters, []
        for _, done in readers:
            done(leader, False)

    # --- snapshots ----------------------------------------------------------------------

    def _maybe_snapshot(self, group: Group) -> None:
        if group.snapshot_busy or group.applied_index == group.snapshot_index:
            return
        if (
            group.entries_since_snapshot >= self.snapshot_every_entries
            or group.applied_bytes >= self.snapshot_every_bytes
        ):
            self.take_snapshot(group)

    def snapshot_pinned(self) -> None:
        """Snapshot quiet groups whose old entries keep WAL segments alive, a few at a time."""
        pinned = self.wal.pinned()
        taken = 0
        for gid in sorted(pinned, key=lambda gid: (-pinned[gid], gid)):
            group = self.groups.get(gid)
            if (
                group is not None
                and pinned[gid] >= 2
                and not group.snapshot_busy
                and group.applied_index > group.snapshot_index
                and taken < SNAPSHOTS_PER_RECLAIM
            ):
                taken += 1
                self.take_snapshot(group)

    def take_snapshot(self, group: Group) -> None:
        """Save the machine's state; the log up to here may then go.

        Not while this node does not know who the members were at that point: it has joined, and
        applied no configuration yet (drivers/founding.py).
        """
        if not group.configuration.voters:
            return
        index, log_ms = group.applied_index, group.applied_log_ms
        term = group.raft.log.term_at(index)
        assert term is not None, "what is applied is in the log or the snapshot"
        data = group.machine.snapshot()
        configuration = group.configuration
        group.snapshot_busy = True
        group.entries_since_snapshot = 0
        group.applied_bytes = 0

        def work() -> None:
            self.snapshots.save(group.gid, index, term, log_ms, configuration, data)

        def done() -> None:
            group.snapshot_busy = False
            if index <= group.snapshot_index:
                return  # the leader's snapshot overtook ours
            group.snapshot_index = index
            self.snapshots_taken += 1
            self.wal.snapshot(group.gid, index, term, log_ms, configuration)
            self._unsynced = True
            group.inbox.append(fx.SnapshotTaken(index, term, log_ms, len(data)))
            self._touch(group)
            self._hooks.wake()

        self._hooks.offload(work, done)

    def reclaim(self) -> None:
        """Free WAL segments and snapshot files that nothing needs, at a quiet moment."""
        self.wal.reclaim()
        self.snapshot_pinned()
        for gid in self.groups:
            # Only behind a mark that is durable: recovery may still ask for the older file.
            keep_index = self.wal.durable_snapshot(gid)
            if keep_index:
                self.snapshots.prune(gid, keep_index)

    def _send_chunk(self, group: Group, effect: fx.SendSnapshot) -> None:
        meta = self.snapshots.meta(group.gid, effect.index)
        if meta is None:
            return  # replaced by a newer one: the core asks again with its index
        data, size = self.snapshots.read(
            group.gid, effect.index, effect.offset, limits.SNAPSHOT_CHUNK_BYTES
        )
        self._hooks.send(
            effect.peer,
            SnapshotChunk(
                group.gid,
                effect.term,
                effect.index,
                meta.term,
                meta.log_ms,
                meta.configuration,
                size,
                effect.offset,
                data,
            ),
        )

    def _store_chunk(self, group: Group, effect: fx.StoreChunk) -> None:
        chunk = effect.chunk
        receiver = group.receiver
        if receiver is None or (receiver.index, receiver.term) != (
            chunk.index,
            chunk.snapshot_term,
        ):
            if receiver is not None:
                receiver.abandon()
            receiver = group.receiver = self.snapshots.begin_receive(
                group.gid,
                chunk.index,
                chunk.snapshot_term,
                chunk.log_ms,
                chunk.configuration,
                chunk.size,
            )
        if chunk.offset == receiver.received:
            receiver.write_chunk(chunk.offset, chunk.data)
        if receiver.received < chunk.size:
            response = SnapshotResponse(group.gid, group.raft.term, chunk.index, receiver.received)
            self._after_sync.append((effect.peer, response))
            return
        receiver.finish()
        group.receiver = None
        group.install = chunk

    def _install(self, group: Group, chunk: SnapshotChunk, now_ms: int) -> None:
        # The core asks only for snapshots beyond its commit index.
        assert chunk.index > group.applied_index
        assert not group.to_apply
        self._end_flights(group)  # what became of them is inside the snapshot
        group.machine.restore(self.snapshots.load(group.gid, chunk.index))
        group.applied_index = group.snapshot_index = chunk.index
        group.applied_log_ms = chunk.log_ms
        group.entries_since_snapshot = group.applied_bytes = 0
        group.configuration = chunk.configuration
        self.wal.snapshot(
            group.gid, chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.configuration
        )
        self._unsynced = True
        self.snapshots_installed += 1
        log.info("group %d: installed the snapshot at %d", group.gid, chunk.index)
        event = fx.SnapshotInstalled(
            chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.size, chunk.configuration
        )
        self._carry_out(group, group.raft.step([event], now_ms), now_ms)
        if group.read_waiters:
            self._release_reads(group)
        self._hooks.applied(group.gid)
