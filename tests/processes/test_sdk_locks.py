"""The SDK against real nodes: docs/sdk.md as it stands, a killed leader, a broken lock."""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp import web
from cluster_process import Cluster, request, until
from cluster_process import dss as dss_command

import dss.client
import dss.client.sync
import dss.guards
from dss.client import DeadlockError, LockLost, clock_s, connect
from dss.client import client as client_module
from dss.client.errors import Closed
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


def node_of(cluster: Cluster, client: dss.client.Client) -> str:
    """The lock node that a client's stream is connected to."""
    endpoint = client._locks.calls._stream.endpoint
    return next(name for name in cluster.names("lock") if cluster.url(name) == endpoint)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_its_node_is_gone__holder_and_waiters_go_on_at_another(
    cluster: Cluster, number: signal.Signals
) -> None:
    """One URL was given. Held is held, the line keeps its order, nothing is granted twice."""
    ttl = 6
    order: list[int] = []

    async def wait(client: dss.client.Client, n: int) -> None:
        async with client.lock("gone", ttl=ttl, wait=None) as held:
            order.append(held.token)
            marks.append(n)

    async def scenario() -> None:
        async with connect(cluster.url("lock-1")) as holder, connect(cluster.url("lock-1")) as two:
            async with holder.lock("gone", ttl=ttl, wait=10) as held:
                waiting = []
                for n in range(4):
                    waiting.append(asyncio.create_task(wait((holder, two)[n % 2], n)))
                    await asyncio.sleep(0.1)
                name = node_of(cluster, holder)
                assert node_of(cluster, two) == name  # both go to the leader
                pid = await asyncio.to_thread(cluster.pid, name)
                os.kill(pid, number)
                try:
                    until_s = clock_s() + 1.5 * ttl
                    while clock_s() < until_s:  # its keepalives go elsewhere in time
                        held.check()
                        assert not order
                        await asyncio.sleep(0.02)
                finally:
                    if number is signal.SIGSTOP:
                        os.kill(pid, signal.SIGCONT)
                order.append(held.token)
            await asyncio.wait_for(asyncio.gather(*waiting), 20)
            assert node_of(cluster, holder) != name

    marks: list[int] = []
    asyncio.run(scenario())
    assert marks == [0, 1, 2, 3]
    assert order == sorted(set(order))


