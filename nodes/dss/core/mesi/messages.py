"""The coherence protocol's messages: frozen structs, encoded by position. A new field goes last.

Every message names its key, the ring epoch, the home's boot, and (as far as they exist yet) the
home's transaction and the requester's request, so that late and duplicate ones can be told apart.
The sender is not in the message: the link that carried it proved node and boot.

What must not live here: behaviour.
"""

from __future__ import annotations

from typing import Final

import msgspec

PUT: Final = 0
DELETE: Final = 1
INCR: Final = 2

ANY_VERSION: Final = -1
"""`*` in If-Match / If-None-Match: any existing version."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value as main memory has it. `expires_ms` is on the reader's CLOCK_BOOTTIME; 0: never."""

    value: bytes
    version: int
    content_type: str = ""
    expires_ms: int = 0


# --- requester -> home --------------------------------------------------------------------


class GetShared(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Read. `floor`: no request below it is open any more; `wait_ms`: give up after this."""

    key: str
    epoch: int
    home_boot: str
    request: int
    floor: int
    wait_ms: int


class GetExclusive(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Write, with the write itself, so that conditions are checked inside the transaction.

    `ttl_ms` 0: no expiry. `delta` is INCR's. `if_match`/`if_none_match`: versions, or
    ANY_VERSION; None: no condition.
    """

    key: str
    epoch: int
    home_boot: str
    request: int
    floor: int
    wait_ms: int
    op: int
    value: bytes = b""
    content_type: str = ""
    ttl_ms: int = 0
    if_match: tuple[int, ...] | None = None
    if_none_match: tuple[int, ...] | None = None
    delta: int = 0


class InvalidateAck(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    key: str
    epoch: int
    home_boot: str
    txn: int


class FetchReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Answer to Downgrade. `version` 0: there is no copy here any more."""

    key: str
    epoch: int
    home_boot: str
    txn: int
    version: int
    value: bytes = b""
    content_type: str = ""


class GrantAck(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Ends the transaction. `kept` False: no copy is held here."""

    key: str
    epoch: int
    home_boot: str
    txn: int
    kept: bool


class Evict(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The copy granted by `txn` is gone."""

    key: str
    epoch: int
    home_boot: str
    txn: int


class Renew(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Keep all copies from this home alive. Every request renews likewise."""

    epoch: int
    home_boot: str
    request: int


# --- home -> requester --------------------------------------------------------------------


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """The request is done. `state` 0 (I): no copy may be kept, and no ack is wanted.

    `version` 0 with state I: the key was deleted. `ttl_left_ms` 0: no expiry. `boot`: of the
    process that asked (request ids start anew in each).
    """

    key: str
    epoch: int
    home_boot: str
    txn: int
    request: int
    state: int
    version: int
    value: bytes = b""
    content_type: str = ""
    ttl_left_ms: int = 0
    created: bool = False
    boot: str = ""


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """The request failed with an HTTP status and a stable code; see STATUSES in directory.py."""

    key: str
    epoch: int
    home_boot: str
    txn: int
    request: int
    status: int
    code: str
    message: str
    version: int = 0
    retry_after_ms: int = 0
    boot: str = ""


class Invalidate(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Destroy the copy, and keep none from a transaction before `txn`."""

    key: str
    epoch: int
    home_boot: str
    txn: int


class Downgrade(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Fall from M or E to S and send the value."""

    key: str
    epoch: int
    home_boot: str
    txn: int


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """The Renew numbered `request` has been taken into account."""

    epoch: int
    home_boot: str
    request: int
    boot: str = ""


Request = GetShared | GetExclusive
ToHome = GetShared | GetExclusive | InvalidateAck | FetchReply | GrantAck | Evict | Renew
ToAgent = Grant | Refuse | Invalidate | Downgrade | LeaseGrant
CacheMessage = ToHome | ToAgent
