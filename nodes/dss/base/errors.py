"""The few errors of DSS: each with its stable code, HTTP status and what the caller does next.

The same `code` and wording appear on the command line, in HTTP (RFC 9457) and in logs.
What must not live here: formatting for a terminal (cli) or for HTTP (api).
"""

from __future__ import annotations

from typing import Any


class DssError(Exception):
    """A failure with a stable code that a client can act on.

    Args:
        message: one line for a person: the thing, the place, what was expected, the next step.
        retry_after_ms: when repeating the same request may help; None when it cannot.
        extra: further members of the problem document, JSON-able.
    """

    code = "internal"
    status = 500

    def __init__(self, message: str, *, retry_after_ms: int | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The error as the stream protocol and problem documents carry it."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        body.update(self.extra)
        return body


class Invalid(DssError):
    """The request breaks the API's shape or a limit: correct it, do not repeat it."""

    code = "invalid"
    status = 422


class TooLarge(DssError):
    """A body, name or batch beyond its limit."""

    code = "too_large"
    status = 413


class Unauthenticated(DssError):
    """No bearer token, or one that is not known: get a token, then repeat."""

    code = "unauthenticated"
    status = 401


class Forbidden(DssError):
    """Not with this token (an administrator's is needed), or not from a page of another origin."""

    code = "forbidden"
    status = 403


class NotFound(DssError):
    code = "not_found"
    status = 404


class Conflict(DssError):
    """The state does not allow it; `code` says which rule (`not_holder`, `lock_timeout`, …)."""

    status = 409

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        super().__init__(message, **extra)
        self.code = code


class WrongRole(DssError):
    """The route belongs to another role's nodes; the message names them."""

    code = "wrong_role"
    status = 421


class Overloaded(DssError):
    """A bounded queue is full: back off and repeat."""

    code = "overloaded"
    status = 429


class NoQuorum(DssError):
    """No leader with a quorum is known: nothing was done; repeat after `retry_after_ms`."""

    code = "no_quorum"
    status = 503


class Unavailable(DssError):
    """A part that this request needs is down: nothing was done; repeat later."""

    code = "unavailable"
    status = 503


class Indeterminate(DssError):
    """The write may or may not have happened: read the state, or repeat it if it is idempotent."""

    code = "indeterminate"
    status = 504


class CorruptData(DssError):
    """Stored data fails its checksum where it was known to be durable: the node must not serve."""

    code = "corrupt_data"
    status = 500


class StorageFailed(DssError):
    """The disk refused a write or sync: nothing after it is durable, so the node must stop."""

    code = "storage_failed"
    status = 500


class ConfigProblem(DssError):
    """One bad setting. `message` is the whole line; the process exits with 78 (EX_CONFIG)."""

    code = "bad_configuration"
    status = 500


EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 69
EXIT_TRY_AGAIN = 75
EXIT_CONFIG = 78


class RemoteError(DssError):
    """Another node's error, passed on with its own code and status."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        extra = {
            key: value
            for key, value in body.items()
            if key not in ("code", "message", "retry_after_ms")
        }
        super().__init__(
            str(body.get("message", "no message")),
            retry_after_ms=body.get("retry_after_ms"),
            **extra,
        )
        self.code = str(body.get("code", "internal"))
        self.status = status
