"""Who held which lock, when, with which token: the last of each lock, bounded per lock and in all.

It is part of the replicated state. What must not live here: how it is shown (views.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from dss.base.limits import HISTORY_MAX, HISTORY_PER_LOCK_MAX

Past = tuple[int, str, str, str, str, int, int, str]
"""(token, mode, session id, session name, owner, since_ms, until_ms, how it ended)"""

RELEASED: Final = "released"
EXPIRED: Final = "session_expired"
ENDED: Final = "session_ended"
UNCONFIRMED: Final = "unconfirmed"
UPGRADED: Final = "upgraded"
BROKEN: Final = "broken"
"""`broken by <who>: <why>` follows it."""


class History:
    """By lock; the lock whose hold ended longest ago is forgotten first."""

    def __init__(self) -> None:
        self._locks: OrderedDict[str, list[Past]] = OrderedDict()
        self._size = 0

    def note(self, name: str, past: Past) -> None:
        """One hold has ended."""
        locks = self._locks
        rows = locks.get(name)
        self._size += 1
        if rows is None:
            locks[name] = [past]
        else:
            locks.move_to_end(name)
            rows.append(past)
            if len(rows) > HISTORY_PER_LOCK_MAX:
                del rows[0]
                self._size -= 1
        while self._size > HISTORY_MAX:
            _, oldest = locks.popitem(last=False)
            self._size -= len(oldest)

    def of(self, name: str) -> Sequence[Past]:
        """Oldest first."""
        return self._locks.get(name, ())

    def rows(self) -> list[tuple[str, list[Past]]]:
        """For a snapshot."""
        return list(self._locks.items())

    def restore(self, rows: Iterable[tuple[str, list[Past]]]) -> None:
        self._locks = OrderedDict(rows)
        self._size = sum(map(len, self._locks.values()))

    def check_invariants(self) -> None:
        assert self._size == sum(map(len, self._locks.values())), "history is miscounted"
        assert self._size <= HISTORY_MAX
