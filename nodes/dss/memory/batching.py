"""What both main memories share: operations waiting with their futures, and the errors they end in.

What must not live here: a database.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from dss.base import limits
from dss.memory.ports import MemoryLost, MemoryUnavailable, MemoryUnknown, Stamp, Stored

CLAIM: Final = "claim"
READ: Final = "read"
WRITE: Final = "write"
DELETE: Final = "delete"
FENCE: Final = "fence"

WAITING_OPS_MAX: Final = 65_536
"""Operations not yet begun: each belongs to an open transaction, so this is never reached in
health; it bounds memory when main memory hangs."""
EXPIRED_KEPT_MS: Final = 3_600_000
"""Garbage collection of expired values waits this long: clocks of nodes may differ."""

OK: Final = 0
STALE: Final = 1
"""A version at or below the slot's sequence: it did nothing."""
LOST: Final = 2


class Operation:
    """One pending operation: `kind`, its arguments, and the future of its result."""

    __slots__ = ("args", "future", "kind")

    def __init__(self, kind: str, args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.kind = kind
        self.args = args
        self.future = future

    def succeed(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def refuse(self, status: int, key: str) -> None:
        """End a write that main memory refused."""
        if status == STALE:
            self.fail(MemoryUnavailable(f"a newer write overtook this one ({key!r})"))
        else:
            self.fail(MemoryLost("main memory has another owner for this slot, or has lost writes"))

    def abandon(self, why: str, *, begun: bool) -> None:
        """The batch failed. `begun`: main memory may have done it."""
        if begun and self.kind in (WRITE, DELETE):
            self.fail(MemoryUnknown(why))
        else:
            self.fail(MemoryUnavailable(why))


class OperationQueue:
    """Operations in order, and a call to `wake` when one comes. Half of `ports.Memory`.

    Args:
        wake: called on the loop when an operation has been put in.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Operation] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, kind: str, *args: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        operation = Operation(kind, args, future)
        if len(self._waiting) >= WAITING_OPS_MAX:
            operation.fail(MemoryUnavailable("main memory is too slow: its queue is full"))
            return future
        self._waiting.append(operation)
        self._wake()
        return future

    def take(self) -> list[Operation]:
        """The next batch, in order."""
        count = min(len(self._waiting), limits.MEMORY_BATCH_OPS_MAX)
        return [self._waiting.popleft() for _ in range(count)]

    def abandon_all(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft().abandon(why, begun=False)

    # --- ports.Memory -----------------------------------------------------------------------

    def claim(self, owner: str, epoch: int, slots: Sequence[int]) -> asyncio.Future[dict[int, int]]:
        return self.put(CLAIM, owner, epoch, tuple(slots))

    def read(self, key: str) -> asyncio.Future[Stored | None]:
        return self.put(READ, key)

    def write(self, stamp: Stamp, key: str, stored: Stored) -> asyncio.Future[bool]:
        return self.put(WRITE, stamp, key, stored)

    def delete(self, stamp: Stamp, key: str) -> asyncio.Future[bool]:
        return self.put(DELETE, stamp, key)

    def fence(self, stamp: Stamp, key: str) -> asyncio.Future[Stored | None]:
        return self.put(FENCE, stamp, key)