def test_wait_over_rolling_restarts__keeps_its_place(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if nodes waited at most two seconds: asked again and again, while all are restarted."""
    monkeypatch.setattr("dss.client.waits.WAIT_MS_MAX", 2_000)
    monkeypatch.setattr("dss.client.waits.ASK_AGAIN_S", 0.5)
    order: list[int] = []

    async def wait(client: dss.client.Client, n: int) -> None:
        async with client.lock("rolling", ttl=30, wait=None):
            order.append(n)

    async def scenario() -> None:
        async with connect(cluster.url("lock-1")) as one, connect(cluster.url("lock-2")) as two:
            async with one.lock("rolling", ttl=30, wait=10) as held:
                waiting = []
                for n in range(6):
                    waiting.append(asyncio.create_task(wait((one, two)[n % 2], n)))
                    await asyncio.sleep(0.1)
                for name in cluster.names("lock"):
                    pid = await asyncio.to_thread(cluster.pid, name)
                    os.kill(pid, signal.SIGTERM)
                    await asyncio.sleep(2.5)
                    await asyncio.to_thread(until, cluster.all_ready, "ready", 60)
                held.check()
                assert not order
            await asyncio.wait_for(asyncio.gather(*waiting), 20)

    asyncio.run(scenario())
    assert order == list(range(6))


def test_opposite_order__one_of_two_programs_is_told_the_cycle(cluster: Cluster) -> None:
    done: list[str] = []

    async def work(client: dss.client.Client, first: str, second: str) -> None:
        async with client.lock(first, wait=30), client.lock("pause", shared=True):
            await asyncio.sleep(0.3)
            async with client.lock(second, wait=30):
                done.append(first)

    async def scenario() -> None:
        async with connect(cluster.url("lock-1")) as one, connect(cluster.url("lock-3")) as two:
            for other in (one, two):
                began = time.monotonic()
                results = await asyncio.gather(
                    work(one, "dead/a", "dead/b"), work(other, "dead/b", "dead/a"),
                    return_exceptions=True,
                )  # fmt: skip
                (error,) = [each for each in results if each is not None]
                assert isinstance(error, DeadlockError), results
                assert {step["name"] for step in error.cycle} == {"dead/a", "dead/b"}
                assert time.monotonic() - began < 10

    asyncio.run(scenario())
    assert len(done) == 2


def test_observers__are_told_each_leader_at_once_also_over_a_killed_node(cluster: Cluster) -> None:
    seen: list[tuple[float, str | None]] = []

    async def observe(client: dss.client.Client) -> None:
        async for leader in client.election("observed").observe(every=60):
            seen.append((time.monotonic(), leader and leader.name))

    async def scenario() -> None:
        async with (
            connect(cluster.url("lock-1"), name="me") as me,
            connect(cluster.url("lock-2"), name="watcher") as watcher,
        ):
            watching = asyncio.create_task(observe(watcher))
            await asyncio.sleep(1)
            delays = []
            for _ in range(20):
                async with me.election("observed", ttl=5):
                    led = time.monotonic()
                    await asyncio.sleep(0.05)
                delays.append(next(at for at, name in reversed(seen) if name == "me") - led)
            assert [name for _, name in seen[:5]] == [None, "me", None, "me", None]
            assert sorted(delays)[10] < 0.05, delays
            for name in cluster.names("lock")[:2]:
                await asyncio.to_thread(cluster.kill, name)
                await asyncio.to_thread(until, cluster.all_ready, "ready", 60)
            async with me.election("observed", ttl=5):
                led = time.monotonic()
                while seen[-1][1] != "me":
                    await asyncio.sleep(0.01)
                    assert time.monotonic() < led + 10
            watching.cancel()

    asyncio.run(scenario())


def test_answers_lost_over_http__are_asked_for_by_number_and_nothing_happens_twice(
    cluster: Cluster,
) -> None:
    """A proxy without WebSockets that drops every other answer to a write, or says 504."""
    tries: dict[tuple[str, int], int] = {}
    keys: list[str] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        if request.path.endswith(":stream"):
            return web.Response(status=400)
        if request.path == "/v1/cluster":  # else the client would go around the proxy
            return web.Response(status=404)
        body = await request.read()
        async with http.request(
            request.method, yarl.URL(cluster.url("lock-2") + request.raw_path, encoded=True),
            data=body, headers={k: v for k, v in request.headers.items() if k != "Host"},
        ) as answer:  # fmt: skip
            data = await answer.read()
        if key := request.headers.get("Idempotency-Key"):
            keys.append(key)
        asked = json.loads(body or b"{}")
        if "seq" in asked:
            number = (asked["session"], asked["seq"])
            tries[number] = tries.get(number, 0) + 1
            if tries[number] == 1:
                if len(tries) % 2:
                    return web.json_response({"code": "indeterminate", "detail": "x"}, status=504)
                assert request.transport is not None
                request.transport.abort()
        return web.Response(status=answer.status, body=data, content_type=answer.content_type)

    async def scenario() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with connect(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
                for n in range(4):
                    async with client.lock("keyed", wait=5) as held:
                        view = await asyncio.to_thread(
                            request, "GET", f"{cluster.url('lock-1')}/v1/locks/keyed"
                        )
                        assert [each["token"] for each in view.body["holders"]] == [held.token]
                    async with client.locks([f"k/{n}", "k/x"]), client.rwlock("k/rw").read() as rw:
                        await rw.upgrade()
        finally:
            await runner.cleanup()
        left = await asyncio.to_thread(request, "GET", f"{cluster.url('lock-1')}/v1/locks?prefix=k")
        assert left.body["items"] == []

    async def main() -> None:
        nonlocal http
        async with aiohttp.ClientSession() as http:
            await scenario()

    http: aiohttp.ClientSession
    asyncio.run(main())
    assert len(tries) > 20
    assert all(count == 2 for count in tries.values()), tries
    assert keys == []


def test_blocking_client_without_with__ends_with_its_process_and_not_in_a_fork(
    cluster: Cluster,
) -> None:
    script = """
import os, sys, warnings
warnings.simplefilter("ignore")
from dss.client import sync
from dss.client.errors import Closed
client = sync.connect(sys.argv[1])
held = client.lock("forked", ttl=600).acquire()
child = os.fork()
if not child:
    try:
        client.lock("other").acquire()
    except Closed as closed:
        os._exit(7 if "connect here again" in str(closed) else 8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
held.check()
print(held)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, cluster.url("lock-1")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('<Held "forked" exclusive, token ')
    assert request("GET", f"{cluster.url('lock-2')}/v1/locks/forked").body["holders"] == []


def test_awaited_connection__lives_until_it_is_closed(cluster: Cluster) -> None:
    async def scenario() -> None:
        client = await connect(cluster.url("lock-1"))
        held = await client.lock("awaited", ttl=600).acquire()
        held.check()
        await client.aclose()
        with pytest.raises(Closed):
            await client.lock("awaited").acquire()
        with pytest.raises(AttributeError, match="async with connect"):
            connect(cluster.url("lock-1")).lock("awaited")  # type: ignore[attr-defined]

    asyncio.run(scenario())
    assert request("GET", f"{cluster.url('lock-2')}/v1/locks/awaited").body["holders"] == []


def test_broken_while_its_node_is_gone__known_at_once_over_another(cluster: Cluster) -> None:
    async def scenario() -> float:
        async with connect(cluster.url("lock-1")) as client:
            held = await client.lock("unseen", ttl=120).acquire()  # kept alive every 40 s
            name = node_of(cluster, client)
            others = [each for each in cluster.names("lock") if each != name]
            os.kill(await asyncio.to_thread(cluster.pid, name), signal.SIGKILL)

            def break_it() -> bool:
                url = f"{cluster.url(others[0])}/v1/locks/unseen?reason=stuck"
                return request("DELETE", url).status == 200

            await asyncio.to_thread(until, break_it, "broken", 20)
            began = time.monotonic()
            await asyncio.wait_for(held.until_lost(), 20)
            return time.monotonic() - began

    assert asyncio.run(scenario()) < 5
