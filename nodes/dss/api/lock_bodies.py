"""Bodies of the lock routes: what a request may hold, what an answer looks like.

What must not live here: handlers, routes (locks.py), commands (core/locks/commands.py).
"""

from __future__ import annotations

from typing import Any

import msgspec

from dss.base.limits import SESSION_TTL_MS_DEFAULT
from dss.core.locks.commands import (
    ConfirmMs,
    Count,
    Label,
    Limit,
    LockNames,
    Mode,
    Permits,
    Priority,
    SessionId,
    TokenValue,
    TtlMs,
    WaitMs,
    check_names,
    check_semaphore,
)


class CreateSessionRequest(msgspec.Struct, forbid_unknown_fields=True):
    ttl_ms: TtlMs = SESSION_TTL_MS_DEFAULT
    name: Label = ""
    """What people see in messages and lists: `worker-7`."""


class AcquireRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    owner: Label = ""
    """Two owners of one session exclude each other; default: the session."""
    mode: Mode = "exclusive"
    wait_ms: WaitMs = 0
    permits: Permits = 1
    """Of a semaphore: how many of its `limit` to take."""
    limit: Limit = 0
    """Of a semaphore: the same for all who use it."""
    priority: Priority = 0
    """Each level counts as having come one second earlier."""
    confirm_ms: ConfirmMs = 0
    """Not 0: the grant passes on unless it is confirmed within this time."""
    seq: Count = 0
    """The session's number of this request: it is carried out once (docs/locks.md § Once)."""
    ack: Count = 0
    """Up to this number the client has all answers."""

    def __post_init__(self) -> None:
        check_semaphore(self.mode, self.permits, self.limit)


class AcquireManyRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    locks: LockNames
    owner: Label = ""
    wait_ms: WaitMs = 0
    priority: Priority = 0
    seq: Count = 0
    ack: Count = 0

    def __post_init__(self) -> None:
        check_names(self.locks)


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    token: TokenValue
    owner: Label = ""


class HoldRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Of who holds a lock, to release or downgrade it."""

    session: SessionId
    token: TokenValue
    owner: Label = ""
    seq: Count = 0
    ack: Count = 0


class UpgradeRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    token: TokenValue
    owner: Label = ""
    wait_ms: WaitMs = 0
    seq: Count = 0
    ack: Count = 0


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    session: SessionId
    owner: Label = ""


class VerifyRequest(msgspec.Struct, forbid_unknown_fields=True):
    token: TokenValue


class SessionAnswer(msgspec.Struct):
    session: str
    ttl_ms: int


class AcquireAnswer(msgspec.Struct):
    token: int
    mode: str
    expires_in_ms: int
    """What was left of the session's TTL at the grant."""
    confirm_in_ms: int | None = None
    """Only with `confirm_ms`: it counts once confirmed."""


class LockToken(msgspec.Struct):
    name: str
    token: int


class AcquireManyAnswer(msgspec.Struct):
    locks: list[LockToken]
    expires_in_ms: int


class CancelAnswer(msgspec.Struct):
    cancelled: bool
    """False: it did not wait (any longer)."""


class VerifyAnswer(msgspec.Struct):
    valid: bool
    """Somebody holds the lock with this token now."""
    newest: int | None
    """The largest token of the lock that is remembered."""


class SessionDetail(msgspec.Struct):
    session: str
    ttl_ms: int
    name: str
    expires_in_ms: int
    held: int
    waiting: int
    locks: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    """Places in lines that the next request for the same locks has again: `{names, owner,
    lapses_in_ms}`."""


class LockDetail(msgspec.Struct):
    name: str
    state: str
    """`held` or `free`."""
    holders: list[dict[str, Any]]
    waiters: list[dict[str, Any]]
    waiting: int
    mode: str | None = None
    token: int | None = None
    limit: int | None = None
    permits_used: int | None = None


class LockExplanation(LockDetail):
    summary: list[str] = []
    """Lines for a person."""


class PastHold(msgspec.Struct):
    token: int
    mode: str
    holder: str
    granted_ago_ms: int
    held_ms: int
    ended_ago_ms: int | None
    ended: str | None
    """How: `released`, `session_expired`, `broken by …`, …; null: it is held."""


class LockHistoryAnswer(msgspec.Struct):
    name: str
    items: list[PastHold]
    """Newest first."""


class BreakAnswer(msgspec.Struct):
    broken: list[dict[str, Any]]
    """Whom it was taken from: `{holder, token, held_ms}`."""


class LockPage(msgspec.Struct):
    items: list[dict[str, Any]]
    next: str | None
    """The next page's `cursor`; null: this is the last."""


class Empty(msgspec.Struct):
    pass
