"""From what members answer to samples, and the bounded window of them that a diagnosis needs.

What must not live here: asking members, judging what they say (diagnose.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from dss.remediation.model import GroupSample, Sample

SAMPLES_MAX: Final = 2_048
"""Samples kept of one member: two windows of 85 minutes at one in 5 s (the longest window is an
hour). Who samples so often that a window does not fit never sees all of it, and so never acts."""


class _Link(msgspec.Struct):
    up: bool = False


class _Group(msgspec.Struct, kw_only=True):
    """The fields of one `groups` item that a diagnosis reads; others are for other readers."""

    group_id: int
    role: str
    leader: str | None = None
    term: int
    voted_for: str | None = None
    last_log_term: int
    last_log_index: int
    voters: tuple[str, ...]


class _Status(msgspec.Struct, kw_only=True):
    node_id: str
    boot_id: str
    links: dict[str, _Link]
    groups: tuple[_Group, ...]


def parse_status(member: str, body: Mapping[str, Any], at_ms: int) -> Sample:
    """The body of `GET /v1/raft/status` as a sample; one that is not understood says why.

    Args:
        member: who was asked. An answer of another node (an address given anew) counts as none.
        at_ms: when it was asked, ms of the caller's monotonic clock.
    """
    try:
        status = msgspec.convert(body, _Status)
    except msgspec.ValidationError as error:
        return unanswered(member, at_ms, f"its Raft status was not understood: {error}")
    if status.node_id != member:
        return unanswered(member, at_ms, f"{status.node_id} answers at its address")
    return Sample(
        at_ms=at_ms,
        member=member,
        boot_id=status.boot_id,
        links_up=tuple(sorted(peer for peer, link in status.links.items() if link.up)),
        groups=tuple(
            GroupSample(
                group_id=group.group_id,
                role=group.role,
                leader=group.leader or None,
                term=group.term,
                voted_for=group.voted_for or None,
                last_log_term=group.last_log_term,
                last_log_index=group.last_log_index,
                voters=group.voters,
            )
            for group in status.groups
        ),
    )


def unanswered(member: str, at_ms: int, reason: str) -> Sample:
    """A member that did not answer, and why (never empty)."""
    return Sample(at_ms=at_ms, member=member, reason=reason or "does not answer")


class SampleWindow:
    """The samples of the last two windows, and of each member the newest one before them.

    One window is what a diagnosis rests upon, the other tells for how long there was no leader.
    """

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._of: dict[str, deque[Sample]] = {}

    def add(self, sample: Sample) -> None:
        """Samples of one member come in the order of their times."""
        kept = self._of.setdefault(sample.member, deque(maxlen=SAMPLES_MAX))
        kept.append(sample)
        since_ms = sample.at_ms - 2 * self.window_ms
        while len(kept) > 1 and kept[1].at_ms <= since_ms:
            kept.popleft()

    def keep(self, members: Sequence[str]) -> None:
        """Forget members that are gone."""
        for gone in [member for member in self._of if member not in members]:
            del self._of[gone]

    def samples(self) -> list[Sample]:
        return [sample for kept in self._of.values() for sample in kept]

    def latest(self, member: str) -> Sample | None:
        kept = self._of.get(member)
        return kept[-1] if kept else None

    def clear(self) -> None:
        self._of.clear()
