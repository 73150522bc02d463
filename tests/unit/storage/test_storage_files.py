"""Both kinds of Files behave alike without faults; SimFiles then does what it says with them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest

from dss.storage.files import File, Files, OsFiles
from dss.testing.disk import SECTOR_BYTES, SimCrash, SimFiles


@pytest.fixture(params=["os", "simulated"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else SimFiles(Random(1))


def test_bytes__are_read_back_where_they_were_written(files: Files) -> None:
    file = files.open("a", create=True)
    file.pwrite(b"hello", 3)
    assert file.size() == 8
    assert file.pread(100, 0) == b"\0\0\0hello"
    assert file.pread(2, 4) == b"el"
    assert file.pread(5, 8) == b""
    file.truncate(4)
    assert file.pread(100, 0) == b"\0\0\0h"
    file.truncate(6)
    assert file.pread(100, 0) == b"\0\0\0h\0\0"
    file.datasync()
    file.close()
    file.close()


def test_allocate__zeroes_everything(files: Files) -> None:
    file = files.open("a", create=True)
    file.pwrite(b"old", 0)
    file.allocate(3_000_000)
    assert file.size() == 3_000_000
    assert not file.pread(3_000_000, 0).strip(b"\0")


def test_names__are_made_listed_renamed_and_removed(files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        files.open("b", create=False)
    for name in ("c", "b", "a"):
        files.open(name, create=True).close()
    assert files.list() == ["a", "b", "c"]
    file = files.open("a", create=False)
    file.pwrite(b"A", 0)
    files.rename("a", "b")
    file.pwrite(b"!", 1)
    files.sync_dir()
    assert files.list() == ["b", "c"]
    assert files.open("b", create=False).pread(9, 0) == b"A!"
    files.remove("c")
    assert not files.exists("c")
    assert files.exists("b")
    for action in (lambda: files.remove("c"), lambda: files.rename("c", "d")):
        with pytest.raises(FileNotFoundError):
            action()


def synced(files: SimFiles, data: bytes) -> File:
    file = files.open("a", create=True)
    file.pwrite(data, 0)
    file.datasync()
    files.sync_dir()
    return file


def test_unsynced_sectors__are_kept_lost_torn_or_zeroed_and_synced_ones_stay() -> None:
    files = SimFiles(Random(1))
    old, new = b"o" * SECTOR_BYTES, b"n" * SECTOR_BYTES
    file = synced(files, old * 4)
    file.pwrite(new * 2, SECTOR_BYTES)
    seen: dict[str, int] = {}
    for seed in range(300):
        found = files.crash(Random(seed)).contents("a")
        assert found[:SECTOR_BYTES] == found[3 * SECTOR_BYTES :] == old
        sector = found[SECTOR_BYTES : 2 * SECTOR_BYTES]
        kind = {old: "lost", new: "kept", bytes(SECTOR_BYTES): "zeroed"}.get(sector, "torn")
        seen[kind] = seen.get(kind, 0) + 1
    assert sorted(seen) == ["kept", "lost", "torn", "zeroed"]
    assert files.contents("a") == old + new * 2 + old


def test_appending_within_a_sector__never_harms_its_synced_bytes() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"synced" + bytes(SECTOR_BYTES - 6))
    file.pwrite(b"more", 6)
    for seed in range(200):
        assert files.crash(Random(seed)).contents("a").startswith(b"synced")


def test_names__are_durable_only_after_sync_dir() -> None:
    files = SimFiles(Random(1))
    synced(files, b"x")
    files.open("b", create=True)
    files.rename("a", "c")
    found = {tuple(files.crash(Random(seed)).list()) for seed in range(100)}
    assert found == {("a",), ("c",), ("a", "b"), ("b", "c")}
    files.sync_dir()
    assert {tuple(files.crash(Random(seed)).list()) for seed in range(20)} == {("b", "c")}


def test_grown_size__is_durable_only_after_datasync() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"x" * 10)
    file.pwrite(b"y" * 10, 10)
    sizes = {len(files.crash(Random(seed)).contents("a")) for seed in range(200)}
    assert {10, 20} <= sizes
    file.datasync()
    assert files.crash(Random(1)).contents("a") == b"x" * 10 + b"y" * 10


def test_failed_datasync__a_later_one_does_not_mend_it() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"o" * SECTOR_BYTES)
    file.pwrite(b"n" * SECTOR_BYTES, 0)
    files.fail["datasync"] = [errno.EIO]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.datasync()
    file.datasync()
    assert file.pread(1, 0) == b"n"
    assert {files.crash(Random(seed)).contents("a")[:1] for seed in range(50)} == {b"o"}


def test_kill__keeps_unsynced_writes_and_they_can_still_be_lost() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"o" * 10)
    file.pwrite(b"n" * 10, 0)
    alive = files.kill()
    file.pwrite(b"m" * 10, 0)
    assert alive.contents("a") == b"n" * 10
    assert b"o" * 10 in {alive.crash(Random(seed)).contents("a") for seed in range(50)}


def test_full_disk__refuses_growth_only() -> None:
    files = SimFiles(Random(1), capacity_bytes=100)
    file = synced(files, b"x" * 90)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.pwrite(b"y" * 20, 85)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.allocate(101)
    file.pwrite(b"y" * 20, 80)
    assert file.size() == 100


def test_planned_death__ends_every_later_operation() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"x" * 90)
    files.crash_after(2)
    file.pwrite(b"1", 0)
    with pytest.raises(SimCrash):
        file.pwrite(b"2", 0)
    for action in (lambda: file.pread(1, 0), files.list, file.datasync, files.sync_dir):
        with pytest.raises(SimCrash):
            action()
    assert files.crash(Random(1)).list() == ["a"]


def test_planned_error_and_heal__come_and_go() -> None:
    files = SimFiles(Random(1))
    file = synced(files, b"x")
    files.fail_after(1)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.pwrite(b"y", 0)
    files.fail_after(1)
    files.crash_after(1)
    files.heal()
    file.pwrite(b"y", 0)
    assert files.contents("a") == b"y"
    files.flip("a", 0, 0)
    assert files.contents("a") == b"x"
