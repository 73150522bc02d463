"""Samples -> one diagnosis for each Raft group.

A split vote is believed only when nothing else can explain what is seen: every voter answers, is
linked to a quorum, follows nobody, and terms rise because at least two stand against each other.
Whatever cannot be seen makes the group `Uncertain`, never `ElectionStuck`.

What must not live here: clocks, asking members, what to do about it (decide.py).
Source: shared/design/kubernetes.md § Auto-remediation; Raft thesis §3.4 (split votes), §9.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from dss.base.ids import LOCK_GROUP, META_GROUP
from dss.remediation.model import Diagnosis, GroupSample, Policy, Sample, State

_CANDIDATE = "candidate"
_LEADER = "leader"
_LEARNER = "learner"


def diagnose(
    samples: Sequence[Sample],
    members: Sequence[str],
    policy: Policy,
    now_ms: int,
    *,
    volatile: frozenset[str] = frozenset(),
    groups: Sequence[int] = (META_GROUP, LOCK_GROUP),
) -> list[Diagnosis]:
    """One diagnosis for each of `groups`, in their order.

    Args:
        samples: of all members, in any order; `SampleWindow.samples()` has what is needed.
        members: the configured members. A group's voters are what its members say.
        volatile: members whose Raft state is not on a persistent volume: never acted upon.
        now_ms: on the clock of the samples' `at_ms`.
    """
    watch = _Watch.of(samples, members, policy, now_ms)
    return [_Group(watch, group_id, volatile).diagnosis() for group_id in groups]


def ordinal(member: str) -> int:
    """2 of `lock-2`; -1 of a name without a number."""
    found = re.search(r"(\d+)$", member)
    return int(found[1]) if found else -1


def quorum(voters: Sequence[str]) -> int:
    return len(voters) // 2 + 1


class _Seen(msgspec.Struct, frozen=True):
    """One member's group in one of its samples."""

    sample: Sample
    group: GroupSample

    @property
    def member(self) -> str:
        return self.sample.member


class _Watch(msgspec.Struct, frozen=True):
    """What the window holds: of each member the samples since its process started."""

    policy: Policy
    now_ms: int
    members: tuple[str, ...]
    samples: tuple[Sample, ...]
    """All of them, also of earlier processes and from before the window."""
    runs: Mapping[str, tuple[Sample, ...]]

    @classmethod
    def of(
        cls, samples: Sequence[Sample], members: Sequence[str], policy: Policy, now_ms: int
    ) -> _Watch:
        known = tuple(sorted((s for s in samples if s.member in members), key=_at))
        since_ms = now_ms - policy.window_ms
        runs = {m: _run([s for s in known if s.member == m], since_ms) for m in members}
        return cls(policy, now_ms, tuple(members), known, runs)

    @property
    def gap_ms(self) -> int:
        """The longest stretch without a sample that still counts as watching: two thirds of the
        window, so that the fewest samples need not be taken to the millisecond."""
        return self.policy.window_ms * 2 // 3

    def silence(self, member: str) -> str:
        """Why nothing is known of the member now; "" when it answered just now."""
        run = self.runs.get(member, ())
        if not run:
            return "was not asked yet"
        if not run[-1].answered:
            return run[-1].reason
        age_ms = self.now_ms - run[-1].at_ms
        return f"was last asked {_s(age_ms)} ago" if age_ms > self.gap_ms else ""

    def covered(self, member: str) -> bool:
        """The whole window was watched, by one process's answers, often enough."""
        run = self.runs.get(member, ())
        if len(run) < self.policy.min_samples:
            return False
        times = [*map(_at, run), self.now_ms]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return times[0] <= self.now_ms - self.policy.window_ms and max(gaps) <= self.gap_ms


