"""`/v1/cache`: values as raw bodies, their version as a strong ETag; batches and lines as JSON.

What must not live here: decisions about coherence (core/mesi), about where a key lives.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from dss.api.cache_shapes import (
    BATCH,
    CONTENT_TYPE_MAX,
    DEFAULT_TYPE,
    Counted,
    GetMany,
    Increment,
    Name,
    Results,
    Ttl,
    Version,
    Versions,
    check_size,
    check_together,
    copy_here,
    failure,
    is_unchanged,
    result_of,
)
from dss.api.cache_stream import stream_route
from dss.api.problem import check_name, path_name, read_body, read_json
from dss.api.routes import Route
from dss.base import limits
from dss.base.errors import Invalid
from dss.core.mesi.effects import Answer
from dss.core.mesi.messages import ANY_VERSION, DELETE, INCR, PUT
from dss.drivers.caches import CacheService, CacheStats, LineView

_NOTHING: Final = {"Server": "dss"}
_AWAY: Final = (429, 503, 504)
"""Too many requests for a key; its home or the main memory is away; nobody knows."""
IF_MATCH: Final = "If-Match"
IF_NONE_MATCH: Final = "If-None-Match"
CONDITIONS: Final = {
    IF_MATCH: "* or versions (ETags): only while the value has one of them",
    IF_NONE_MATCH: "* or versions (ETags): only while the value has none of them",
}
_encode = msgspec.json.Encoder().encode
_etag = re.compile(r'\s*"(\d{1,19})"\s*')


class SetItem(msgspec.Struct, forbid_unknown_fields=True):
    """`value` is text, `value_base64` bytes: exactly one of them."""

    key: Name
    value: str | None = None
    value_base64: str | None = None
    ttl_ms: Ttl | None = None


class SetMany(msgspec.Struct, forbid_unknown_fields=True):
    items: Annotated[list[SetItem], BATCH]


def routes(service: CacheService) -> list[Route]:
    """The cache's routes over `service`."""
    api = _CacheApi(service)
    key = "/v1/cache/{key}"
    return [
        stream_route(service),
        Route(
            method="GET",
            path="/v1/cache:stats",
            handler=api.stats,
            summary="Hits, misses, states, evictions, invalidations of the answering node",
            response=CacheStats,
        ),
        Route(
            method="POST",
            path="/v1/cache:get",
            handler=api.get_many,
            summary="Read up to 1,000 keys",
            request=GetMany,
            response=Results,
        ),
        Route(
            method="POST",
            path="/v1/cache:set",
            handler=api.set_many,
            summary="Write up to 1,000 keys; each is its own transaction",
            request=SetMany,
            response=Results,
        ),
        Route(
            method="POST",
            path="/v1/cache:incr",
            handler=api.increment,
            summary="Add to an integer, atomically",
            request=Increment,
            response=Counted,
            errors=_AWAY,
        ),
        Route(
            method="GET",
            path=key,
            handler=api.get,
            summary="Read a value: the raw body, its content type, its version as ETag",
            response=bytes,
            also={304: None},
            headers=CONDITIONS,
            errors=(404, 412, *_AWAY),
        ),
        Route(
            method="PUT",
            path=key,
            handler=api.put,
            summary="Write a value (the raw body, of any Content-Type, which a read gives back); "
            "acknowledged when main memory has it",
            request=bytes,
            response=Version,
            also={201: Version},
            headers=CONDITIONS,
            errors=(412, *_AWAY),
            query={"ttl_ms": "Life of the value in ms, 100 to 86,400,000; default: for ever"},
        ),
        Route(
            method="DELETE",
            path=key,
            handler=api.delete,
            summary="Delete a value",
            status=204,
            headers=CONDITIONS,
            errors=(404, 412, *_AWAY),
        ),
        Route(
            method="GET",
            path=key + "/line",
            handler=api.line,
            summary="The MESI state here, and home, owner, sharers, version",
            response=LineView,
        ),
    ]


