"""Who held which lock, when, with which token: the last of each lock, bounded per lock and in all.

It is part of the replicated state, so it is thinned out at the same entry on every node. What must
not live here: how it is shown (views.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec

from dss.base.limits import HISTORY_MAX, HISTORY_PER_LOCK_MAX

RELEASED: Final = "released"
EXPIRED: Final = "session_expired"
ENDED: Final = "session_ended"
UNCONFIRMED: Final = "unconfirmed"
UPGRADED: Final = "upgraded"
BROKEN: Final = "broken"
"""`broken by <who>: <why>`."""


class Hold(msgspec.Struct, array_like=True, eq=False, gc=False):
    """One holder of one lock; once it has ended, a line of its history.

    Also a row of the snapshot, by position: a new field goes last, with a default. What identifies
    it never changes, since events refer to it: an upgrade makes a new one.
    """

    name: str
    session: str
    session_name: str
    owner: str
    mode: str
    """In which it was granted."""
    token: int
    since_ms: int
    count: int = 1
    """As many releases are needed."""
    permits: int = 1
    confirm_by_ms: int = 0
    """Not 0: nobody has confirmed this grant yet; then it passes on."""
    until_ms: int = 0
    how: str = ""
    """How it ended; empty while it is held."""


class History:
    """Ended holds, oldest first. A busy lock does not push the others out: when the list is
    thinned, of each lock the last HISTORY_PER_LOCK_MAX stay.

    Attributes:
        note: `note(hold)` appends; the list's own method, since it runs for every release.
    """

    def __init__(self) -> None:
        self._ended: list[Hold] = []
        # By name, of the first `_indexed` ones: for readers, so made when one comes.
        self._index: dict[str, list[Hold]] = {}
        self._indexed = 0
        self.note: Callable[[Hold], None] = self._ended.append

    @property
    def size(self) -> int:
        return len(self._ended)

    def thin(self) -> None:
        """After each entry: at twice HISTORY_MAX keep the newest, few of each lock."""
        ended = self._ended
        if len(ended) < 2 * HISTORY_MAX:
            return
        kept: list[Hold] = []
        counts: dict[str, int] = {}
        for hold in reversed(ended):
            count = counts.get(hold.name, 0)
            if count < HISTORY_PER_LOCK_MAX:
                counts[hold.name] = count + 1
                kept.append(hold)
                if len(kept) == HISTORY_MAX:
                    break
        kept.reverse()
        ended[:] = kept
        self._forget_index()

    def of(self, name: str) -> Sequence[Hold]:
        """Oldest first."""
        index = self._index
        for hold in islice(self._ended, self._indexed, None):
            index.setdefault(hold.name, []).append(hold)
        self._indexed = len(self._ended)
        return index.get(name, [])[-HISTORY_PER_LOCK_MAX:]

    def _forget_index(self) -> None:
        self._index = {}
        self._indexed = 0

    def rows(self) -> list[Hold]:
        """For a snapshot."""
        return self._ended

    def restore(self, rows: Iterable[Hold]) -> None:
        self._ended[:] = rows
        self._forget_index()

    def check_invariants(self) -> None:
        assert len(self._ended) < 2 * HISTORY_MAX, len(self._ended)
        assert all(hold.how for hold in self._ended[-1:]), "a hold ended without a reason"
