"""What a leader has beside a follower's state: followers' progress, reads, hand-over, log time.

Lives from the election to the step-down: `Raft` makes one, sends it events and drops it, so no
state of one term can leak into the next. What must not live here: terms, votes and the
follower's half (elections.py, following.py); how logs are sent (replication.py).
Source: Raft thesis §3.5-3.6, §3.10, §4.1-4.2, §6.2 (check-quorum), §6.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss.core.raft import effects as fx
from dss.core.raft import membership as members
from dss.core.raft import messages as msg
from dss.core.raft.messages import Configuration, Entry
from dss.core.raft.progress import PROBE, REPLICATE, SNAPSHOT
from dss.core.raft.reads import ReadRounds
from dss.core.raft.replication import Replication

if TYPE_CHECKING:
    from dss.core.raft.base import RaftBase


class Leadership(Replication):
    """One term of leadership. Methods named `on_*` take events; `finish` ends each step."""

    __slots__ = (
        "_log_clock_ms",
        "_log_ms_base",
        "_quiet",
        "_quiet_index",
        "heartbeat_due_ms",
        "noop_index",
        "reads",
        "transfer_until_ms",
    )

    def __init__(self, raft: RaftBase) -> None:
        super().__init__(raft)
        self._quiet = 0  # idle heartbeats in a row
        self._quiet_index = -1  # the log's end at the last one
        self.reads = ReadRounds()
        self.heartbeat_due_ms = self._next_heartbeat_ms()
        self.transfer_until_ms = 0
        self._log_ms_base = raft.log.last_log_ms
        self._log_clock_ms: int | None = None  # when the own no-op was applied
        self.noop_index = self._append(msg.NOOP, b"", self._log_ms_base)

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
        if kind in (msg.CONFIGURATION, msg.LEVEL):
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
            if not self.thrift.eager and self.transfer_target is None:
                self.thrift.choose(raft, self.peers)

    # --- members ---------------------------------------------------------------------------

    def on_change_members(self, event: fx.ChangeMembers) -> None:
        raft, member = self._raft, event.member
        configuration = raft.membership.configuration
        code = self._why_not_remove(member) if event.remove else self._why_not_add(event)
        code = code or self._why_no_change()
        if code:
            raft.emit(fx.ChangeRefused(event.ref, code, raft.leader))
            return
        if event.remove:
            configuration = members.without(configuration, member.node_id)
        else:
            configuration = members.with_learner(configuration, member)
        raft.emit(fx.ChangeProposed(event.ref, self._reconfigure(configuration)))

    def on_raise_level(self, event: fx.RaiseLevel) -> None:
        """One change at a time: no member can come or go between the question and the entry."""
        raft = self._raft
        configuration = raft.membership.configuration
        code = self._why_no_change()
        if not code and event.members != configuration.voters + configuration.learners:
            code = "other_members"
        if not code and event.level <= configuration.feature_level:
            code = "already_raised"
        if code:
            raft.emit(fx.ChangeRefused(event.ref, code, raft.leader))
            return
        payload = members.encode_level(event.level)
        index = self._append(msg.LEVEL, payload, self.log_ms(raft.now_ms))
        raft.emit(fx.ChangeProposed(event.ref, index))

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

    def _why_not_add(self, event: fx.ChangeMembers) -> str:
        member, membership = event.member, self._raft.membership
        known = membership.members.get(member.node_id)
        if known is None:
            low = event.feature_level < membership.configuration.feature_level
            return "feature_level" if low else ""
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
        if now >= self.thrift.race_ms:
            self.thrift.reset()
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

    # --- hand-over --------------------------------------------------------------------------

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
        self.thrift.reset()
        self._send_dirty = True
        if target.match == self._log.last_index:
            raft.send(target.node_id, msg.TimeoutNow(raft.group, raft.term))
