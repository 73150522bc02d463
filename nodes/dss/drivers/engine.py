"""The engine: carries out the Raft cores' effects for all groups of one process. No asyncio.

One cycle serves everything that is pending in all groups (docs/architecture.md § Hot path):

    begin()   step every group that has events; hand sends to the transport; write the WAL
    sync()    one fdatasync for all groups (inline or in a thread: the host's choice)
    finish()  release what had to wait for the sync, apply what is committed, answer

`drivers/host.py` runs it on an asyncio loop, `dss.testing` in the simulator: the same code.
What a group is: group.py. What must not live here: applying and answering (applying.py),
snapshots (snapshotting.py), sockets, the loop, forwarding to a leader, HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss.base import limits
from dss.base.levels import BASE_LEVEL, FEATURE_LEVEL
from dss.core.machine import Machine, join_items
from dss.core.raft import effects as fx
from dss.core.raft.log import SnapshotMeta
from dss.core.raft.messages import (
    ANSWERS,
    AppendRequest,
    Configuration,
    Member,
    RaftMessage,
    SnapshotChunk,
)
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings, RandomSource
from dss.drivers import levels
from dss.drivers.applying import Applying
from dss.drivers.group import NULL_SINK, ChangeDone, EngineHooks, Flight, Group, incarnations
from dss.drivers.ports import Sink
from dss.drivers.snapshotting import Snapshotting
from dss.drivers.timing import Timing
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import GroupState, Wal

log = logging.getLogger("dss.raft")


class Engine:
    """All Raft groups of one process over one WAL.

    Args:
        node_id: this node's id.
        incarnation: of its data directory: groups that list another do not count this node.
        wal: opened; everything recovered is in `recovered`.
        recovered: what `Wal.open` gave, by group id.
        snapshots: where snapshots live.
        rng: gives each group its own seeded randomness.
        feature_level: what this node supports: its release's, or less when it is held back.

    Raises:
        ConfigProblem: what was recovered needs a higher level, or a newer release.
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
        feature_level: int = FEATURE_LEVEL,
    ) -> None:
        levels.check_recovered(recovered, feature_level)
        self.feature_level = feature_level
        self.node_id = node_id
        self.incarnation = incarnation
        self.wal = wal
        self.recovered = dict(recovered)
        self.snapshots = snapshots
        self.settings = settings
        self.groups: dict[int, Group] = {}
        self.timing = Timing(self)
        self.applying = Applying(self)
        self.snapshotting = Snapshotting(
            self, snapshots, snapshot_every_entries, snapshot_every_bytes
        )
        self._rng = rng
        self.hooks = hooks
        self._dirty: list[Group] = []
        self.after_sync: list[tuple[str, RaftMessage]] = []
        self._appended: list[Group] = []
        self._to_apply: list[Group] = []
        self.unsynced = False
        self._next_ref = 1
        self.cycles = 0
        self.cycles_finished = 0
        self.mismatched_incarnations = 0
        self._warned: dict[tuple[int, str], str] = {}

    # --- groups -------------------------------------------------------------------------

    def create_group(self, gid: int, configuration: Configuration, machine: Machine) -> None:
        """Found `gid` with its first configuration; durable with the next cycle's sync."""
        if gid in self.groups or gid in self.recovered:
            return
        # Whatever its members' level is by now: what the log begins with is of the first one.
        configuration = msgspec.structs.replace(configuration, feature_level=BASE_LEVEL)
        self.wal.create_group(gid, configuration)
        self.unsynced = True
        self._start(GroupState(gid, configuration, 0, None, 0, 0, 0, []), machine)
        self.hooks.wake()

    def open_group(self, gid: int, machine: Machine) -> bool:
        """Start `gid` from what the WAL and snapshots hold; False when they hold nothing."""
        state = self.recovered.pop(gid, None)
        if state is None:
            return False
        if state.snapshot_index:
            machine.restore(self.snapshots.load(gid, state.snapshot_index))
        assert machine.level == state.configuration.feature_level, (gid, machine.level, state)
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
            now_ms=self.hooks.now_ms(),
        )
        group = Group(state.group, raft, machine, state.configuration)
        group.applied_index = group.snapshot_index = state.snapshot_index
        group.applied_log_ms = state.snapshot_log_ms
        self.groups[state.group] = group

    # --- input --------------------------------------------------------------------------

    def touch(self, group: Group) -> None:
        if not group.listed:
            group.listed = True
            self._dirty.append(group)

    def receive(self, peer: str, incarnation: str, messages: Sequence[RaftMessage]) -> None:
        """Messages from an authenticated link, in order."""
        groups = self.groups
        self.timing.heard(peer)
        for message in messages:
            group = groups.get(message.group)
            if group is None:
                continue
            if group.members.get(peer) != incarnation and isinstance(message, ANSWERS):
                self._mismatch(group, peer, incarnation)
                continue
            if type(message) is SnapshotChunk and self.snapshotting.keeps_back(
                group, peer, message
            ):
                continue
            if not group.listed:
                group.listed = True
                self._dirty.append(group)
            group.inbox.append(fx.Receive(peer, message))
            if group.commit_heard is None and isinstance(message, AppendRequest):
                group.commit_heard = message.commit
        if self._dirty:
            self.hooks.wake()

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
        if len(rids) > limits.BATCH_ITEMS_MAX:
            self._propose_cut(gid, rids, items, commands, sink)
            return
        group = self.groups[gid]
        if group.machine.codec.newest_level > group.level:
            rids, items, commands = levels.admitted(group, rids, items, commands, sink)
            if not rids:
                return
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
        self.touch(group)
        self.hooks.wake()

    def _propose_cut(
        self, gid: int, rids: Sequence[int], items: bytes, commands: Sequence[Any], sink: Sink
    ) -> None:
        """One message with more commands than an entry may have; each item keeps its bytes."""
        raws = msgspec.msgpack.decode(join_items(len(rids), [items]), type=list[msgspec.Raw])
        for start in range(0, len(rids), limits.BATCH_ITEMS_MAX):
            part = slice(start, start + limits.BATCH_ITEMS_MAX)
            self.propose(gid, rids[part], b"".join(raws[part]), commands[part], sink)

    def read(self, gid: int, done: Callable[[str | None, bool], None]) -> None:
        """ReadIndex: done(leader, ok) once the machine of `gid` may be read (ok), or not."""
        group = self.groups[gid]
        ref = self._next_ref
        self._next_ref += 1
        group.reads[ref] = done
        group.inbox.append(fx.Read(ref))
        self.touch(group)
        self.hooks.wake()

    def change_members(
        self,
        gid: int,
        member: Member,
        *,
        remove: bool,
        done: ChangeDone,
        feature_level: int = BASE_LEVEL,
    ) -> None:
        """Add `member`, which supports `feature_level`, as a learner, or remove it: `done` once
        that is committed, or is not."""
        ref = self._change(gid, done)
        self.event(gid, fx.ChangeMembers(ref, member, remove, feature_level))

    def raise_level(self, gid: int, level: int, done: ChangeDone) -> None:
        """To what each of the present members supports: `done` as for a change of members."""
        configuration = self.groups[gid].raft.membership.configuration
        members = configuration.voters + configuration.learners
        self.event(gid, fx.RaiseLevel(self._change(gid, done), level, members))

    def _change(self, gid: int, done: ChangeDone) -> int:
        ref = self._next_ref
        self._next_ref += 1
        self.groups[gid].changes_by_ref[ref] = done
        return ref

    def event(self, gid: int, event: fx.Event) -> None:
        """Any other event for one group (Transfer, …)."""
        group = self.groups[gid]
        group.inbox.append(event)
        self.touch(group)
        self.hooks.wake()

    def link_changed(self, peer: str, up: bool) -> None:
        for group in self.groups.values():
            if peer in group.members:
                group.inbox.append(fx.LinkChanged(peer, up))
                self.touch(group)
        if self._dirty:
            self.hooks.wake()

    def tick(self) -> None:
        """See Timing.tick."""
        self.timing.tick()

    def next_tick_ms(self) -> int:
        """See Timing.next_tick_ms."""
        return self.timing.next_tick_ms()

    def take_snapshot(self, group: Group) -> None:
        """See Snapshotting.take."""
        self.snapshotting.take(group)

    def reclaim(self) -> None:
        """See Snapshotting.reclaim."""
        self.snapshotting.reclaim()

    def abandon(self) -> None:
        """See Applying.abandon."""
        self.applying.abandon()

    def owed_groups(self) -> list[int]:
        """Where proposals wait for their commit (waits inside a machine do not count)."""
        return [
            gid
            for gid, group in self.groups.items()
            if group.pending or group.flights or group.flights_by_ref
        ]

    # --- one cycle ----------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return bool(self._dirty or self.unsynced)

    def begin(self) -> bool:
        """Step all groups that have events. True: the WAL must be synced before `finish`."""
        self.cycles += 1
        self.applying.proposals_answered = 0
        now_ms = self.hooks.now_ms()
        dirty, self._dirty = self._dirty, []
        for group in dirty:
            group.listed = False
            events, group.inbox = group.inbox, []
            if group.pending:
                self._take_pending(group, events)
            self._carry_out(group, group.raft.step(events, now_ms), now_ms)
            if group.arriving is not None:
                self.snapshotting.end_unwanted(group)
        self.hooks.flush()  # before the write: followers begin with theirs meanwhile
        if self.unsynced:
            self.wal.write()
        # From here on it says what the *next* sync is for: groups may be created, and snapshots
        # noted, while this one runs in a thread.
        must_sync, self.unsynced = self.unsynced, False
        return must_sync

    def sync(self) -> None:
        """Make everything written durable. Raises StorageFailed: the node must stop."""
        self.wal.sync()

    def finish(self) -> None:
        """After the sync: acknowledge, apply, answer."""
        after_sync, self.after_sync = self.after_sync, []
        if after_sync:
            for peer, message in after_sync:
                self.hooks.send(peer, message)
            self.hooks.flush()
        appended, self._appended = self._appended, []
        for group in appended:
            upto, group.synced_upto = group.synced_upto, None
            if upto is not None:
                self._note_synced(group, fx.Synced(upto[0], upto[1]))
        to_apply, self._to_apply = self._to_apply, []
        for group in to_apply:
            self.applying.apply(group)
        if self.applying.sinks:
            self.applying.flush()
        self.cycles_finished = self.cycles
        if self.unsynced or self._dirty:
            self.hooks.wake()

    def _note_synced(self, group: Group, event: fx.Synced) -> None:
        """Where others are needed for a quorum, this changes nothing before one of them answers:
        then it waits for the step that takes the answer, and costs none of its own."""
        if group.raft.membership.quorum > 1:
            group.inbox.append(event)
            return
        now_ms = self.hooks.now_ms()
        self._carry_out(group, group.raft.step([event], now_ms), now_ms)
        self.hooks.flush()

    def _take_pending(self, group: Group, events: list[fx.Event]) -> None:
        for flight in group.pending:
            ref = self._next_ref
            self._next_ref += 1
            group.flights_by_ref[ref] = flight
            payload = join_items(len(flight.rids), flight.items)
            events.append(fx.Propose(ref, payload))
        group.pending = []

    def _carry_out(self, group: Group, effects: Sequence[fx.Effect], now_ms: int) -> None:
        send = self.hooks.send
        for effect in effects:
            if isinstance(effect, fx.Send):
                send(effect.peer, effect.message)
            elif isinstance(effect, fx.SendAfterSync):
                self.after_sync.append((effect.peer, effect.message))
            elif isinstance(effect, fx.Append):
                entries = effect.entries
                if (group.flights or group.changes) and group.raft.role != "leader":
                    self.applying.lose_from(group, entries[0].index)
                self.wal.append(group.gid, entries)
                self.unsynced = True
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
            event = self.snapshotting.install(group, chunk)
            self._carry_out(group, group.raft.step([event], now_ms), now_ms)
            if group.read_waiters:
                self.applying.release_reads(group)
            self.hooks.applied(group.gid)

    def _carry_out_rare(self, group: Group, effect: fx.Effect) -> None:
        """The effects that are not on the path of every request."""
        if isinstance(effect, fx.SaveState):
            self.wal.save_state(group.gid, effect.term, effect.voted_for)
            self.unsynced = True
        elif isinstance(effect, fx.Refused):
            flight = group.flights_by_ref.pop(effect.ref)
            if any(sink is NULL_SINK for _, sink in flight.sinks):
                group.due_in_flight = False  # it may have joined clients' proposals
            self.hooks.refused(group.gid, flight, effect.code, effect.leader)
        elif isinstance(effect, fx.ReadReady):
            reader = group.reads.pop(effect.ref)
            if group.applied_index >= effect.index:
                reader(self.node_id, True)
            else:
                group.read_waiters.append((effect.index, reader))
        elif isinstance(effect, fx.ReadFailed):
            group.reads.pop(effect.ref)(effect.leader, False)
        elif isinstance(effect, fx.RoleChanged):
            self.applying.role_changed(group, effect)
        elif isinstance(effect, fx.SendSnapshot):
            self.snapshotting.send_chunk(group, effect)
        elif isinstance(effect, fx.StoreChunk):
            self.snapshotting.store_chunk(group, effect)
        elif isinstance(effect, fx.MembersChanged):
            group.members = incarnations(effect.configuration)
            group.level = effect.configuration.feature_level
            levels.check_level(group.gid, group.level, self.feature_level)
        elif isinstance(effect, fx.ChangeProposed):
            done = group.changes_by_ref.pop(effect.ref)
            group.changes[effect.index] = (group.raft.term, done)
        elif isinstance(effect, fx.ChangeRefused):
            group.changes_by_ref.pop(effect.ref)(effect.code)
        else:
            raise AssertionError(f"unknown effect {effect!r}")
