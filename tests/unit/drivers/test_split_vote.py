"""TEST_MODE's timing: all members campaign at once, and who starts again misses a round."""

import asyncio
import random

from driver_world import GROUP, trio, until

from dss.core.raft.messages import Heartbeat, VoteRequest
from dss.core.raft.settings import RaftSettings
from dss.drivers.split_vote import FOUNDING_PHASE, SplitVote, settings_of

PERIOD_MS = 2_000


class Clock:
    def __init__(self, ms):
        self.ms = ms

    def __call__(self):
        return self.ms


def test_deadlines_of_members_started_apart__are_the_same_multiple():
    clocks = [Clock(random.Random(n).randrange(10**12)) for n in range(20)]
    for clock in clocks:
        split = SplitVote(PERIOD_MS, clock)
        clock.ms += round(split.pause_before_founding_s() * 1000)
        assert clock.ms % PERIOD_MS == FOUNDING_PHASE * PERIOD_MS
        deadlines = set()
        for late_ms in (0, 50, 400, 1_000):
            member = SplitVote(PERIOD_MS, Clock(clock.ms + late_ms))
            timeout_ms = member.timeouts().randrange(1_000, PERIOD_MS + 1)
            deadlines.add(clock.ms + late_ms + timeout_ms)
        assert len(deadlines) == 1
        assert deadlines.pop() % PERIOD_MS == 0


def test_first_deadline__at_least_one_and_a_half_periods_away():
    for phase_ms in range(0, PERIOD_MS, 97):
        clock = Clock(1_000_000 * PERIOD_MS + phase_ms)
        timeouts = SplitVote(PERIOD_MS, clock).timeouts()
        assert 1.5 * PERIOD_MS <= timeouts.randrange(1, 2) < 2.5 * PERIOD_MS


def test_later_deadlines__the_next_round_for_candidates_and_for_those_refused_late():
    clock = Clock(1_000_000 * PERIOD_MS)
    timeouts = SplitVote(PERIOD_MS, clock).timeouts()
    timeouts.randrange(1, 2)
    for late_ms in (0, 30, PERIOD_MS // 4, PERIOD_MS // 2, 3 * PERIOD_MS // 4):
        clock.ms = 1_000_000 * PERIOD_MS + late_ms
        assert late_ms + timeouts.randrange(1, 2) == PERIOD_MS


def test_settings__nothing_that_ends_a_split_vote_early():
    settings = settings_of(RaftSettings(heartbeat_ms=20, election_min_ms=100, election_max_ms=300))
    assert (settings.pre_vote, settings.link_failover) == (False, False)
    assert settings.election_max_ms == 300


def test_vote_requests_leave_late__other_messages_at_once():
    async def scenario():
        async with asyncio.timeout(10), trio() as world:
            await world.settled()
            host = world.leader.host
            left = []
            host.links.send = lambda peer, message: left.append(message)
            host.split_vote = SplitVote(400)
            request = VoteRequest(GROUP, 99, 0, 0)
            began = asyncio.get_running_loop().time()
            host.send("n9", request)
            host.send("n9", Heartbeat(GROUP, 1, 0))
            assert [type(message) for message in left] == [Heartbeat]
            await until(lambda: request in left)
            assert asyncio.get_running_loop().time() - began >= 0.095

    asyncio.run(scenario())
