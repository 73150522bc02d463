"""The WAL without faults: what goes in comes out, segments roll, go, and are used again."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from wal_model import ABC, SEGMENT_BYTES, configuration, entries, entry

from dss.base import limits
from dss.base.errors import ConfigProblem, StorageFailed
from dss.storage import segments
from dss.storage.files import Files, OsFiles
from dss.storage.wal import GroupState, Wal
from dss.testing.disk import SimFiles


def open_wal(files: Files) -> tuple[Wal, dict[int, GroupState]]:
    return Wal.open(files, segment_bytes=SEGMENT_BYTES)


def reopen(wal: Wal, files: Files) -> tuple[Wal, dict[int, GroupState]]:
    wal.close()
    return open_wal(files)


def commit(wal: Wal) -> None:
    wal.write()
    wal.sync()


@pytest.fixture(params=["os", "simulated"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else SimFiles(Random(1))


def test_empty_directory__gives_no_groups(files: Files) -> None:
    wal, groups = open_wal(files)
    assert groups == {}
    wal, groups = reopen(wal, files)
    assert groups == {}
    assert wal.torn_bytes == 0


def test_everything_written_and_synced__comes_back(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(0, ABC)
    wal.create_group(16, configuration("x"))
    wal.save_state(0, 3, "b")
    wal.append(0, entries(1, 5, term=3))
    wal.append(16, [])
    commit(wal)
    wal, groups = reopen(wal, files)
    assert groups[0] == GroupState(0, ABC, 3, "b", 0, 0, 0, entries(1, 5, term=3))
    assert groups[16] == GroupState(16, configuration("x"), 0, None, 0, 0, 0, [])
    assert wal.torn_bytes == 0


def test_append_over_stored_entries__voids_them_and_all_behind(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 9, term=1))
    wal.append(1, entries(4, 5, term=2))
    commit(wal)
    _, groups = reopen(wal, files)
    assert groups[1].entries == entries(1, 3, term=1) + entries(4, 5, term=2)


def test_default_segment_size__works_too(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    wal, _ = Wal.open(files)
    wal.create_group(1, ABC)
    commit(wal)
    wal.close()
    assert (tmp_path / segments.segment_name(1)).stat().st_size == limits.WAL_SEGMENT_BYTES
    assert list(Wal.open(files)[1]) == [1]


def test_buffered_but_not_written__is_not_there(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    commit(wal)
    wal.append(1, [entry(1)])
    _, groups = reopen(wal, files)
    assert groups[1].entries == []


@pytest.mark.parametrize("at_once", [False, True])
def test_many_segments_by_many_writes_or_one__keep_every_entry(files: Files, at_once: bool) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    for index in range(1, 101):
        wal.append(1, [entry(index, size=300)])
        if not at_once or index == 100:
            commit(wal)
    assert wal.segments > 5
    _, groups = reopen(wal, files)
    assert groups[1].entries == [entry(index, size=300) for index in range(1, 101)]


def test_record_larger_than_a_segment__gets_a_segment_of_its_size(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, [entry(1, size=20)])
    wal.append(1, [entry(2, size=5 * SEGMENT_BYTES)])
    wal.append(1, [entry(3, size=20)])
    commit(wal)
    wal, groups = reopen(wal, files)
    assert [len(found.payload) for found in groups[1].entries] == [20, 5 * SEGMENT_BYTES, 20]
    wal.snapshot(1, 3, 1, 30, ABC)
    wal.append(1, entries(4, 30, size=300))
    commit(wal)
    assert wal.reclaim() >= 2
    assert not any(name.endswith(".tmp") for name in files.list())


def test_snapshot__drops_entries_up_to_it_and_keeps_the_rest(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.save_state(1, 2, "a")
    wal.append(1, entries(1, 9, term=2))
    wal.snapshot(1, 6, 2, 60, configuration("a", "b"))
    commit(wal)
    _, groups = reopen(wal, files)
    expected = GroupState(1, configuration("a", "b"), 2, "a", 6, 2, 60, entries(7, 9, term=2))
    assert groups[1] == expected


def test_snapshot_that_the_log_disagrees_with__voids_the_log(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 9, term=2))
    wal.snapshot(1, 6, 3, 60, ABC)
    wal.append(1, entries(7, 7, term=3))
    commit(wal)
    _, groups = reopen(wal, files)
    assert groups[1].entries == entries(7, 7, term=3)


def test_snapshot_beyond_the_end_of_the_log__continues_behind_it(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 2))
    wal.snapshot(1, 50, 4, 500, ABC)
    wal.append(1, entries(51, 52, term=4))
    commit(wal)
    _, groups = reopen(wal, files)
    assert (groups[1].snapshot_index, groups[1].entries) == (50, entries(51, 52, term=4))


def test_needless_segments__are_reclaimed_and_used_again(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    last = 0
    for _ in range(6):
        wal.append(1, entries(last + 1, last + 40, size=300))
        last += 40
        wal.snapshot(1, last, 1, 1, ABC)
        commit(wal)
        wal.reclaim()
        assert wal.segments == 1
        wal, groups = reopen(wal, files)
        assert (groups[1].snapshot_index, groups[1].entries) == (last, [])
        assert wal.torn_bytes == 0, "stale bytes of a recycled segment are no torn tail"
    spares = [name for name in files.list() if name.startswith("spare")]
    assert 1 <= len(spares) <= limits.WAL_SPARES_MAX


def test_quiet_group__pins_segments_until_its_snapshot(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.create_group(2, ABC)
    wal.append(2, [entry(1)])
    for index in range(1, 61):
        wal.append(1, [entry(index, size=300)])
    wal.snapshot(1, 60, 1, 1, ABC)
    commit(wal)
    old = wal.segments - 1
    assert old > 3
    assert wal.pinned() == {2: old}
    assert wal.reclaim() == 0
    wal.snapshot(2, 1, 1, 1, ABC)
    assert wal.reclaim() == 0, "a mark that is only buffered frees nothing"
    commit(wal)
    assert wal.pinned() == {}
    old = wal.segments - 1
    assert wal.reclaim() == old
    _, groups = reopen(wal, files)
    assert (groups[1].snapshot_index, groups[2].snapshot_index) == (60, 1)


def test_voided_entries_in_a_reclaimed_segment__are_not_missed(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 10, term=1, size=350))  # fills the first segment
    wal.append(1, entries(1, 10, term=2, size=350))  # the second one's checkpoint says 1 to 10
    wal.append(1, entries(1, 2, term=3))
    commit(wal)
    assert wal.reclaim() >= 1
    _, groups = reopen(wal, files)
    assert groups[1].entries == entries(1, 2, term=3)


def test_durable_snapshot__is_the_one_synced(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 9))
    wal.snapshot(1, 5, 1, 1, ABC)
    assert wal.durable_snapshot(1) == 0
    wal.write()
    assert wal.durable_snapshot(1) == 0
    wal.sync()
    assert wal.durable_snapshot(1) == 5
    wal, _ = reopen(wal, files)
    assert wal.durable_snapshot(1) == 5
    assert wal.durable_snapshot(7) == 0


def test_prepare__makes_the_next_roll_allocate_nothing() -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    assert not wal.prepared
    assert wal.prepare()
    assert wal.prepared
    files.fail["allocate"] = [errno.ENOSPC]
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 10, size=300))
    wal.append(1, entries(11, 20, size=300))
    commit(wal)
    assert wal.segments == 2
    assert not wal.prepared


def test_prepare_on_a_full_disk__says_so_and_harms_nothing() -> None:
    files = SimFiles(Random(1), capacity_bytes=20_000)
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    commit(wal)
    assert not wal.prepare()
    assert "No space left" in wal.prepare_error
    assert not any(name.endswith(".tmp") for name in files.list())
    wal.append(1, [entry(1)])
    commit(wal)
    _, groups = reopen(wal, files)
    assert groups[1].entries == [entry(1)]


@pytest.mark.parametrize("operation", ["pwrite", "datasync"])
def test_disk_error__poisons_the_wal(operation: str) -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    files.fail[operation] = [errno.EIO]
    with pytest.raises(StorageFailed, match="Input/output error"):
        commit(wal)
    for call in (
        wal.write,
        wal.sync,
        wal.reclaim,
        wal.prepare,
        lambda: wal.append(1, [entry(1)]),
        lambda: wal.save_state(1, 1, None),
        lambda: wal.create_group(2, ABC),
        lambda: wal.snapshot(1, 1, 1, 1, ABC),
    ):
        with pytest.raises(StorageFailed, match="cannot be used"):
            call()


def test_full_disk_when_rolling__poisons_and_keeps_what_was_synced() -> None:
    files = SimFiles(Random(1), capacity_bytes=20_000)
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 10, size=300))
    commit(wal)
    wal.append(1, entries(11, 20, size=300))
    with pytest.raises(StorageFailed, match="No space left"):
        wal.write()
    _, groups = reopen(wal, files)
    assert groups[1].entries == entries(1, 10, size=300)


def test_closed_wal__refuses_calls(files: Files) -> None:
    wal, _ = open_wal(files)
    wal.close()
    wal.close()
    with pytest.raises(StorageFailed, match="closed"):
        wal.write()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda wal: wal.append(1, [entry(5)]), "do not follow"),
        (lambda wal: wal.append(1, [entry(3), entry(5)]), "cannot reach"),
        (lambda wal: wal.append(9, [entry(1)]), "unknown group 9"),
        (lambda wal: wal.create_group(1, ABC), "exists already"),
        (lambda wal: wal.save_state(1, 4, "a"), "goes back"),
        (lambda wal: wal.save_state(1, 5, "b"), "vote in term 5 changes"),
        (lambda wal: wal.snapshot(1, 0, 0, 0, ABC), "goes back"),
    ],
)
def test_record_that_cannot_be__stops_before_it_is_written(misuse: object, message: str) -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.save_state(1, 5, "a")
    wal.append(1, entries(1, 2))
    wal.snapshot(1, 1, 1, 1, ABC)
    commit(wal)
    assert callable(misuse)
    misuse(wal)
    with pytest.raises(StorageFailed, match=message):
        wal.write()
    _, groups = reopen(wal, files)
    assert (groups[1].term, groups[1].voted_for, groups[1].entries) == (5, "a", [entry(2)])


def test_counters__count() -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    before = wal.bytes_written
    wal.create_group(1, ABC)
    wal.append(1, [entry(1, size=100)])
    commit(wal)
    wal.sync()
    assert wal.syncs == 1, "nothing was written since: no second fsync"
    assert 100 < wal.bytes_written - before < 400
    assert wal.last_sync_ns > 0


def test_newer_format__is_told_from_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    files = SimFiles(Random(1))
    monkeypatch.setattr(segments, "FORMAT_VERSION", 3)
    open_wal(files)[0].close()
    monkeypatch.undo()
    with pytest.raises(ConfigProblem, match="format 3"):
        open_wal(files)
