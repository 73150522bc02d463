"""Bodies in and out of HTTP: checked requests, JSON answers, problem documents (RFC 9457).

Every handler uses these helpers, so that a wrong body, a bad name and an error look the same on
every route. What must not live here: routes, decisions, anything of one service.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from dss.base.errors import DssError, Invalid, TooLarge
from dss.base.limits import BODY_BYTES_MAX, NAME_BYTES_MAX
from dss.base.names import excess_size, has_dot_segment

Struct = TypeVar("Struct")

JSON_TYPE: Final = "application/json"
PROBLEM_TYPE: Final = "application/problem+json"

_JSON_HEADERS: Final = {"Content-Type": JSON_TYPE, "Server": "dss"}
_encode = msgspec.json.Encoder().encode
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

_BYTE_POSITION: Final = re.compile(r" \(byte (\d+)\)$")
_AT_FIELD: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING_FIELD: Final = re.compile(r"missing required field `(.*?)`")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(.*?)`")


class ErrorReply(DssError):
    """An error that a state machine or another node answered: its code and status are kept."""

    def __init__(self, status: int, body: Any) -> None:
        members = dict(body) if isinstance(body, dict) else {}
        code = members.pop("code", None)
        message = members.pop("message", None)
        retry_after_ms = members.pop("retry_after_ms", None)
        super().__init__(str(message or HTTPStatus(status).phrase), retry_after_ms=retry_after_ms)
        self.extra = members
        self.status = status
        self.code = str(code or "internal")


# --- answers ------------------------------------------------------------------------------


def problem_response(error: DssError) -> web.Response:
    """The problem document of `error`: type, title, status, detail, code, its extra members.

    `Retry-After` (whole seconds, rounded up) accompanies `retry_after_ms`.
    """
    document: dict[str, Any] = dict(error.extra)
    document.update(
        type=f"urn:dss:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=error.status,
        detail=error.message,
        code=error.code,
    )
    headers = {"Content-Type": PROBLEM_TYPE, "Server": "dss"}
    if error.retry_after_ms is not None:
        document["retry_after_ms"] = error.retry_after_ms
        headers["Retry-After"] = str(max(1, -(-error.retry_after_ms // 1000)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="dss"'
    return web.Response(status=error.status, body=_encode(document), headers=headers)


def result_response(status: int, body: Any) -> web.Response:
    """A machine's or a call's `(status, body)` as HTTP.

    Args:
        status: below 400: `body` becomes the JSON body (None becomes `{}`; 204 has no body).
        body: from 400 on: `{code, message, retry_after_ms?, …}`, rendered as a problem.
    """
    if status >= 400:
        return problem_response(ErrorReply(status, body))
    if status == 204:
        return web.Response(status=204, headers={"Server": "dss"})
    data = b"{}" if body is None else _encode(body)
    return web.Response(status=status, body=data, headers=_JSON_HEADERS)


# --- requests -----------------------------------------------------------------------------


async def read_body(request: web.Request) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it is longer than BODY_BYTES_MAX; refused by its Content-Length when it has one.
    """
    announced = request.content_length
    if announced is not None and announced > BODY_BYTES_MAX:
        _body_too_large()
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        _body_too_large()
    if len(body) > BODY_BYTES_MAX:
        _body_too_large()
    return body


async def read_json(request: web.Request, kind: type[Struct]) -> Struct:
    """The JSON body as a validated `kind`; an empty body counts as `{}`.

    Raises:
        Invalid: not JSON (with `line` and `column`), or a field that is missing, unknown, of the
            wrong type or beyond its limit (with `field`).
        TooLarge: longer than BODY_BYTES_MAX.
    """
    body = await read_body(request)
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        decoded: Struct = decoder.decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise wrong_field(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken_json(body, str(error)) from error
    return decoded


def path_name(request: web.Request, key: str = "name") -> str:
    """The decoded path parameter `key`, checked as a name.

    Raises:
        Invalid: longer than NAME_BYTES_MAX bytes of UTF-8, not UTF-8, or with an empty, `.` or
            `..` segment (proxies would rewrite such a path).
    """
    name = request.match_info[key]
    if "%" in name:
        _check_utf8(request)
    check_name(name)
    return name


def check_name(name: str) -> None:
    """The rule of names, for paths, bodies and streams alike; raises Invalid."""
    if size := excess_size(name):
        raise Invalid(
            f"the name has {size} bytes; at most {NAME_BYTES_MAX} bytes of UTF-8 are allowed",
            limit=NAME_BYTES_MAX,
        )
    if has_dot_segment(name):
        raise Invalid(f"the name {name!r} has an empty, '.' or '..' segment; choose another name")


def _check_utf8(request: web.Request) -> None:
    """A decoded name that still has a '%': the path held %25, or bytes that are not UTF-8."""
    try:
        unquote_to_bytes(request.rel_url.raw_path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("the name in the path is not percent-encoded UTF-8") from error


def _body_too_large() -> NoReturn:
    raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", limit=BODY_BYTES_MAX)


def wrong_field(reason: str, what: str = "the JSON body") -> Invalid:
    """msgspec's complaint about a decoded `what`, with `field` where it names one."""
    place = _AT_FIELD.search(reason)
    parent = place.group(1) if place else ""
    plain = reason[: place.start()] if place else reason
    named = _MISSING_FIELD.search(plain) or _UNKNOWN_FIELD.search(plain)
    field = ".".join(part for part in (parent, named.group(1) if named else "") if part)
    if not field:
        return Invalid(f"{what}: {plain}")
    return Invalid(f"field {field!r}: {plain}", field=field)


def _broken_json(body: bytes, reason: str) -> Invalid:
    position = _BYTE_POSITION.search(reason)
    plain = reason[: position.start()] if position else reason
    before = body[: int(position.group(1))] if position else body
    line = before.count(b"\n") + 1
    line_start = before.rfind(b"\n") + 1
    column = len(before[line_start:].decode("utf-8", "replace")) + 1
    plain = plain.removeprefix("JSON is malformed: ")
    return Invalid(
        f"the body is not JSON: line {line}, column {column}: {plain}", line=line, column=column
    )
