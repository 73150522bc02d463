"""A whole node process, in this one: how it ends, with which exit code, and who hears of it."""

import asyncio
import time

import aiohttp
import pytest
from driver_world import specs, until

from dss.base.ids import LOCK_GROUP
from dss.node import Node
from dss.topology.nodes import NodeConfig


def run(folder, scenario):
    """`scenario(node, http)` against a lone lock node; the node's exit code."""

    async def within():
        me = specs("lock-1")[0]
        node = Node(
            NodeConfig(
                node_id="lock-1",
                role="lock",
                data_dir=str(folder),
                raft_peers=(me,),
                cluster_secret="s" * 32,
                heartbeat_ms=20,
                election_min_ms=50,
                election_max_ms=150,
            )
        )
        hosts = []
        make = node._make_host
        node._make_host = lambda *args: hosts.append(make(*args)) or hosts[0]
        ending = asyncio.get_running_loop().create_task(node.run())
        await until(lambda: hosts and hosts[0].is_leader(LOCK_GROUP))
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{me.port}") as http:
                await until(lambda: node.readiness() is None)
                await scenario(node, hosts[0], http)
                async with asyncio.timeout(5):
                    return await ending
        finally:
            node._stop.set()

    return asyncio.run(within())


async def _acquire(http, wait_ms):
    async with http.post("/v1/sessions", json={"ttl_ms": 10_000}) as answer:
        session = (await answer.json())["session"]
    body = {"session": session, "wait_ms": wait_ms}
    async with http.post("/v1/locks/a/acquire", json=body) as answer:
        return answer.status


def test_stop_while_a_client_waits__it_is_told_to_ask_elsewhere_and_the_exit_is_0(tmp_path):
    async def scenario(node, host, http):
        assert await _acquire(http, 0) == 200
        waiting = asyncio.ensure_future(_acquire(http, 20_000))
        await until(lambda: host.machine(LOCK_GROUP).waiting == 1)
        started = time.monotonic()
        node._stop.set()
        assert await waiting == 503
        assert time.monotonic() - started < 3.0

    assert run(tmp_path, scenario) == 0


@pytest.mark.parametrize("where", ["apply", "callback"])
def test_broken_invariant__exit_1_and_the_client_is_not_left_waiting(tmp_path, where):
    async def scenario(node, host, http):
        def broken(*_):
            raise AssertionError("the impossible happened")

        if where == "callback":
            asyncio.get_running_loop().call_soon(broken)
            return
        host.machine(LOCK_GROUP).apply = broken
        async with http.post("/v1/sessions", json={"ttl_ms": 10_000}) as answer:
            assert answer.status in (500, 503, 504)

    assert run(tmp_path, scenario) == 1
