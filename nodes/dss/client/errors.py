"""From an answer's status and body to the error class a caller can catch.

What must not live here: when to repeat a request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from dss.base.errors import (
    Conflict,
    CorruptData,
    DssError,
    Forbidden,
    Indeterminate,
    Invalid,
    NoQuorum,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WrongRole,
)

_BY_CODE: Final[dict[str, type[DssError]]] = {
    kind.code: kind
    for kind in (
        CorruptData, DssError, Forbidden, Indeterminate, Invalid, NoQuorum, NotFound, Overloaded,
        TooLarge, Unauthenticated, Unavailable, WrongRole,
    )
}  # fmt: skip
_BY_STATUS: Final[dict[int, type[DssError]]] = {
    401: Unauthenticated, 403: Forbidden, 404: NotFound, 413: TooLarge, 421: WrongRole,
    422: Invalid, 429: Overloaded, 502: Unavailable, 503: Unavailable, 504: Indeterminate,
}  # fmt: skip
_PROBLEM_MEMBERS: Final = ("type", "title", "status", "detail", "code", "message", "retry_after_ms")


class Closed(DssError):
    """The client is not connected any more: nothing was sent.

    Example:
        ended = await connect()
        await ended.aclose()
        try:
            await ended.lock("orders/42").acquire()
        except Closed as closed:
            print(closed)
    """

    code = "client_closed"

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message or "the client is closed: use it inside its `with connect(…) as client` block"
        )


class LockTimeout(Conflict):
    """Busy for all of `wait`; the message says who has it and where one stood in line.

    Example:
        holder = client.lock("busy")
        await holder.acquire()
        try:
            await client.lock("busy", wait=0.1).acquire()
        except LockTimeout as busy:
            print(busy)  # who holds it, for how long, where one stood in line
        await holder.release()
    """


class DeadlockError(Conflict):
    """Waiting would never end: `cycle` says who waits for which lock, the caller first.

    It still holds what it held. Release that and start over, or enter the same handle again: it
    has its old place in line.

    Example:
        async with client.lock("a"):
            try:
                async with client.lock("a"):  # would wait for itself
                    pass
            except DeadlockError as deadlock:
                print([step["name"] for step in deadlock.cycle])
    """

    @property
    def cycle(self) -> list[dict[str, Any]]:
        """Of each: `session` (its handle, not its id), `owner`, `label` for people, `name` (and
        `names`) of its lock."""
        return list(self.extra.get("cycle", ()))


_CONFLICTS: Final[dict[str, type[Conflict]]] = {
    "lock_timeout": LockTimeout, "deadlock": DeadlockError,
}  # fmt: skip

REPEATABLE: Final = (NoQuorum, Unavailable, Overloaded)
"""Nothing was done: the same request may be repeated after `retry_after_ms`."""


def unreachable(role: str, reasons: Mapping[str, str]) -> Unavailable:
    """Nobody of `role` answers.

    Args:
        reasons: by URL, in words.
    """
    shown = ", ".join(list(reasons)[:3]) + (", …" if len(reasons) > 3 else "")
    why = "; ".join(dict.fromkeys(reasons.values())) or "none is known"
    return Unavailable(
        f"no {role} node answers{' at ' if shown else ''}{shown} ({why}). Start a cluster with: "
        "dss up, or name the nodes of one in DSS_ENDPOINTS"
    )


def plain(error: BaseException) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"host {error.host} is not known"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        return (os.strerror(cause.errno) if cause.errno else str(cause)).lower()
    return str(error) or type(error).__name__


def error_of(status: int, body: Any) -> DssError:
    """The error that an answer with `status` >= 400 means.

    Args:
        body: a problem document, or the stream's `{code, message, …}`; anything else is shown.
    """
    members = body if isinstance(body, dict) else {"detail": f"HTTP {status}: {str(body)[:200]}"}
    message = str(members.get("detail") or members.get("message") or f"HTTP {status}")
    code = str(members.get("code") or "")
    extra = {key: value for key, value in members.items() if key not in _PROBLEM_MEMBERS}
    retry_after_ms = members.get("retry_after_ms")
    error: DssError
    kind = _BY_CODE.get(code)
    if kind is None and status == 409:
        error = _CONFLICTS.get(code, Conflict)(code or "conflict", message)
    else:
        error = (kind or _BY_STATUS.get(status, DssError))(message)
    error.code = code or error.code
    error.status = status
    error.extra = extra
    error.retry_after_ms = retry_after_ms if isinstance(retry_after_ms, int) else None
    return error
