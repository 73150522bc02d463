"""One Raft group as a pure state machine: `step(events, now_ms) -> effects`.

The embedder's contract stands in effects.py. Three rules on top of it:

* A `Tick` is looked at after all other events of its step, so a late answer beats a timer.
* A whole snapshot (the `StoreChunk` that completes it) is installed within the cycle that
  emitted it: `SnapshotInstalled` is the first event of the group's next step.
* `SnapshotInstalled(index)` means the machine now stands at `index`, even if it had been
  further: entries after it that are held here are handed out again.

What must not live here: I/O, clocks, threads; the leader's half (leadership.py), the log
(log.py), a follower's window (progress.py), read rounds (reads.py).
Source: Raft thesis (Ongaro 2014) §3, §4.2, §6.4, §9.6, §10.2; etcd-io/raft for the corner cases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from dss.base.limits import STORY_LINES_MAX
from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.leadership import Leadership
from dss.core.raft.log import RaftLog, SnapshotMeta
from dss.core.raft.membership import Membership
from dss.core.raft.messages import Configuration, Entry, Member
from dss.core.raft.settings import RaftSettings, RandomSource

FOLLOWER: Final = "follower"
PRE_CANDIDATE: Final = "pre_candidate"
CANDIDATE: Final = "candidate"
LEADER: Final = "leader"
LEARNER: Final = "learner"

NEVER_MS: Final = 2**62


class Raft:
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

    def __init__(
        self,
        *,
        group: int,
        node_id: str,
        incarnation: str = "",
        configuration: Configuration,
        term: int = 0,
        voted_for: str | None = None,
        snapshot: SnapshotMeta | None = None,
        entries: Sequence[Entry] = (),
        settings: RaftSettings,
        rng: RandomSource,
        now_ms: int,
    ) -> None:
        self.group = group
        self.node_id = node_id
        self.settings = settings
        self.term = term
        self.voted_for = voted_for
        self.role = FOLLOWER
        self.leader: str | None = None
        self.log = RaftLog(snapshot, entries)
        self.commit_index = self.applied_index = snapshot.index if snapshot else 0
        self.synced_index = self.log.last_index
        self.membership = Membership(configuration, entries, Member(node_id, incarnation))
        self.story: deque[str] = deque(maxlen=STORY_LINES_MAX)
        # Each election that was started ends as one of the three. `lost`: another leader of its
        # term is heard of, or a quorum could never be had because the own log is behind.
        # `split`: its term ends without either.
        self.counters = {"started": 0, "won": 0, "lost": 0, "split": 0, "pre_votes": 0}
        self._stood_in = 0  # the term of our own election while its outcome is open
        self._rng = rng
        self.now_ms = now_ms
        self._out: list[fx.Effect] = []
        self._handed_index = self.commit_index  # up to here Apply has been emitted
        self.unwritten: list[Entry] = []  # appended in this step: one Append at its end
        self._ack_index = -1  # follower: durable match to acknowledge at the step's end
        self._state_saved = False  # SaveState in this step
        self._tick_due = False
        self._holds_apply = False  # a whole snapshot left in this step for installation
        # follower, candidate
        self._leader_contact_ms = -NEVER_MS
        self._timeout_ms = 0
        self._election_ms = 0
        self._backoff_until_ms = -NEVER_MS
        self._votes: dict[str, bool] = {}
        self._behind = 0  # votes refused because our log is behind
        self._retrying = False  # a round of ours has failed since we last heard a leader
        self._leading: Leadership | None = None
        self.quiescent = False  # idle: no heartbeats, no timer, until anything happens
        if not self.membership.votes:
            self.role = LEARNER
        self._redraw_timeout()
        self._event_handlers = self._make_event_handlers()
        self._message_handlers = self._make_message_handlers()

    def _make_event_handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            fx.Receive: self._on_receive,
            fx.Propose: self._on_propose,
            fx.Read: self._on_read,
            fx.Tick: self._on_tick,
            fx.Synced: self._on_synced,
            fx.Applied: self._on_applied,
            fx.Transfer: self._on_transfer,
            fx.ChangeMembers: self._on_change_members,
            fx.Backoff: self._on_backoff,
            fx.Rouse: self._on_rouse,
            fx.LinkChanged: self._on_link_changed,
            fx.SnapshotTaken: self._on_snapshot_taken,
            fx.SnapshotInstalled: self._on_snapshot_installed,
        }

    def _make_message_handlers(self) -> dict[type, Callable[[str, Any], None]]:
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
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def next_deadline_ms(self) -> int:
        """When a Tick is wanted next: heartbeat or election; NEVER_MS: learner, quiescent."""
        if self.quiescent:
            return NEVER_MS
        if self._leading is not None:
            return self._leading.heartbeat_due_ms
        return self._election_ms if self.role != LEARNER else NEVER_MS

    @property
    def stands_for_election(self) -> bool:
        """Whether this voter campaigns, or would at its next timeout: no live leader is known."""
        return self.role not in (LEADER, LEARNER) and not self.hears_leader()

    @property
    def backoff_ms(self) -> int:
        """For how long (from the last step) it was asked not to campaign; 0: it was not."""
        return max(0, self._backoff_until_ms - self.now_ms)

    def log_ms(self, now_ms: int) -> int:
        """Log time: what a leader would stamp now; elsewhere that of the last applied entry."""
        if self._leading is not None:
            return self._leading.log_ms(now_ms)
        return self.log.log_ms_at(self.applied_index)

    def status(self) -> dict[str, Any]:
        """JSON-able; the `groups` item of GET /v1/raft/status."""
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
        last = min(self.commit_index, self.applied_index + self.settings.max_apply_entries)
        if last > self._handed_index and not self._holds_apply:
            self._out.append(fx.Apply(self.log.slice(self._handed_index + 1, last)))
            self._handed_index = last

    def emit(self, effect: fx.Effect) -> None:
        self._out.append(effect)

    def note(self, line: str) -> None:
        """One line of the story."""
        self.story.append(f"{self.now_ms} {line}")

    def send(self, peer: str, message: msg.RaftMessage) -> None:
        """Send beside the fsync, unless our term itself is only being written in this step."""
        if self._state_saved:
            self._out.append(fx.SendAfterSync(peer, message))
        else:
            self._out.append(fx.Send(peer, message))

    def _send_synced(self, peer: str, message: msg.RaftMessage) -> None:
        self._out.append(fx.SendAfterSync(peer, message))

    # --- roles -----------------------------------------------------------------------------

    def _turn(self, role: str, leader: str | None, reason: str, term: int | None = None) -> None:
        """The one place where role, leader and term change."""
        before = (self.role, self.term, self.leader)
        self.quiescent = False
        if term is not None and term != self.term:
            assert term > self.term, f"term falls from {self.term} to {term}"
            self.term = term
            self.voted_for = self.node_id if role == CANDIDATE else None
            self._save_state()
        if self.role == LEADER and role != LEADER:
            self._lay_down_leadership(leader)
        if role == FOLLOWER and not self.membership.votes:
            role = LEARNER
        self.role = role
        self.leader = leader
        if self._stood_in and (leader is not None or self.term != self._stood_in):
            lost = self.term == self._stood_in
            self._note_outcome("won" if role == LEADER else "lost" if lost else "split")
        if (role, self.term, leader) != before:
            self.story.append(f"{self.now_ms} {role} term {self.term} leader {leader}: {reason}")
            self._out.append(fx.RoleChanged(role, self.term, leader, reason))

    def _note_outcome(self, outcome: str) -> None:
        self.counters[outcome] += 1
        self._stood_in = 0

    def _save_state(self) -> None:
        self._state_saved = True
        self._out.append(fx.SaveState(self.term, self.voted_for))

    def _become_follower(self, term: int, leader: str | None, reason: str) -> None:
        if term != self.term:
            self._ack_index = -1
        if leader is not None:
            self._backoff_until_ms = -NEVER_MS
            self._retrying = False
        self._votes = {}
        waits = self.role == FOLLOWER and leader is None
        self._turn(FOLLOWER, leader, reason, term)
        if not waits:
            # A follower's timer starts anew only for a leader or a granted vote (§3.4): else one
            # hasty candidate with an old log could keep everybody from campaigning for ever.
            self._redraw_timeout()

    def _lay_down_leadership(self, leader: str | None) -> None:
        assert self._leading is not None
        for ref in self._leading.reads.drain():
            self._out.append(fx.ReadFailed(ref, leader))
        self._leading = None

    def _redraw_timeout(self) -> None:
        """A fresh random election timeout, from now; a lone voter need not wait for anyone.

        After a round that nobody won, each voter draws from a slot of its own, in id order: the
        same two do not meet again.
        """
        low, high = self.settings.election_min_ms, self.settings.election_max_ms + 1
        voters = list(self.membership.voters)
        if len(voters) == 1 and self.membership.votes:
            self._timeout_ms = 0
        else:
            if self._retrying and self.membership.votes:
                span, slot = high - low, voters.index(self.node_id)
                low, high = low + span * slot // len(voters), low + span * (slot + 1) // len(voters)
            self._timeout_ms = self._rng.randrange(low, max(high, low + 1))
        self._restart_timer()

    def _restart_timer(self) -> None:
        """Wait the drawn timeout from now, and at least as long as a backoff lasts."""
        self._election_ms = max(self.now_ms + self._timeout_ms, self._backoff_until_ms)

    def hears_leader(self) -> bool:
        """Whether a live leader is known: then nobody gets a vote (§4.2.3, §9.6)."""
        if self.role == LEADER or self.quiescent:
            return True
        silence_ms = self.now_ms - self._leader_contact_ms
        return self.leader is not None and silence_ms < self.settings.election_min_ms

    def _members_changed(self) -> None:
        membership = self.membership
        self._out.append(fx.MembersChanged(membership.configuration))
        voters, learners = " ".join(membership.voters), " ".join(membership.learners)
        self.note(f"voters {voters}; learners {learners or 'none'}")
        if self._leading is not None:
            self._leading.match_members()
            return
        self._turn(FOLLOWER, self.leader, "membership changed")
        self._redraw_timeout()  # a lone voter's is 0

    def reconfigure(self, entry: Entry) -> None:
        """The leader has appended a configuration: it counts at once (§4.1)."""
        self.membership.append((entry,))
        self._members_changed()

    # --- elections -------------------------------------------------------------------------

    def _on_tick(self, event: fx.Tick) -> None:
        self._tick_due = True

    def _fire_due(self) -> None:
        now = self.now_ms
        if self.quiescent:
            return
        if self._leading is not None:
            if now >= self._leading.heartbeat_due_ms and not self._leading.on_tick():
                self._become_follower(self.term, None, "lost contact with a quorum")
        elif self.role != LEARNER and now >= self._election_ms:
            self._leader_contact_ms = -NEVER_MS
            self._campaign(pre=self.settings.pre_vote, reason="election timeout")

    def _campaign(self, *, pre: bool, reason: str, transfer: bool = False) -> None:
        self._retrying = True  # what is drawn now counts if this round fails
        self._redraw_timeout()
        self._votes = {}
        self._behind = 0
        if pre:
            self.counters["pre_votes"] += 1
            self._turn(PRE_CANDIDATE, None, reason)
        else:
            self.counters["started"] += 1
            self._turn(CANDIDATE, None, reason, self.term + 1)
            self._stood_in = self.term
            self._ack_index = -1
        request = msg.VoteRequest(
            self.group,
            self.term + 1 if pre else self.term,
            self.log.last_index,
            self.log.last_term,
            pre,
            transfer,
        )
        send = self.send if pre else self._send_synced
        for voter in self.membership.voters:
            if voter != self.node_id:
                send(voter, request)
        self._count_vote(self.node_id, True)

    def _count_vote(self, voter: str, granted: bool, behind: bool = False) -> None:
        votes = self._votes
        if voter not in votes:
            votes[voter] = granted
            self._behind += behind
        given = sum(votes.values())
        quorum = self.membership.quorum
        if given >= quorum:
            if self.role == PRE_CANDIDATE:
                self._campaign(pre=False, reason="pre-vote won")
            else:
                self._become_leader()
        elif len(votes) - given > len(self.membership.voters) - quorum:
            if self._stood_in and self._behind > len(self.membership.voters) - quorum:
                self._note_outcome("lost")
            self._become_follower(self.term, None, "election lost")

    def _become_leader(self) -> None:
        self._votes = {}
        self._retrying = False
        self._turn(LEADER, self.node_id, "won the election")
        self._leading = Leadership(self)

    def _is_up_to_date(self, request: msg.VoteRequest) -> bool:
        """§3.6.1: the candidate's log must be at least as good as ours."""
        last_term = self.log.last_term
        if request.last_term != last_term:
            return request.last_term > last_term
        return request.last_index >= self.log.last_index

    def _on_vote_request(self, peer: str, request: msg.VoteRequest) -> None:
        """Whoever asks gets an answer, from a learner too: the candidate's log may hold a newer
        configuration, in which they are voters; it is the one who counts (§4.1)."""
        up_to_date = self._is_up_to_date(request)
        if request.pre:
            granted = request.term > self.term and not self.hears_leader() and up_to_date
            term = request.term if granted else self.term
            self.send(peer, msg.VoteResponse(self.group, term, granted, True))
            return
        free = self.voted_for is None and self.leader is None
        granted = (free or self.voted_for == peer) and up_to_date
        if granted:
            if self.voted_for is None:
                self.voted_for = peer
                self._save_state()
            if self.role == PRE_CANDIDATE:
                self._become_follower(self.term, None, f"voted for {peer}")
            self._restart_timer()
        answer = msg.VoteResponse(self.group, self.term, granted, False, not up_to_date)
        self._send_synced(peer, answer)

    def _on_vote_response(self, peer: str, response: msg.VoteResponse) -> None:
        if peer not in self.membership.voters:
            return
        if response.pre:
            asked = response.term == self.term + 1 if response.granted else True
            if self.role == PRE_CANDIDATE and asked:
                self._count_vote(peer, response.granted)
        elif self.role == CANDIDATE:
            self._count_vote(peer, response.granted, response.behind)

    def _on_timeout_now(self, peer: str, message: msg.TimeoutNow) -> None:
        if self.role == FOLLOWER and self.leader == peer:
            self._campaign(pre=False, reason=f"leadership handed over by {peer}", transfer=True)

    # --- messages --------------------------------------------------------------------------

    def _on_receive(self, event: fx.Receive) -> None:
        message = event.message
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
            refusal = msg.VoteResponse(self.group, self.term, False, request.pre)
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

    # --- follower --------------------------------------------------------------------------

    def _follow(self, peer: str) -> None:
        """A message from this term's leader."""
        if self.leader != peer or self.role == PRE_CANDIDATE:
            assert self.leader is None, f"two leaders in term {self.term}: {self.leader} and {peer}"
            self._become_follower(self.term, peer, f"{peer} leads")
        self._leader_contact_ms = self.now_ms
        self._election_ms = self.now_ms + self._timeout_ms

    def _on_append_request(self, peer: str, request: msg.AppendRequest) -> None:
        self._follow(peer)
        log = self.log
        prev, entries = request.prev_index, request.entries
        last = prev + len(entries)
        if prev < self.commit_index:
            # What is committed here is the leader's too (leader completeness).
            entries = entries[self.commit_index - prev :]
            prev = self.commit_index
            last = max(last, prev)
        elif log.term_at(prev) != request.prev_term:
            self._reject(peer, request)
            return
        if entries:
            if prev < log.last_index:
                same = log.first_conflict(entries)
                entries = entries[same:]
            if entries:
                if entries[0].index <= log.last_index:
                    self._truncate_from(entries[0].index)
                self._append_received(entries)
        self._ack_index = max(self._ack_index, last)
        self._follow_commit(min(request.commit, last))

    def _reject(self, peer: str, request: msg.AppendRequest) -> None:
        hint = self.log.last_with_term_at_most(request.prev_index, request.prev_term)
        hint = max(hint, self.commit_index)
        term = self.log.term_at(hint) or 0
        self._send_synced(
            peer,
            msg.AppendResponse(self.group, self.term, False, request.prev_index, hint, term),
        )

    def _append_received(self, entries: Sequence[Entry]) -> None:
        self.log.extend(entries)
        self.unwritten.extend(entries)
        if self.membership.append(entries):
            self._members_changed()

    def _truncate_from(self, index: int) -> None:
        assert index > self.commit_index, f"conflict at committed entry {index}"
        self.log.truncate_from(index)
        self.synced_index = min(self.synced_index, index - 1)
        unwritten = self.unwritten
        while unwritten and unwritten[-1].index >= index:
            unwritten.pop()
        if self.membership.truncate_from(index):
            self._members_changed()

    def _follow_commit(self, commit: int) -> None:
        if commit > self.commit_index:
            assert commit <= self.log.last_index, f"acknowledged entries before {commit} are lost"
            self.commit_index = commit

    def _send_ack(self) -> None:
        """One acknowledgement for all append requests of this step."""
        index, self._ack_index = self._ack_index, -1
        if self.leader is not None and self.leader != self.node_id:
            answer = msg.AppendResponse(self.group, self.term, True, index)
            self._send_synced(self.leader, answer)

    def _on_heartbeat(self, peer: str, heartbeat: msg.Heartbeat) -> None:
        self._follow(peer)
        if self.membership.listed:  # else it may speak of what our lost disk acknowledged
            self._follow_commit(heartbeat.commit)
        if heartbeat.quiesce and heartbeat.commit == self.commit_index == self.log.last_index:
            self.quiescent = True
        self.send(peer, msg.HeartbeatResponse(self.group, self.term, heartbeat.context))

    def _on_snapshot_chunk(self, peer: str, chunk: msg.SnapshotChunk) -> None:
        self._follow(peer)
        if self.log.term_at(chunk.index) == chunk.snapshot_term:
            self._follow_commit(chunk.index)  # our log reaches it already
        if chunk.index <= self.commit_index:
            self._ack_index = max(self._ack_index, self.commit_index)
            return
        if chunk.offset + len(chunk.data) >= chunk.size:
            self._holds_apply = True
        self._out.append(fx.StoreChunk(peer, chunk))

    def _on_snapshot_installed(self, event: fx.SnapshotInstalled) -> None:
        log, index = self.log, event.index
        meta = SnapshotMeta(index, event.term, event.log_ms, event.size)
        if log.term_at(index) == event.term:
            if log.snapshot is None or index > log.snapshot.index:
                log.compact(meta, self.settings.log_tail_entries)
        else:
            assert index > self.commit_index, "installed an old snapshot of another history"
            log.reset(meta)
            self.synced_index = index
            self.unwritten.clear()
            self._ack_index = index
            self.membership.reset(event.configuration)
            self._members_changed()
        self.commit_index = max(self.commit_index, index)
        self.synced_index = max(self.synced_index, index)
        self.applied_index = self._handed_index = index
        self.note(f"installed the snapshot at {index}")
        self._ack_index = max(self._ack_index, index)

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
            self.log.compact(meta, self.settings.log_tail_entries)
            self.membership.compact(event.index)

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

    def _on_backoff(self, event: fx.Backoff) -> None:
        if self.stands_for_election:
            self._backoff_until_ms = self.now_ms + event.wait_ms
            self._become_follower(self.term, None, "backs off on request")
            self._restart_timer()

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
