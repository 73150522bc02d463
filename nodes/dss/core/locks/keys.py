"""What `Idempotency-Key`s have been answered: kept for their time of the log, never less.

What must not live here: carrying commands out (machine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from dss.base.limits import IDEMPOTENCY_KEEP_MS, IDEMPOTENCY_KEYS_MAX

KeyRow = tuple[str, bytes, int, int, Any]
"""(key, digest, until_ms, status, body); status 0, and the waiter's ticket, while it waits."""


class KeyEntry(msgspec.Struct, eq=False):
    """What a key stands for."""

    digest: bytes
    until_ms: int
    answer: tuple[int, Any]


class Keys:
    """In the order in which they came, which is the order in which they run out."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, KeyEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now_ms: int) -> KeyEntry | None:
        """Its entry; those whose time is over are forgotten first."""
        entries = self._entries
        while entries:
            first = next(iter(entries))
            if entries[first].until_ms > now_ms:
                break
            del entries[first]
        return entries.get(key)

    @property
    def full(self) -> bool:
        return len(self._entries) >= IDEMPOTENCY_KEYS_MAX

    def keep(self, key: str, digest: bytes, now_ms: int, answer: tuple[int, Any]) -> None:
        self._entries[key] = KeyEntry(digest, now_ms + IDEMPOTENCY_KEEP_MS, answer)

    def forget(self, key: str) -> None:
        """Nothing was done: the same request may come again."""
        self._entries.pop(key, None)

    def settle(self, key: str, answer: tuple[int, Any]) -> None:
        """The late answer. The wait may have outlived its key."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.answer = answer

    def items(self) -> Collection[tuple[str, KeyEntry]]:
        """For a snapshot."""
        return self._entries.items()

    def restore(self, rows: Iterable[KeyRow]) -> None:
        self._entries = OrderedDict(
            (key, KeyEntry(digest, until_ms, (status, body)))
            for key, digest, until_ms, status, body in rows
        )
