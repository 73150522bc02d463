"""`/v1/cache:stream` over real WebSockets of two real nodes: the routes' answers, hits at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from cache_cluster import Cluster, cluster, until

from dss.api import cache as cache_api
from dss.api import cache_shapes
from dss.api.app import build_app, serve
from dss.api.auth import Guard
from dss.api.cache_stream import PATH, CacheStream
from dss.base.errors import TooLarge
from dss.base.limits import STREAM_MESSAGE_BYTES_MAX, VALUE_BYTES_MAX
from dss.client import connect
from dss.observe.metrics import Registry
from dss.testing.raw_stream import RawStream
from dss.topology.nodes import TokenSpec

GUARD = Guard([TokenSpec("app", sha256(b"secret").hexdigest(), "client")])
TOKEN = {"Authorization": "Bearer secret"}


class Setting:
    """Two cache nodes with HTTP servers, and a stream to each."""

    def __init__(
        self,
        made: Cluster,
        http: aiohttp.ClientSession,
        urls: list[str],
        registries: list[Registry],
    ) -> None:
        self.made = made
        self.registries = registries
        self.http = http
        self.urls = urls

    async def stream(self, node: int) -> RawStream:
        return RawStream(await self.http.ws_connect(self.urls[node - 1] + PATH))


def run(folder: Path, scenario: Callable[[Setting, RawStream, RawStream], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(folder) as made, AsyncExitStack() as stack:
            urls = []
            registries = [Registry() for _ in made.nodes]
            for registry, (name, node) in zip(registries, made.nodes.items(), strict=True):
                app = build_app(
                    config=made.configs[name],
                    routes=cache_api.routes(node.service),
                    readiness=node.service.readiness,
                    registry=registry,
                    cluster=dict,
                    guard=GUARD,
                )
                runner = await serve(app, "127.0.0.1", 0)
                stack.push_async_callback(runner.cleanup)
                urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            http = await stack.enter_async_context(aiohttp.ClientSession(headers=TOKEN))
            setting = Setting(made, http, urls, registries)
            one, two = await setting.stream(1), await setting.stream(2)
            await asyncio.wait_for(scenario(setting, one, two), 15)

    asyncio.run(main())


def test_set_get_delete__bytes_type_and_version_travel_between_nodes(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        value = bytes(range(256))
        status, made = await one.one("set", key="a/b c", value=value, content_type="image/x")
        assert status == 201
        found = {"value": value, "version": made["version"], "content_type": "image/x"}
        for stream in (one, two, two):
            assert await stream.one("get", key="a/b c") == (200, found)
        async with setting.http.get(f"{setting.urls[1]}/v1/cache/a%2Fb%20c") as got:
            assert (await got.read(), got.headers["ETag"]) == (value, f'"{made["version"]}"')
        status, changed = await two.one("set", key="a/b c", value=b"")
        assert (status, changed["version"] > made["version"]) == (200, True)
        status, found = await one.one("get", key="a/b c")
        assert (found["value"], found["content_type"]) == (b"", "application/octet-stream")
        assert await one.one("delete", key="a/b c") == (204, None)
        for op in ("get", "delete"):
            status, missing = await two.one(op, key="a/b c")
            assert (status, missing["code"]) == (404, "not_found")

    run(tmp_path, scenario)


def test_conditions__304_and_412_on_hits_and_misses(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        _, made = await one.one("set", key="k", value=b"1", if_none_match="*")
        version = made["version"]
        for _ in range(2):  # the first asks the home, the second is a copy here
            fresh = await two.one("get", key="k", if_none_match=[5_000, version])
            assert fresh == (304, {"version": version})
            status, problem = await two.one("get", key="k", if_match=[5_000])
            assert (status, problem["code"], problem["version"]) == (
                412, "precondition_failed", version,
            )  # fmt: skip
        status, problem = await two.one("set", key="k", value=b"2", if_none_match="*")
        assert (status, problem["version"]) == (412, version)
        assert (await two.one("set", key="k", value=b"2", if_match=[version]))[0] == 200
        assert (await one.one("delete", key="k", if_match=[version]))[0] == 412

    run(tmp_path, scenario)


def test_incr_on_two_nodes_at_once__counts_every_one(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        incr = ("incr", {"key": "n", "delta": 2})
        await asyncio.gather(one.ask(*[incr] * 20), two.ask(*[incr] * 20))
        status, counted = await one.one("incr", key="n", delta=0)
        assert (status, counted["value"]) == (200, 80)
        await one.one("set", key="text", value=b"x")
        status, problem = await one.one("incr", key="text")
        assert (status, problem["code"]) == (422, "invalid")

    run(tmp_path, scenario)


def test_batches__results_in_order_with_bytes(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        items = [
            {"key": "a", "value": b"\xff", "content_type": "x/y"},
            {"key": "b", "value": b"2", "ttl_ms": 60_000},
        ]
        status, answer = await one.one("set_many", items=items)
        versions = [result["version"] for result in answer["results"]]
        assert (status, [result["key"] for result in answer["results"]]) == (200, ["a", "b"])
        await two.one("get", key="b")  # now one of them is a copy here, and one is not
        for _ in range(2):
            status, answer = await two.one("get_many", keys=["a", "none", "b"])
            first, missing, last = answer["results"]
            assert first == {
                "ok": True, "key": "a", "version": versions[0], "value": b"\xff",
                "content_type": "x/y",
            }  # fmt: skip
            assert (missing["ok"], missing["code"]) == (False, "not_found")
            assert (last["value"], last["version"]) == (b"2", versions[1])

    run(tmp_path, scenario)


def test_hit__answered_within_the_call_that_read_it(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        await one.one("set", key="hot", value=b"1")
        service = setting.made.nodes["cache-2"].service
        await until(lambda: service.readiness() is None)
        await two.one("get", key="hot")
        assert service.lookup("hot") is not None
        connection = FakeConnection()
        stream = CacheStream(service, connection)  # type: ignore[arg-type]
        payload = msgpack([[1, "get", {"key": "hot"}], [2, "get_many", {"keys": ["hot"]}]])
        stream.submit(payload)
        [frame] = connection.frames  # nothing has run but submit
        assert [(number, status) for number, status, _ in frame] == [(1, 200), (2, 200)]
        assert frame[0][2].value == b"1"
        await one.one("set", key="hot", value=b"2")  # destroys the copy
        stream.submit(msgpack([[3, "get", {"key": "hot"}]]))
        await until(lambda: len(connection.frames) > 1)
        assert connection.frames[1][0][2].value == b"2"

    run(tmp_path, scenario)


class FakeConnection:
    """What StreamCalls needs of a StreamConnection."""

    def __init__(self) -> None:
        self.pending: list[Any] = []
        self.frames: list[list[Any]] = []

    def take(self, request_ids: list[int]) -> int:
        return len(request_ids)

    def answer(self, *answer: Any) -> None:
        self.pending.append(answer)

    def flush(self) -> None:
        if self.pending:
            self.frames.append(self.pending)
            self.pending = []


def msgpack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_many_requests_of_one_message__few_frames(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        keys = [f"k{n}" for n in range(64)]
        answers = await one.ask(*[("set", {"key": key, "value": key.encode()}) for key in keys])
        assert {status for status, _ in answers} == {201}
        await one.ask(*[("get", {"key": key}) for key in keys])
        one.frames = []
        answers = await one.ask(*[("get", {"key": key}) for key in keys])
        assert [body["value"] for _, body in answers] == [key.encode() for key in keys]
        assert one.frames == [one.frames[0]]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("op", "args", "status", "field"),
    [
        ("get", {"key": ""}, 422, None),
        ("get", {"key": "a/../b"}, 422, None),
        ("get", {"key": "k" * 257}, 422, None),
        ("get", {}, 422, "key"),
        ("get", {"key": "k", "if_match": "abc"}, 422, "if_match"),
        ("set", {"key": "k"}, 422, "value"),
        ("set", {"key": "k", "value": "text"}, 422, "value"),
        ("set", {"key": "k", "value": b"", "ttl_ms": 99}, 422, "ttl_ms"),
        ("set", {"key": "k", "value": b"", "content_type": "x" * 257}, 422, "content_type"),
        ("set", {"key": "k", "value": b"x" * (VALUE_BYTES_MAX + 1)}, 413, None),
        ("delete", {"key": "k", "ttl_ms": 1_000}, 422, "ttl_ms"),
        ("incr", {"key": "k", "delta": 1.5}, 422, "delta"),
        ("get_many", {"keys": []}, 422, "keys"),
        ("get_many", {"keys": ["k"] * 1_001}, 422, "keys"),
        ("set_many", {"items": [{"key": "a", "value": 1}]}, 422, "items[0].value"),
        ("put", {"key": "k"}, 422, None),
    ],
)
def test_wrong_request__its_own_error_and_the_others_go_on(
    tmp_path: Path, op: str, args: dict[str, Any], status: int, field: str | None
) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        wrong, right = await one.ask((op, args), ("incr", {"key": "n"}))
        assert (wrong[0], wrong[1].get("field")) == (status, field), wrong
        assert wrong[1]["code"] == ("invalid" if status == 422 else "too_large")
        assert right[0] == 200

    run(tmp_path, scenario)


def test_largest_value__there_and_back(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        value = b"x" * VALUE_BYTES_MAX
        assert (await one.one("set", key="k", value=value))[0] == 201
        assert (await two.one("get", key="k"))[1]["value"] == value

    run(tmp_path, scenario)


def test_values_too_large_together__413(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_shapes.limits, "STREAM_MESSAGE_BYTES_MAX", 1_000)

    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        await one.one("set", key="k", value=b"x" * 600)
        for stream in (one, two):
            for _ in range(2):  # asked for, and from copies
                status, problem = await stream.one("get_many", keys=["k", "k"])
                assert (status, problem["code"], problem["limit"]) == (413, "too_large", 1_000)

    run(tmp_path, scenario)


def test_home_that_is_gone__the_request_fails_and_the_stream_lives(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        far = setting.made.key_at("cache-2")
        near = setting.made.key_at("cache-1")
        await setting.made.stop("cache-2")
        lost, kept = await one.ask(("set", {"key": far, "value": b"1"}), ("incr", {"key": near}))
        assert lost[0] in (503, 504)
        assert lost[1]["message"]
        assert kept[0] == 200

    run(tmp_path, scenario)


def test_client_that_goes_with_writes_under_way__they_happen(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        await one.send(*[("incr", {"key": "n"})] * 10)
        await one.ws.close()
        for _ in range(200):
            status, counted = await two.one("get", key="n")
            if status == 200 and counted["value"] == b"10":
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{status} {counted}")

    run(tmp_path, scenario)


def test_tokens__asked_for_at_the_handshake(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        async with (
            aiohttp.ClientSession() as stranger,
            stranger.get(setting.urls[0] + PATH) as refused,
        ):
            assert refused.status == 401
        assert (await one.one("incr", key="n"))[0] == 200

    run(tmp_path, scenario)


def test_sdk__whole_life_over_the_stream_alone(tmp_path: Path) -> None:
    async def scenario(setting: Setting, one: RawStream, two: RawStream) -> None:
        async with connect(setting.urls, token="secret") as client:
            cache = client.cache
            assert await cache.get("k", default=5) == 5
            for value in (b"\x00\xff", "text ü", {"a": [1, None]}, 17):
                etag = await cache.put("k", value, ttl=60)
                assert await cache.get("k") == value
            assert etag == f'"{(await one.one("get", key="k"))[1]["version"]}"'
            values = await asyncio.gather(*(cache.get("k") for _ in range(50)))
            assert values == [17] * 50
            assert (await cache.delete("k"), await cache.delete("k")) == (True, False)
            with pytest.raises(TooLarge):
                await cache.put("k", b"x" * (VALUE_BYTES_MAX + 1))
            with pytest.raises(TooLarge):
                await cache.put("k", b"x" * (STREAM_MESSAGE_BYTES_MAX + 1))
            assert await cache.get("k") is None
        seen = b"".join(registry.render() for registry in setting.registries)
        assert b'method="PUT"' not in seen
        assert b'route="/v1/cache/{key}"' not in seen

    run(tmp_path, scenario)
