"""Who belongs to a group, as its log says: the newest configuration entry counts once appended.

A level entry is one too: the same members, another feature level (the machine's changes when it
is applied). The configurations behind it are kept, because a truncation brings the former one
back. A member is an id *and* the incarnation of its data directory: a process that finds its id
listed with another incarnation is no member (its disk was lost), and neither campaigns nor counts
itself.

What must not live here: when a change may be made (leadership.py). Source: Raft thesis §4.1;
learners: §4.2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from dss.core.raft.messages import CONFIGURATION, LEVEL, Configuration, Entry, Member

_decoder = msgspec.msgpack.Decoder(Configuration)
_level_decoder = msgspec.msgpack.Decoder(tuple[int])
_encoder = msgspec.msgpack.Encoder()


class Membership:
    """`voters`, `learners` and `members` (both) are dicts by node id, in id order.

    `listed`: whether this very process is a member, `votes`: a voter. `index`: of the newest
    configuration entry; 0 when it is the founding record's or a snapshot's.
    """

    __slots__ = (
        "_history",
        "_me",
        "configuration",
        "index",
        "learners",
        "listed",
        "members",
        "quorum",
        "voters",
        "votes",
    )

    def __init__(self, configuration: Configuration, entries: Sequence[Entry], me: Member) -> None:
        """`me` with an empty incarnation is this id in whatever incarnation."""
        self._me = me
        self._history = [(0, configuration)]
        self.append(entries)
        self._use()

    def _use(self) -> None:
        self.index, configuration = self._history[-1]
        self.configuration = configuration
        self.voters = {member.node_id: member for member in configuration.voters}
        self.learners = {member.node_id: member for member in configuration.learners}
        self.members = self.voters | self.learners
        self.quorum = len(self.voters) // 2 + 1
        me = self.members.get(self._me.node_id)
        self.listed = me is not None and self._me.incarnation in ("", me.incarnation)
        self.votes = self.listed and self._me.node_id in self.voters

    def append(self, entries: Sequence[Entry]) -> bool:
        """Entries were appended. True: the members are others now."""
        found = [entry for entry in entries if entry.kind in (CONFIGURATION, LEVEL)]
        for entry in found:
            self._history.append((entry.index, changed(self._history[-1][1], entry)))
        if found:
            self._use()
        return bool(found)

    def truncate_from(self, index: int) -> bool:
        """Entries from `index` on are gone. True: a former configuration counts again."""
        history = self._history
        if history[-1][0] < index:
            return False
        while history[-1][0] >= index:
            history.pop()
        self._use()
        return True

    def compact(self, index: int) -> None:
        """Everything up to `index` is committed: only its last configuration can come back."""
        history = self._history
        while len(history) > 1 and history[1][0] <= index:
            del history[0]

    def reset(self, configuration: Configuration) -> None:
        """Start again from an installed snapshot."""
        self._history = [(0, configuration)]
        self._use()


def encode(configuration: Configuration) -> bytes:
    """The payload of a CONFIGURATION entry."""
    return _encoder.encode(configuration)


def decode(payload: bytes) -> Configuration:
    return _decoder.decode(payload)


def encode_level(level: int) -> bytes:
    """The payload of a LEVEL entry: an array, for what may be said beside the level one day."""
    return _encoder.encode((level,))


def changed(configuration: Configuration, entry: Entry) -> Configuration:
    """What a CONFIGURATION or LEVEL entry makes of the one before it."""
    if entry.kind == CONFIGURATION:
        return decode(entry.payload)
    return replace(configuration, feature_level=level_in(entry))


def level_in(entry: Entry) -> int:
    """What a LEVEL entry raises the group to."""
    (level,) = _level_decoder.decode(entry.payload)
    return level


def with_learner(configuration: Configuration, member: Member) -> Configuration:
    return replace(configuration, learners=_sorted([*configuration.learners, member]))


def promoted(configuration: Configuration, node_id: str) -> Configuration:
    """The learner `node_id` as a voter."""
    (member,) = (m for m in configuration.learners if m.node_id == node_id)
    return replace(
        configuration,
        voters=_sorted([*configuration.voters, member]),
        learners=_without(configuration.learners, node_id),
    )


def without(configuration: Configuration, node_id: str) -> Configuration:
    return replace(
        configuration,
        voters=_without(configuration.voters, node_id),
        learners=_without(configuration.learners, node_id),
    )


def _without(members: Iterable[Member], node_id: str) -> tuple[Member, ...]:
    return tuple(member for member in members if member.node_id != node_id)


def _sorted(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.node_id))
