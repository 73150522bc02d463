"""Random walks through bad days: the whole pipeline, from samples to what is stored.

A small world of lock nodes is led, splits its votes, loses members and links, is rolled out; the
operator looks at it every 5 s, is killed at random and comes back with what it had stored. At
each action the world itself, not a sample, is asked whether it was allowed.
"""

from __future__ import annotations

import json
import random
from collections import deque

import pytest

from dss.remediation import (
    TOUCHING,
    Action,
    Policy,
    Record,
    Sample,
    SampleWindow,
    decide,
    diagnose,
    parse_status,
    unanswered,
)

GROUPS = (0, 1)
TICK_S = 5
START = 1_800_000_000


class World:
    """The truth. Times in whole seconds."""

    def __init__(self, rng: random.Random, voters: int) -> None:
        self.rng = rng
        self.members = tuple(f"lock-{n + 1}" for n in range(voters))
        self.now = START
        self.boot = dict.fromkeys(self.members, 1)
        self.down_until = dict.fromkeys(self.members, 0)
        self.cut_until = dict.fromkeys(self.members, 0)
        self.busy_until = 0
        self.term = dict.fromkeys(GROUPS, 1)
        self.leader: dict[int, str | None] = dict.fromkeys(GROUPS, self.members[0])
        self.standing: dict[int, tuple[str, ...]] = dict.fromkeys(GROUPS, ())
        self.log = {(g, m): rng.randrange(98, 101) for g in GROUPS for m in self.members}
        self.stubborn = rng.random() < 0.3  # nothing ends its split votes
        self.led_at = dict.fromkeys(GROUPS, START)
        self.away_at = 0  # somebody was down or cut off

    def up(self, member: str) -> bool:
        return self.now >= self.down_until[member]

    def step(self) -> None:
        rng = self.rng
        self.now += TICK_S
        for member in self.members:
            if rng.random() < 0.004:
                self.down(member, rng.randrange(5, 200))
            if rng.random() < 0.004:
                self.cut_until[member] = self.now + rng.randrange(5, 200)
            if not self.up(member) or self.now < self.cut_until[member]:
                self.away_at = self.now
        if rng.random() < 0.005:
            self.busy_until = self.now + rng.randrange(5, 120)
        for group in GROUPS:
            self.step_group(group)

    def step_group(self, group: int) -> None:
        rng, leader = self.rng, self.leader[group]
        if leader is not None:
            if not self.up(leader) or rng.random() < 0.03:
                self.leader[group] = None
                number = rng.choice([0, 1, 2, 2, 3, 3, 3])
                standing = rng.sample(self.members, min(number, len(self.members)))
                self.standing[group] = tuple(standing)
        elif rng.random() < (0.0 if self.stubborn else 0.03):
            self.elect(group)
        else:
            self.term[group] += rng.choice([0, 1, 2, 4])
        if self.leader[group] is not None:
            self.led_at[group] = self.now

    def elect(self, group: int) -> None:
        up = [member for member in self.members if self.up(member)]
        if len(up) > len(self.members) // 2:
            self.leader[group] = self.rng.choice(up)
            self.term[group] += 1
            self.led_at[group] = self.now

    def down(self, member: str, for_s: int) -> None:
        self.down_until[member] = self.now + for_s
        self.boot[member] += 1
        self.away_at = self.now

    def act(self, action: Action) -> None:
        if action.kind == "restart":
            self.down(action.member, self.rng.choice([0, 5, 40]))
        if not self.stubborn and self.rng.random() < 0.5:
            self.elect(action.group_id)

    def sample(self, member: str) -> Sample:
        at_ms = self.now * 1_000
        if not self.up(member):
            return unanswered(member, at_ms, "connection refused")
        links = {
            peer: {"up": self.up(peer) and self.now >= self.cut_until[member], "since_ms": 1}
            for peer in self.members
            if peer != member
        }
        body = {
            "node_id": member,
            "boot_id": f"{member} {self.boot[member]}",
            "links": links,
            "groups": [self.group(member, group) for group in GROUPS],
        }
        return parse_status(member, json.loads(json.dumps(body)), at_ms)

    def group(self, member: str, group: int) -> dict[str, object]:
        leader = self.leader[group]
        stands = leader is None and member in self.standing[group]
        return {
            "group_id": group,
            "role": "leader" if leader == member else "follower",
            "leader": leader,
            "term": self.term[group],
            "voted_for": member if stands else None,
            "last_log_term": 1,
            "last_log_index": self.log[group, member],
            "voters": self.members,
        }


