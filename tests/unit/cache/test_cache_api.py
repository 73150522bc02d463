"""`/v1/cache` over HTTP: a client of two real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

from aiohttp import ClientSession
from cache_cluster import Cluster, cluster
from declared import declared
from yarl import URL

from dss.api import cache as cache_api
from dss.api.app import build_app, serve
from dss.base.limits import VALUE_BYTES_MAX
from dss.observe.metrics import Registry

Call = Callable[[str], URL]


@asynccontextmanager
async def http(made: Cluster) -> AsyncIterator[tuple[ClientSession, Call, Call]]:
    runners, urls = [], []
    for name, node in made.nodes.items():
        registry = Registry()
        node.service.register(registry)
        app = build_app(
            config=made.configs[name],
            routes=cache_api.routes(node.service),
            readiness=node.service.readiness,
            registry=registry,
            cluster=dict,
        )
        runner = await serve(app, "127.0.0.1", 0)
        runners.append(runner)
        host, port = runner.addresses[0][:2]
        urls.append(f"http://{host}:{port}")
    try:
        trace = declared(cache_api.routes(next(iter(made.nodes.values())).service))
        async with ClientSession(trace_configs=[trace]) as client:
            yield (
                client,
                lambda path: URL(urls[0] + path, encoded=True),
                lambda path: URL(urls[1] + path, encoded=True),
            )
    finally:
        for runner in runners:
            await runner.cleanup()


def run(folder: Path, scenario: Callable[[ClientSession, Call, Call], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(folder) as made, http(made) as (client, one, two):
            await scenario(client, one, two)

    asyncio.run(main())


def test_put_get_delete__body_type_and_version_travel(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        path = "/v1/cache/a%2Fb%20c"
        body = b"\x00\xffbytes"
        put = await client.put(one(path), data=body, headers={"Content-Type": "image/x"})
        assert put.status == 201
        etag = put.headers["ETag"]
        assert etag == f'"{(await put.json())["version"]}"'
        for url in (one(path), two(path), two(path)):
            got = await client.get(url)
            assert (got.status, await got.read()) == (200, body)
            assert (got.headers["Content-Type"], got.headers["ETag"]) == ("image/x", etag)
        line = await (await client.get(two(path + "/line"))).json()
        assert (line["key"], line["state"], line["sharers"]) == (
            "a/b c",
            "S",
            ["cache-1", "cache-2"],
        )
        assert (await client.delete(two(path))).status == 204
        gone = await client.get(one(path))
        assert (gone.status, (await gone.json())["code"]) == (404, "not_found")
        assert (await client.delete(two(path))).status == 404

    run(tmp_path, scenario)


def test_conditional_requests__304_and_412(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        path = "/v1/cache/k"
        made = await client.put(one(path), data=b"1", headers={"If-None-Match": "*"})
        etag = made.headers["ETag"]
        same = await client.get(two(path), headers={"If-None-Match": f'"5000", {etag}'})
        assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", etag)
        refused = await client.put(two(path), data=b"2", headers={"If-None-Match": "*"})
        problem = await refused.json()
        assert (refused.status, problem["code"]) == (412, "precondition_failed")
        assert problem["version"] == int(etag.strip('"'))
        swapped = await client.put(two(path), data=b"2", headers={"If-Match": etag})
        assert swapped.status == 200
        stale = await client.delete(one(path), headers={"If-Match": etag})
        assert stale.status == 412
        wrong = await client.get(one(path), headers={"If-Match": "abc"})
        assert wrong.status == 422

    run(tmp_path, scenario)


def test_limits__named_in_the_problem(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        big = await client.put(one("/v1/cache/k"), data=BytesIO(b"x" * (VALUE_BYTES_MAX + 1)))
        assert (big.status, (await big.json())["code"]) == (413, "too_large")
        full = await client.put(one("/v1/cache/k"), data=BytesIO(b"x" * VALUE_BYTES_MAX))
        assert full.status == 201
        assert len(await (await client.get(two("/v1/cache/k"))).read()) == VALUE_BYTES_MAX
        for ttl in ("0", "99", "abc", "86400001"):
            bad = await client.put(one(f"/v1/cache/k?ttl_ms={ttl}"), data=b"x")
            assert bad.status == 422, ttl
        assert (await client.get(one("/v1/cache/" + "k" * 257))).status == 422

    run(tmp_path, scenario)


def test_batches_and_counters(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        items = [
            {"key": "a", "value": "text"},
            {"key": "b", "value_base64": "AP8="},
            {"key": "c", "value": "x", "ttl_ms": 60_000},
        ]
        made = await (await client.post(one("/v1/cache:set"), json={"items": items})).json()
        assert [r["ok"] for r in made["results"]] == [True, True, True]
        got = await (
            await client.post(two("/v1/cache:get"), json={"keys": ["b", "no", "a"]})
        ).json()
        b, no, a = got["results"]
        assert (b["value_base64"], a["value"]) == ("AP8=", "text")
        assert (no["ok"], no["code"]) == (False, "not_found")
        for delta, expected in ((5, 5), (-7, -2)):
            count = await client.post(one("/v1/cache:incr"), json={"key": "n", "delta": delta})
            assert (await count.json())["value"] == expected
        text = await client.post(one("/v1/cache:incr"), json={"key": "a"})
        assert text.status == 422
        both = [{"key": "x", "value": "1", "value_base64": "AA=="}]
        assert (await client.post(one("/v1/cache:set"), json={"items": both})).status == 422

    run(tmp_path, scenario)


def test_stats_and_metrics__count_hits_and_invalidations(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        await client.put(one("/v1/cache/k"), data=b"1")
        for _ in range(3):
            await (await client.get(two("/v1/cache/k"))).read()
        await client.put(one("/v1/cache/k"), data=b"2")
        stats = await (await client.get(two("/v1/cache:stats"))).json()
        assert (stats["hits"], stats["misses"], stats["invalidations"]) == (2, 1, 1)
        assert (stats["memory"], stats["lines"]) == ("sqlite", 0)
        text = await (await client.get(two("/metrics"))).text()
        assert "dss_cache_hits_total 2.0" in text
        assert "dss_cache_invalidations_total 1.0" in text

    run(tmp_path, scenario)


def test_every_route__reads_conditions_and_content_type_just_where_the_document_says_so(
    tmp_path: Path,
) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        api = await (await client.get(one("/openapi.json"))).json()
        await client.put(one("/v1/cache/k"), data=b"1")
        bodies = {"/v1/cache:get": {"keys": ["k"]}, "/v1/cache:incr": {"key": "n"}}
        bodies["/v1/cache:set"] = {"items": [{"key": "s", "value": "1"}]}
        conditions, declared_conditions, kinds = set(), set(), set()
        for path, operations in api["paths"].items():
            if not path.startswith("/v1/cache") or path.endswith(":stream"):
                continue
            for method, operation in operations.items():
                url, sent = one(path.replace("{key}", "k")), bodies.get(path)
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "header":
                        declared_conditions.add((method, path, parameter["name"]))
                for name in ("If-Match", "If-None-Match"):
                    headers = {name: "no version"}
                    async with client.request(method, url, json=sent, headers=headers) as reply:
                        if reply.status == 422 and name in await reply.text():
                            conditions.add((method, path, name))
                headers = {"Content-Type": "text/" + "x" * 300}
                body = b"{}" if path == "/v1/cache:get" else b"1"
                async with client.request(method, url, data=body, headers=headers) as reply:
                    if reply.status == 422 and "Content-Type" in await reply.text():
                        kinds.add((method, path))
        assert conditions == declared_conditions
        assert len(conditions) == 6
        put = api["paths"]["/v1/cache/{key}"]["put"]
        assert kinds == {("put", "/v1/cache/{key}")}
        assert list(put["requestBody"]["content"]) == ["*/*"], "any type, and it is kept"

    run(tmp_path, scenario)


def test_read_under_a_condition_that_does_not_hold__412_is_declared(tmp_path: Path) -> None:
    async def scenario(client: ClientSession, one: Call, two: Call) -> None:
        await client.put(one("/v1/cache/k"), data=b"1")
        for url in (one, two):
            got = await client.get(url("/v1/cache/k"), headers={"If-Match": '"99"'})
            assert got.status == 412

    run(tmp_path, scenario)
