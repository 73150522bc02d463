"""What the lock group understands: one struct per op, validated while it is decoded.

The same bytes are a stream client's request and the log's payload. Some ops are not a client's to
ask for on a stream: expiry is proposed by the leader; `break` is an administrator's; `keyed`
carries an HTTP request with its Idempotency-Key.

`seq` and `ack` (exactly once): a session's sequence number of this command, and the highest one up
to which the client has all answers. 0: not sequenced.

What must not live here: what a command does (machine.py), HTTP bodies (api/locks.py).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dss.base.limits import (
    CONFIRM_MS_MAX,
    LABEL_CHARS_MAX,
    LIST_ITEMS_DEFAULT,
    LIST_ITEMS_MAX,
    LOCKS_TOGETHER_MAX,
    NAME_BYTES_MAX,
    PRIORITY_MAX,
    SEMAPHORE_PERMITS_MAX,
    SESSION_TTL_MS_DEFAULT,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    TOKEN_MAX,
    WAIT_MS_MAX,
)
from dss.base.names import excess_size, has_dot_segment
from dss.core.machine import CommandCodec

SessionId = Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX)]
NewSessionId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""128 random bits in hex. Whoever knows it may act for the session, so it must not be guessable."""
Label = Annotated[str, Meta(max_length=LABEL_CHARS_MAX)]
LockName = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
LockNames = Annotated[list[LockName], Meta(min_length=1, max_length=LOCKS_TOGETHER_MAX)]
Prefix = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
TtlMs = Annotated[int, Meta(ge=SESSION_TTL_MS_MIN, le=SESSION_TTL_MS_MAX)]
WaitMs = Annotated[int, Meta(ge=0, le=WAIT_MS_MAX)]
ConfirmMs = Annotated[int, Meta(ge=0, le=CONFIRM_MS_MAX)]
TokenValue = Annotated[int, Meta(ge=1, le=TOKEN_MAX)]
Count = Annotated[int, Meta(ge=0, le=TOKEN_MAX)]
Permits = Annotated[int, Meta(ge=1, le=SEMAPHORE_PERMITS_MAX)]
Limit = Annotated[int, Meta(ge=0, le=SEMAPHORE_PERMITS_MAX)]
Priority = Annotated[int, Meta(ge=0, le=PRIORITY_MAX)]
Mode = Literal["exclusive", "shared", "semaphore"]


def check_name(name: str) -> None:
    """The part of the name rule that a length bound cannot say. Raises ValueError.

    1..256 bytes of UTF-8; none of its `/`-separated segments is empty, `.` or `..`.
    """
    if size := excess_size(name):
        raise ValueError(f"a name has at most {NAME_BYTES_MAX} bytes, this one {size}")
    if has_dot_segment(name):
        raise ValueError(f"a name has no empty, '.' or '..' segment: {name!r}")


def check_semaphore(mode: str, permits: int, limit: int) -> None:
    """`permits` and `limit` belong to semaphores, which need a limit. Raises ValueError."""
    if mode == "semaphore":
        if not 1 <= permits <= limit:
            raise ValueError(
                f"mode 'semaphore' needs a limit, and 1 ≤ permits ≤ limit: not {permits} of {limit}"
            )
    elif permits != 1 or limit:
        raise ValueError(f"permits and limit are for mode 'semaphore', not {mode!r}")


def check_names(names: list[str]) -> None:
    """Names of one request for several locks. Raises ValueError."""
    for name in names:
        check_name(name)
    if len(set(names)) != len(names):
        raise ValueError("a name stands twice in locks")


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
    permits: Permits = 1
    """Of a semaphore: how many of its `limit` this holder takes."""
    limit: Limit = 0
    """Of a semaphore: the same for all its holders."""
    priority: Priority = 0
    confirm_ms: ConfirmMs = 0
    """Not 0: the grant passes on unless `confirm` comes within this time."""
    seq: Count = 0
    ack: Count = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.limit or self.permits != 1 or self.mode == "semaphore":
            check_semaphore(self.mode, self.permits, self.limit)


class AcquireMany(_Command, frozen=True):
    """All of `locks`, exclusive, at once or not at all."""

    session: SessionId
    locks: LockNames
    wait_ms: WaitMs = 0
    owner: Label = ""
    priority: Priority = 0
    seq: Count = 0
    ack: Count = 0

    def __post_init__(self) -> None:
        check_names(self.locks)


class Release(_Command, frozen=True):
    session: SessionId
    name: LockName
    token: TokenValue
    owner: Label = ""
    seq: Count = 0
    ack: Count = 0


class Upgrade(_Command, frozen=True):
    """A shared hold becomes exclusive, once no other holder is left."""

    session: SessionId
    name: LockName
    token: TokenValue
    wait_ms: WaitMs = 0
    owner: Label = ""
    seq: Count = 0
    ack: Count = 0


class Downgrade(_Command, frozen=True):
    """An exclusive hold becomes shared."""

    session: SessionId
    name: LockName
    token: TokenValue
    owner: Label = ""
    seq: Count = 0
    ack: Count = 0


class Confirm(_Command, frozen=True):
    """The client knows of its grant (`confirm_ms`): now it counts."""

    session: SessionId
    name: LockName
    token: TokenValue
    owner: Label = ""


