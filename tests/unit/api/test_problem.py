"""api/problem.py over a real server: names, bodies and errors as a client meets them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from dss.api.problem import path_name, problem_response, read_json, result_response
from dss.base.errors import Conflict, DssError, NoQuorum
from dss.base.limits import BODY_BYTES_MAX, NAME_BYTES_MAX


class Body(msgspec.Struct, forbid_unknown_fields=True):
    ttl_ms: Annotated[int, msgspec.Meta(ge=100)]
    tags: list[str] = []


async def put_name(request: web.Request) -> web.Response:
    return result_response(200, {"name": path_name(request)})


async def acquire_many(request: web.Request) -> web.Response:
    return result_response(200, {"many": True})


async def post_body(request: web.Request) -> web.Response:
    return result_response(201, await read_json(request, Body))


@web.middleware
async def problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except DssError as error:
        return problem_response(error)


@asynccontextmanager
async def server() -> AsyncIterator[tuple[ClientSession, str]]:
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[problems])
    app.router.add_put("/v1/cache/{name}", put_name)
    app.router.add_post("/v1/locks:acquire", acquire_many)
    app.router.add_post("/v1/locks/{name}/acquire", put_name)
    app.router.add_post("/body", post_body)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with ClientSession() as session:
            yield session, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def put(path: str) -> tuple[int, Any]:
    async def scenario() -> tuple[int, Any]:
        async with (
            server() as (http, base),
            http.put(URL(base + path, encoded=True)) as response,
        ):
            return response.status, await response.json(content_type=None)

    return asyncio.run(scenario())


def post(body: bytes) -> tuple[int, Any]:
    async def scenario() -> tuple[int, Any]:
        async with (
            server() as (http, base),
            http.post(base + "/body", data=io.BytesIO(body)) as response,
        ):
            return response.status, await response.json(content_type=None)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/cache/a%2Fb", "a/b"),
        ("/v1/cache/a:b", "a:b"),
        ("/v1/cache/a%3Aget", "a:get"),
        ("/v1/cache/%252F", "%2F"),
        ("/v1/cache/a+b%20c", "a+b c"),
        ("/v1/cache/%C3%A9", "é"),
        ("/v1/cache/...", "..."),
        ("/v1/cache/" + "a" * NAME_BYTES_MAX, "a" * NAME_BYTES_MAX),
    ],
)
def test_encoded_name_in_path__arrives_decoded(path: str, name: str) -> None:
    assert put(path) == (200, {"name": name})


@pytest.mark.parametrize(
    "path",
    [
        "/v1/cache/%2E%2E",
        "/v1/cache/..",
        "/v1/cache/.",
        "/v1/cache/a%2F..%2Fb",
        "/v1/cache/a%2F%2Fb",
        "/v1/cache/%2Fa",
        "/v1/cache/%FF",
        "/v1/cache/" + "a" * (NAME_BYTES_MAX + 1),
        "/v1/cache/" + "%C3%A9" * (NAME_BYTES_MAX // 2 + 1),
    ],
)
def test_name_against_the_rules__is_422(path: str) -> None:
    status, problem = put(path)
    assert (status, problem["code"]) == (422, "invalid")


def test_colon_route__never_meets_a_lock_of_that_name() -> None:
    async def scenario() -> None:
        async with server() as (http, base):
            async with http.post(base + "/v1/locks:acquire") as response:
                assert await response.json() == {"many": True}
            path = URL(base + "/v1/locks/x:acquire/acquire", encoded=True)
            async with http.post(path) as response:
                assert await response.json() == {"name": "x:acquire"}

    asyncio.run(scenario())


def test_broken_json__names_line_and_column() -> None:
    status, problem = post(b'{\n  "ttl_ms": 500,\n  oops}')
    assert status == 422
    assert (problem["line"], problem["column"]) == (3, 3)
    assert "line 3, column 3" in problem["detail"]


def test_truncated_json__points_at_its_end() -> None:
    status, problem = post(b'{"ttl_ms"')
    assert (status, problem["line"], problem["column"]) == (422, 1, 10)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "ttl_ms"),
        (b"", "ttl_ms"),
        (b'{"ttl_ms": "x"}', "ttl_ms"),
        (b'{"ttl_ms": 5}', "ttl_ms"),
        (b'{"ttl_ms": 500, "tags": ["a", 1]}', "tags[1]"),
        (b'{"ttl_ms": 500, "tgs": []}', "tgs"),
    ],
)
def test_wrong_field__is_named(body: bytes, field: str) -> None:
    status, problem = post(body)
    assert (status, problem["field"]) == (422, field)


def test_body_over_the_limit__is_413_with_the_limit() -> None:
    status, problem = post(b" " * (BODY_BYTES_MAX + 1))
    assert (status, problem["code"], problem["limit"]) == (413, "too_large", BODY_BYTES_MAX)


def test_body_at_the_limit__is_accepted() -> None:
    status, _ = post(b'{"ttl_ms": 500}'.ljust(BODY_BYTES_MAX))
    assert status == 201


def test_problem__has_all_members_and_retry_after() -> None:
    response = problem_response(NoQuorum("no leader", retry_after_ms=1_200, status="x", leader="a"))
    assert response.status == 503
    assert response.headers["Retry-After"] == "2"
    assert response.content_type == "application/problem+json"
    assert msgspec.json.decode(response.body) == {  # type: ignore[arg-type]
        "leader": "a",
        "type": "urn:dss:problem:no_quorum",
        "title": "No quorum",
        "status": 503,
        "detail": "no leader",
        "code": "no_quorum",
        "retry_after_ms": 1_200,
    }


def test_result_with_error_status__keeps_code_and_members() -> None:
    error = Conflict("lock_timeout", "not granted", position=2)
    response = result_response(409, error.body())
    document = msgspec.json.decode(response.body)  # type: ignore[arg-type]
    assert response.status == 409
    assert (document["code"], document["detail"]) == ("lock_timeout", "not granted")
    assert document["position"] == 2
