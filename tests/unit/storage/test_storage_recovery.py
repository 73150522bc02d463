"""Damage: a torn tail is cut off, anything else is refused, nothing is silently lost or revived."""

from __future__ import annotations

from random import Random

import pytest
from wal_model import ABC, SEGMENT_BYTES, State, entries, entry, plain

from dss.base.errors import CorruptData
from dss.core.raft.messages import COMMAND, Entry
from dss.storage import durable, segments, synced
from dss.storage.records import framed_bytes
from dss.storage.segments import segment_name
from dss.storage.synced import PAYLOAD_BYTES
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles

FIRST = segment_name(1)


def open_wal(files: SimFiles) -> tuple[Wal, State]:
    wal, groups = Wal.open(files, segment_bytes=SEGMENT_BYTES)
    return wal, plain(groups)


def overwrite(files: SimFiles, name: str, offset: int, data: bytes) -> None:
    file = files.open(name, create=False)
    file.pwrite(data, offset)
    file.datasync()


def wal_with_unsynced_record() -> tuple[SimFiles, int, int, State, State]:
    """(files, where the unsynced record starts and ends, state before and after it)."""
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 3))
    wal.write()
    wal.sync()
    start = wal._offset
    before = open_wal(files.copy())[1]
    wal.append(1, entries(4, 6, size=100))
    wal.write()
    return files, start, wal._offset, before, open_wal(files.copy())[1]


@pytest.mark.parametrize("rest", [0x00, 0xFF, 0x5A])
def test_torn_at_every_byte__cut_off_and_written_over(rest: int) -> None:
    files, start, end, before, after = wal_with_unsynced_record()
    assert before != after
    # The write begins with the record that vouches for what was synced before it.
    clean_ends = (start, start + framed_bytes(bytes(PAYLOAD_BYTES)))
    for cut in range(start, end):
        torn = files.copy()
        overwrite(torn, FIRST, cut, bytes([rest]) * (end - cut))
        wal, found = open_wal(torn)
        if found == after:
            assert cut == end - 1, "only if the last byte happens to be the right one"
            continue
        assert found == before
        assert (wal.torn_bytes > 0) == (rest != 0 or cut not in clean_ends)
        wal.append(1, entries(4, 4, term=9))
        wal.write()
        wal.sync()
        wal, found = open_wal(torn.crash(Random(cut)))
        assert found[1][6] == (*entries(1, 3), entry(4, term=9))
        assert wal.torn_bytes == 0


def test_torn_at_every_byte_in_a_recycled_segment__stale_records_stay_dead() -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    for index in range(1, 41):
        wal.append(1, [entry(index, size=200)])
    wal.snapshot(1, 40, 1, 1, ABC)
    wal.write()
    wal.sync()
    assert wal.reclaim() == 2
    wal.append(1, [entry(41, size=4000)])  # rolls into a recycled file
    wal.write()
    wal.snapshot(1, 41, 1, 1, ABC)
    wal.append(1, [entry(42, size=3500)])  # and again
    wal.write()
    wal.sync()
    name = segment_name(wal._number)
    start = wal._offset
    before = open_wal(files.copy())[1]
    stale = files.contents(name)
    wal.append(1, [entry(43, size=60)])
    wal.write()
    end = wal._offset
    assert stale[end:].strip(b"\0"), "there are stale bytes behind the tail"
    for cut in range(start, end):
        torn = files.copy()
        if stale[cut:end] == files.contents(name)[cut:end]:
            continue  # these stale bytes happen to be the right ones
        overwrite(torn, name, cut, stale[cut:])
        wal, found = open_wal(torn)
        assert found == before
        assert (wal.torn_bytes > 0) == (cut > start)
        assert not torn.contents(name)[wal._offset :].strip(b"\0")


def test_random_damage__only_ever_raises_corrupt_data() -> None:
    files, expected = three_segments()
    refused = 0
    for seed in range(400):
        rng = Random(seed)
        damaged = files.copy()
        name = rng.choice(files.list())
        size = len(files.contents(name))
        at = rng.randrange(size)
        how = rng.choice(("random", "zeros", "moved", "cut"))
        if how == "random":
            overwrite(damaged, name, at, rng.randbytes(rng.randrange(1, 700)))
        elif how == "zeros":
            overwrite(damaged, name, at, bytes(rng.randrange(1, 700)))
        elif how == "moved":
            source = rng.randrange(size)
            overwrite(damaged, name, at, files.contents(name)[source : source + 512])
        else:
            file = damaged.open(name, create=False)
            file.truncate(at)
            file.datasync()
        try:
            _, found = open_wal(damaged)
        except CorruptData:
            refused += 1
        else:
            assert found == expected, f"seed {seed}: {how} in {name} at {at}"
    assert refused > 100