class _Group:
    """One group's share of the watch."""

    def __init__(self, watch: _Watch, group_id: int, volatile: frozenset[str]) -> None:
        self.watch = watch
        self.group_id = group_id
        self.volatile = volatile
        self.seen = [
            _Seen(sample, group)
            for member in watch.members
            for sample in watch.runs[member]
            for group in sample.groups
            if group.group_id == group_id
        ]
        self.latest = {
            seen.member: seen
            for seen in self.seen
            if seen.sample is watch.runs[seen.member][-1] and not watch.silence(seen.member)
        }
        self.voters = tuple(sorted({v for s in self.latest.values() for v in s.group.voters}))

    def diagnosis(self) -> Diagnosis:
        leader = self._leader()
        if leader is not None:
            message = f"{leader.member} leads in term {leader.group.term}"
            silent = [m for m in self.watch.members if self.watch.silence(m)]
            if silent:
                message += f"; {_and(silent)} cannot be seen"
            return self._is("Healthy", "HasLeader", message)
        unseen = self._unseen()
        if unseen is not None:
            return self._is("Uncertain", *unseen)
        calm = self._not_stuck()
        if calm is not None:
            return self._is("Electing", *calm)
        return self._stuck()

    def _is(self, state: State, reason: str, message: str) -> Diagnosis:
        return Diagnosis(
            group_id=self.group_id,
            state=state,
            reason=reason,
            message=message,
            term=self._top(self.latest.values()),
            leaderless_ms=0 if state == "Healthy" else self._leaderless_ms(),
        )

    def _leaderless_ms(self) -> int:
        samples = self.watch.samples
        led = (
            sample.at_ms
            for sample in reversed(samples)
            for group in sample.groups
            if group.group_id == self.group_id and _knows_leader(group)
        )
        since_ms = next(led, samples[0].at_ms if samples else self.watch.now_ms)
        return max(self.watch.now_ms - since_ms, 0)

    @staticmethod
    def _top(seen: Iterable[_Seen]) -> int:
        return max((s.group.term for s in seen), default=0)

    # --- is there a leader ------------------------------------------------------------------

    def _leader(self) -> _Seen | None:
        """A member that says it leads and that a quorum of its voters follows in its term."""
        for seen in self.latest.values():
            if seen.group.role != _LEADER:
                continue
            voters = seen.group.voters
            following = [v for v in voters if self._follows(v, seen)]
            if voters and len(following) >= quorum(voters):
                return seen
        return None

    def _follows(self, voter: str, leader: _Seen) -> bool:
        view = self.latest.get(voter)
        return view is not None and (
            (view.group.leader, view.group.term) == (leader.member, leader.group.term)
        )

    # --- is there anything that cannot be seen ------------------------------------------------

    def _unseen(self) -> tuple[str, str] | None:
        """(reason, sentence) when what is known of this group does not suffice to judge it."""
        return (
            self._strangers() or self._silent() or self._unsettled_members() or self._lost_links()
        )

    def _strangers(self) -> tuple[str, str] | None:
        strangers = [v for v in self.voters if v not in self.watch.members]
        if strangers:
            return "UnknownVoter", f"{_and(strangers)} votes but is not configured, so is not asked"
        return None

    def _silent(self) -> tuple[str, str] | None:
        watch = self.watch
        asked = self.voters or watch.members
        silent = [f"{m} {watch.silence(m)}" for m in asked if watch.silence(m)]
        if silent:
            return "Unreachable", "; ".join(silent)
        for member in asked:
            missed = [s for s in watch.runs[member] if not s.answered]
            if missed:
                ago = _s(watch.now_ms - missed[-1].at_ms)
                return "Unreachable", f"{member} did not answer {ago} ago: {missed[-1].reason}"
        return None

    def _unsettled_members(self) -> tuple[str, str] | None:
        if not self.voters:
            return "NotFounded", f"no member knows the voters of group {self.group_id} yet"
        without = [v for v in self.voters if not self._carries(v)]
        if without:
            return "GroupMissing", f"{_and(without)} does not carry group {self.group_id}"
        for seen in self.seen:
            if tuple(sorted(seen.group.voters)) != self.voters:
                said = _and(seen.group.voters) or "nobody"
                return (
                    "MembershipChanging",
                    f"{seen.member} named {said} as voters, others {_and(self.voters)}",
                )
        return None

    def _carries(self, member: str) -> bool:
        """In every sample of its run: a group that has just appeared is still being founded."""
        return sum(s.member == member for s in self.seen) == len(self.watch.runs[member])

    def _lost_links(self) -> tuple[str, str] | None:
        need = quorum(self.voters)
        for voter in self.voters:
            for sample in self.watch.runs[voter]:
                peers = [p for p in self.voters if p != voter and p in sample.links_up]
                if len(peers) + 1 < need:
                    return (
                        "LinksDown",
                        f"{voter} had links to {len(peers)} of {len(self.voters) - 1} other "
                        f"voters, a quorum needs {need - 1}: look at the network",
                    )
        return None

    # --- a leaderless group that is not stuck -------------------------------------------------

    def _of_voters(self) -> list[_Seen]:
        return [seen for seen in self.seen if seen.member in self.voters]

    def _not_stuck(self) -> tuple[str, str] | None:
        watch, policy = self.watch, self.watch.policy
        led = [s for s in self._of_voters() if _knows_leader(s.group)]
        if led:
            last = max(led, key=lambda s: s.sample.at_ms)
            ago = _s(watch.now_ms - last.sample.at_ms)
            return "LeaderSeen", f"{last.member} knew a leader {ago} ago; an election is under way"
        watching = [v for v in self.voters if not watch.covered(v)]
        if watching:
            return (
                "Watching",
                f"no leader seen for {_s(self._leaderless_ms())}; {_and(watching)} must be watched "
                f"for {_s(policy.window_ms)} before anything is concluded",
            )
        rise = self._top(self.latest.values()) - self._base_term()
        if rise < policy.min_term_rise:
            return (
                "TermsNotRising",
                f"no leader, but the term rose by only {rise} in {_s(policy.window_ms)}, less than "
                f"{policy.min_term_rise}: not a split vote",
            )
        standing = self._candidates()
        if len(standing) < 2:
            who = _and(standing) or "nobody"
            return "OneCandidate", f"no leader, and {who} stands alone: not a split vote"
        return None

    def _base_term(self) -> int:
        """The highest term when the window began."""
        return self._top(next(s for s in self.seen if s.member == voter) for voter in self.voters)

    def _candidates(self) -> tuple[str, ...]:
        """Who stood for election in a term that began within the window."""
        base = self._base_term()
        stood = {
            seen.member: None
            for seen in self._of_voters()
            if seen.group.term > base
            and (seen.group.role == _CANDIDATE or seen.group.voted_for == seen.member)
        }
        return tuple(sorted(stood, key=ordinal))

    # --- stuck: upon whom may one act -----------------------------------------------------------

    def _stuck(self) -> Diagnosis:
        standing = self._candidates()
        rise = self._top(self.latest.values()) - self._base_term()
        story = (
            f"split vote: {_and(standing)} stood against each other, the term rose by {rise} in "
            f"{_s(self.watch.policy.window_ms)} and nobody won, although all voters are linked"
        )
        chosen = self._chosen(standing)
        reason = "SplitVote"
        if chosen is None:
            reason = "NoSafeCandidate"
            story += "; none of them may be touched (no persistent volume, or ahead of all others)"
        found = self._is("ElectionStuck", reason, story)
        return msgspec.structs.replace(
            found,
            candidates=standing,
            candidate=chosen,
            boot_id=self.latest[chosen].sample.boot_id if chosen else "",
        )

    def _chosen(self, standing: Sequence[str]) -> str | None:
        """The one with least to lose: its log is behind, or equal to, another voter's."""
        allowed = [
            member
            for member in standing
            if member not in self.volatile
            and self.latest[member].group.role != _LEARNER
            and not self._strictly_ahead(member)
        ]
        return min(allowed, key=lambda m: (self._log(m), -ordinal(m), m), default=None)

    def _log(self, member: str) -> tuple[int, int]:
        group = self.latest[member].group
        return (group.last_log_term, group.last_log_index)

    def _strictly_ahead(self, member: str) -> bool:
        others = [self._log(voter) for voter in self.voters if voter != member]
        return all(self._log(member) > other for other in others)


def _run(samples: Sequence[Sample], since_ms: int) -> tuple[Sample, ...]:
    """A member's samples since its present process was first seen, and no older than the newest
    one before the window: what an earlier process said is no evidence against this one."""
    before = [sample for sample in samples if sample.at_ms <= since_ms][-1:]
    recent = [*before, *(sample for sample in samples if sample.at_ms > since_ms)]
    boots = [sample.boot_id for sample in recent if sample.answered]
    if not boots:
        return tuple(recent)
    start = next(i for i, s in enumerate(recent) if s.answered and s.boot_id == boots[-1])
    return tuple(recent[start:])


def _at(sample: Sample) -> int:
    return sample.at_ms


def _knows_leader(group: GroupSample) -> bool:
    return group.role == _LEADER or group.leader is not None


def _and(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _s(ms: int) -> str:
    return f"{ms / 1000:.0f} s" if ms >= 10_000 else f"{ms / 1000:.1f} s"
