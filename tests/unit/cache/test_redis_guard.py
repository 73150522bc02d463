"""The Redis guard against a real Redis: a paused old holder is refused. Skipped without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
import redis.asyncio
from memory_servers import redis_server

from dss.guards import AsyncRedisGuard, RedisGuard, StaleToken


def test_redis__paused_old_holder_writes_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as port, redis.Redis(port=port) as client:
        guard = RedisGuard(client)
        assert guard.run("orders/42", 7, "SET", "order", "packed") == b"OK"
        assert guard.run("orders/42", 9, "HSET", "h", "state", "sent") == 1
        with pytest.raises(StaleToken) as stale:
            guard.run("orders/42", 7, "SET", "order", "late")
        assert stale.value.newest == 9
        assert client.get("order") == b"packed"
        assert guard.run("orders/42", 9, "GET", "none") is None
        assert guard.run("other", 1, "DEL", "order") == 1


def test_redis_asyncio__paused_old_holder_writes_nothing(tmp_path: Path) -> None:
    async def scenario(port: int) -> None:
        async with redis.asyncio.Redis(port=port) as client:
            guard = AsyncRedisGuard(client)
            await guard.run("a", 2, "SET", "k", "new")
            with pytest.raises(StaleToken):
                await guard.run("a", 1, "SET", "k", "old")
            assert await client.get("k") == b"new"

    with redis_server(tmp_path) as port:
        asyncio.run(scenario(port))


def test_redis_readers__pass_beside_each_other_and_only_a_later_writer_makes_them_stale(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as port, redis.Redis(port=port) as client:
        guard = RedisGuard(client)
        client.set("k", "v")

        def use(token: int, mode: str) -> object:
            return guard.run("c", token, "GET", "k", mode=mode)

        for token in (5, 6, 5):
            assert use(token, "shared") == b"v"
        assert use(8, "exclusive") == b"v"
        assert client.get("dss:fence:c") == b"8"
        with pytest.raises(StaleToken) as stale:
            use(6, "shared")
        assert stale.value.newest == 8
        use(8, "shared")
        use(10, "shared")
        with pytest.raises(StaleToken) as stale:
            use(8, "exclusive")
        assert stale.value.newest == 10
        use(10, "exclusive")
        with pytest.raises(ValueError, match="verify"):
            use(11, "semaphore")
