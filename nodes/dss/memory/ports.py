"""Main memory as the cache service sees it.

Every operation returns a future at once; the implementation batches what is pending. All are for
the loop's thread. Writes are *fenced*: a slot has one owner (the home's process, under an epoch)
and a sequence that only rises; a write whose owner or version is behind does nothing.

What must not live here: an implementation.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

import msgspec

from dss.base.errors import Unavailable


class MemoryUnavailable(Unavailable):
    """Main memory did not do it and never will: repeat later."""

    code = "memory_unavailable"


class MemoryUnknown(Unavailable):
    """It may have happened, or may yet: `fence` decides it."""

    code = "memory_unknown"


class MemoryLost(Unavailable):
    """The slot has another owner, or its sequence is behind what was acknowledged: this home must
    serve no more."""

    code = "memory_lost"


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A value. `expires_unix_ms` 0: never. Expired values may still be returned."""

    value: bytes
    version: int
    content_type: str
    expires_unix_ms: int


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Who writes. `version` must be above the slot's sequence; `acknowledged` must not be."""

    slot: int
    owner: str
    version: int
    acknowledged: int = 0


class Memory(Protocol):
    """One cluster's main memory."""

    kind: str
    """`redis` or `sqlite`, for status pages."""

    async def start(self) -> None:
        """Begin to work. Does not wait for main memory to be reachable."""

    async def stop(self) -> None:
        """Finish what is pending (bounded), release everything."""

    def claim(self, owner: str, epoch: int, slots: Sequence[int]) -> Future[dict[int, int]]:
        """Become the owner of `slots`: slot -> the last version used in it.

        Raises MemoryLost when another owner has a newer epoch.
        """
        ...

    def read(self, key: str) -> Future[Stored | None]:
        """Raises MemoryUnavailable."""
        ...

    def write(self, stamp: Stamp, key: str, stored: Stored) -> Future[bool]:
        """True: the key had a value. Raises MemoryUnavailable, MemoryUnknown, MemoryLost."""
        ...

    def delete(self, stamp: Stamp, key: str) -> Future[bool]:
        """True: the key had a value. Raises like `write`."""
        ...

    def fence(self, stamp: Stamp, key: str) -> Future[Stored | None]:
        """From now on no write up to `stamp.version` in the slot can happen; the key as it is.

        Raises MemoryUnavailable, MemoryLost.
        """
        ...

    def warnings(self) -> list[str]:
        """Why what is acknowledged might not be durable; empty when it is."""
        ...
