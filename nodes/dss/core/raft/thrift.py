"""Thrifty replication: which voters a leader serves at once, and whose entries gather.

A quorum needs the leader and some voters: these, the *eager* ones, get every entry at once. For the
other voters entries gather, and leave together: after `lazy_ms`, or `lazy_bytes` of them. Nothing
else differs: what is committed is counted as ever, and whatever is in doubt goes to everybody.

* The eager ones are those that made a quorum first, and stay it while they answer.
* Nobody is eager (everybody gets everything at once) until the first commit after an election, a
  change of members, a hand-over; when an eager one no longer takes a pipeline (its link broke, its
  log differs); when it has not acknowledged the first of the entries that gathered until then. The
  next commit chooses anew, as it does now and then (RACE_MS): somebody else may be nearer.
* Learners do not wait: they are to catch up.

What must not live here: sending (replication.py), what is committed (leadership.py).
Source: the thrifty variant of Moraru et al., "There is more consensus in egalitarian parliaments".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dss.core.raft.progress import REPLICATE, Progress

if TYPE_CHECKING:
    from dss.core.raft.base import RaftBase
    from dss.core.raft.log import RaftLog
    from dss.core.raft.settings import RaftSettings

NEVER_MS: Final = 2**62
RACE_MS: Final = 2_000
"""So often everybody gets the next entry at once, to see who is quick."""


class Thrift:
    """See the module.

    Attributes:
        eager: the voters that get everything at once; empty: everybody does.
        due_ms: when what gathers must leave; NEVER_MS: nothing gathers.
        race_ms: when to choose anew.
    """

    __slots__ = ("_gathers_from", "_lazy", "_settings", "due_ms", "eager", "race_ms")

    def __init__(self, settings: RaftSettings) -> None:
        self._settings = settings
        self.eager: tuple[str, ...] = ()
        self._lazy: tuple[str, ...] = ()
        self._gathers_from = 0  # what comes before this index is not held back
        self.due_ms = self.race_ms = NEVER_MS

    def is_lazy(self, peer: str) -> bool:
        return peer in self._lazy

    def reset(self) -> None:
        """Everybody gets everything at once, until the next commit."""
        self.eager = self._lazy = ()
        self.race_ms = NEVER_MS

    def choose(self, raft: RaftBase, peers: dict[str, Progress]) -> None:
        """The commit index has moved: who has moved it?"""
        needed = raft.membership.quorum - 1
        voters = raft.membership.voters
        if not self._settings.lazy_ms or needed == len(voters) - 1:
            return
        others = [peers[voter] for voter in voters if voter != raft.node_id]
        quick = [p for p in others if p.match >= raft.commit_index and p.state == REPLICATE]
        if len(quick) < needed:
            return
        quick.sort(key=lambda p: p.match, reverse=True)
        self.eager = tuple(p.node_id for p in quick[:needed])
        self._lazy = tuple(p.node_id for p in others if p.node_id not in self.eager)
        self.race_ms = raft.now_ms + RACE_MS

    def lazy(self, peers: dict[str, Progress], log: RaftLog, now_ms: int) -> tuple[str, ...]:
        """Who gets nothing in this step."""
        if not self.eager:
            return self._let_go(log.last_index)
        first, due = self._gathers_from, now_ms >= self.due_ms
        for peer in self.eager:
            progress = peers[peer]
            if progress.state != REPLICATE or (due and progress.match < first):
                self.reset()  # others may be quicker
                return self._let_go(log.last_index)
        last_index = log.last_index
        if due or log.bytes_between(first - 1, last_index) >= self._settings.lazy_bytes:
            return self._let_go(last_index)
        # What was let go, and found no room in the window then, does not wait again.
        waiting = tuple(
            peer
            for peer in self._lazy
            if peers[peer].state == REPLICATE and peers[peer].next >= first
        )
        if waiting and last_index >= first and self.due_ms == NEVER_MS:
            self.due_ms = now_ms + self._settings.lazy_ms
        return waiting

    def _let_go(self, last_index: int) -> tuple[str, ...]:
        """Nobody waits for what the log holds now."""
        self._gathers_from = last_index + 1
        self.due_ms = NEVER_MS
        return ()