def test_torn_record_before_a_whole_one__the_whole_one_never_comes_back() -> None:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.append(1, entries(1, 3))
    wal.write()
    wal.sync()
    torn_at = wal._offset
    wal.append(1, [entry(4)])
    wal.write()
    wal.append(1, [entry(5)])
    wal.write()
    overwrite(files, FIRST, torn_at + 12, b"\xff\xff\xff")
    wal, found = open_wal(files)
    assert found[1][6] == tuple(entries(1, 3))
    assert wal.torn_bytes > 0
    assert not files.contents(FIRST)[torn_at:].strip(b"\0"), "the tail is zeroed"
    # The same bytes again where the torn record was: what followed it must not come back.
    wal.append(1, [entry(4)])
    wal.write()
    wal.sync()
    for seed in range(20):
        assert open_wal(files.crash(Random(seed)))[1][1][6] == tuple(entries(1, 4))


def test_damage_below_the_durable_bound__is_refused_with_place_and_remedy() -> None:
    files, start, _, _, _ = wal_with_unsynced_record()
    overwrite(files, FIRST, start - 3, b"\xff")
    with pytest.raises(CorruptData) as caught:
        open_wal(files)
    message = caught.value.message
    assert f"simulated/{FIRST} at byte" in message
    assert "checksum mismatch" in message
    assert f"durable up to {start}" in message
    assert "group 1" in message
    assert "re-admitted with an empty data directory" in message


def three_segments() -> tuple[SimFiles, State]:
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    wal.save_state(1, 4, "b")
    for index in range(1, 30):
        wal.append(1, [entry(index, term=4, size=300)])
    wal.write()
    wal.sync()
    assert wal.segments == 3
    return files, open_wal(files.copy())[1]


def test_every_byte_flipped__refused_or_without_effect() -> None:
    files, expected = three_segments()
    refused = 0
    for name in files.list():
        contents = files.contents(name)
        # Every byte in use, and samples of the zeros behind the records.
        for offset in (at for at, byte in enumerate(contents) if byte or at % 16 == 0):
            damaged = files.copy()
            damaged.flip(name, offset, (offset * 5 + 3) % 8)
            try:
                _, found = open_wal(damaged)
            except CorruptData:
                refused += 1
            else:
                assert found == expected, f"{name} byte {offset}: silently another state"
    used = 29 * 300
    assert refused > used, "every record's bytes must matter"


def test_every_bit_of_the_last_records_flipped__never_another_state() -> None:
    files, start, end, before, after = wal_with_unsynced_record()
    for offset in range(end + 16):
        for bit in range(8):
            damaged = files.copy()
            damaged.flip(FIRST, offset, bit)
            try:
                found = open_wal(damaged)[1]
            except CorruptData:
                assert offset < start
            else:
                assert offset >= start
                assert found == (before if offset < end else after)


def test_damage_in_an_older_segment__is_refused_even_without_the_side_file() -> None:
    files, _ = three_segments()
    files.remove(durable.NAME)
    overwrite(files, segment_name(2), 600, b"\xff\xfe\xfd")
    with pytest.raises(CorruptData, match=segment_name(2)):
        open_wal(files)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_missing_segment__is_refused(missing: int) -> None:
    files, _ = three_segments()
    files.remove(segment_name(missing))
    with pytest.raises(CorruptData, match="missing"):
        open_wal(files)


def test_all_segments_missing__is_refused() -> None:
    files, _ = three_segments()
    for number in (1, 2, 3):
        files.remove(segment_name(number))
    with pytest.raises(CorruptData, match="no segment is there"):
        open_wal(files)


def test_segment_under_another_name__is_refused() -> None:
    files, _ = three_segments()
    files.rename(segment_name(1), "kept")
    files.rename(segment_name(2), segment_name(1))
    files.rename("kept", segment_name(2))
    with pytest.raises(CorruptData, match="that of segment 1"):
        open_wal(files)


def test_segments_of_two_histories__are_refused() -> None:
    files, _ = three_segments()
    other = SimFiles(Random(2))
    wal, _ = open_wal(other)
    wal.create_group(1, ABC)
    wal.save_state(1, 5, "c")
    for index in range(1, 30):
        wal.append(1, [entry(index, term=5, size=300)])
    wal.write()
    wal.sync()
    overwrite(files, segment_name(2), 0, other.contents(segment_name(2)))
    with pytest.raises(CorruptData):
        open_wal(files)


def test_side_file_missing_and_tail_clean__everything_is_there() -> None:
    files, expected = three_segments()
    files.remove(durable.NAME)
    wal, found = open_wal(files)
    assert found == expected
    wal.append(1, [entry(30, term=4)])
    wal.write()
    wal.sync()
    assert len(open_wal(files.crash(Random(1)))[1][1][6]) == 30


