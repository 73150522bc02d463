"""One Raft group as a pure state machine: `step(events, now_ms) -> effects`.

The embedder's contract stands in effects.py. Three rules on top of it:

* A `Tick` is looked at after all other events of its step, so a late answer beats a timer.
* A whole snapshot (the `StoreChunk` that completes it) is installed within the cycle that
  emitted it: `SnapshotInstalled` is the first event of the group's next step.
* `SnapshotInstalled(index)` means the machine now stands at `index`, even if it had been
  further: entries after it that are held here are handed out again.

What must not live here: I/O, clocks, threads; what a member is and how its role changes (base.py),
elections (elections.py), a follower's log (following.py), the leader's half (leadership.py), the
log (log.py).
Source: Raft thesis (Ongaro 2014) §3, §4.2, §6.4, §9.6, §10.2; etcd-io/raft for the corner cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.base import CANDIDATE, FOLLOWER, LEADER, LEARNER, NEVER_MS
from dss.core.raft.following import Following
from dss.core.raft.log import SnapshotMeta
from dss.core.raft.messages import Entry

__all__ = ["NEVER_MS", "Raft"]


class Raft(Following):
    """One group's member. `step` is the only mutator; everything else reads.

    Args:
        group: the Raft group's id, on every message.
        node_id: this member.
        incarnation: of its data directory: where the configuration lists its id with another one,
            it is no member. Empty: its id is enough.
        configuration: the group's members as recovery knows them (snapshot or founding record).
        term, voted_for: the recovered hard state.
        snapshot: the newest durable snapshot, already restored into the machine.
        entries: the recovered log; may overlap the snapshot, must leave no gap after it.
        rng: seeded; draws the election timeouts.
        now_ms: monotonic ms.
    """

    @cached_property
    def _event_handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            fx.Receive: self._on_receive,
            fx.Propose: self._on_propose,
            fx.Read: self._on_read,
            fx.Tick: self._on_tick,
            fx.Synced: self._on_synced,
            fx.Applied: self._on_applied,
            fx.Transfer: self._on_transfer,
            fx.ChangeMembers: self._on_change_members,
            fx.RaiseLevel: self._on_raise_level,
            fx.Backoff: self._on_backoff,
            fx.Rouse: self._on_rouse,
            fx.LinkChanged: self._on_link_changed,
            fx.SnapshotTaken: self._on_snapshot_taken,
            fx.SnapshotInstalled: self._on_snapshot_installed,
        }

    @cached_property
    def _message_handlers(self) -> dict[type, Callable[[str, Any], None]]:
        return {
            msg.VoteRequest: self._on_vote_request,
            msg.VoteResponse: self._on_vote_response,
            msg.AppendRequest: self._on_append_request,
            msg.AppendResponse: self._on_answer,
            msg.Heartbeat: self._on_heartbeat,
            msg.HeartbeatResponse: self._on_answer,
            msg.SnapshotChunk: self._on_snapshot_chunk,
            msg.SnapshotResponse: self._on_answer,
            msg.TimeoutNow: self._on_timeout_now,
        }

    # --- public reading --------------------------------------------------------------------

    @property
    def next_deadline_ms(self) -> int:
        """When a Tick is wanted next: heartbeat, entries that gather, or election; NEVER_MS: it has
        no timer or rests."""
        if self.quiescent:
            return NEVER_MS
        leading = self._leading
        if leading is not None:
            return min(leading.heartbeat_due_ms, leading.thrift.due_ms)
        waits = self.role == LEARNER or self.removed_at
        return NEVER_MS if waits else self._election_ms

    @property
    def snapshot_in_transfer(self) -> int | None:
        """The oldest snapshot that this leader is sending: its file must stay until it is there."""
        return self._leading.snapshot_in_transfer() if self._leading is not None else None

    def status(self) -> dict[str, Any]:
        """JSON-able; the `groups` item of GET /v1/raft/status."""
        listed = self.membership.listed
        return {
            "group_id": self.group,
            "term": self.term,
            "voted_for": self.voted_for,
            "role": self.role,
            "leader": self.leader,
            "commit_index": self.commit_index,
            "applied_index": self.applied_index,
            "last_index": self.log.last_index,
            "last_log_index": self.log.last_index,
            "last_log_term": self.log.last_term,
            "synced_index": self.synced_index,
            "snapshot_index": self.log.snapshot.index if self.log.snapshot else 0,
            "voters": list(self.membership.voters),
            "learners": list(self.membership.learners),
            "peers": self._leading.peers_status() if self._leading is not None else {},
            "elections": dict(self.counters),
            "backoff_ms": self.backoff_ms,
            "quiescent": self.quiescent,
            "removed": bool(self.removed_at or (self.membership.members and not listed)),
        }

    def check_invariants(self) -> None:
        """Raise AssertionError, with the story, when this state is impossible."""
        try:
            self._check()
        except AssertionError as error:
            raise self._with_story(error) from error

    def _with_story(self, error: AssertionError) -> AssertionError:
        lines = [f"{self.node_id}, group {self.group}, term {self.term}: {error}", *self.story]
        return AssertionError("\n".join(lines))

    def _check(self) -> None:
        log = self.log
        log.check_invariants()
        assert self.applied_index <= self._handed_index <= self.commit_index <= log.last_index
        assert log.base_index <= self.applied_index, "compacted what was not applied"
        assert self.synced_index <= log.last_index
        assert log.last_term <= self.term
        assert not self.unwritten
        assert (self.role == LEADER) == (self.leader == self.node_id)
        if self.role in (CANDIDATE, LEADER):
            assert self.voted_for == self.node_id
            assert self.membership.votes
        assert self.membership.votes != (self.role == LEARNER)
        assert (self._leading is not None) == (self.role == LEADER)
        if self._leading is not None:
            self._leading.check_invariants()

    # --- step ------------------------------------------------------------------------------

    def step(self, events: Sequence[fx.Event], now_ms: int) -> list[fx.Effect]:
        """Take in a batch of events; what must be done about them, in order.

        Raises:
            AssertionError: the impossible happened (its text ends with the story): this member
                must not go on.
        """
        try:
            return self._step(events, now_ms)
        except AssertionError as error:
            raise self._with_story(error) from error

    def _step(self, events: Sequence[fx.Event], now_ms: int) -> list[fx.Effect]:
        out: list[fx.Effect] = []
        self._out = out
        self.now_ms = now_ms
        self._state_saved = self._holds_apply = False
        handlers = self._event_handlers
        for event in events:
            handlers[type(event)](event)
        if self._tick_due:
            self._tick_due = False
            self._fire_due()
        leading = self._leading
        if leading is not None:
            leading.finish()
        unwritten = self.unwritten
        written: tuple[Entry, ...] = ()
        if unwritten:
            written = tuple(unwritten)
            unwritten.clear()
            out.append(fx.Append(written))
        if leading is not None:
            leading.replicate(written)
        if self._ack_index >= 0:
            self._send_ack()
        if self.commit_index > self._handed_index:
            self._hand_out()
        return out

    def _hand_out(self) -> None:
        applied, align = self.applied_index, self.settings.apply_align_entries
        step_end = applied - applied % align + align  # a snapshot may be taken there
        last = min(self.commit_index, applied + self.settings.max_apply_entries, step_end)
        if last > self._handed_index and not self._holds_apply:
            self._out.append(fx.Apply(self.log.slice(self._handed_index + 1, last)))
            self._handed_index = last

    # --- messages --------------------------------------------------------------------------

    def _on_receive(self, event: fx.Receive) -> None:
        message = event.message
        if isinstance(message, msg.VoteResponse) and message.outside:
            self._hear_outside(event.peer, message.outside)
        if self.quiescent and not _lets_sleep(message):
            self._rouse()
        if message.term != self.term and not self._admit(event.peer, message):
            return
        self._message_handlers[type(message)](event.peer, message)

    def _admit(self, peer: str, message: msg.RaftMessage) -> bool:
        """Settle a message of another term (§3.3); False when that was all."""
        kind = type(message)
        if isinstance(message, msg.VoteRequest):
            return self._admit_vote_request(peer, message)
        if message.term < self.term:
            self._refuse_old(peer, message)
            return False
        if isinstance(message, msg.VoteResponse) and message.pre and message.granted:
            return True  # it echoes the term the pre-candidate would have
        if kind in (msg.AppendRequest, msg.Heartbeat, msg.SnapshotChunk, msg.TimeoutNow):
            self._become_follower(message.term, peer, f"{peer} leads a newer term")
            return True
        if peer in self.membership.members:
            self._become_follower(message.term, None, f"{peer} is in a newer term")
        return False

    def _admit_vote_request(self, peer: str, request: msg.VoteRequest) -> bool:
        if request.pre or request.term < self.term:
            if request.term >= self.term:
                return True
            outside = self._outside(peer)
            refusal = msg.VoteResponse(self.group, self.term, False, request.pre, outside=outside)
            self._send_synced(peer, refusal)
            return False
        if self.hears_leader() and not request.transfer:
            return False  # §4.2.3: a disruptive or removed server must not depose a live leader
        self._become_follower(request.term, None, f"{peer} campaigns in a newer term")
        return True

    def _refuse_old(self, peer: str, message: msg.RaftMessage) -> None:
        """Tell a deposed leader the newer term; old answers are dropped."""
        if isinstance(message, msg.Heartbeat):
            self._send_synced(peer, msg.HeartbeatResponse(self.group, self.term))
        elif isinstance(message, msg.AppendRequest):
            refusal = msg.AppendResponse(self.group, self.term, False, message.prev_index)
            self._send_synced(peer, refusal)
        elif isinstance(message, msg.SnapshotChunk):
            refusal = msg.AppendResponse(self.group, self.term, False, message.index)
            self._send_synced(peer, refusal)

    # --- local events ----------------------------------------------------------------------

    def _on_synced(self, event: fx.Synced) -> None:
        if event.index > self.synced_index and self.log.term_at(event.index) == event.term:
            self.synced_index = event.index
            if self._leading is not None:
                self._leading.on_synced()

    def _on_applied(self, event: fx.Applied) -> None:
        if event.index > self.applied_index:
            assert event.index <= self._handed_index, f"applied {event.index}, never handed out"
            self.applied_index = event.index
        if self._leading is not None:
            self._leading.on_applied(self.applied_index)

    def _on_snapshot_taken(self, event: fx.SnapshotTaken) -> None:
        assert event.index <= self.applied_index, "snapshot of what is not applied"
        snapshot = self.log.snapshot
        if snapshot is None or event.index > snapshot.index:
            meta = SnapshotMeta(event.index, event.term, event.log_ms, event.size)
            self.log.compact(meta, self.settings.log_tail_entries, self._needed_by_transfers())
            self.membership.compact(event.index)

    def _needed_by_transfers(self) -> int | None:
        """After which index entries stay for followers that are being sent a snapshot."""
        index = self.snapshot_in_transfer
        if index is None or index < self.log.base_index:
            return None
        held = self.log.bytes_between(index, self.log.last_index)
        return index if held <= self.settings.transfer_log_bytes_max else None

    # --- for the leader's half -------------------------------------------------------------

    def _on_propose(self, event: fx.Propose) -> None:
        self._rouse()
        if self._leading is not None:
            self._leading.on_propose(event)
        else:
            self._out.append(fx.Refused(event.ref, "not_leader", self.leader))

    def _on_read(self, event: fx.Read) -> None:
        self._rouse()
        if self._leading is not None:
            self._leading.on_read(event)
        else:
            self._out.append(fx.ReadFailed(event.ref, self.leader))

    def _on_transfer(self, event: fx.Transfer) -> None:
        self._rouse()
        if self._leading is not None:
            self._leading.on_transfer(event)

    def _on_change_members(self, event: fx.ChangeMembers) -> None:
        self._rouse()
        if self._leading is not None:
            self._leading.on_change_members(event)
        else:
            self._out.append(fx.ChangeRefused(event.ref, "not_leader", self.leader))

    def _on_raise_level(self, event: fx.RaiseLevel) -> None:
        self._rouse()
        if self._leading is not None:
            self._leading.on_raise_level(event)
        else:
            self._out.append(fx.ChangeRefused(event.ref, "not_leader", self.leader))

    def _rouse(self) -> None:
        """Something happens in a quiescent group: heartbeats and timers go on from here."""
        if not self.quiescent:
            return
        self.quiescent = False
        if self._leading is not None:
            self._leading.rouse()
            self._tick_due = True
        else:
            self._leader_contact_ms = self.now_ms  # its node was heard until now
            self._restart_timer()

    def _on_rouse(self, event: fx.Rouse) -> None:
        if not self.quiescent:
            return
        self._rouse()
        if self._leading is None:
            settings = self.settings
            self._leader_contact_ms = -NEVER_MS
            # It has been silent for the shortest timeout already: the rest is drawn, so that the
            # many groups of a dead node do not elect all at once.
            span_ms = settings.election_max_ms - settings.election_min_ms
            self._election_ms = self.now_ms + self._rng.randrange(1, span_ms + 1)

    def _on_answer(self, peer: str, message: Any) -> None:
        leading = self._leading
        if leading is None:
            return
        if isinstance(message, msg.AppendResponse):
            leading.on_append_response(peer, message)
        elif isinstance(message, msg.HeartbeatResponse):
            leading.on_heartbeat_response(peer, message)
        else:
            leading.on_snapshot_response(peer, message)

    def _on_link_changed(self, event: fx.LinkChanged) -> None:
        """Fail-over begins early when the leader's process breaks its link (EOF, RST)."""
        if self._leading is not None or event.peer == self.leader:
            self._rouse()
        if self._leading is not None:
            self._leading.on_link_changed(event)
        elif not event.up and event.peer == self.leader and self.role == FOLLOWER:
            settings = self.settings
            if not settings.link_failover:
                return
            self._leader_contact_ms = -NEVER_MS  # our own vote is no longer sticky to it
            wait_ms = self._rng.randrange(settings.link_lost_min_ms, settings.link_lost_max_ms + 1)
            self._election_ms = min(self._election_ms, self.now_ms + wait_ms)


def _lets_sleep(message: msg.RaftMessage) -> bool:
    """What a quiescent member may hear without waking."""
    kind = type(message)
    return kind is msg.HeartbeatResponse or (isinstance(message, msg.Heartbeat) and message.quiesce)
