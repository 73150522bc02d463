"""ReadIndex rounds: reads of one step share one round of heartbeats (Raft thesis §6.4).

A round's context is unique in its leader's life; an answer to a context confirms every earlier
round too, because that heartbeat left after they began.
"""

from __future__ import annotations

from collections import deque


class ReadRounds:
    """`waiting` reads have no round yet; `rounds` are (context, commit index, refs)."""

    __slots__ = ("context", "count", "rounds", "waiting")

    def __init__(self) -> None:
        self.context = 0
        self.count = 0  # waiting or in a round
        self.waiting: list[int] = []
        self.rounds: deque[tuple[int, int, list[int]]] = deque()

    def add(self, ref: int) -> None:
        """A read that waits for the next round."""
        self.count += 1
        self.waiting.append(ref)

    def begin(self, commit_index: int) -> int:
        """Put all waiting reads into a new round; its context."""
        self.context += 1
        self.rounds.append((self.context, commit_index, self.waiting))
        self.waiting = []
        return self.context

    def confirmed(self, context: int) -> list[tuple[int, list[int]]]:
        """(index, refs) of every round up to `context`, which a quorum answered."""
        done: list[tuple[int, list[int]]] = []
        rounds = self.rounds
        while rounds and rounds[0][0] <= context:
            _, index, refs = rounds.popleft()
            self.count -= len(refs)
            done.append((index, refs))
        return done

    def pending_context(self) -> int:
        """What a heartbeat should carry: the newest unconfirmed round, or 0."""
        return self.context if self.rounds else 0

    def drain(self) -> list[int]:
        """Give up on all reads; their refs."""
        refs = [ref for _, _, round_refs in self.rounds for ref in round_refs]
        refs.extend(self.waiting)
        self.count = 0
        self.rounds.clear()
        self.waiting = []
        return refs