@pytest.mark.parametrize("how", ["missing", "zeros", "garbage", "cut off"])
def test_side_file_damaged_and_tail_torn__is_refused(how: str) -> None:
    files, start, end, _, _ = wal_with_unsynced_record()
    overwrite(files, FIRST, (start + end) // 2, b"\xff\xff")
    size = len(files.contents(durable.NAME))
    if how == "missing":
        files.remove(durable.NAME)
    elif how == "cut off":
        files.open(durable.NAME, create=False).truncate(7)
    else:
        overwrite(files, durable.NAME, 0, (b"\0" if how == "zeros" else b"?") * size)
    with pytest.raises(CorruptData, match="side file"):
        open_wal(files)


def test_torn_slots_of_the_side_file__the_synced_slot_still_bounds() -> None:
    files, start, end, before, _ = wal_with_unsynced_record()
    wal, _ = open_wal(files)  # notes `end` in the synced slot
    wal.append(1, [entry(7)])
    wal.write()
    wal.sync()
    overwrite(files, durable.NAME, 4096, b"torn" * 4)
    overwrite(files, durable.NAME, 8192, b"torn" * 4)
    lost_tail = files.copy()
    overwrite(lost_tail, FIRST, end + 3, b"\xff")
    assert open_wal(lost_tail)[1][1][6] == tuple(entries(1, 3) + entries(4, 6, size=100))
    overwrite(files, FIRST, start + 3, b"\xff")
    with pytest.raises(CorruptData, match="durable up to"):
        open_wal(files)
    assert before[1][6] == tuple(entries(1, 3))


def test_killed_process__its_written_records_are_durable_once_recovered() -> None:
    files, _, _, _, after = wal_with_unsynced_record()
    survivor = files.kill()
    _, found = open_wal(survivor)
    assert found == after
    for seed in range(30):
        assert open_wal(survivor.crash(Random(seed)))[1] == after


def synced_writes_and_no_side_file(count: int) -> tuple[SimFiles, list[int]]:
    """`count` writes of an entry each, all synced; the power failed before the side file's newest
    notes were on the disk. (files, where the log ended after each write)."""
    files = SimFiles(Random(1))
    wal, _ = open_wal(files)
    wal.create_group(1, ABC)
    ends = []
    for index in range(1, count + 1):
        wal.append(1, [entry(index, size=40)])
        wal.write()
        wal.sync()
        ends.append(wal._offset)
    for slot in (4096, 8192):
        overwrite(files, durable.NAME, slot, bytes(40))
    return files, ends


def test_bound_lost_in_a_power_loss__damage_before_the_newest_write_is_refused() -> None:
    files, ends = synced_writes_and_no_side_file(5)
    expected = open_wal(files.copy())[1]
    newest = ends[-2]
    for offset in range(ends[-1]):
        damaged = files.copy()
        damaged.flip(FIRST, offset, offset % 8)
        try:
            found = open_wal(damaged)[1]
        except CorruptData:
            assert offset < newest + framed_bytes(bytes(PAYLOAD_BYTES))
        else:
            # What only the newest write could tell: docs/disk-format.md § What it cannot tell.
            assert offset >= newest or found == expected
    sector = files.copy()
    overwrite(sector, FIRST, ends[0], bytes(ends[1] - ends[0] + 20))
    with pytest.raises(CorruptData, match=f"a later write says it was durable up to {ends[3]}"):
        open_wal(sector)


def test_torn_newest_write__is_a_torn_tail_and_no_damage() -> None:
    files, ends = synced_writes_and_no_side_file(5)
    for cut in range(ends[3], ends[4]):
        torn = files.copy()
        overwrite(torn, FIRST, cut, b"\xa5" * (ends[4] - cut))
        found = open_wal(torn)[1]
        assert len(found[1][6]) == 4 or cut == ends[4] - 1


def test_clients_data_that_looks_like_a_vouching_record__vouches_for_nothing() -> None:
    files, _ = three_segments()
    wal, _ = open_wal(files)
    name, start = segment_name(wal._number), wal._offset
    before = open_wal(files.copy())[1]
    wal.save_state(1, 5, "a")
    keys = (0, segments.salt_of(wal._number), wal._seed)
    forged = b"".join(synced.encode(key, start + 30) for key in keys)
    wal.append(1, [Entry(30, 5, COMMAND, 0, forged)])
    wal.write()
    overwrite(files, name, start + 2, b"\xff\xff")  # the unsynced write is torn at its begin
    assert open_wal(files)[1] == before


def test_segment_of_the_former_version__is_read_and_written_on_as_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = SimFiles(Random(1))
    with monkeypatch.context() as former:
        former.setattr(segments, "FORMAT_VERSION", 1)
        former.setattr(Wal, "_vouch", lambda self, parts: 0)
        wal, _ = open_wal(files)
        wal.create_group(1, ABC)
        for index in range(1, 4):
            wal.append(1, [entry(index)])
            wal.write()
            wal.sync()
        wal.close()
    wal, _ = open_wal(files)
    for index in range(4, 40):
        wal.append(1, [entry(index, size=300)])
        wal.write()
        wal.sync()
    wal.close()
    assert b"DSSSYNC" not in files.contents(FIRST)
    assert b"DSSSYNC" in files.contents(segment_name(2))
    assert open_wal(files)[1][1][6][-1] == entry(39, size=300)
