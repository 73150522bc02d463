"""Snapshots: whole or absent, checked on every read."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from wal_model import ABC, configuration

from dss.base import limits
from dss.base.errors import CorruptData, Invalid
from dss.storage.files import Files, OsFiles
from dss.storage.snapshots import SnapshotMeta, SnapshotStore
from dss.testing.disk import SimCrash, SimFiles

BLOCK = limits.SNAPSHOT_BLOCK_BYTES
DATA = Random(7).randbytes(3 * BLOCK + 1234)


@pytest.fixture(params=["os", "simulated"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else SimFiles(Random(1))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_saved__loads_back(files: Files, size: int) -> None:
    SnapshotStore(files).save(1, 50, 3, 777, ABC, [DATA[:size]])
    store = SnapshotStore(files)
    assert store.load(1, 50) == DATA[:size]
    assert store.latest(1) == SnapshotMeta(1, 50, 3, 777, ABC, size)
    assert store.meta(1, 50) == store.latest(1)


@pytest.mark.parametrize("piece", [1_000, BLOCK, BLOCK + 7, 2 * limits.MIB])
def test_saved_in_pieces__is_the_same_file(files: Files, piece: int) -> None:
    store = SnapshotStore(files)
    data = DATA * 12
    store.save(1, 50, 3, 777, ABC, [data])
    store.save(2, 50, 3, 777, ABC, [data[at : at + piece] for at in range(0, len(data), piece)])
    assert store.load(1, 50) == store.load(2, 50) == data


def test_nothing_saved__nothing_found(files: Files) -> None:
    store = SnapshotStore(files)
    assert store.latest(1) is None
    assert store.meta(1, 5) is None
    with pytest.raises(CorruptData, match="missing"):
        store.load(1, 5)


def test_pieces__are_read_at_any_offset(files: Files) -> None:
    store = SnapshotStore(files)
    store.save(1, 50, 3, 777, ABC, [DATA])
    for offset in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, len(DATA) - 1, len(DATA)):
        for size in (0, 1, 100, BLOCK, len(DATA)):
            assert store.read(1, 50, offset, size) == (DATA[offset : offset + size], len(DATA))
    assert store.read(1, 50, len(DATA) + 1, 10) == (b"", len(DATA))


@pytest.mark.parametrize("chunk", [1000, BLOCK, BLOCK + 7, len(DATA)])
def test_received_in_chunks__is_the_same_snapshot(files: Files, chunk: int) -> None:
    store = SnapshotStore(files)
    receiver = store.begin_receive(1, 50, 3, 777, ABC, len(DATA))
    assert receiver.identity[:2] == (50, 3)
    assert receiver.received == 0
    for offset in range(0, len(DATA), chunk):
        assert receiver.write_chunk(offset, DATA[offset : offset + chunk]) == receiver.received
    receiver.finish()
    assert SnapshotStore(files).load(1, 50) == DATA
    store.save(2, 50, 3, 777, ABC, [DATA])
    assert store.read(2, 50, 5, 99) == store.read(1, 50, 5, 99)


def test_chunk_out_of_order__is_not_kept_and_the_wanted_offset_is_told(files: Files) -> None:
    receiver = SnapshotStore(files).begin_receive(1, 50, 3, 777, ABC, 30)
    assert receiver.write_chunk(10, b"x" * 10) == 0
    assert receiver.write_chunk(0, b"a" * 10) == 10
    assert receiver.write_chunk(0, b"b" * 10) == 10
    with pytest.raises(Invalid, match="10 of 30"):
        receiver.finish()
    with pytest.raises(Invalid, match="beyond the announced 30"):
        receiver.write_chunk(10, b"x" * 21)
    receiver.write_chunk(10, b"c" * 20)
    receiver.finish()
    assert SnapshotStore(files).load(1, 50) == b"a" * 10 + b"c" * 20


def test_announced_size_beyond_the_limit__is_refused(files: Files) -> None:
    store = SnapshotStore(files)
    for size in (limits.SNAPSHOT_BYTES_MAX + 1, -1):
        with pytest.raises(Invalid, match="beyond the limit"):
            store.begin_receive(1, 50, 3, 777, ABC, size)


def test_abandoned_and_left_over_files__are_gone(files: Files) -> None:
    store = SnapshotStore(files)
    receiver = store.begin_receive(1, 50, 3, 777, ABC, 30)
    receiver.abandon()
    assert files.list() == []
    store.begin_receive(1, 51, 3, 777, ABC, 30).write_chunk(0, b"x")
    assert files.list() != []
    SnapshotStore(files)
    assert files.list() == []


def test_prune__removes_older_ones_of_that_group_only(files: Files) -> None:
    store = SnapshotStore(files)
    for group, index in ((1, 10), (1, 20), (1, 30), (2, 10)):
        store.save(group, index, 1, 1, ABC, [b"data"])
    assert store.prune(1, 20) == 1
    assert store.meta(1, 10) is None
    assert store.load(1, 20) == store.load(2, 10) == b"data"
    latest = store.latest(1)
    assert latest is not None
    assert latest.index == 30


def test_every_byte_flipped__is_refused() -> None:
    files = SimFiles(Random(1))
    SnapshotStore(files).save(1, 50, 3, 777, configuration("a"), [DATA[: BLOCK + 40]])
    (name,) = files.list()
    size = len(files.contents(name))
    header = list(range(120))
    offsets = header + list(range(120, size, 997)) + list(range(size - 60, size))
    for offset in offsets:
        damaged = files.copy()
        damaged.flip(name, offset, offset % 8)
        with pytest.raises(CorruptData) as caught:
            SnapshotStore(damaged).load(1, 50)
        assert name in caught.value.message
        assert "re-admitted" in caught.value.message


def test_cut_off_anywhere__is_refused() -> None:
    files = SimFiles(Random(1))
    SnapshotStore(files).save(1, 50, 3, 777, configuration("a"), [DATA[:300]])
    (name,) = files.list()
    for size in range(len(files.contents(name))):
        damaged = files.copy()
        damaged.open(name, create=False).truncate(size)
        with pytest.raises(CorruptData):
            SnapshotStore(damaged).load(1, 50)


def test_damage_in_one_block__leaves_the_others_readable() -> None:
    files = SimFiles(Random(1))
    store = SnapshotStore(files)
    store.save(1, 50, 3, 777, ABC, [DATA])
    (name,) = files.list()
    files.flip(name, len(files.contents(name)) // 2, 0)
    assert store.read(1, 50, 0, BLOCK)[0] == DATA[:BLOCK]
    with pytest.raises(CorruptData, match="block 1"):
        store.read(1, 50, 0, len(DATA))


def test_another_snapshots_file_under_this_name__is_refused(files: Files) -> None:
    store = SnapshotStore(files)
    store.save(1, 50, 3, 777, ABC, [b"one"])
    files.rename(files.list()[0], "0000000002-0000000000000050.snap")
    with pytest.raises(CorruptData, match="another snapshot"):
        store.load(2, 50)


def test_saved_again_over_a_damaged_one__is_mended() -> None:
    files = SimFiles(Random(1))
    store = SnapshotStore(files)
    store.save(1, 50, 3, 777, ABC, [b"some data"])
    store.save(1, 50, 3, 777, ABC, [b"some data"])
    (name,) = files.list()
    files.flip(name, len(files.contents(name)) - 10, 1)
    store.save(1, 50, 3, 777, ABC, [b"some data"])
    assert SnapshotStore(files).load(1, 50) == b"some data"


def test_full_disk__leaves_no_file_behind() -> None:
    files = SimFiles(Random(1), capacity_bytes=1000)
    store = SnapshotStore(files)
    with pytest.raises(OSError, match="No space left"):
        store.save(1, 50, 3, 777, ABC, [DATA])
    assert files.list() == []
    files.fail["datasync"] = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        store.save(1, 50, 3, 777, ABC, [b"small"])
    assert files.list() == []


def test_death_in_every_operation__whole_or_absent() -> None:
    files = SimFiles(Random(0))
    _save_and_prune(files)
    for operation in range(1, files.ops + 1):
        files = SimFiles(Random(operation))
        files.crash_at = operation
        done = [0]
        with pytest.raises(SimCrash):
            _save_and_prune(files, done)
        for seed in range(40):
            after = SnapshotStore(files.crash(Random(seed)))
            for index in (10, 20):
                if after.meta(1, index) is not None:
                    assert after.load(1, index) == DATA[: index * 100]
            assert done[0] != 10 or after.load(1, 10) == DATA[:1000]
            assert done[0] != 20 or after.load(1, 20) == DATA[:2000]


def _save_and_prune(files: SimFiles, done: list[int] | None = None) -> None:
    store = SnapshotStore(files)
    done = done if done is not None else [0]
    store.save(1, 10, 1, 1, ABC, [DATA[:1000]])
    done[0] = 10
    store.save(1, 20, 1, 1, ABC, [DATA[:2000]])
    done[0] = 20
    store.prune(1, 20)
    files.sync_dir()
