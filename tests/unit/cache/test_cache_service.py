"""The cache service: real links over TCP, real SQLite, real coherence."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from cache_cluster import LEASE_MS, Cluster, cluster, until

from dss.core.mesi.effects import Answer
from dss.core.mesi.messages import ANY_VERSION, DELETE, INCR, PUT
from dss.drivers.caches import CacheService


async def put(service: CacheService, key: str, value: bytes, ttl_ms: int = 0) -> Answer:
    return await service.write(key, PUT, value, "text/plain", ttl_ms)


async def get(service: CacheService, key: str) -> bytes | None:
    line = service.lookup(key)
    if line is not None:
        return line.value
    answer = await service.read(key)
    assert answer.status in (200, 404), answer
    return answer.value if answer.status == 200 else None


async def states(made: Cluster, key: str) -> list[str]:
    return [(await node.service.line(key)).state for node in made.nodes.values()]


@pytest.mark.parametrize("home", ["cache-1", "cache-2"])
def test_read_read_write_read__states_e_s_m_i_as_the_primer_says(tmp_path: Path, home: str) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            one, two = (node.service for node in made.nodes.values())
            key = made.key_at(home)
            assert await get(one, key) is None
            first = await put(one, key, b"v1")
            assert first.status == 201
            assert await states(made, key) == ["M", "I"]
            await asyncio.sleep(2.5 * LEASE_MS / 1000)  # renewals keep a used copy alive
            assert await states(made, key) == ["M", "I"]
            assert await get(two, key) == b"v1"
            assert await states(made, key) == ["S", "S"]
            second = await put(two, key, b"v2")
            assert (second.status, second.version > first.version) == (200, True)
            assert await states(made, key) == ["I", "M"]
            assert await get(one, key) == b"v2"
            assert (await one.write(key, DELETE)).status == 204
            assert await states(made, key) == ["I", "I"]
            assert await get(two, key) is None
            view = await two.line(key)
            assert (view.home, view.owner, view.sharers, view.epoch) == (home, None, [], 1)

    asyncio.run(main())


def test_lone_read__exclusive(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            key = made.key_at("cache-1")
            await put(made.nodes["cache-1"].service, key, b"v")
            for name in list(made.nodes):
                await made.stop(name)
            for name in made.configs:
                await made.start(name)
            await made.ready()
            two = made.nodes["cache-2"].service
            assert await get(two, key) == b"v"
            assert await states(made, key) == ["I", "E"]
            view = await two.line(key)
            assert (view.owner, view.sharers) == ("cache-2", ["cache-2"])
            assert view.lease_ms_left is not None
            assert 0 < view.lease_ms_left <= LEASE_MS

    asyncio.run(main())


def test_concurrent_increments_on_both_nodes__none_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            services = [node.service for node in made.nodes.values()]
            answers = await asyncio.gather(
                *(services[n % 2].write("n", INCR, delta=1) for n in range(60))
            )
            assert sorted(int(a.value) for a in answers) == list(range(1, 61))
            assert len({a.version for a in answers}) == 60

    asyncio.run(main())


def test_conditions__checked_at_the_home(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            one, two = (node.service for node in made.nodes.values())
            key = made.key_at("cache-1")
            created = await two.write(key, PUT, b"a", if_none_match=(ANY_VERSION,))
            assert created.status == 201
            again = await one.write(key, PUT, b"b", if_none_match=(ANY_VERSION,))
            assert (again.status, again.code, again.version) == (
                412,
                "precondition_failed",
                created.version,
            )
            swapped = await one.write(key, PUT, b"c", if_match=(created.version,))
            assert swapped.status == 200
            assert (await two.write(key, PUT, b"d", if_match=(created.version,))).status == 412
            assert await get(two, key) == b"c"
            assert (await two.write(key, INCR, delta=1)).status == 422

    asyncio.run(main())


def test_ttl__never_served_after_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            one, two = (node.service for node in made.nodes.values())
            for home in made.configs:
                key = made.key_at(home)
                before = await put(one, key, b"v", ttl_ms=250)
                ends = time.monotonic() + 0.25
                assert await get(two, key) == b"v"
                while time.monotonic() < ends:
                    assert await get(two, key) in (b"v", None)
                    await asyncio.sleep(0.01)
                assert await get(one, key) is None
                assert await get(two, key) is None
                after = await put(two, key, b"w")
                assert after.version > before.version

    asyncio.run(main())


def test_sharer_dies__write_waits_at_most_its_lease(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            one, two = made.nodes["cache-1"].service, made.nodes["cache-2"].service
            key = made.key_at("cache-1")
            await put(one, key, b"v")
            assert await get(two, key) == b"v"
            await made.stop("cache-2")
            started = time.monotonic()
            assert (await put(one, key, b"w")).status == 200
            assert time.monotonic() - started < 2 * LEASE_MS / 1000
            assert (await one.line(key)).sharers == ["cache-1"]

    asyncio.run(main())


def test_home_dies__its_keys_answer_503_at_once_and_return_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            two = made.nodes["cache-2"].service
            key, own = made.key_at("cache-1"), made.key_at("cache-2")
            version = (await put(two, key, b"v")).version
            await made.stop("cache-1")
            await until(lambda: not made.nodes["cache-2"].links.links()["cache-1"]["up"])
            started = time.monotonic()
            for answer in (await two.write(key, PUT, b"w"), await two.write(key, DELETE)):
                assert (answer.status, answer.code) == (503, "home_unavailable")
            assert time.monotonic() - started < 0.2
            assert (await put(two, own, b"x")).status == 201
            await until(lambda: two.lookup(key) is None)
            assert (await two.read(key)).status == 503
            restarted = await made.start("cache-1")
            assert restarted.service.readiness() is not None  # old copies may still live
            await made.ready()
            assert await get(two, key) == b"v"
            assert (await put(restarted.service, key, b"w")).version > version
            assert await get(two, key) == b"w"

    asyncio.run(main())


def test_many_values_in_little_room__evicted_and_still_right(tmp_path: Path) -> None:
    async def main() -> None:
        made = Cluster(2, f"sqlite://{tmp_path}/memory.db", capacity_mib=1)
        for name in made.configs:
            await made.start(name)
        await made.ready()
        one, two = (node.service for node in made.nodes.values())
        value = b"x" * 100_000
        await asyncio.gather(*(put(one, f"k{n}", value + b"%d" % n) for n in range(40)))
        assert one.stats().evictions >= 25
        assert one.stats().bytes <= one.capacity_bytes
        for n in range(40):
            assert await get(two, f"k{n}") == value + b"%d" % n
        assert one.core.directory.entry_count + two.core.directory.entry_count <= 20
        for name in list(made.nodes):
            await made.stop(name)

    asyncio.run(main())


def test_waiting_reads_of_a_missing_key__share_one_question(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as made:
            two = made.nodes["cache-2"].service
            key = made.key_at("cache-1")
            answers = await asyncio.gather(*(two.read(key) for _ in range(200)))
            assert {a.status for a in answers} == {404}
            assert two.core.directory.entry_count == 0

    asyncio.run(main())
