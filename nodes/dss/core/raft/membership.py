"""Who belongs to a group, as its log says: the newest configuration entry counts once appended.

The configurations behind it are kept, because a truncation brings the former one back. What must
not live here: how a change is proposed (a later issue). Source: Raft thesis §4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dss.core.raft.messages import CONFIGURATION, Configuration, Entry

_decoder = msgspec.msgpack.Decoder(Configuration)


class Membership:
    """`voters` and `members` (voters and learners) are dicts for their order, in id order."""

    __slots__ = ("_history", "configuration", "members", "quorum", "voters")

    def __init__(self, configuration: Configuration, entries: Sequence[Entry]) -> None:
        self._history = [(0, configuration)]
        self.append(entries)
        self._use()

    def _use(self) -> None:
        configuration = self._history[-1][1]
        self.configuration = configuration
        self.voters = {member.node_id: None for member in configuration.voters}
        self.members = dict(self.voters)
        self.members.update({member.node_id: None for member in configuration.learners})
        self.quorum = len(self.voters) // 2 + 1

    def append(self, entries: Sequence[Entry]) -> bool:
        """Entries were appended. True: the members are others now."""
        found = [entry for entry in entries if entry.kind == CONFIGURATION]
        for entry in found:
            self._history.append((entry.index, _decoder.decode(entry.payload)))
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
