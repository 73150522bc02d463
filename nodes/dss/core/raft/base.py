"""What one Raft member is in every role: its state, its timers, and how role and term change.

The layers of a member, each knowing only those below it: this one, elections.py, following.py,
raft.py (`step`). What must not live here: events and messages.
Source: Raft thesis (Ongaro 2014) §3.3, §3.4, §4.1, §4.2.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dss.base.limits import STORY_LINES_MAX
from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.log import RaftLog, SnapshotMeta
from dss.core.raft.membership import Membership
from dss.core.raft.messages import Configuration, Entry, Member
from dss.core.raft.settings import RaftSettings, RandomSource

if TYPE_CHECKING:
    from dss.core.raft.leadership import Leadership

FOLLOWER: Final = "follower"
PRE_CANDIDATE: Final = "pre_candidate"
CANDIDATE: Final = "candidate"
LEADER: Final = "leader"
LEARNER: Final = "learner"

NEVER_MS: Final = 2**62


class RaftBase:
    """See the module, and for the arguments `Raft`."""

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
        self.removed_at = 0  # told that we are no member at this committed index: do not campaign
        self.quiescent = False  # idle: no heartbeats, no timer, until anything happens
        if not self.membership.votes:
            self.role = LEARNER
        self._redraw_timeout()

    @property
    def last_index(self) -> int:
        return self.log.last_index

    def log_ms(self, now_ms: int) -> int:
        """Log time: what a leader would stamp now; elsewhere that of the last applied entry."""
        if self._leading is not None:
            return self._leading.log_ms(now_ms)
        return self.log.log_ms_at(self.applied_index)

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
        self.removed_at = 0
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
