"""What goes into the coherence cores and what comes out of them.

`CacheNode.step(events, now_ms) -> list[Effect]`; `now_ms` is CLOCK_BOOTTIME in ms. Every memory
effect is answered by exactly one of MemoryRead, MemoryWritten, MemoryFailed with its `txn`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dss.core.mesi.messages import CacheMessage, Record

# --- events -------------------------------------------------------------------------------


class Receive(msgspec.Struct, frozen=True, gc=False):
    """A message from `peer`, whose link proved that its process is `boot`."""

    peer: str
    boot: str
    message: CacheMessage


class LinkUp(msgspec.Struct, frozen=True, gc=False):
    """A link to `peer`, whose process is `boot`. A new boot means the old process is dead."""

    peer: str
    boot: str


class LinkDown(msgspec.Struct, frozen=True, gc=False):
    peer: str


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed."""


class Read(msgspec.Struct, frozen=True, gc=False):
    """A client reads `key`; answered by Answer with the same `ref`."""

    ref: int
    key: str


class Write(msgspec.Struct, frozen=True, gc=False):
    """A client writes; fields as in GetExclusive."""

    ref: int
    key: str
    op: int
    value: bytes = b""
    content_type: str = ""
    ttl_ms: int = 0
    if_match: tuple[int, ...] | None = None
    if_none_match: tuple[int, ...] | None = None
    delta: int = 0


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """Main memory knows this home; the last version used in each of its slots."""

    sequences: dict[int, int]


class MemoryRead(msgspec.Struct, frozen=True, gc=False):
    """Answer to ReadMemory and FenceMemory."""

    key: str
    txn: int
    record: Record | None


class MemoryWritten(msgspec.Struct, frozen=True, gc=False):
    """Answer to WriteMemory and DeleteMemory. `existed`: the key had a value before."""

    key: str
    txn: int
    existed: bool = False


class MemoryFailed(msgspec.Struct, frozen=True, gc=False):
    """`unknown`: it may have happened, now or later. `lost`: this home was replaced in main
    memory, or main memory has lost acknowledged writes."""

    key: str
    txn: int
    unknown: bool
    why: str
    lost: bool = False


Event = (
    Receive
    | LinkUp
    | LinkDown
    | Tick
    | Read
    | Write
    | Claimed
    | MemoryRead
    | MemoryWritten
    | MemoryFailed
)

# --- effects ------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True, gc=False):
    peer: str
    message: CacheMessage


class ReadMemory(msgspec.Struct, frozen=True, gc=False):
    key: str
    txn: int


class WriteMemory(msgspec.Struct, frozen=True, gc=False):
    """`acknowledged`: the newest version main memory has acknowledged in this slot."""

    key: str
    txn: int
    slot: int
    version: int
    acknowledged: int
    value: bytes
    content_type: str
    expires_ms: int


class DeleteMemory(msgspec.Struct, frozen=True, gc=False):
    key: str
    txn: int
    slot: int
    version: int
    acknowledged: int


class FenceMemory(msgspec.Struct, frozen=True, gc=False):
    """Make every write up to `version` in the slot that has not happened yet impossible, and
    read the key, in one step."""

    key: str
    txn: int
    slot: int
    version: int


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The end of a client's request. Below 400: done, with the value and version.

    `status`: 200 read or written, 201 created, 204 deleted, 404, 412, 422, 429, 503, 504.
    """

    ref: int
    status: int
    code: str = ""
    message: str = ""
    version: int = 0
    value: bytes = b""
    content_type: str = ""
    retry_after_ms: int = 0


Effect = Send | ReadMemory | WriteMemory | DeleteMemory | FenceMemory | Answer

FOREVER_MS: Final = 1 << 62
