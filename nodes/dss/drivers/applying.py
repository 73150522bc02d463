"""Applying what is committed, and answering whoever waits for it in this process.

What must not live here: the cycle and effects (engine.py), snapshots (snapshotting.py).
"""

from __future__ import annotations

import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from dss.base import limits
from dss.core.machine import PENDING
from dss.core.raft import effects as fx
from dss.core.raft import membership as members
from dss.core.raft.messages import COMMAND, CONFIGURATION, LEVEL, NOOP, Entry
from dss.drivers import levels
from dss.drivers.group import NULL_SINK, Flight, Group
from dss.drivers.ports import Sink

if TYPE_CHECKING:
    from dss.drivers.engine import Engine

log = logging.getLogger("dss.raft")


class Applying:
    """For all groups of one engine.

    Attributes:
        sinks: those that were answered since their last flush, in order.
        proposals_answered: since the cycle began; separate ones (a stream message is one).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sinks: dict[Sink, None] = {}
        self.proposals_answered = 0
        self.entries_applied = 0
        self.commands_applied = 0

    def flush(self) -> None:
        """Send the answers."""
        sinks, self.sinks = self.sinks, {}
        for sink in sinks:
            sink.flush()

    def apply(self, group: Group) -> None:
        """What is committed, up to about BATCH_ITEMS_MAX commands; then the loop turns before the
        rest goes on, even while the disk syncs."""
        if group.cutting:
            return  # snapshotting.py calls again
        entries, group.to_apply = group.to_apply, []
        machine = group.machine
        applied = False
        pause_at = self.commands_applied + limits.BATCH_ITEMS_MAX
        for position, entry in enumerate(entries):
            if self.commands_applied >= pause_at:
                group.to_apply = entries[position:]
                self._engine.hooks.soon(partial(self._go_on, group))
                break
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
                self._engine.touch(group)
            elif entry.kind in (CONFIGURATION, LEVEL):
                self._apply_configuration(group, entry)
            else:
                raise levels.unknown_kind(group.gid, entry)
            group.applied_index = entry.index
            group.applied_log_ms = entry.log_ms
            group.entries_since_snapshot += 1
            group.applied_bytes += len(entry.payload)
            applied = True
            self.entries_applied += 1
        if not applied:
            return
        group.inbox.append(fx.Applied(group.applied_index))
        if group.raft.commit_index > group.applied_index or group.raft.quiescent:
            # The core hands out a bounded number of entries at a time; and a resting group has no
            # next step of its own in which it would hear of this one.
            self._engine.touch(group)
        for wake in machine.take_wakes():
            waiting = group.waits.woken(wake)
            if waiting is not None:
                sink, rid = waiting
                sink.answer(rid, wake.status, wake.body)
                self.sinks[sink] = None
        if group.read_waiters:
            self.release_reads(group)
        self._engine.hooks.applied(group.gid)
        self._engine.snapshotting.take_if_due(group)

    def _go_on(self, group: Group) -> None:
        self.apply(group)
        self.flush()
        if self._engine.pending:
            self._engine.hooks.wake()

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
            self.sinks[sink] = None
            answer = sink.answer
            for at in range(position, position + count):
                result = results[at]
                if result is PENDING:
                    group.waits.add((entry.index, at), sink, rids[at])
                else:
                    answer(rids[at], result[0], result[1])
            position += count

    def _apply_configuration(self, group: Group, entry: Entry) -> None:
        group.configuration = members.changed(group.configuration, entry)
        level = group.configuration.feature_level
        if level != group.machine.level:
            assert level > group.machine.level, f"group {group.gid} falls to level {level}"
            group.machine.set_level(entry.index, entry.log_ms, level)
            log.info("group %d: feature level %d from %d on", group.gid, level, entry.index)
        term, done = group.changes.pop(entry.index, (entry.term, None))
        if done is not None:
            done("" if term == entry.term else "indeterminate")

    def release_reads(self, group: Group) -> None:
        waiting, group.read_waiters = group.read_waiters, []
        for index, done in waiting:
            if group.applied_index >= index:
                done(self._engine.node_id, True)
            else:
                group.read_waiters.append((index, done))

    def _lose(self, flight: Flight) -> None:
        body = {
            "code": "indeterminate",
            "message": "the leader changed before the write was committed: it may or may not "
            "happen; read the state, or repeat it if it is idempotent",
        }
        self._answer_all(flight, 504, body)

    def _answer_all(self, flight: Flight, status: int, body: Any) -> None:
        rids = iter(flight.rids)
        for count, sink in flight.sinks:
            self.sinks[sink] = None
            for rid in itertools.islice(rids, count):
                sink.answer(rid, status, body)

    def abandon(self) -> None:
        """The node ends: answer everything that waits. No cycle may follow."""
        stops = {
            "code": "unavailable",
            "message": f"{self._engine.node_id} stops; nothing was done",
        }
        for group in self._engine.groups.values():
            pending, group.pending = group.pending, []
            for flight in pending:
                self._answer_all(flight, 503, stops)
            unplaced, group.flights_by_ref = group.flights_by_ref, {}
            for flight in unplaced.values():
                self._lose(flight)
            self.lose_from(group, 0)
            self._end_waits(group)
            self._end_readers(group, None)
            refs, group.changes_by_ref = group.changes_by_ref, {}
            for change in refs.values():
                change("indeterminate")
            reads, group.reads = group.reads, {}
            for done in reads.values():
                done(None, False)
        self.flush()

    def role_changed(self, group: Group, effect: fx.RoleChanged) -> None:
        """What a deposed leader has in its log is not lost yet: as a rule the next one commits it.

        Its proposals and waits are answered when that is applied here, which index and term tell
        for certain; they end when their entries are overwritten, or no leader comes in time
        (waits.py: waits of a node's own clients outlive any leader).
        """
        if effect.role != "leader":
            group.due_in_flight = False
            self._end_readers(group, effect.leader)
        if effect.leader is not None:
            group.leaderless_ms = None
        elif group.leaderless_ms is None:
            group.leaderless_ms = self._engine.hooks.now_ms()
        self._engine.hooks.role_changed(
            group.gid, effect.role, effect.term, effect.leader, effect.reason
        )

    def gives_up_ms(self, group: Group) -> int:
        """When a group without a leader gives up on what was proposed, or waits, here."""
        assert group.leaderless_ms is not None
        after_ms = self._engine.settings.election_max_ms
        if group.waits and not group.flights and not group.changes:
            # What waits is committed: the next leader, whoever it is, has it.
            after_ms = max(after_ms, limits.WAITS_LEADERLESS_MS)
        return group.leaderless_ms + after_ms

    def give_up(self, group: Group, now_ms: int) -> None:
        """No leader for too long (see `gives_up_ms`)."""
        self.lose_from(group, 0)
        if not group.waits or self.gives_up_ms(group) <= now_ms:
            self.end_flights(group)
        elif self.sinks:
            self._engine.hooks.wake()

    def lose_from(self, group: Group, index: int) -> None:
        """Another leader's entries replace ours from `index` on."""
        for at in [at for at in group.flights if at >= index]:
            self._lose(group.flights.pop(at))
        for at in [at for at in group.changes if at >= index]:
            group.changes.pop(at)[1]("indeterminate")

    def end_flights(self, group: Group) -> None:
        """The outcome of everything that was proposed or waits here will not be known here."""
        group.leaderless_ms = None
        self.lose_from(group, 0)
        self._end_waits(group)
        if self.sinks:
            self._engine.hooks.wake()  # the cycle flushes them

    def _end_waits(self, group: Group) -> None:
        body = {
            "code": "indeterminate",
            "message": "this node lost touch with the others while this request waited: it may be "
            "granted; repeat it: it joins its own place in the line if it still has one",
        }
        for sink, rid in group.waits.take_all():
            sink.answer(rid, 504, body)
            self.sinks[sink] = None

    def _end_readers(self, group: Group, leader: str | None) -> None:
        readers, group.read_waiters = group.read_waiters, []
        for _, done in readers:
            done(leader, False)
