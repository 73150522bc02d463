"""What is public: documented, with an example that runs; the blocking client is the async one's."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sqlite3
import textwrap
import types
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from fake_cluster import FakeCluster, running

import dss.client
import dss.client.sync
import dss.guards

CONSTANTS = {"TOKEN_HEADER"}
ASYNC_ONLY = {
    "Client": {"aclose"},  # sync: close
    "Held": {"became", "lose", "unwatch", "until_lost"},  # guard(on_lost=…); the SDK's own
    "LockHandle": {"acquire_as"},
    "Session": {"do", "end", "hurry", "lose", "skip"},
}
PUBLIC = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in (dss.client, dss.client.sync, dss.guards)
    for name in module.__all__
    if name not in CONSTANTS
]


def members(kind: type) -> Iterator[tuple[str, Any]]:
    for name in dir(kind):
        if not name.startswith("_") and not hasattr(Exception, name):
            yield name, inspect.getattr_static(kind, name)


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_name__is_documented_with_its_members(module: Any, name: str) -> None:
    what = getattr(module, name)
    assert inspect.getdoc(what), name
    if inspect.isclass(what):
        for member, value in members(what):
            if callable(value) or isinstance(value, property):
                assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_name__its_example_runs(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getdoc(getattr(module, name)) or ""
    found = re.search(r"^Example:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    assert found, f"{name} has no example"
    example = textwrap.dedent(found.group(1))

    class Redis:
        def eval(self, script: str, *args: Any) -> list[Any]:
            return [1, b"OK"]

    class AsyncRedis:
        async def eval(self, script: str, *args: Any) -> list[Any]:
            return [1, b"OK"]

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None: ...

    names: dict[str, Any] = {
        "asyncio": asyncio, "sqlite3": sqlite3, "web": web, "redis": Redis(),
        "async_redis": AsyncRedis(), "asgi_app": asgi_app,
        **{each: getattr(module, each) for each in module.__all__},
    }  # fmt: skip
    code = compile(example, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def blocking() -> None:
        with dss.client.sync.connect() as client:
            types.FunctionType(code, {**names, "client": client})()

    async def main() -> None:
        fake = FakeCluster()
        async with running(fake):
            monkeypatch.setenv("DSS_ENDPOINTS", fake.urls[0])
            if module is dss.client.sync and not code.co_flags & inspect.CO_COROUTINE:
                await asyncio.to_thread(blocking)
                return
            async with dss.client.connect() as client:
                result = types.FunctionType(code, {**names, "client": client})()
                if inspect.iscoroutine(result):
                    await result

    asyncio.run(asyncio.wait_for(main(), 15))


@pytest.mark.parametrize(
    "name", sorted({*dss.client.__all__} & {*dss.client.sync.__all__} - {"connect"})
)
def test_blocking_class__has_the_async_ones_members_and_arguments(name: str) -> None:
    theirs, ours = getattr(dss.client, name), getattr(dss.client.sync, name)
    if theirs is ours:
        return
    for member, value in members(theirs):
        if member in ASYNC_ONLY.get(name, ()) or not callable(value):
            continue
        assert hasattr(ours, member), f"{name}.{member}"
        wanted = list(inspect.signature(value).parameters.values())
        got = list(inspect.signature(inspect.getattr_static(ours, member)).parameters.values())
        if (name, member) == ("Held", "guard"):
            continue  # a thread cannot be cancelled: it has on_lost
        assert [(p.name, p.kind, p.default) for p in got] == [
            (p.name, p.kind, p.default) for p in wanted
        ], f"{name}.{member}"


def test_connect__takes_the_same_arguments_blocking_or_not() -> None:
    wanted, got = (
        inspect.signature(module.connect).parameters for module in (dss.client, dss.client.sync)
    )
    assert [(p.name, p.default) for p in got.values()] == [
        (p.name, p.default) for p in wanted.values()
    ]
