"""TEST_MODE=split-vote: elections that nobody can win, so that their remedy can be proven.

The cause of a real split vote is that members campaign at the same moment, again and again. Here
they do so on purpose: every election deadline is the next multiple of the longest election timeout
on the machines' wall clocks, there is no pre-vote and no quick fail-over (RaftSettings), and vote
requests leave late, after everybody has voted for itself. It ends as a real one does: one member
sits out a round, because it backs off or is started again, and votes for another.

Refused unless ALLOW_TEST_MODE=1 (topology/config.py). What must not live here: anything that runs
without TEST_MODE.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from dss.core.raft.settings import RaftSettings

FOUNDING_PHASE = 0.6
"""Where in a period groups are founded: 0.6 + 1.5 periods later is far from any multiple, so all
members have the same first deadline even if they are founded some hundred ms apart."""


def settings_of(settings: RaftSettings) -> RaftSettings:
    """`settings` without what ends split votes early."""
    return msgspec.structs.replace(settings, pre_vote=False, link_failover=False)


class SplitVote:
    """The timing of one node's elections.

    Args:
        period_ms: ELECTION_MAX_MS, the same on every node.
        wall_ms: Unix ms; all nodes' clocks agree to within a quarter of a period.
    """

    def __init__(
        self, period_ms: int, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self.period_ms = period_ms
        self.wall_ms = wall_ms
        self.vote_delay_s = period_ms / 4_000
        """A quarter: a member that is late by less has voted for itself before it is asked."""

    def timeouts(self) -> AlignedTimeouts:
        """The randomness of one group's core: it draws nothing but timeouts."""
        return AlignedTimeouts(self)

    def pause_before_founding_s(self) -> float:
        """Until the clock stands at FOUNDING_PHASE of a period."""
        phase_ms = self.wall_ms() % self.period_ms
        return (FOUNDING_PHASE * self.period_ms - phase_ms) % self.period_ms / 1_000


class AlignedTimeouts:
    """A RandomSource whose timeouts all end at a multiple of the period."""

    def __init__(self, split_vote: SplitVote) -> None:
        self._of = split_vote
        self._started = False

    def randrange(self, start: int, stop: int, /) -> int:
        """The first timeout is at least 1.5 periods: whoever is started again misses a round."""
        period_ms, now_ms = self._of.period_ms, self._of.wall_ms()
        earliest_ms = now_ms + (period_ms // 4 if self._started else 3 * period_ms // 2)
        self._started = True
        return -(-earliest_ms // period_ms) * period_ms - now_ms
