"""Tokens at the door: who is let in where, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
from aiohttp import ClientSession, WSServerHandshakeError, web

from dss.api.app import build_app, serve
from dss.api.auth import Guard
from dss.api.problem import result_response
from dss.api.routes import Route
from dss.api.stream import stream_handler
from dss.base.errors import Forbidden, Unauthenticated
from dss.observe.metrics import Registry
from dss.topology.nodes import NodeConfig, NodeSpec, TokenSpec


def spec(name: str, token: str, role: str) -> TokenSpec:
    return TokenSpec(name, sha256(token.encode()).hexdigest(), role)


TOKENS = (spec("ops", "admin-token", "admin"), spec("app", "client-token", "client"))


async def plain(request: web.Request) -> web.Response:
    return result_response(200, {"ok": True})


ROUTES = [
    Route(method="GET", path="/v1/locks/{name}", handler=plain, summary="Look"),
    Route(method="POST", path="/v1/raft/backoff", handler=plain, summary="Admin", admin=True),
    Route(
        method="GET", path="/v1/locks:stream", summary="Stream", status=101,
        handler=stream_handler(lambda sink, payload: None),
    ),
]  # fmt: skip


@asynccontextmanager
async def node(guard: Guard | None) -> AsyncIterator[tuple[ClientSession, str]]:
    peer = NodeSpec("lock-1", "127.0.0.1", 8001, 9001)
    app = build_app(
        config=NodeConfig(node_id="lock-1", role="lock", data_dir="/x", raft_peers=(peer,)),
        routes=ROUTES,
        readiness=lambda: None,
        registry=Registry(),
        cluster=lambda: {"nodes": []},
        guard=guard,
    )
    runner = await serve(app, "127.0.0.1", 0)
    try:
        async with ClientSession() as http:
            yield http, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def run(
    scenario: Callable[[ClientSession, str], Awaitable[None]],
    guard: Guard | None = None,
    *,
    tokens: bool = True,
) -> None:
    async def main() -> None:
        async with node((guard or Guard(TOKENS)) if tokens else None) as (http, base):
            await scenario(http, base)

    asyncio.run(main())


async def ask(
    http: ClientSession, method: str, url: str, authorization: str | None = None
) -> tuple[int, str, dict[str, str]]:
    headers = {"Authorization": authorization} if authorization is not None else {}
    async with http.request(method, url, headers=headers) as response:
        body: dict[str, Any] = (
            await response.json(content_type=None) if "json" in response.content_type else {}
        )
        return response.status, body.get("code", ""), dict(response.headers)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic Y2xpZW50", "admin-token",
     "Bearer admin-token x", "Bearer Admin-token", "Bearer \xff"],
)  # fmt: skip
def test_without_a_good_token__401_on_every_route_below_v1(authorization: str | None) -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        for method, path in (
            ("GET", "/v1/locks/a"), ("POST", "/v1/raft/backoff"), ("GET", "/v1/cluster"),
            ("GET", "/v1/locks:stream"), ("GET", "/v1/nothing"), ("GET", "/v1/queues/q"),
            ("DELETE", "/v1/locks/a"), ("GET", "/v1"), ("GET", "/%76%31/locks/a"),
        ):  # fmt: skip
            status, code, headers = await ask(http, method, base + path, authorization)
            assert (status, code) == (401, "unauthenticated"), path
            assert headers["WWW-Authenticate"].startswith("Bearer")

    run(scenario)


def test_probes_metrics_and_documentation__need_no_token() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
            assert (await ask(http, "GET", base + path))[0] == 200, path
        assert (await ask(http, "GET", base + "/elsewhere"))[0] == 404

    run(scenario)


def test_a_clients_token__everything_but_the_administrators_routes() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        for scheme in ("Bearer", "bearer", "BEARER"):
            found = await ask(http, "GET", f"{base}/v1/locks/a", f"{scheme} client-token")
            assert found[0] == 200
        url = base + "/v1/raft/backoff"
        status, code, headers = await ask(http, "POST", url, "Bearer client-token")
        assert (status, code) == (403, "forbidden")
        assert "WWW-Authenticate" not in headers
        assert (await ask(http, "POST", url, "Bearer admin-token"))[0] == 200

    run(scenario)


def test_stream__the_handshake_needs_the_token() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        url = base + "/v1/locks:stream"
        with pytest.raises(WSServerHandshakeError) as refused:
            await http.ws_connect(url)
        assert refused.value.status == 401
        async with http.ws_connect(url, headers={"Authorization": "Bearer client-token"}) as ws:
            assert not ws.closed

    run(scenario)


def test_replaced_tokens__the_next_request_feels_it() -> None:
    guard = Guard(TOKENS)

    async def scenario(http: ClientSession, base: str) -> None:
        url = base + "/v1/locks/a"
        assert (await ask(http, "GET", url, "Bearer client-token"))[0] == 200
        assert guard.replace((TOKENS[0], spec("app", "new-token", "client")))
        assert not guard.replace((TOKENS[0], spec("app", "new-token", "client")))
        assert (await ask(http, "GET", url, "Bearer client-token"))[0] == 401
        assert (await ask(http, "GET", url, "Bearer new-token"))[0] == 200

    run(scenario, guard)


def test_openapi__says_what_needs_which_token() -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        async with http.get(base + "/openapi.json") as response:
            api = await response.json()
        assert api["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        look = api["paths"]["/v1/locks/{name}"]["get"]
        assert look["security"] == [{"token": []}]
        assert "401" in look["responses"]
        assert "403" not in look["responses"]
        assert "403" in api["paths"]["/v1/raft/backoff"]["post"]["responses"]
        assert "security" not in api["paths"]["/healthz"]["get"]

    run(scenario)


def test_errors__name_the_token_and_never_hold_it() -> None:
    guard = Guard(TOKENS)
    with pytest.raises(Forbidden, match="'app'") as forbidden:
        guard.check("Bearer client-token", admin=True)
    assert "client-token" not in forbidden.value.message
    with pytest.raises(Unauthenticated) as unknown:
        guard.check("Bearer some-secret-token", admin=False)
    assert "some-secret" not in unknown.value.message


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://elsewhere"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, False),
        ({"Origin": "http://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "own"}, True),
    ],
)
def test_no_tokens__a_page_of_another_origin_cannot_write(
    headers: dict[str, str], allowed: bool
) -> None:
    async def scenario(http: ClientSession, base: str) -> None:
        sent = headers | ({"Origin": base} if headers.get("Origin") == "own" else {})
        async with http.post(base + "/v1/raft/backoff", headers=sent) as response:
            assert response.status == (200 if allowed else 403)
            if not allowed:
                assert "another origin" in (await response.json())["detail"]
        # Reading cannot be told to a page of another origin by the browser: no need to refuse.
        async with http.get(base + "/v1/locks/a", headers=sent) as response:
            assert response.status == 200
        if not allowed:
            with pytest.raises(WSServerHandshakeError) as refused:
                await http.ws_connect(base + "/v1/locks:stream", headers=sent)
            assert refused.value.status == 403
        async with http.get(base + "/openapi.json") as response:
            api = await response.json()
        assert "403" in api["paths"]["/v1/raft/backoff"]["post"]["responses"]
        assert "403" not in api["paths"]["/v1/locks/{name}"]["get"]["responses"]

    run(scenario, tokens=False)