class Cancel(_Command, frozen=True):
    """End the owner's wait for `name`.

    `before_ms` not 0: only if its last request came by this log time; a client that came back
    to its place meanwhile keeps it.
    """

    session: SessionId
    name: LockName
    owner: Label = ""
    before_ms: Annotated[int, Meta(ge=0)] = 0


class Break(_Command, frozen=True):
    """Take a lock from whoever holds it. `by` and `reason` go into its history."""

    name: LockName
    by: Label = ""
    reason: Label = ""


class Keyed(_Command, frozen=True):
    """The command `[op, args]`, carried out once per key; `digest` tells bodies apart."""

    key: Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX)]
    digest: Annotated[bytes, Meta(max_length=32)]
    op: str
    args: msgspec.Raw


class ExpireSessions(_Command, frozen=True):
    """End each (session, renewals) that was not renewed since and whose time is over."""

    sessions: list[tuple[str, int]]


class ExpireWaits(_Command, frozen=True):
    """End the waits with these tickets whose time is over."""

    tickets: list[int]


class ExpireGrants(_Command, frozen=True):
    """Take back the grants with these tokens that nobody confirmed in time."""

    tokens: list[int]


class Withdraw(_Command, frozen=True):
    """A node stops: end the waits that its clients stand in, told by (entry index, position).

    Nothing was done, and whoever asks again has its old place. By the place of the question, not
    by its name: a wait that was taken over from another node goes on.
    """

    places: list[tuple[int, int]]


class GetLock(_Command, frozen=True):
    name: LockName

    def __post_init__(self) -> None:
        check_name(self.name)


class ExplainLock(GetLock, frozen=True):
    pass


class LockHistory(GetLock, frozen=True):
    pass


class VerifyToken(_Command, frozen=True):
    name: LockName
    token: TokenValue

    def __post_init__(self) -> None:
        check_name(self.name)


class ListLocks(_Command, frozen=True):
    """Held locks in the order of their names, after `cursor` (the previous page's `next`)."""

    prefix: Prefix = ""
    limit: Annotated[int, Meta(ge=1, le=LIST_ITEMS_MAX)] = LIST_ITEMS_DEFAULT
    cursor: Prefix = ""


class GetSession(_Command, frozen=True):
    session: SessionId


class WatchSession(_Command, frozen=True):
    """On a stream: push what happens to the session, its late grants too."""

    session: SessionId


class FollowEvents(_Command, frozen=True):
    """On a stream: push what happens to locks whose names begin so."""

    prefix: Prefix = ""
    since: Count | None = None
    """The last event seen, by its number; None: from now on."""


class UnfollowEvents(_Command, frozen=True):
    subscription: int
    """The request id of the FollowEvents."""


Sequenced = Acquire | AcquireMany | Release | Upgrade | Downgrade
Write = SessionCreate | SessionKeepalive | SessionEnd | Sequenced | Confirm | Cancel
Internal = ExpireSessions | ExpireWaits | ExpireGrants | Break | Keyed | Withdraw
Read = GetLock | ExplainLock | LockHistory | VerifyToken | ListLocks | GetSession | WatchSession
Local = FollowEvents | UnfollowEvents

_WRITES: Final[dict[str, type[msgspec.Struct]]] = {
    "session.create": SessionCreate,
    "session.keepalive": SessionKeepalive,
    "session.end": SessionEnd,
    "acquire": Acquire,
    "acquire_many": AcquireMany,
    "release": Release,
    "upgrade": Upgrade,
    "downgrade": Downgrade,
    "confirm": Confirm,
    "cancel": Cancel,
}
_READS: Final[dict[str, type[msgspec.Struct]]] = {
    "get": GetLock,
    "explain": ExplainLock,
    "history": LockHistory,
    "verify": VerifyToken,
    "list": ListLocks,
    "session.get": GetSession,
    "session.watch": WatchSession,
}
_LOCAL: Final[dict[str, type[msgspec.Struct]]] = {
    "events": FollowEvents,
    "events.stop": UnfollowEvents,
}
_INTERNAL: Final[dict[str, type[msgspec.Struct]]] = {
    "expire_sessions": ExpireSessions,
    "expire_waits": ExpireWaits,
    "expire_grants": ExpireGrants,
    "break": Break,
    "keyed": Keyed,
    "withdraw": Withdraw,
}

CLIENT_CODEC: Final = CommandCodec(_WRITES | _READS | _LOCAL)
"""What a client may send on a stream; only writes reach the log."""
KEYED_CODEC: Final = CommandCodec(_WRITES | {"break": Break})
"""What an HTTP request with an Idempotency-Key may carry."""


class LogCodec(CommandCodec):
    """A keyed command needs the level of what it carries."""

    def level_of(self, command: msgspec.Struct) -> int:
        own = super().level_of(command)
        if not isinstance(command, Keyed):
            return own
        return max(own, KEYED_CODEC.level_of(KEYED_CODEC.decode_args(command.op, command.args)))


LOG_CODEC: Final = LogCodec(_WRITES | _INTERNAL)
"""What may stand in the log."""
READ_OPS: Final = frozenset(_READS)
"""Answered by the leader's machine after a ReadIndex round."""
LOCAL_OPS: Final = frozenset(_LOCAL)
"""Answered by the client's node, out of what it has applied."""
