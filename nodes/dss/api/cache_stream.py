"""`/v1/cache:stream`: the cache routes as ops of the stream protocol.

| op | args | answer |
|---|---|---|
| get | `key`, `if_match`, `if_none_match` | 200 `{value, version, content_type}`; 304 `{version}` |
| set | `key`, `value`, `content_type`, `ttl_ms`, conditions as get | 200, 201 `{version}` |
| delete | `key`, conditions as get | 204 |
| incr | `key`, `delta`, `ttl_ms` | 200 `{value, version}` |
| get_many | `keys` | 200 `{results}`, each with its value |
| set_many | `items`: `key`, `value`, `content_type`, `ttl_ms` | 200 `{results}` |

Values are msgpack bytes. A condition is `"*"` or a list of versions, which are ETags over HTTP.

A copy that this node may serve is answered within the call that read the request, without a task
or an await; what asks a home is a future with a callback. What must not live here: decisions about
coherence (core/mesi), about where a key lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec

from dss.api.cache_shapes import (
    BATCH,
    CONTENT_TYPE_MAX,
    DEFAULT_TYPE,
    Counted,
    GetMany,
    Increment,
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
from dss.api.problem import check_name
from dss.api.routes import Route
from dss.api.stream import StreamConnection, session_handler
from dss.api.stream_calls import Handle, Op, StreamCalls
from dss.base.limits import BATCH_ITEMS_MAX
from dss.core.machine import Result
from dss.core.mesi.agent import Line
from dss.core.mesi.effects import Answer
from dss.core.mesi.messages import ANY_VERSION, DELETE, INCR, PUT
from dss.drivers.caches import CacheService

PATH: Final = "/v1/cache:stream"

ContentType = Annotated[str, msgspec.Meta(max_length=CONTENT_TYPE_MAX)]
Condition = (
    Literal["*"]
    | Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]],
        msgspec.Meta(max_length=BATCH_ITEMS_MAX),
    ]
    | None
)


class GetArgs(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    if_match: Condition = None
    if_none_match: Condition = None


class DeleteArgs(GetArgs, forbid_unknown_fields=True):
    pass


class SetItemArgs(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    value: bytes
    content_type: ContentType = ""
    ttl_ms: Ttl | None = None


class SetArgs(SetItemArgs, forbid_unknown_fields=True):
    if_match: Condition = None
    if_none_match: Condition = None


class SetManyArgs(msgspec.Struct, forbid_unknown_fields=True):
    items: Annotated[list[SetItemArgs], BATCH]


class CachedValue(msgspec.Struct, gc=False):
    value: bytes
    version: int
    content_type: str


_DECODERS: Final = {
    op: msgspec.msgpack.Decoder(kind)
    for op, kind in (
        ("get", GetArgs), ("set", SetArgs), ("delete", DeleteArgs), ("incr", Increment),
        ("get_many", GetMany), ("set_many", SetManyArgs),
    )
}  # fmt: skip


class CacheStream(StreamCalls):
    """One connection's cache requests."""

    def __init__(self, service: CacheService, connection: StreamConnection) -> None:
        super().__init__(connection)
        self._service = service

    def ops(self) -> Mapping[str, Op]:
        handles: dict[str, Handle] = {
            "get": self._get, "set": self._set, "delete": self._delete, "incr": self._incr,
            "get_many": self._get_many, "set_many": self._set_many,
        }  # fmt: skip
        return {op: (_DECODERS[op], handle) for op, handle in handles.items()}

    def _get(self, request_id: int, args: GetArgs, size: int) -> bool:
        key = args.key
        check_name(key)
        line = self._service.lookup(key)
        if line is not None:
            self.connection.answer(request_id, *_found(args, line))
            return False
        return self.when_done(request_id, self._service.read(key), partial(_read, args))

    def _set(self, request_id: int, args: SetArgs, size: int) -> bool:
        check_name(args.key)
        check_size(args.key, args.value)
        answer = self._service.write(
            args.key, PUT, args.value, args.content_type, args.ttl_ms or 0,
            _versions(args.if_match), _versions(args.if_none_match),
        )  # fmt: skip
        return self.when_done(request_id, answer, _written)

    def _delete(self, request_id: int, args: DeleteArgs, size: int) -> bool:
        check_name(args.key)
        wanted, unwanted = _versions(args.if_match), _versions(args.if_none_match)
        answer = self._service.write(args.key, DELETE, if_match=wanted, if_none_match=unwanted)
        return self.when_done(request_id, answer, _deleted)

    def _incr(self, request_id: int, args: Increment, size: int) -> bool:
        check_name(args.key)
        answer = self._service.write(args.key, INCR, ttl_ms=args.ttl_ms or 0, delta=args.delta)
        return self.when_done(request_id, answer, _counted)

    def _get_many(self, request_id: int, args: GetMany, size: int) -> bool:
        for key in args.keys:
            check_name(key)
        service = self._service
        found = [copy_here(service, key) or service.read(key) for key in args.keys]
        asked = [one for one in found if not isinstance(one, Answer)]
        if not asked:
            answers = [one for one in found if isinstance(one, Answer)]
            self.connection.answer(request_id, *_values(args.keys, answers))
            return False

        def render(read: list[Answer]) -> Result:
            late = iter(read)
            every = [one if isinstance(one, Answer) else next(late) for one in found]
            return _values(args.keys, every)

        return self.when_done(request_id, asyncio.gather(*asked), render)

    def _set_many(self, request_id: int, args: SetManyArgs, size: int) -> bool:
        items = args.items
        for item in items:
            check_name(item.key)
            check_size(item.key, item.value)
        write = self._service.write
        answers = asyncio.gather(
            *(write(i.key, PUT, i.value, i.content_type, i.ttl_ms or 0) for i in items)
        )

        def render(written: list[Answer]) -> Result:
            results = [result_of(i.key, a) for i, a in zip(items, written, strict=True)]
            return 200, Results(results)

        return self.when_done(request_id, answers, render)


def stream_route(service: CacheService) -> Route:
    """The route of the stream."""
    return Route(
        method="GET",
        path=PATH,
        handler=session_handler(partial(CacheStream, service)),
        status=101,
        errors=(400,),
        summary="WebSocket: msgpack arrays of [request_id, op, args] and answers",
    )


def _versions(condition: Condition) -> Versions:
    if condition is None:
        return None
    return (ANY_VERSION,) if condition == "*" else tuple(condition)


def _found(args: GetArgs, found: Line | Answer) -> Result:
    if (args.if_match is not None or args.if_none_match is not None) and is_unchanged(
        args.key, found.version, _versions(args.if_match), _versions(args.if_none_match)
    ):
        return 304, Version(found.version)
    return 200, CachedValue(found.value, found.version, found.content_type or DEFAULT_TYPE)


def _read(args: GetArgs, answer: Answer) -> Result:
    return _found(args, _checked(answer))


def _written(answer: Answer) -> Result:
    return _checked(answer).status, Version(answer.version)


def _deleted(answer: Answer) -> Result:
    _checked(answer)
    return 204, None


def _counted(answer: Answer) -> Result:
    return 200, Counted(int(_checked(answer).value), answer.version)


def _checked(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise failure(answer)
    return answer


def _values(keys: Sequence[str], answers: Sequence[Answer]) -> Result:
    check_together(sum(len(answer.value) for answer in answers))
    results: list[dict[str, Any]] = []
    for key, answer in zip(keys, answers, strict=True):
        result = result_of(key, answer)
        if answer.status < 400:
            result["value"] = answer.value
            result["content_type"] = answer.content_type or DEFAULT_TYPE
        results.append(result)
    return 200, Results(results)
