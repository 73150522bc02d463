"""Power losses and kills at every point: what was synced is there, in order, nothing void is."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from wal_model import SEGMENT_BYTES, Writer, plain, run

from dss.base.errors import CorruptData, StorageFailed
from dss.core.raft.messages import Entry
from dss.storage.files import File
from dss.storage.recovery import _Replay
from dss.storage.segments import Spares, segment_name
from dss.storage.wal import Wal
from dss.testing.disk import SimCrash, SimFiles

SEEDS = 80
IMAGES_MIN = 2_000


def test_random_crashes__recover_a_prefix_that_holds_all_that_was_synced() -> None:
    images = [0]
    for seed in range(SEEDS):
        run(seed, 60, images)
    assert images[0] >= IMAGES_MIN


@pytest.mark.sim
def test_random_crashes__in_large_numbers() -> None:
    images = [0]
    for seed in range(1_000, 3_500):
        run(seed, 60, images)
    assert images[0] >= 100_000


def story(files: SimFiles) -> Writer:
    """The same calls every time; they roll, reclaim, recycle and prepare."""
    rng = Random(11)
    writer = Writer(files, rng)
    writer_steps(writer)
    return writer


def writer_steps(writer: Writer) -> None:
    for step in range(1, 151):
        writer.step()
        if step % 40 == 0:
            writer.tidy()


def test_death_in_every_operation__recovers() -> None:
    files = SimFiles(Random(0))
    writer = story(files)
    assert writer.wal._number >= 5
    assert writer.freed >= 3
    for operation in range(1, files.ops + 1):
        files = SimFiles(Random(operation))
        rng = Random(11)
        files.crash_at = operation
        try:
            writer = Writer(files, rng)
        except SimCrash:
            again = Writer(files.crash(Random(operation)), Random(1))
            writer_steps(again)
            continue
        with pytest.raises(SimCrash):
            writer_steps(writer)
        for seed in range(4):
            survivor = files.crash(Random(seed)) if seed else files.kill()
            reborn = Writer.__new__(Writer)
            reborn.__dict__ = {**writer.__dict__, "rng": Random(seed)}
            reborn.attach(survivor)
            for late in range(8):  # what recovery showed once must never go again
                _, found = Wal.open(survivor.crash(Random(late)), segment_bytes=SEGMENT_BYTES)
                assert plain(found) == reborn.history[0]
            for _ in range(10):
                reborn.step()
            reborn.attach(survivor.crash(Random(seed)))


def test_disk_error_in_every_operation__stops_the_node_and_loses_nothing_synced() -> None:
    files = SimFiles(Random(0))
    story(files)
    for operation in range(20, files.ops + 1):
        files = SimFiles(Random(operation))
        writer = Writer(files, Random(11))
        files.fail_at = operation
        try:
            writer_steps(writer)
        except StorageFailed:
            with pytest.raises(StorageFailed):
                writer.wal.write()
        else:
            assert writer.wal.prepare_error or files.ops >= operation, "only prepare may go on"
        for seed in range(3):
            reborn = Writer.__new__(Writer)
            reborn.__dict__ = dict(writer.__dict__)
            reborn.attach(files.crash(Random(seed)))


def run_seeds(seeds: int) -> None:
    for seed in range(seeds):
        run(seed, 60, [0])


def lying_sync(wal: Wal) -> None:
    wal._unsynced = False


def keep_void_entries(replay: _Replay, group: int, entries: list[Entry], number: int) -> None:
    replay.logs[group].append(entries, number)
    replay.entries[group].extend(entries)


def roll_without_directory_sync(spares: Spares, name: str, number: int, content: bytes) -> File:
    file = spares._files.open(name, create=False)
    file.pwrite(content, 0)
    file.datasync()
    spares._files.rename(name, segment_name(number))
    return file


@pytest.mark.parametrize(
    ("owner", "method", "bug"),
    [
        (Wal, "sync", lying_sync),
        (_Replay, "_append", keep_void_entries),
        (Spares, "become", roll_without_directory_sync),
    ],
)
def test_planted_bug__is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, bug: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, method, bug)
    with pytest.raises((AssertionError, CorruptData)):
        run_seeds(20)
