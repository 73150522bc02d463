"""Settings that change while the node runs: new content is taken up, bad content is not."""

import asyncio
import logging
import os

from driver_world import until

from dss.base.errors import ConfigProblem
from dss.drivers.watched_file import WatchedFile


def run(scenario, path):
    async def within():
        taken = []

        def take(text):
            if text == "bad":
                raise ConfigProblem("AUTH_TOKENS: expected something good.")
            changed = text not in taken[-1:]
            taken.append(text)
            return changed

        watched = WatchedFile("AUTH_TOKENS", str(path), take, poll_s=0.01)
        await watched.start()
        try:
            async with asyncio.timeout(10):
                await scenario(taken)
        finally:
            await watched.stop()

    asyncio.run(within())


def test_rewritten_file__taken_up_once(tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text("one\n")

    async def scenario(taken):
        await until(lambda: taken == ["one"])
        path.write_text("two")
        await until(lambda: taken == ["one", "two"])
        path.write_text("two\n")
        await asyncio.sleep(0.05)
        assert taken == ["one", "two"], "the same content is no change"

    run(scenario, path)


def test_kubernetes_swaps_the_directory_link__seen_though_size_and_name_are_the_same(tmp_path):
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "tokens.json").write_text(version)
        os.utime(tmp_path / f"..{version}" / "tokens.json", ns=(5, 5))
    data = tmp_path / "..data"
    data.symlink_to("..one")
    path = tmp_path / "tokens.json"
    path.symlink_to("..data/tokens.json")

    async def scenario(taken):
        await until(lambda: taken == ["one"])
        new = tmp_path / "..data_tmp"
        new.symlink_to("..two")
        new.rename(data)
        await until(lambda: taken == ["one", "two"])

    run(scenario, path)


def test_bad_or_missing_content__reported_once_and_the_next_good_one_is_taken(tmp_path, caplog):
    path = tmp_path / "tokens.json"
    path.write_text("one")

    async def scenario(taken):
        await until(lambda: taken == ["one"])
        path.write_text("bad")
        await until(lambda: caplog.records)
        await asyncio.sleep(0.05)
        path.unlink()
        await until(lambda: len(caplog.records) == 2)
        await asyncio.sleep(0.05)
        path.write_bytes(b"\xff\xfe\xff")
        await until(lambda: len(caplog.records) == 3)
        path.write_text("three")
        await until(lambda: taken == ["one", "three"])

    with caplog.at_level(logging.ERROR):
        run(scenario, path)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "AUTH_TOKENS: expected something good. The node goes on with what it had.",
        f"AUTH_TOKENS_FILE: {path} cannot be read: No such file or directory. "
        "The node goes on with what it had.",
        f"AUTH_TOKENS_FILE: {path} cannot be read: it is not UTF-8 text. "
        "The node goes on with what it had.",
    ]
