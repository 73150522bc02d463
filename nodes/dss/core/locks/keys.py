"""What `Idempotency-Key`s have been answered: kept for their time of the log, never less.

What must not live here: carrying commands out (machine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from dss.base.limits import (
    ANSWER_BYTES,
    IDEMPOTENCY_KEEP_MS,
    IDEMPOTENCY_KEYS_BYTES_MAX,
    IDEMPOTENCY_KEYS_MAX,
)

KeyRow = tuple[str, bytes, int, int, Any]
"""(key, digest, until_ms, status, body); status 0, and the waiter's ticket, while it waits."""


class KeyEntry(msgspec.Struct, eq=False):
    """What a key stands for."""

    digest: bytes
    until_ms: int
    answer: tuple[int, Any]
    size: int
    """Of its answer, or set aside for it, as kept.py counts: derived."""


class Keys:
    """In the order in which they came, which is the order in which they run out.

    Attributes:
        bytes: of all keys and their answers, as kept.py counts: derived.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[str, KeyEntry] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now_ms: int) -> KeyEntry | None:
        """Its entry; those whose time is over are forgotten first."""
        entries = self._entries
        while entries:
            first = next(iter(entries))
            if entries[first].until_ms > now_ms:
                break
            self.bytes -= entries.pop(first).size
        return entries.get(key)

    @property
    def full(self) -> bool:
        return (
            len(self._entries) >= IDEMPOTENCY_KEYS_MAX or self.bytes >= IDEMPOTENCY_KEYS_BYTES_MAX
        )

    def keep(self, key: str, digest: bytes, now_ms: int, answer: tuple[int, Any]) -> None:
        """Until `settle` its answer counts as an ordinary one."""
        size = _size(key, digest, ANSWER_BYTES)
        self._entries[key] = KeyEntry(digest, now_ms + IDEMPOTENCY_KEEP_MS, answer, size)
        self.bytes += size

    def forget(self, key: str) -> None:
        """Nothing was done: the same request may come again."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size

    def settle(self, key: str, answer: tuple[int, Any], answer_bytes: int) -> None:
        """The late answer. The wait may have outlived its key."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.answer = answer
            self.bytes -= entry.size
            entry.size = _size(key, entry.digest, answer_bytes)
            self.bytes += entry.size

    def items(self) -> Collection[tuple[str, KeyEntry]]:
        """For a snapshot."""
        return self._entries.items()

    def restore(self, rows: Iterable[KeyRow], size_of: Callable[[tuple[int, Any]], int]) -> None:
        """`size_of`: an answer, or (0, the ticket of a wait)."""
        self._entries = OrderedDict()
        for key, digest, until_ms, status, body in rows:
            answer = (status, body)
            size = _size(key, digest, size_of(answer))
            self._entries[key] = KeyEntry(digest, until_ms, answer, size)
        self.bytes = sum(entry.size for entry in self._entries.values())


def _size(key: str, digest: bytes, answer_bytes: int) -> int:
    return len(key.encode()) + len(digest) + answer_bytes
