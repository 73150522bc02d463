"""Both main memories keep the same promises (dss.memory.ports), over the real thing."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from memory_servers import redis_server

from dss.base.errors import ConfigProblem
from dss.memory import AnotherMemory, follow_url, open_memory
from dss.memory.ports import Memory, MemoryLost, MemoryUnavailable, Stamp, Stored
from dss.memory.redis import RedisMemory

Scenario = Callable[[Memory], Awaitable[None]]


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path}/sub/memory.db"
    else:
        with redis_server(tmp_path) as port:
            yield f"redis://127.0.0.1:{port}/0"


def run(url: str, *scenarios: Scenario) -> None:
    """Each scenario with a memory of its own over the same data."""

    async def main() -> None:
        for scenario in scenarios:
            memory = open_memory(url, "test")
            await memory.start()
            try:
                await scenario(memory)
            finally:
                await memory.stop()

    asyncio.run(main())


def stored(version: int, value: bytes = b"x") -> Stored:
    return Stored(value, version, "text/plain", 0)


def test_write_read_delete__kept_over_a_reopen(url: str) -> None:
    async def first(memory: Memory) -> None:
        assert await memory.claim("one", 1, [3, 4]) == {3: 0, 4: 0}
        assert await memory.read("k") is None
        assert await memory.write(Stamp(3, "one", 1), "k", stored(1, b"\x00\xff")) is False
        assert await memory.write(Stamp(3, "one", 2, 1), "k", stored(2, b"")) is True
        assert await memory.write(Stamp(3, "one", 3, 2), "/ü", stored(3)) is False
        assert await memory.delete(Stamp(3, "one", 4, 3), "/ü") is True
        assert await memory.delete(Stamp(3, "one", 5, 4), "/ü") is False

    async def second(memory: Memory) -> None:
        assert await memory.read("k") == stored(2, b"")
        assert await memory.read("/ü") is None
        assert await memory.claim("two", 1, [3]) == {3: 5}
        assert memory.warnings() == []

    run(url, first, second)


def test_batch_in_one_iteration__all_answered_in_order(url: str) -> None:
    async def scenario(memory: Memory) -> None:
        await memory.claim("me", 1, list(range(8)))
        writes = [
            memory.write(Stamp(n % 8, "me", 1 + n // 8), f"k{n}", stored(1 + n // 8))
            for n in range(1_200)
        ]
        assert await asyncio.gather(*writes) == [False] * 1_200
        reads = await asyncio.gather(*(memory.read(f"k{n}") for n in range(1_200)))
        assert [r.version if r else 0 for r in reads] == [1 + n // 8 for n in range(1_200)]

    run(url, scenario)


def test_replaced_owner__its_late_writes_are_refused(url: str) -> None:
    async def scenario(memory: Memory) -> None:
        await memory.claim("old", 1, [0])
        await memory.claim("new", 2, [0])
        with pytest.raises(MemoryLost):
            await memory.write(Stamp(0, "old", 1), "k", stored(1))
        with pytest.raises(MemoryLost):
            await memory.fence(Stamp(0, "old", 1), "k")
        with pytest.raises(MemoryLost):
            await memory.claim("old", 1, [0])
        assert await memory.write(Stamp(0, "new", 1), "k", stored(1)) is False

    run(url, scenario)


def test_fence__reads_and_stops_older_writes_only(url: str) -> None:
    async def scenario(memory: Memory) -> None:
        await memory.claim("me", 1, [0])
        await memory.write(Stamp(0, "me", 1), "k", stored(1, b"old"))
        assert await memory.fence(Stamp(0, "me", 5), "k") == stored(1, b"old")
        assert await memory.fence(Stamp(0, "me", 4), "other") is None
        with pytest.raises(MemoryUnavailable):
            await memory.write(Stamp(0, "me", 5), "k", stored(5, b"late"))
        await memory.write(Stamp(0, "me", 6), "k", stored(6, b"new"))
        assert await memory.read("k") == stored(6, b"new")

    run(url, scenario)


def test_memory_behind_what_it_acknowledged__lost(url: str) -> None:
    async def scenario(memory: Memory) -> None:
        await memory.claim("me", 1, [0])
        with pytest.raises(MemoryLost):
            await memory.write(Stamp(0, "me", 9, acknowledged=8), "k", stored(9))

    run(url, scenario)


def test_redis_away_and_back__unavailable_then_served(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path) as port:
            memory = open_memory(f"redis://127.0.0.1:{port}/0", "test")
            await memory.start()
            await memory.claim("me", 1, [0])
            await memory.write(Stamp(0, "me", 1), "k", stored(1))
        with pytest.raises(MemoryUnavailable):
            await memory.read("k")
        with redis_server(tmp_path, port=port):
            for _ in range(100):
                try:
                    assert await memory.read("k") == stored(1)
                    break
                except MemoryUnavailable:
                    await asyncio.sleep(0.05)
            else:
                pytest.fail("redis came back and was not used")
            await memory.write(Stamp(0, "me", 2, 1), "k", stored(2))
        await memory.stop()

    asyncio.run(main())


def test_redis_that_may_lose_writes__warned(tmp_path: Path) -> None:
    async def main() -> None:
        options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru", "--save", "")
        with redis_server(tmp_path, *options) as port:
            memory = open_memory(f"redis://127.0.0.1:{port}/0", "test")
            await memory.start()
            await memory.read("k")
            text = "\n".join(memory.warnings())
            await memory.stop()
        assert "appendonly is no" in text
        assert "appendfsync is everysec" in text
        assert "maxmemory-policy is allkeys-lru" in text

    asyncio.run(main())


def test_redis_with_wrong_password__unavailable_and_password_not_shown(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path, "--requirepass", "right") as port:
            memory = open_memory(f"redis://:wr0ng-secret@127.0.0.1:{port}/0", "test")
            await memory.start()
            with pytest.raises(MemoryUnavailable) as caught:
                await memory.read("k")
            await memory.stop()
        assert "wr0ng-secret" not in str(caught.value)

    asyncio.run(main())


def test_sqlite_of_another_cluster__refused(tmp_path: Path) -> None:
    path = f"sqlite://{tmp_path}/memory.db"

    async def main() -> None:
        for cluster in ("one", "two"):
            memory = open_memory(path, cluster)
            await memory.start()
            try:
                if cluster == "one":
                    await memory.read("k")
                else:
                    with pytest.raises(MemoryUnavailable, match="belongs to cluster 'one'"):
                        await memory.read("k")
            finally:
                await memory.stop()

    asyncio.run(main())


def test_sqlite_locked_by_another_process__write_did_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"

    async def main() -> None:
        memory = open_memory(f"sqlite://{path}", "test")
        await memory.start()
        await memory.claim("me", 1, [0])
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        write = memory.write(Stamp(0, "me", 1), "k", stored(1))
        with pytest.raises(MemoryUnavailable, match="locked"):
            await write
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await memory.read("k") is None
        await memory.write(Stamp(0, "me", 2), "k", stored(2))
        await memory.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    "bad",
    ["", "memory.db", "sqlite://relative.db", "sqlite://", "redis:///0", "http://x/0",
     "redis://host:port/0", "redis://host:1/x"],
)  # fmt: skip
def test_bad_url__names_variable_and_example(bad: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        open_memory(bad, "test")
    assert "MEMORY_URL" in caught.value.message
    assert "Example: MEMORY_URL=redis://redis:6379/0" in caught.value.message


def test_new_password__used_at_the_next_connection(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path, "--requirepass", "first") as port:
            old = f"redis://:first@127.0.0.1:{port}/0"
            memory = open_memory(old, "test")
            await memory.start()
            assert await memory.claim("me", 1, [0]) == {0: 0}
        new = f"redis://:sec%2Fond@127.0.0.1:{port}"
        assert follow_url(memory, old, new)
        assert not follow_url(memory, new, new)
        with redis_server(tmp_path, "--requirepass", "sec/ond", port=port):
            for _ in range(100):
                try:
                    assert await memory.read("k") is None
                    break
                except MemoryUnavailable:
                    await asyncio.sleep(0.05)
            else:
                pytest.fail("the new password was not used")
        await memory.stop()

    asyncio.run(main())


def test_name_that_takes_longer_than_a_batch__its_answer_serves_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        asked = []

        async def slow(host: str, *args: object, **kwargs: object) -> list[object]:
            asked.append(host)
            await asyncio.sleep(0.5)
            if len(asked) == 1:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        with redis_server(tmp_path) as port:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
            memory = RedisMemory("demo-redis.ns.svc", port, 0, "test", timeout_ms=200)
            await memory.start()
            failures = []
            for _ in range(20):
                try:
                    assert await memory.claim("me", 1, [0]) == {0: 0}
                    break
                except MemoryUnavailable as error:
                    failures.append(error.message)
            else:
                pytest.fail("the slow look-up was never used")
            await memory.stop()
        assert asked == ["demo-redis.ns.svc"] * 2
        assert any("name resolution" in message for message in failures)
        assert any("no answer in time" in message for message in failures)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("redis://:p@a:6379/0", "redis://:p@b:6379/0"),
        ("redis://:p@a:6379/0", "redis://:p@a:6380/0"),
        ("redis://:p@a/0", "redis://:p@a/1"),
        ("redis://a", "sqlite:///a"),
        ("sqlite:///a", "sqlite:///b"),
    ],
)
def test_url_of_another_place__not_followed(old: str, new: str) -> None:
    with pytest.raises(AnotherMemory):
        follow_url(open_memory(old, "test"), old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [("redis://:p@a", "redis://:p@a:6379/0"), ("sqlite:///a", "sqlite:///a")],
)
def test_same_place_and_credentials__no_change(old: str, new: str) -> None:
    assert not follow_url(open_memory(old, "test"), old, new)
