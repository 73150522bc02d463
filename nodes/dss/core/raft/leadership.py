"""What a leader has beside a follower's state: followers' progress, reads, hand-over, log time.

Lives from the election to the step-down: `Raft` makes one, sends it events and drops it, so no
state of one term can leak into the next. What must not live here: terms, votes and the
follower's half (raft.py).
Source: Raft thesis §3.5-3.6, §3.10, §4.1-4.2, §6.2 (check-quorum), §6.4, §10.2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss.core.raft import effects as fx
from dss.core.raft import membership as members
from dss.core.raft import messages as msg
from dss.core.raft.messages import Configuration, Entry
from dss.core.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from dss.core.raft.reads import ReadRounds

if TYPE_CHECKING:
    from dss.core.raft.raft import Raft

Shared = dict[tuple[int, int], msg.AppendRequest]


class Leadership:
    """One term of leadership. Methods named `on_*` take events; `finish` ends each step."""

    __slots__ = (
        "_commit_dirty",
        "_leaving",
        "_log",
        "_log_clock_ms",
        "_log_ms_base",
        "_quiet",
        "_quiet_index",
        "_raft",
        "_send_dirty",
        "_settings",
        "heartbeat_due_ms",
        "noop_index",
        "peers",
        "reads",
        "transfer_target",
        "transfer_until_ms",
    )

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._log = raft.log
        self._settings = raft.settings
        self.peers: dict[str, Progress] = {}
        self._leaving: list[Progress] = []
        self._quiet = 0  # idle heartbeats in a row
        self._quiet_index = -1  # the log's end at the last one
        self.reads = ReadRounds()
        self.heartbeat_due_ms = self._next_heartbeat_ms()
        self.transfer_target: str | None = None
        self.transfer_until_ms = 0
        self._commit_dirty = self._send_dirty = False
        self._log_ms_base = raft.log.last_log_ms
        self._log_clock_ms: int | None = None  # when the own no-op was applied
        self.match_members()
        self.noop_index = self._append(msg.NOOP, b"", self._log_ms_base)

    def match_members(self) -> None:
        """One Progress per other member; those that stay keep theirs."""
        raft, old = self._raft, self.peers
        self.peers = {
            peer: old.get(peer) or Progress(peer, raft.last_index + 1, raft.now_ms)
            for peer in raft.membership.members
            if peer != raft.node_id
        }
        self._leaving += [old[peer] for peer in old if peer not in self.peers]
        self._commit_dirty = self._send_dirty = True

    def log_ms(self, now_ms: int) -> int:
        """What this leader stamps: the clock stands still until its no-op is applied."""
        if self._log_clock_ms is None:
            return self._log_ms_base
        elapsed_ms = now_ms - self._log_clock_ms
        return max(self._log_ms_base + elapsed_ms, self._log.last_log_ms)

    def finish(self) -> None:
        """Before the step's effects are collected: commit, then begin reads."""
        if self._commit_dirty:
            self._advance_commit()
            self._promote_learners()
        if self.reads.waiting and self._raft.commit_index >= self.noop_index:
            self._begin_read_round()

    # --- proposals -------------------------------------------------------------------------

    def _append(self, kind: int, payload: bytes, log_ms: int) -> int:
        raft, log = self._raft, self._log
        index = log.last_index + 1
        entry = Entry(index, raft.term, kind, log_ms, payload)
        log.append(entry)
        raft.unwritten.append(entry)
        self._send_dirty = True
        if kind == msg.CONFIGURATION:
            raft.reconfigure(entry)
        return index

    def on_propose(self, event: fx.Propose) -> None:
        raft, log = self._raft, self._log
        if self.transfer_target is not None:
            raft.emit(fx.Refused(event.ref, "transferring", raft.leader))
        elif (
            log.bytes_between(raft.commit_index, log.last_index)
            > self._settings.max_uncommitted_bytes
        ):
            raft.emit(fx.Refused(event.ref, "overloaded", raft.leader))
        else:
            index = self._append(msg.COMMAND, event.payload, self.log_ms(raft.now_ms))
            raft.emit(fx.Proposed(event.ref, index))

    def on_applied(self, applied_index: int) -> None:
        if self._log_clock_ms is None and applied_index >= self.noop_index:
            self._log_clock_ms = self._raft.now_ms

    # --- commit ----------------------------------------------------------------------------

    def on_synced(self) -> None:
        self._commit_dirty = True

    def _quorum_value(self, own: int, others: dict[str, int]) -> int:
        """The largest value that a quorum of voters has reached."""
        raft = self._raft
        reached = [others[v] if v != raft.node_id else own for v in raft.membership.voters]
        reached.sort(reverse=True)
        return reached[raft.membership.quorum - 1]

    def _advance_commit(self) -> None:
        """§3.6.2: count replicas only of this term's entries; ourselves only when synced."""
        self._commit_dirty = False
        raft = self._raft
        index = self._quorum_value(
            raft.synced_index, {peer: p.match for peer, p in self.peers.items()}
        )
        if index > raft.commit_index and self._log.term_at(index) == raft.term:
            raft.commit_index = index

    # --- members ---------------------------------------------------------------------------

    def on_change_members(self, event: fx.ChangeMembers) -> None:
        raft, member = self._raft, event.member
        configuration = raft.membership.configuration
        code = self._why_not_remove(member) if event.remove else self._why_not_add(member)
        code = code or self._why_no_change()
        if code:
            raft.emit(fx.ChangeRefused(event.ref, code, raft.leader))
            return
        if event.remove:
            configuration = members.without(configuration, member.node_id)
        else:
            configuration = members.with_learner(configuration, member)
        raft.emit(fx.ChangeProposed(event.ref, self._reconfigure(configuration)))

    def _reconfigure(self, configuration: Configuration) -> int:
        payload = members.encode(configuration)
        return self._append(msg.CONFIGURATION, payload, self.log_ms(self._raft.now_ms))

    def _why_no_change(self) -> str:
        """§4.1: one change at a time; and the first one only after the no-op of this term is
        committed, so that two leaders never work from configurations that differ by two steps."""
        raft = self._raft
        if self.transfer_target is not None:
            return "transferring"
        if raft.commit_index < self.noop_index:
            return "not_ready"
        return "change_under_way" if raft.commit_index < raft.membership.index else ""

    def _why_not_add(self, member: msg.Member) -> str:
        known = self._raft.membership.members.get(member.node_id)
        if known is None:
            return ""
        return "already_member" if known == member else "other_incarnation"

    def _why_not_remove(self, member: msg.Member) -> str:
        raft = self._raft
        if raft.membership.members.get(member.node_id) != member:
            return "not_member"
        if member.node_id == raft.node_id:
            return "is_leader"
        rest = [voter for voter in raft.membership.voters if voter != member.node_id]
        # A new leader gives everybody time to answer, but counts nobody before: after a hand-over
        # a stopped voter must not pass for one that is there.
        others = [self.peers[voter] for voter in rest if voter != raft.node_id]
        recent = [p for p in others if raft.now_ms - p.contact_ms <= self._settings.election_max_ms]
        answering = sum(p.heard for p in recent)
        if 1 + answering >= len(rest) // 2 + 1:
            return ""
        return "not_ready" if any(not p.heard for p in recent) else "breaks_quorum"

    def _promote_learners(self) -> None:
        """§4.2.1: a learner that caught up within an election timeout becomes a voter."""
        raft = self._raft
        if not raft.membership.learners or not self._settings.promote_learners:
            return
        for node_id in raft.membership.learners:
            progress = self.peers[node_id]
            if progress.state != REPLICATE or progress.match < progress.round_target:
                continue
            took_ms = raft.now_ms - progress.round_began_ms
            if took_ms > self._settings.election_min_ms:
                progress.begin_round(self._log.last_index, raft.now_ms)
            elif not self._why_no_change():
                raft.note(f"{node_id} has caught up")
                self._reconfigure(members.promoted(raft.membership.configuration, node_id))
                return

    # --- reads -----------------------------------------------------------------------------

    def on_read(self, event: fx.Read) -> None:
        if self.reads.count >= self._settings.max_pending_reads:
            self._raft.emit(fx.ReadFailed(event.ref, self._raft.leader))
        else:
            self.reads.add(event.ref)

    def _begin_read_round(self) -> None:
        self.reads.begin(self._raft.commit_index)
        self._confirm_reads()  # a lone voter needs nobody
        if self.reads.rounds:
            self._broadcast_heartbeat()

    def _confirm_reads(self) -> None:
        """Answer the rounds that a quorum has confirmed, counting ourselves."""
        context = self._quorum_value(
            self.reads.context, {peer: p.read_context for peer, p in self.peers.items()}
        )
        for index, refs in self.reads.confirmed(context):
            for ref in refs:
                self._raft.emit(fx.ReadReady(ref, index))

    # --- time ------------------------------------------------------------------------------

    def _next_heartbeat_ms(self) -> int:
        """The next multiple of heartbeat_ms: all groups of a process beat in one cycle."""
        now, every = self._raft.now_ms, self._settings.heartbeat_ms
        return now - now % every + every

    def on_tick(self) -> bool:
        """A heartbeat is due. False: no quorum has answered for too long, step down."""
        raft = self._raft
        now = raft.now_ms
        heard = self._quorum_value(now, {peer: p.contact_ms for peer, p in self.peers.items()})
        if now - heard > self._settings.election_max_ms:
            return False
        if self.transfer_target is not None and now >= self.transfer_until_ms:
            raft.note(f"gave up handing over to {self.transfer_target}")
            self.transfer_target = None
        self.heartbeat_due_ms = self._next_heartbeat_ms()
        self._quiet = self._quiet + 1 if self._is_idle() else 0
        if 0 < self._settings.quiesce_after <= self._quiet:
            raft.quiescent = True
            self._quiet = 0
        self._broadcast_heartbeat(quiesce=raft.quiescent)
        return True

    def _is_idle(self) -> bool:
        """Everybody has and has applied everything, answers, and nobody wants anything."""
        raft, last = self._raft, self._log.last_index
        before, self._quiet_index = self._quiet_index, last
        return (
            before == last
            and raft.applied_index == raft.synced_index == last
            and not self.reads.count
            and self.transfer_target is None
            and not raft.membership.learners
            and all(
                progress.state == REPLICATE
                and progress.match == last
                and raft.now_ms - progress.contact_ms < self._settings.election_min_ms // 2
                for progress in self.peers.values()
            )
        )

    def rouse(self) -> None:
        """No longer quiescent: heartbeats at once, and time for everybody to answer.

        Not as if they just had: only who answers now may let the group rest again.
        """
        now = self.heartbeat_due_ms = self._raft.now_ms
        for progress in self.peers.values():
            progress.contact_ms = now - self._settings.election_min_ms // 2

    def _broadcast_heartbeat(self, *, quiesce: bool = False) -> None:
        raft = self._raft
        context = self.reads.pending_context()
        for peer, progress in self.peers.items():
            commit = min(progress.match, raft.commit_index)
            beat = msg.Heartbeat(raft.group, raft.term, commit, context, quiesce)
            raft.send(peer, beat)

    def on_heartbeat_response(self, peer: str, response: msg.HeartbeatResponse) -> None:
        progress = self.peers.get(peer)
        if progress is None:
            return
        now = self._raft.now_ms
        progress.answered(now)
        if peer in self._raft.membership.learners:
            self._commit_dirty = True  # look again whether it may be promoted
        if response.context > progress.read_context:
            progress.read_context = response.context
            self._confirm_reads()
        if progress.state == SNAPSHOT:
            if now - progress.snapshot_sent_ms >= self._settings.election_min_ms:
                self._send_chunk(progress, progress.snapshot_offset)
        elif progress.state == PROBE:
            progress.waiting = False
            self._send_dirty = True
        elif progress.inflight:
            # No acknowledgement between two heartbeats: slow disk, or requests were lost?
            if progress.match == progress.stuck_at:
                self._ask(progress)
            progress.stuck_at = progress.match
        elif progress.match < self._log.last_index:
            self._send_dirty = True

    # --- replication -----------------------------------------------------------------------

    def replicate(self, written: tuple[Entry, ...]) -> None:
        """Send each follower what it may get; equal requests are one object, encoded once.

        Args:
            written: what this step appends to our own log: the usual request, ready made.
        """
        if self._leaving and self._raft.commit_index >= self._raft.membership.index:
            self._say_goodbye()
        if not self._send_dirty:
            return
        self._send_dirty = False
        shared: Shared = {}
        last_index = self._log.last_index
        for progress in self.peers.values():
            if progress.state == REPLICATE:
                if progress.next <= last_index:
                    self._pipeline(progress, shared, written)
            elif progress.state == PROBE and not progress.waiting:
                self._probe(progress, shared, written)

    def _say_goodbye(self) -> None:
        """The last that removed members hear, if it arrives: that they were, and that for certain.

        Not before it is committed: until then they may be needed. (Of two voters one is removed;
        the leader dies before its own disk has that, and only the other one's log does.)
        """
        leaving, self._leaving = self._leaving, []
        for progress in leaving:
            if progress.state == REPLICATE and progress.next <= self._log.last_index:
                self._pipeline(progress, {}, ())

    def _pipeline(self, progress: Progress, shared: Shared, written: tuple[Entry, ...]) -> None:
        settings, log = self._settings, self._log
        if progress.next <= log.base_index:
            self._begin_snapshot(progress)
            return
        while progress.next <= log.last_index and progress.has_room(
            settings.max_inflight, settings.max_inflight_bytes
        ):
            first = progress.next
            last = log.last_within(first, settings.max_append_bytes)
            self._raft.send(progress.node_id, self._request(first, last, shared, written))
            progress.sent(last, log.bytes_between(first - 1, last))

    def _probe(self, progress: Progress, shared: Shared, written: tuple[Entry, ...]) -> None:
        log, first = self._log, progress.next
        if first <= log.base_index:
            self._begin_snapshot(progress)
            return
        progress.waiting = True
        last = first - 1
        if first <= log.last_index:
            last = log.last_within(first, self._settings.max_append_bytes)
        self._raft.send(progress.node_id, self._request(first, last, shared, written))

    def _ask(self, progress: Progress) -> None:
        """An empty request: has all that we sent arrived?"""
        first = progress.next
        if first > self._log.base_index:
            self._raft.send(progress.node_id, self._request(first, first - 1, {}, ()))

    def _request(
        self, first: int, last: int, shared: Shared, written: tuple[Entry, ...]
    ) -> msg.AppendRequest:
        request = shared.get((first, last))
        if request is None:
            raft = self._raft
            if written and first == written[0].index and last == written[-1].index:
                entries = written
            else:
                entries = self._log.slice(first, last) if first <= last else ()
            prev_term = self._log.term_at(first - 1)
            assert prev_term is not None, f"entry {first - 1} is compacted"
            request = shared[first, last] = msg.AppendRequest(
                raft.group, raft.term, first - 1, prev_term, raft.commit_index, entries
            )
        return request

    def on_append_response(self, peer: str, response: msg.AppendResponse) -> None:
        progress = self.peers.get(peer)
        if progress is None:
            return
        progress.answered(self._raft.now_ms)
        if not response.ok:
            self._back_up(progress, response)
            return
        last_index = self._log.last_index
        if response.index > last_index:
            return  # impossible for a peer that keeps the rules: never count it
        if progress.acknowledged(response.index):
            self._commit_dirty = True
        if progress.state == PROBE:
            if response.index == progress.match:
                progress.become_replicate()
        elif progress.state == SNAPSHOT and progress.match >= self._log.base_index:
            progress.become_replicate()
        if progress.next <= last_index:
            self._send_dirty = True
        if peer == self.transfer_target and progress.match == last_index:
            self._raft.send(peer, msg.TimeoutNow(self._raft.group, self._raft.term))

    def _back_up(self, progress: Progress, response: msg.AppendResponse) -> None:
        """§3.5: the logs differ at `index`; go where they could agree, a term at a time."""
        if progress.state == SNAPSHOT or progress.is_stale_rejection(response.index):
            return
        hint = min(response.hint_index, response.index - 1)
        agree = self._log.last_with_term_at_most(hint, response.hint_term)
        progress.become_probe(agree + 1)
        self._send_dirty = True

    # --- snapshots -------------------------------------------------------------------------

    def _begin_snapshot(self, progress: Progress) -> None:
        snapshot = self._log.snapshot
        assert snapshot is not None, "a compacted log has a snapshot"
        progress.become_snapshot(snapshot.index, self._raft.now_ms)
        self._send_chunk(progress, 0)

    def _send_chunk(self, progress: Progress, offset: int) -> None:
        """The chunk at `offset`; from the start when a newer snapshot has replaced it."""
        raft, snapshot = self._raft, self._log.snapshot
        assert snapshot is not None, "a compacted log has a snapshot"
        if snapshot.index != progress.snapshot_index:
            progress.become_snapshot(snapshot.index, raft.now_ms)
            offset = 0
        progress.snapshot_sent(offset, raft.now_ms)
        raft.emit(fx.SendSnapshot(progress.node_id, raft.term, snapshot.index, offset))

    def on_snapshot_response(self, peer: str, response: msg.SnapshotResponse) -> None:
        progress = self.peers.get(peer)
        if progress is None:
            return
        progress.answered(self._raft.now_ms)
        snapshot = self._log.snapshot
        if (
            progress.state == SNAPSHOT
            and snapshot is not None
            and response.index == progress.snapshot_index
            and response.offset != progress.snapshot_offset  # else: a repeated answer
            and 0 <= response.offset < snapshot.size
        ):
            self._send_chunk(progress, response.offset)

    # --- hand-over and links ---------------------------------------------------------------

    def on_transfer(self, event: fx.Transfer) -> None:
        """§3.10: stop accepting proposals, bring the target up to date, let it campaign."""
        raft = self._raft
        if self.transfer_target is not None:
            return
        voters = [p for p in self.peers.values() if p.node_id in raft.membership.voters]
        if event.target is not None:
            voters = [p for p in voters if p.node_id == event.target]
        if not voters:
            return
        target = max(voters, key=lambda p: (p.match, p.contact_ms))
        self.transfer_target = target.node_id
        self.transfer_until_ms = raft.now_ms + self._settings.election_max_ms
        raft.note(f"hands over to {target.node_id}")
        if target.match == self._log.last_index:
            raft.send(target.node_id, msg.TimeoutNow(raft.group, raft.term))
        else:
            self._send_dirty = True

    def on_link_changed(self, event: fx.LinkChanged) -> None:
        progress = self.peers.get(event.peer)
        if progress is None:
            return
        if progress.state == SNAPSHOT:
            progress.snapshot_sent_ms = 0  # the chunk may be lost: repeat it when it answers
        elif not event.up:
            progress.become_probe(progress.match + 1)
            progress.waiting = True  # nothing can arrive: until it answers a heartbeat
        else:
            progress.waiting = False
            self._send_dirty = True

    # --- looking in ------------------------------------------------------------------------

    def peers_status(self) -> dict[str, dict[str, int | str]]:
        now = self._raft.now_ms
        return {
            peer: {
                "match": progress.match,
                "next": progress.next,
                "state": progress.state,
                "last_contact_ms": now - progress.contact_ms,
            }
            for peer, progress in self.peers.items()
        }

    def check_invariants(self) -> None:
        for progress in self.peers.values():
            progress.check_invariants()
            assert progress.next <= self._log.last_index + 1
