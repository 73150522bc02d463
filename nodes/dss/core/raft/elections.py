"""Elections: campaigning, voting, counting votes, backing off.

What must not live here: what a leader does (leadership.py), a follower's log (following.py).
Source: Raft thesis (Ongaro 2014) §3.4, §3.6.1, §3.10, §4.2.3, §9.6.
"""

from __future__ import annotations

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.base import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    LEARNER,
    NEVER_MS,
    PRE_CANDIDATE,
    RaftBase,
)
from dss.core.raft.leadership import Leadership


class Elections(RaftBase):
    """See the module."""

    @property
    def stands_for_election(self) -> bool:
        """Whether this voter campaigns, or would at its next timeout: no live leader is known."""
        return (
            self.role not in (LEADER, LEARNER) and not self.removed_at and not self.hears_leader()
        )

    @property
    def backoff_ms(self) -> int:
        """For how long (from the last step) it was asked not to campaign; 0: it was not."""
        return max(0, self._backoff_until_ms - self.now_ms)

    def _on_tick(self, event: fx.Tick) -> None:
        self._tick_due = True

    def _fire_due(self) -> None:
        now = self.now_ms
        if self.quiescent:
            return
        if self._leading is not None:
            if now >= self._leading.heartbeat_due_ms and not self._leading.on_tick():
                self._become_follower(self.term, None, "lost contact with a quorum")
        elif self.role != LEARNER and not self.removed_at and now >= self._election_ms:
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
            outside = self._outside(peer)
            self.send(peer, msg.VoteResponse(self.group, term, granted, True, outside=outside))
            if not up_to_date:
                self._stand_instead()
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
        behind, outside = not up_to_date, self._outside(peer)
        answer = msg.VoteResponse(self.group, self.term, granted, False, behind, outside)
        self._send_synced(peer, answer)

    def _stand_instead(self) -> None:
        """Somebody whose log is behind ours asks for a pre-vote, as whom the last leader served
        lazily must: it cannot win while we are needed, so that we need not wait any longer."""
        if self.role != FOLLOWER or not self.stands_for_election or self.backoff_ms:
            return
        # Of three voters one leads no more and one has asked; among more, several may think so.
        spread_ms = self.settings.link_lost_min_ms if len(self.membership.voters) > 3 else 0
        wait_ms = self._rng.randrange(0, spread_ms + 1)
        self._election_ms = min(self._election_ms, self.now_ms + wait_ms)
        self._tick_due = True

    def _outside(self, peer: str) -> int:
        """Up to where `peer` is no member for certain; 0: it is one, or may be."""
        membership, commit = self.membership, self.commit_index
        certain = membership.index <= commit and membership.members
        return commit if certain and peer not in membership.members else 0

    def _hear_outside(self, peer: str, index: int) -> None:
        """A member says that at `index` we are none. Its farewell did not reach us (§4.2.3).

        Our vote is not needed any more, and whoever lets us in again will write to us: so it costs
        nobody anything that we do not campaign, until we hear from a leader.
        """
        snapshot = self.log.snapshot
        known = max(self.membership.index, snapshot.index if snapshot is not None else 0)
        if index > known and self.stands_for_election and not self.removed_at:
            self.removed_at = index
            self.note(f"{peer} says that we are no member")
            self._become_follower(self.term, None, "no member any more")

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

    def _on_backoff(self, event: fx.Backoff) -> None:
        if self.stands_for_election:
            self._backoff_until_ms = self.now_ms + event.wait_ms
            self._become_follower(self.term, None, "backs off on request")
            self._restart_timer()