class Walk:
    """The operator's loop, and what it was seen to do."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.rng = rng
        self.world = World(rng, rng.choice([1, 3, 3, 3, 5]))
        self.policy = Policy(
            mode=rng.choice(["Enforce", "Enforce", "Enforce", "DryRun", "Off"]),
            window_ms=rng.choice([20_000, 30_000]),
            cooldown_ms=rng.choice([0, 60_000, 300_000]),
            max_per_hour=rng.choice([0, 1, 3, 3, 6, 50]),
        )
        self.volatile = frozenset(m for m in self.world.members if rng.random() < 0.1)
        self.window = SampleWindow(self.policy.window_ms)
        self.record = Record()
        self.stored = ""
        self.store(self.record)
        self.acted: deque[tuple[int, Action]] = deque()
        self.rungs: dict[int, list[str]] = {group: [] for group in GROUPS}
        self.kinds: dict[str, int] = {}

    def tick(self) -> None:
        world, rng = self.world, self.rng
        world.step()
        if rng.random() < 0.01:
            self.die()
        for member in world.members:
            self.window.add(world.sample(member))
        found = diagnose(
            self.window.samples(), world.members, self.policy, world.now * 1_000,
            volatile=self.volatile,
        )  # fmt: skip
        busy = "a rollout is under way" if world.now < world.busy_until else ""
        action = decide(found, self.policy, self.record.history, busy, float(world.now))
        self.kinds[action.kind] = self.kinds.get(action.kind, 0) + 1
        if action.kind == "none":
            return
        self.store(self.record.begin(action, float(world.now)))
        if action.kind == "recovered":
            assert world.leader[action.group_id] is not None
            self.rungs[action.group_id] = []
        if action.kind not in TOUCHING:
            return
        assert action.dry_run == (self.policy.mode == "DryRun")
        self.check(action)
        self.acted.append((world.now, action))
        self.rungs[action.group_id].append(action.kind)
        if rng.random() < 0.1:
            self.die()  # between storing and acting
        elif not action.dry_run:
            world.act(action)
            self.store(self.record.ended("done"))

    def store(self, record: Record) -> None:
        self.record = record
        self.stored = json.dumps(record.to_status(self.policy))

    def die(self) -> None:
        """Killed and started again: the window is gone, what was stored is not."""
        self.window = SampleWindow(self.policy.window_ms)
        self.record = Record.from_status(json.loads(self.stored))

    def check(self, action: Action) -> None:
        world, policy = self.world, self.policy
        window_s = policy.window_ms // 1_000
        since = world.now - window_s
        assert policy.mode != "Off"
        assert world.leader[action.group_id] is None, "a leader lives"
        assert world.led_at[action.group_id] <= since, "a leader lived in the window"
        assert world.away_at < since, "somebody could not be seen"
        assert world.now >= world.busy_until, "busy"
        assert action.member in world.standing[action.group_id]
        assert action.member not in self.volatile
        assert action.boot_id == f"{action.member} {world.boot[action.member]}"
        for at, before in self.acted:
            if before.group_id == action.group_id and action.kind in self.rungs[action.group_id]:
                raise AssertionError(f"a second {action.kind} in one episode")
            if self.rungs[before.group_id]:
                assert at <= since, f"two in flight: {before} and {action}"
            if before.kind == "restart":
                assert world.now - at >= policy.cooldown_ms // 1_000, "cooldown"
        recent = [at for at, _ in self.acted if at > world.now - 3_600]
        assert len(recent) < policy.max_per_hour, "over the cap"


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_random_walks__never_acts_where_it_must_not(first: int) -> None:
    kinds: dict[str, int] = {}
    for seed in range(first, first + 15):
        walk = Walk(seed)
        for _ in range(800):
            walk.tick()
        for kind, count in walk.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
    # The walks do get where actions are taken.
    assert min(kinds[kind] for kind in ("backoff", "restart", "alert", "recovered")) >= 3, kinds


def test_a_split_vote_that_nothing_ends__ends_with_an_alert_and_silence() -> None:
    for seed in range(5):
        walk = Walk(seed)
        walk.policy = Policy(cooldown_ms=walk.policy.cooldown_ms, max_per_hour=6)
        walk.volatile = frozenset()
        world = walk.world = World(random.Random(seed), 3)
        world.stubborn = True
        world.rng.random = lambda: 0.5  # type: ignore[method-assign]  # nothing else goes wrong
        world.leader = dict.fromkeys(GROUPS)
        world.standing = dict.fromkeys(GROUPS, world.members)
        world.led_at = dict.fromkeys(GROUPS, START - 1)
        world.rng.choice = lambda options: options[-1]  # type: ignore[method-assign]
        for _ in range(3 * 3_600 // TICK_S):
            walk.tick()
        assert walk.rungs == {0: ["backoff", "restart"], 1: ["backoff", "restart"]}
        assert walk.kinds["alert"] == 2
        assert world.now - walk.acted[-1][0] > 3_600
