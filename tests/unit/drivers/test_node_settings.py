"""A whole node process, in this one: settings from mounted files, and what a new content does."""

import asyncio
import json

import aiohttp
import pytest
from driver_world import specs, until

from dss.drivers import watched_file
from dss.node import Node
from dss.topology.config import load_node_config


def mounted(folder, name, text):
    """A file as Kubernetes mounts it: a link through `..data` into a folder of this version."""
    versions = len(list(folder.glob("..v*")))
    version = folder / f"..v{versions}"
    version.mkdir()
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in ("..data", name):
            (version / link.name).write_text((folder / link.name).read_text())
    (version / name).write_text(text)
    swap = folder / "..data_tmp"
    swap.symlink_to(version.name)
    swap.replace(folder / "..data")
    if not (folder / name).exists():
        (folder / name).symlink_to(f"..data/{name}")
    return str(folder / name)


def peers(*nodes):
    return json.dumps([{name: getattr(n, name) for name in n.__struct_fields__} for n in nodes])


@pytest.fixture
def cache_node(tmp_path, monkeypatch):
    """Runs `scenario(node, http, etc)` on a lone cache node whose settings are mounted files."""
    monkeypatch.setattr(watched_file.WatchedFile.__init__, "__kwdefaults__", {"poll_s": 0.02})
    etc = tmp_path / "etc"
    etc.mkdir()
    lock, cache = specs("lock-1", "cache-1")

    def run(scenario):
        async def within():
            config = load_node_config(
                {
                    "NODE_ID": "cache-1",
                    "NODE_ROLE": "cache",
                    "DATA_DIR": str(tmp_path / "data"),
                    "RAFT_PEERS_FILE": mounted(etc, "RAFT_PEERS", peers(lock)),
                    "QUEUE_NODES_FILE": mounted(etc, "QUEUE_NODES", "[]\n"),
                    "CACHE_PEERS_FILE": mounted(etc, "CACHE_PEERS", peers(cache)),
                    "CLUSTER_SECRET_FILE": mounted(etc, "secret", "s" * 32 + "\n"),
                    "MEMORY_URL_FILE": mounted(etc, "url", f"sqlite:///{tmp_path}/memory.db\n"),
                }
            )
            node = Node(config)
            ending = asyncio.get_running_loop().create_task(node.run())
            try:
                async with aiohttp.ClientSession(f"http://127.0.0.1:{cache.port}") as http:
                    await until(lambda: node._services and node.readiness() is None)
                    await scenario(node, http, etc)
                    async with asyncio.timeout(5):
                        return await ending
            finally:
                node._stop.set()

        return asyncio.run(within())

    return run


def test_all_settings_from_mounted_files__the_node_serves(cache_node):
    async def scenario(node, http, etc):
        async with http.put("/v1/cache/a", data=b"1") as answer:
            assert answer.status == 201
        node._stop.set()

    assert cache_node(scenario) == 0


def test_url_of_another_main_memory__the_node_ends_to_start_again_with_it(cache_node, caplog):
    async def scenario(node, http, etc):
        mounted(etc, "url", "no url at all")
        await until(lambda: "MEMORY_URL: expected redis://" in caplog.text)
        assert not node._stop.is_set(), "a bad one is not followed"
        mounted(etc, "url", "redis://:hunter2@elsewhere:6379/0")

    assert cache_node(scenario) == 1
    assert "hunter2" not in caplog.text


def test_new_cluster_secret__taken_up_and_a_bad_one_not(cache_node, caplog):
    caplog.set_level("INFO")

    async def scenario(node, http, etc):
        mounted(etc, "secret", "short")
        await until(lambda: "CLUSTER_SECRET: expected 16 to 256" in caplog.text)
        mounted(etc, "secret", "n" * 32)
        await until(lambda: "CLUSTER_SECRET: took up the new content" in caplog.text)
        node._stop.set()

    assert cache_node(scenario) == 0
    assert "n" * 32 not in caplog.text
