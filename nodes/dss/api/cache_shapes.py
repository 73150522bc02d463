"""What cache requests and answers look like, over HTTP and the stream: shapes and checks.

Over HTTP one value is the body itself and a batch is JSON; over the stream values are msgpack
bytes. What must not live here: routes, ops, decisions.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from dss.api.problem import ErrorReply
from dss.base import limits
from dss.base.errors import DssError, NotFound, TooLarge
from dss.core.mesi.effects import Answer
from dss.core.mesi.messages import ANY_VERSION
from dss.drivers.caches import CacheService

DEFAULT_TYPE: Final = "application/octet-stream"
CONTENT_TYPE_MAX: Final = 256

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
Ttl = Annotated[int, msgspec.Meta(ge=limits.CACHE_TTL_MS_MIN, le=limits.CACHE_TTL_MS_MAX)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
BATCH: Final = msgspec.Meta(min_length=1, max_length=limits.BATCH_ITEMS_MAX)

Versions = tuple[int, ...] | None
"""What a condition names; ANY_VERSION: whatever there is. None: no condition."""


class Version(msgspec.Struct):
    """A write's new version; also its ETag."""

    version: int


class GetMany(msgspec.Struct, forbid_unknown_fields=True):
    keys: Annotated[list[Name], BATCH]


class Increment(msgspec.Struct, forbid_unknown_fields=True):
    """Add `delta` to the integer at `key` (0 when there is none)."""

    key: Name
    delta: Int64 = 1
    ttl_ms: Ttl | None = None


class Counted(msgspec.Struct):
    value: int
    version: int


class Results(msgspec.Struct):
    """One per item, in order: `{ok: true, …}` or `{ok: false, code, message}`."""

    results: list[dict[str, Any]]


def failure(answer: Answer) -> DssError:
    """The error of a refused request; 412 and 404 name the version if there is one."""
    if answer.status == 404:
        return NotFound(answer.message)
    body: dict[str, Any] = {"code": answer.code, "message": answer.message}
    if answer.retry_after_ms:
        body["retry_after_ms"] = answer.retry_after_ms
    if answer.status == 412:
        body["version"] = answer.version
    return ErrorReply(answer.status, body)


def is_unchanged(key: str, version: int, wanted: Versions, unwanted: Versions) -> bool:
    """Whether the reader has this version already: 304.

    Raises:
        ErrorReply: 412 `precondition_failed`, it is not one that the reader wants.
    """
    if wanted is not None and not _matches(wanted, version):
        message = f"cache key {key!r}: the condition does not hold: its version is {version}"
        code = "precondition_failed"
        raise ErrorReply(412, {"code": code, "message": message, "version": version})
    return unwanted is not None and _matches(unwanted, version)


def _matches(versions: tuple[int, ...], version: int) -> bool:
    return ANY_VERSION in versions or version in versions


def check_size(key: str, value: bytes) -> None:
    """Raises TooLarge."""
    if len(value) > limits.VALUE_BYTES_MAX:
        raise TooLarge(
            f"{key!r}: the value is larger than {limits.VALUE_BYTES_MAX} bytes",
            limit=limits.VALUE_BYTES_MAX,
        )


def check_together(bytes_together: int) -> None:
    """Raises TooLarge when a batch's values do not fit one answer."""
    if bytes_together > limits.STREAM_MESSAGE_BYTES_MAX:
        raise TooLarge(
            f"the values are larger than {limits.STREAM_MESSAGE_BYTES_MAX} bytes "
            "together: ask for fewer keys",
            limit=limits.STREAM_MESSAGE_BYTES_MAX,
        )


def copy_here(service: CacheService, key: str) -> Answer | None:
    """This node's copy of `key`, as the answer to a read."""
    line = service.lookup(key)
    if line is None:
        return None
    return Answer(0, 200, "", "", line.version, line.value, line.content_type)


def result_of(key: str, answer: Answer) -> dict[str, Any]:
    """One item of a batch's answer, without its value."""
    if answer.status >= 400:
        return {"ok": False, "key": key, "code": answer.code, "message": answer.message}
    return {"ok": True, "key": key, "version": answer.version}
