"""api/app.py over a real server: health, metrics, documents, and what no route matches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from dss.api.app import build_app, serve
from dss.api.cluster import cluster_view
from dss.api.cluster import routes as cluster_routes
from dss.api.problem import path_name, read_json, result_response
from dss.api.routes import Route
from dss.base.errors import Conflict
from dss.observe.metrics import Registry
from dss.topology.nodes import NodeConfig, NodeSpec

CONFIG = NodeConfig(
    node_id="lock-1",
    role="lock",
    data_dir="/nowhere",
    raft_peers=(NodeSpec("lock-1", "127.0.0.1", 8001, 9001),),
    queue_nodes=(NodeSpec("queue-1", "127.0.0.1", 8011, 9011),),
    cache_peers=(NodeSpec("cache-1", "::1", 8021, 9021),),
)


class Acquire(msgspec.Struct):
    session: str
    wait_ms: int = 0


class Granted(msgspec.Struct):
    token: int


async def acquire(request: web.Request) -> web.Response:
    name = path_name(request)
    body = await read_json(request, Acquire)
    if name == "busy":
        raise Conflict("lock_timeout", f"{name}: not granted", position=1)
    if name == "bug":
        raise KeyError("secret detail of a bug")
    return result_response(200, {"token": len(body.session)})


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    raise Conflict("gone", "the source ended")


ROUTES = [
    Route(
        method="POST", path="/v1/locks/{name}/acquire", handler=acquire, summary="Acquire",
        request=Acquire, response=Granted, errors=(409,),
    ),
    Route(
        method="GET", path="/v1/locks", handler=endless, summary="List", query={"prefix": "P"}
    ),
]  # fmt: skip


class Admin:
    """Stands in for drivers.raft_admin.RaftAdmin."""

    def status(self) -> dict[str, Any]:
        links = {"lock-2": {"up": True, "since_ms": 5}}
        groups = [{"group_id": 1}]
        return {
            "node_id": "lock-1", "boot_id": "b1", "role": "lock", "links": links, "groups": groups,
        }  # fmt: skip

    def backoff(self, group: int, wait_ms: int | None, boot_id: str | None) -> dict[str, Any]:
        if boot_id != "b1":
            raise Conflict("boot_mismatch", "restarted", boot_id="b1")
        return {"group_id": group, "role": "candidate", "term": 7, "wait_ms": wait_ms or 1_800}

    async def transfer(self, group: int, to: str | None) -> dict[str, Any]:
        return {"group_id": group, "leader": to or "lock-2", "term": 8}


ADMIN: Any = Admin()

Scenario = Callable[[ClientSession, str], Awaitable[None]]


@asynccontextmanager
async def node(
    readiness: Callable[[], str | None] = lambda: None,
) -> AsyncIterator[tuple[ClientSession, str]]:
    links = {"queue-1": {"up": False, "since_ms": 700, "reason": "refused"}}
    app = build_app(
        config=CONFIG,
        routes=[
            *ROUTES,
            *cluster_routes(ADMIN),
        ],
        readiness=readiness,
        registry=Registry(),
        cluster=lambda: cluster_view(CONFIG, links),
    )
    runner = await serve(app, "127.0.0.1", 0)
    try:
        async with ClientSession() as http:
            yield http, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def run(scenario: Scenario, readiness: Callable[[], str | None] = lambda: None) -> None:
    async def main() -> None:
        async with node(readiness) as (http, base):
            await scenario(http, base)

    asyncio.run(main())


async def ask(
    http: ClientSession, method: str, url: str, body: Any = None
) -> tuple[int, dict[str, Any]]:
    async with http.request(method, URL(url, encoded=True), json=body) as response:
        document = await response.json(content_type=None)
        if response.status >= 400:
            assert response.content_type == "application/problem+json"
            assert document["status"] == response.status
        return response.status, document


def test_health_and_readiness__tell_apart_alive_and_ready() -> None:
    reason: list[str | None] = ["lock group: no leader yet"]

    async def scenario(http: ClientSession, base: str) -> None:
        assert await ask(http, "GET", base + "/healthz") == (200, {"alive": True})
        status, problem = await ask(http, "GET", base + "/readyz")
        assert status == 503
        assert problem["ready"] is False
        assert problem["detail"] == "lock group: no leader yet"
        reason[0] = None
        assert await ask(http, "GET", base + "/readyz") == (200, {"ready": True})

    run(scenario, lambda: reason[0])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/queues", 421, "wrong_role"),
        ("POST", "/v1/queues/jobs/messages", 421, "wrong_role"),
        ("GET", "/v1/cache:stats", 421, "wrong_role"),
        ("GET", "/v1/ring", 421, "wrong_role"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/locks/x/nothing", 404, "not_found"),
        ("GET", "/v1/locks/x/acquire", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/locks//acquire", 422, "invalid"),
        ("POST", "/v1/locks/../acquire", 422, "invalid"),
        ("POST", "/v1/locks/", 422, "invalid"),
    ],
)
def test_unmatched_request__is_a_problem(method: str, path: str, status: int, code: str) -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        answered, problem = await ask(http, method, base + path)
        assert (answered, problem["code"]) == (status, code)

    run(scenario)


def test_wrong_role__names_the_right_nodes() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        _, problem = await ask(http, "GET", base + "/v1/cache/x")
        assert problem["role"] == "cache"
        assert problem["urls"] == ["http://[::1]:8021"]
        assert "http://[::1]:8021" in problem["detail"]

    run(scenario)


def test_handler_errors__are_problems_and_a_bug_tells_the_client_nothing() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        body = {"session": "abc"}
        assert await ask(http, "POST", base + "/v1/locks/a%2Fb/acquire", body) == (
            200,
            {"token": 3},
        )
        status, problem = await ask(http, "POST", base + "/v1/locks/busy/acquire", body)
        assert (status, problem["code"], problem["position"]) == (409, "lock_timeout", 1)
        status, problem = await ask(http, "POST", base + "/v1/locks/bug/acquire", body)
        assert (status, problem["code"]) == (500, "internal")
        assert "secret detail" not in str(problem)
        status, problem = await ask(http, "POST", base + "/v1/locks/x/acquire", {})
        assert (status, problem["field"]) == (422, "session")

    run(scenario)


def test_error_after_the_answer_began__breaks_the_connection() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        async with http.get(base + "/v1/locks") as response:
            assert response.status == 200
            with pytest.raises(Exception, match=r"(?i)payload|closed|incomplete"):
                await response.read()

    run(scenario)


def test_metrics__carry_route_method_and_status() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        for _ in range(3):
            await ask(http, "POST", base + "/v1/locks/x/acquire", {"session": "a"})
        await ask(http, "POST", base + "/v1/locks/busy/acquire", {"session": "a"})
        await ask(http, "GET", base + "/nothing")
        async with http.get(base + "/metrics") as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("text/plain")
        name = "dss_http_request_duration_seconds_count"
        route = 'method="POST",route="/v1/locks/{name}/acquire"'
        assert f'{name}{{{route},status="200"}} 3.0' in text
        assert f'{name}{{{route},status="409"}} 1.0' in text
        assert f'{name}{{method="any",route="unmatched",status="404"}} 1.0' in text

    run(scenario)


def test_openapi__describes_every_route_with_resolvable_references() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        status, api = await ask(http, "GET", base + "/openapi.json")
        assert status == 200
        assert api["openapi"].startswith("3.1")
        operation = api["paths"]["/v1/locks/{name}/acquire"]["post"]
        assert [(p["name"], p["in"]) for p in operation["parameters"]] == [("name", "path")]
        assert "409" in operation["responses"]
        assert api["paths"]["/v1/locks"]["get"]["parameters"][0]["name"] == "prefix"
        for reference in references(api):
            found: Any = api
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
        operations = [op for methods in api["paths"].values() for op in methods.values()]
        ids = [op["operationId"] for op in operations]
        assert len(ids) == len(set(ids)) == len(ROUTES) + 6

    run(scenario)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def test_docs__is_one_page_that_loads_nothing_from_elsewhere() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        async with http.get(base + "/docs") as response:
            page = await response.text()
            assert response.status == 200
        assert "openapi.json" in page
        assert "http://" not in page
        assert "https://" not in page

    run(scenario)


def test_cluster__lists_all_nodes_with_role_url_and_link() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        _, view = await ask(http, "GET", base + "/v1/cluster")
        by_id = {entry["id"]: entry for entry in view["nodes"]}
        assert view["node_id"] == "lock-1"
        assert by_id["lock-1"]["up"] is True
        assert by_id["queue-1"] == {
            "id": "queue-1", "role": "queue", "url": "http://127.0.0.1:8011",
            "up": False, "since_ms": 700, "reason": "refused",
        }  # fmt: skip
        status = await ask(http, "GET", base + "/v1/raft/status")
        assert status == (
            200,
            ADMIN.status(),
        )

    run(scenario)


def test_port_taken__raises_and_leaves_nothing_open() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        with pytest.raises(OSError, match=r"(?i)in use"):
            await serve(web.Application(), "127.0.0.1", URL(base).port or 0)

    run(scenario)


def test_raft_backoff_and_transfer__checked_passed_on_and_rendered() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        url = base + "/v1/raft/backoff"
        body = {"group_id": 1, "boot_id": "b1", "wait_ms": 500}
        expected = {"group_id": 1, "role": "candidate", "term": 7, "wait_ms": 500}
        assert await ask(http, "POST", url, body) == (200, expected)
        status, problem = await ask(http, "POST", url, body | {"boot_id": "b0"})
        assert (status, problem["code"], problem["boot_id"]) == (409, "boot_mismatch", "b1")
        for wrong in ({}, body | {"group_id": -1}, body | {"wait_ms": 60_001}, body | {"x": 1}):
            assert (await ask(http, "POST", url, wrong))[0] == 422, wrong
        url = base + "/v1/raft/transfer"
        expected = {"group_id": 0, "leader": "lock-3", "term": 8}
        assert await ask(http, "POST", url, {"group_id": 0, "to": "lock-3"}) == (200, expected)
        assert (await ask(http, "POST", url, {}))[0] == 422

    run(scenario)
