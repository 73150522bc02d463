"""Scenes for the tests of remediation: three voters in a plain split vote, and changes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss.remediation import Attempt, Diagnosis, GroupSample, Policy, Sample, diagnose

VOTERS = ("lock-1", "lock-2", "lock-3")
POLICY = Policy()
NOW_MS = 1_000_000
TIMES_MS = tuple(range(NOW_MS - 30_000, NOW_MS + 1, 5_000))
"""Seven samples of each voter, the first as old as the window."""
BASE_TERM = 10

Scene = list[Sample]
Change = Callable[[Scene], Scene]


def split_vote(voters: tuple[str, ...] = VOTERS, groups: tuple[int, ...] = (1,)) -> Scene:
    """Everybody votes for itself in each of six new terms."""
    return [
        Sample(
            at_ms=at_ms,
            member=member,
            boot_id=f"boot-{member}",
            links_up=tuple(v for v in voters if v != member),
            groups=tuple(
                GroupSample(
                    group_id=group,
                    role="candidate" if at % 2 else "follower",  # refused by all: a follower again
                    leader=None,
                    term=BASE_TERM + at,
                    voted_for=member,
                    last_log_term=9,
                    last_log_index=100,
                    voters=voters,
                )
                for group in groups
            ),
        )
        for at, at_ms in enumerate(TIMES_MS)
        for member in voters
    ]


def led(scene: Scene, leader: str, *followers: str) -> Scene:
    """In the last samples, `followers` follow `leader`."""
    last = [s for s in scene if s.at_ms == NOW_MS]
    term = max((g.term for s in last for g in s.groups), default=0)

    def change(sample: Sample) -> Sample:
        if sample.member == leader:
            return with_group(sample, role="leader", leader=leader, term=term)
        if sample.member in followers:
            return with_group(sample, role="follower", leader=leader, term=term, voted_for=leader)
        return sample

    return [change(s) if s.at_ms == NOW_MS else s for s in scene]


def with_group(sample: Sample, **fields: Any) -> Sample:
    groups = tuple(msgspec.structs.replace(group, **fields) for group in sample.groups)
    return msgspec.structs.replace(sample, groups=groups)


def only(member: str = "", at: int | None = None) -> Callable[[Sample], bool]:
    """Picks samples: of one member (all), the at-th of each member (all; -1 is the newest)."""
    return lambda sample: (
        (not member or sample.member == member) and (at is None or sample.at_ms == TIMES_MS[at])
    )


def groups_of(pick: Callable[[Sample], bool], **fields: Any) -> Change:
    return lambda scene: [with_group(s, **fields) if pick(s) else s for s in scene]


def samples_of(pick: Callable[[Sample], bool], **fields: Any) -> Change:
    return lambda scene: [msgspec.structs.replace(s, **fields) if pick(s) else s for s in scene]


def without(pick: Callable[[Sample], bool]) -> Change:
    return lambda scene: [s for s in scene if not pick(s)]


def silent(member: str, at: int = -1) -> Change:
    """The member does not answer at that moment."""
    return samples_of(only(member, at), reason="connection refused", boot_id="", groups=())


def all_of(*changes: Change) -> Change:
    def change(scene: Scene) -> Scene:
        for one in changes:
            scene = one(scene)
        return scene

    return change


def same(scene: Scene) -> Scene:
    return scene


def look(scene: Scene, **options: Any) -> Diagnosis:
    """The diagnosis of group 1."""
    options = {"members": VOTERS, "policy": POLICY, "now_ms": NOW_MS, "groups": (1,)} | options
    [found] = diagnose(scene, **options)
    return found


def stuck(group_id: int = 1, **fields: Any) -> Diagnosis:
    made = {
        "state": "ElectionStuck",
        "reason": "SplitVote",
        "message": "split vote",
        "candidates": VOTERS,
        "candidate": "lock-3",
        "boot_id": "boot-lock-3",
        "term": 20,
        "leaderless_ms": 30_000,
    }
    return Diagnosis(group_id=group_id, **(made | fields))


def healthy(group_id: int = 1) -> Diagnosis:
    return Diagnosis(group_id=group_id, state="Healthy", reason="HasLeader", message="", term=21)


def row(action: Any, at: float, **fields: Any) -> Attempt:
    made = {"group_id": 1, "member": "lock-3", "term": 20, "outcome": "done"}
    return Attempt(action=action, at=at, **(made | fields))
