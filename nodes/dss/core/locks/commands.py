"""What the lock group understands: one struct per op, validated while it is decoded.

The same bytes are a stream client's request and the log's payload. Expiry is not a client's to
ask for: those ops exist in the log only, proposed by the leader.

What must not live here: what a command does (machine.py), HTTP bodies (api/locks.py).
Seams for later issues, as new fields (last, with a default) or ops: `priority`, mode `semaphore`
with `permits` and `limit`, `upgrade`, `downgrade`, acquiring several locks at once.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dss.base.limits import (
    LABEL_CHARS_MAX,
    LIST_ITEMS_DEFAULT,
    LIST_ITEMS_MAX,
    NAME_BYTES_MAX,
    SESSION_TTL_MS_DEFAULT,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    TOKEN_MAX,
    WAIT_MS_MAX,
)
from dss.core.machine import CommandCodec

SessionId = Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX)]
NewSessionId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""128 random bits in hex. Whoever knows it may act for the session, so it must not be guessable."""
Label = Annotated[str, Meta(max_length=LABEL_CHARS_MAX)]
LockName = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
Prefix = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
TtlMs = Annotated[int, Meta(ge=SESSION_TTL_MS_MIN, le=SESSION_TTL_MS_MAX)]
WaitMs = Annotated[int, Meta(ge=0, le=WAIT_MS_MAX)]
TokenValue = Annotated[int, Meta(ge=1, le=TOKEN_MAX)]
Mode = Literal["exclusive", "shared"]

ASCII_CHARS_SAFE: Final = NAME_BYTES_MAX // 4
"""A name this short cannot be longer than NAME_BYTES_MAX in UTF-8."""


def check_name(name: str) -> None:
    """The part of the name rule that a length bound cannot say. Raises ValueError.

    1..256 bytes of UTF-8; none of its `/`-separated segments is empty, `.` or `..`.
    """
    if len(name) > ASCII_CHARS_SAFE:
        size = len(name.encode("utf-8", "surrogatepass"))
        if size > NAME_BYTES_MAX:
            raise ValueError(f"a name has at most {NAME_BYTES_MAX} bytes, this one {size}")
    if "/" in name or name[0] == ".":
        for segment in name.split("/"):
            if segment in ("", ".", ".."):
                raise ValueError(f"a name has no empty, '.' or '..' segment: {name!r}")


class _Command(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """An unknown field is refused: a misspelt `wait` must not silently mean "do not wait"."""


class SessionCreate(_Command, frozen=True):
    ttl_ms: TtlMs = SESSION_TTL_MS_DEFAULT
    name: Label = ""
    """What people see in messages: `worker-7`."""
    session: NewSessionId | None = None
    """Always set in the log: the service fills it in, so that applying stays deterministic."""


class SessionKeepalive(_Command, frozen=True):
    session: SessionId


class SessionEnd(_Command, frozen=True):
    session: SessionId


class Acquire(_Command, frozen=True):
    """`owner` defaults to the session: two owners of one session exclude each other."""

    session: SessionId
    name: LockName
    mode: Mode = "exclusive"
    wait_ms: WaitMs = 0
    owner: Label = ""

    def __post_init__(self) -> None:
        check_name(self.name)


class Release(_Command, frozen=True):
    session: SessionId
    name: LockName
    token: TokenValue
    owner: Label = ""


class ExpireSessions(_Command, frozen=True):
    """End each (session, renewals) that was not renewed since and whose time is over."""

    sessions: list[tuple[str, int]]


class ExpireWaits(_Command, frozen=True):
    """End the waits with these tickets whose time is over."""

    tickets: list[int]


class GetLock(_Command, frozen=True):
    name: LockName

    def __post_init__(self) -> None:
        check_name(self.name)


class ListLocks(_Command, frozen=True):
    """Held locks in the order of their names, after `cursor` (the previous page's `next`)."""

    prefix: Prefix = ""
    limit: Annotated[int, Meta(ge=1, le=LIST_ITEMS_MAX)] = LIST_ITEMS_DEFAULT
    cursor: Prefix = ""


class GetSession(_Command, frozen=True):
    session: SessionId


Write = SessionCreate | SessionKeepalive | SessionEnd | Acquire | Release
Internal = ExpireSessions | ExpireWaits
Read = GetLock | ListLocks | GetSession

_WRITES: Final[dict[str, type[msgspec.Struct]]] = {
    "session.create": SessionCreate,
    "session.keepalive": SessionKeepalive,
    "session.end": SessionEnd,
    "acquire": Acquire,
    "release": Release,
}
_READS: Final[dict[str, type[msgspec.Struct]]] = {
    "get": GetLock,
    "list": ListLocks,
    "session.get": GetSession,
}

LOG_CODEC: Final = CommandCodec(
    {**_WRITES, "expire_sessions": ExpireSessions, "expire_waits": ExpireWaits}
)
"""What may stand in the log."""
CLIENT_CODEC: Final = CommandCodec({**_WRITES, **_READS})
"""What a client may send; reads never reach the log."""
READ_OPS: Final = frozenset(_READS)
