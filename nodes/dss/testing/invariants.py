"""What must hold of a Raft group at every moment (Raft thesis, fig. 3.2), checked from outside.

* Election safety: at most one leader per term; a node grants at most one vote per term, for ever,
  also across crashes.
* Log matching and state machine safety: two nodes never disagree on a committed index.
* Leader completeness: a new leader's log holds everything that was ever committed.
* Terms never go back.
* A machine's feature level is that of the last committed level entry which it has applied.

What must not live here: what the commands mean (the workloads' own checks).
"""

from __future__ import annotations

from dss.base.levels import BASE_LEVEL
from dss.core.raft.membership import level_in
from dss.core.raft.messages import LEVEL
from dss.core.raft.raft import Raft

COMPLETENESS_LOOKS_BACK = 200
"""How many of the newest committed entries a new leader is asked for."""


class Invariants:
    """Sees every node's every step, and remembers across crashes."""

    def __init__(self) -> None:
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._committed: dict[int, int] = {}
        """index -> term of the entry that some node saw committed there"""
        self._committed_in: dict[int, int] = {}
        """index -> term of the node that first showed it as committed"""
        self._top = 0
        self._seen: dict[str, int] = {}
        """node -> how far its commits were compared in this life"""
        self._terms: dict[str, int] = {}
        self._levels: dict[int, int] = {}
        """index -> level of the level entry that some node saw committed there"""
        self.checks = 0

    def founding(self, node: str) -> None:
        assert self._terms.get(node, 0) == 0, f"{node} lost its group in a crash"

    def voted(self, node: str, term: int, candidate: str) -> None:
        """A granted vote leaves `node`."""
        earlier = self._votes.setdefault((node, term), candidate)
        assert earlier == candidate, (
            f"{node} voted in term {term} for {earlier} and then for {candidate}"
        )

    def elected(self, node: str, term: int, raft: Raft) -> None:
        earlier = self._leaders.setdefault(term, node)
        assert earlier == node, f"term {term} has two leaders, {earlier} and {node}"
        for index in range(max(1, self._top - COMPLETENESS_LOOKS_BACK), self._top + 1):
            # A node may hear late that it won an election that is history already (its votes
            # were delayed): completeness is about what was committed in *earlier* terms.
            if self._committed_in.get(index, term) < term:
                self._holds(node, raft, index, "the new leader")

    def _holds(self, node: str, raft: Raft, index: int, who: str) -> None:
        committed = self._committed.get(index)
        if committed is None or index <= raft.log.base_index:
            return
        assert index <= raft.last_index, f"{who} {node} lacks the committed entry {index}"
        term = raft.log.term_at(index)
        assert term == committed, (
            f"{who} {node} has term {term} at {index}, committed was term {committed}"
        )

    def forget(self, node: str, raft: Raft | None = None) -> None:
        """Begin anew with this node: what it was is gone (only a planted bug does that)."""
        self._terms.pop(node, None)
        self._seen[node] = 0

    def restarted(self, node: str, raft: Raft) -> None:
        known = self._terms.get(node, 0)
        assert raft.term >= known, f"{node} came back in term {raft.term}, it was in {known}"
        self._seen[node] = 0

    def crashed(self, node: str) -> None:
        self._seen[node] = 0

    def stepped(self, node: str, raft: Raft) -> None:
        """After every cycle: what this node has just done was synced first."""
        self.checks += 1
        raft.check_invariants()
        term = raft.term
        assert term >= self._terms.get(node, 0), f"the term of {node} went back"
        # Only what was synced counts: the cycle that just ended synced everything.
        self._terms[node] = term
        seen = self._seen[node]
        if raft.commit_index == seen:
            return
        for index in range(max(seen, raft.log.base_index) + 1, raft.commit_index + 1):
            entry_term = raft.log.term_at(index)
            assert entry_term is not None
            self._committed_in.setdefault(index, term)
            committed = self._committed.setdefault(index, entry_term)
            assert committed == entry_term, (
                f"{node} has committed term {entry_term} at {index}, another node {committed}"
            )
            self._top = max(self._top, index)
        self._seen[node] = max(seen, raft.commit_index)

    def levelled(self, node: str, raft: Raft, applied_index: int, level: int) -> None:
        """After every cycle, behind `stepped`: at which level its machine is now."""
        if raft.membership.configuration.feature_level not in (BASE_LEVEL, *self._levels.values()):
            log = raft.log
            for entry in log.slice(log.base_index + 1, raft.commit_index):
                if entry.kind == LEVEL:
                    self._levels[entry.index] = level_in(entry)
        raised = [each for index, each in self._levels.items() if index <= applied_index]
        expected = max(raised, default=BASE_LEVEL)
        assert level == expected, (
            f"the machine of {node} at {applied_index} is at level {level}, the log at {expected}"
        )