class _CacheApi:
    """The handlers, bound to one service."""

    def __init__(self, service: CacheService) -> None:
        self._service = service

    async def get(self, request: web.Request) -> web.StreamResponse:
        key = path_name(request, "key")
        found: Any = self._service.lookup(key)
        if found is None:
            found = await self._service.read(key)
            if found.status >= 400:
                raise failure(found)
        headers = {
            "Content-Type": found.content_type or DEFAULT_TYPE,
            "ETag": f'"{found.version}"',
            "Server": "dss",
        }
        if IF_NONE_MATCH in request.headers or IF_MATCH in request.headers:
            wanted, unwanted = _conditions(request)
            if is_unchanged(key, found.version, wanted, unwanted):
                return web.Response(status=304, headers={"ETag": headers["ETag"], **_NOTHING})
        return web.Response(body=found.value, headers=headers)

    async def put(self, request: web.Request) -> web.StreamResponse:
        key = path_name(request, "key")
        ttl_ms = _ttl(request)
        wanted, unwanted = _conditions(request)
        kind = request.headers.get("Content-Type", "")
        if len(kind) > CONTENT_TYPE_MAX:
            raise Invalid(f"Content-Type is longer than {CONTENT_TYPE_MAX} characters")
        value = await read_body(request)
        answer = await self._service.write(key, PUT, value, kind, ttl_ms, wanted, unwanted)
        if answer.status >= 400:
            raise failure(answer)
        headers = {"ETag": f'"{answer.version}"', "Content-Type": "application/json", **_NOTHING}
        body = _encode(Version(answer.version))
        return web.Response(status=answer.status, body=body, headers=headers)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        key = path_name(request, "key")
        wanted, unwanted = _conditions(request)
        answer = await self._service.write(key, DELETE, if_match=wanted, if_none_match=unwanted)
        if answer.status >= 400:
            raise failure(answer)
        return web.Response(status=204, headers=_NOTHING)

    async def line(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._service.line(path_name(request, "key")))

    async def stats(self, request: web.Request) -> web.StreamResponse:
        return _json(self._service.stats())

    async def get_many(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, GetMany)
        for key in body.keys:
            check_name(key)
        # All are asked for before the first is awaited: their homes work side by side.
        service = self._service
        found = [copy_here(service, key) or service.read(key) for key in body.keys]
        size = 0
        results = []
        for key, item in zip(body.keys, found, strict=True):
            answer = item if isinstance(item, Answer) else await item
            size += len(answer.value)
            check_together(size)
            results.append(_result(key, answer))
        return _json(Results(results))

    async def set_many(self, request: web.Request) -> web.StreamResponse:
        items = (await read_json(request, SetMany)).items
        writes = []
        for item in items:
            check_name(item.key)
            value, kind = _value_of(item)
            writes.append((item.key, PUT, value, kind, item.ttl_ms or 0))
        futures = [self._service.write(*write) for write in writes]
        answers: Sequence[Answer] = [await future for future in futures]
        return _json(Results([result_of(i.key, a) for i, a in zip(items, answers, strict=True)]))

    async def increment(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, Increment)
        check_name(body.key)
        answer = await self._service.write(
            body.key, INCR, ttl_ms=body.ttl_ms or 0, delta=body.delta
        )
        if answer.status >= 400:
            raise failure(answer)
        return _json(Counted(int(answer.value), answer.version))


# --- helpers ------------------------------------------------------------------------------


def _conditions(request: web.Request) -> tuple[Versions, Versions]:
    headers = request.headers
    return _versions(headers, IF_MATCH), _versions(headers, IF_NONE_MATCH)


def _versions(headers: Any, name: str) -> Versions:
    """`*` or a list of strong ETags that this API has given out."""
    text = headers.get(name)
    if text is None:
        return None
    if text.strip() == "*":
        return (ANY_VERSION,)
    versions = []
    for part in text.split(",")[: limits.BATCH_ITEMS_MAX]:
        match = _etag.fullmatch(part)
        if match is None:
            raise Invalid(f'{name}: expected * or versions like "17", not {part.strip()!r}')
        versions.append(min(int(match[1]), 2**63 - 1))
    return tuple(versions)


def _ttl(request: web.Request) -> int:
    text = request.query.get("ttl_ms")
    if text is None:
        return 0
    low, high = limits.CACHE_TTL_MS_MIN, limits.CACHE_TTL_MS_MAX
    ttl_ms = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
    if not low <= ttl_ms <= high:
        raise Invalid(f"ttl_ms={text!r}: expected whole ms, {low} to {high}")
    return ttl_ms


def _value_of(item: SetItem) -> tuple[bytes, str]:
    if (item.value is None) == (item.value_base64 is None):
        raise Invalid(f"{item.key!r}: give exactly one of value and value_base64")
    if item.value is not None:
        value, kind = item.value.encode(), "text/plain; charset=utf-8"
    else:
        try:
            value = base64.b64decode(item.value_base64 or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid(f"{item.key!r}: value_base64: {error}") from error
        kind = DEFAULT_TYPE
    check_size(item.key, value)
    return value, kind


def _result(key: str, answer: Answer) -> dict[str, Any]:
    """With its value; text that is not UTF-8 comes as `value_base64`."""
    result = result_of(key, answer)
    if answer.status < 400:
        try:
            result["value"] = answer.value.decode()
        except UnicodeDecodeError:
            result["value_base64"] = base64.b64encode(answer.value).decode()
        result["content_type"] = answer.content_type or DEFAULT_TYPE
    return result


def _json(body: Any) -> web.Response:
    return web.Response(
        body=_encode(body), headers={"Content-Type": "application/json", **_NOTHING}
    )
