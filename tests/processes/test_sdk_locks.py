"""The SDK against real nodes: docs/sdk.md as it stands, a killed leader, a broken lock."""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import re
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from cluster_process import Cluster, request, until
from cluster_process import dss as dss_command

import dss.client
import dss.client.sync
import dss.guards
from dss.client import LockLost, connect
from dss.client import client as client_module
from dss.client.stream import LockStream

PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()


def test_sdk_page__names_everything_public() -> None:
    for module in (dss.client, dss.client.sync, dss.guards):
        missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", PAGE)]
        assert not missing, f"{module.__name__}: {missing}"


def test_sdk_page__its_examples_run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_ENDPOINTS", cluster.url("lock-1"))
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 10

    async def run(number: int, text: str, names: dict[str, Any]) -> None:
        code = compile(text, f"example {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = types.FunctionType(code, names)()
        if inspect.iscoroutine(result):
            await asyncio.wait_for(result, 30)

    async def scenario() -> None:
        async with connect() as client:
            names: dict[str, Any] = {"client": client}
            for number, text in enumerate(examples, 1):
                await run(number, text, names)
                names["client"] = client  # the first example has made and closed its own

    asyncio.run(scenario())


def test_broken_lock__stops_its_guarded_task_at_once(cluster: Cluster) -> None:
    async def scenario() -> float:
        async with connect(cluster.url("lock-2")) as client:
            started = 0.0

            async def work() -> None:
                nonlocal started
                async with client.lock("broken", ttl=60) as held, held.guard():
                    started = time.monotonic()
                    url = f"{cluster.url('lock-3')}/v1/locks/broken?reason=stuck"
                    reply = await asyncio.to_thread(request, "DELETE", url)
                    assert reply.status == 200, reply
                    await asyncio.sleep(30)

            with pytest.raises(LockLost, match="stuck"):
                await work()
            return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_no_websocket_gets_through__the_same_over_http(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_stream = functools.partial(LockStream, path="/v1/no:stream")
    monkeypatch.setattr(client_module, "LockStream", no_stream)

    async def scenario() -> None:
        async with connect(cluster.urls("lock")) as client:
            async with client.locks(["http/1", "http/2"], ttl=1) as held:
                assert len(held.tokens) == 2
                await asyncio.sleep(1.5)
                assert held.is_safe  # kept alive over HTTP, too
            async with client.rwlock("http/1").read() as reader:
                assert await reader.upgrade() == reader.token
                await reader.downgrade()
                leader = await client.election("http/1", wait=0).leader()
                assert leader is not None
                assert leader.token == reader.token
                waiting = asyncio.create_task(client.lock("http/1").acquire())
                await asyncio.sleep(0.3)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            async with client.semaphore("http/1", limit=2, wait=5), client.lock("http/3", wait=0):
                pass

    asyncio.run(scenario())


def test_lock_run__stops_its_command_when_the_lock_is_broken(cluster: Cluster) -> None:
    url = cluster.url("lock-1")
    done: list[Any] = []

    def run() -> None:
        words = ["lock", "run", "cli-broken", "--ttl", "2", "--endpoints", url]
        done.append(dss_command(*words, "--", "sleep", "60"))

    holder = threading.Thread(target=run)
    holder.start()
    until(lambda: request("GET", f"{url}/v1/locks/cli-broken").body["holders"] or None, "held")
    broken = dss_command("lock", "break", "cli-broken", "--reason", "stuck", "--endpoints", url)
    assert broken.returncode == 0, broken.stderr
    holder.join(20)
    assert done[0].returncode == 75, done
    assert "stuck" in done[0].stderr
    history = dss_command("lock", "history", "cli-broken", "--endpoints", url)
    assert "stuck" in history.stdout


def test_leader_killed__the_sdk_loses_no_lock_and_grants_none_twice(cluster: Cluster) -> None:
    """Its callers see a delay: no error, tokens that grow, one holder at a time."""
    inside = 0
    tokens: list[int] = []
    killed_at = 0.0

    async def work(client: dss.client.Client) -> None:
        nonlocal inside
        while not killed_at or time.monotonic() < killed_at + 4:
            async with client.lock("counter", ttl=15, wait=20) as held:
                inside += 1
                assert inside == 1
                tokens.append(held.token)
                await asyncio.sleep(0.005)
                inside -= 1

    async def scenario() -> None:
        nonlocal killed_at
        async with connect(cluster.urls("lock")) as one, connect(cluster.urls("lock")) as two:
            async with asyncio.TaskGroup() as tasks:
                for client in (one, one, two, two):
                    tasks.create_task(work(client))
                await asyncio.sleep(1)
                leader = await asyncio.to_thread(cluster.lock_leader)
                await asyncio.to_thread(cluster.kill, leader)
                before = len(tokens)
                killed_at = time.monotonic()
            assert before > 20
            assert len(tokens) > before + 20

    asyncio.run(scenario())
    assert tokens == sorted(set(tokens))
    print(f"\n{len(tokens)} grants over a killed leader")
