"""Reading the WAL back: what is a torn tail, what is damage, and what the groups' logs are.

The rules and why they hold are in docs/disk-format.md § Recovery. In short: everything below the
durable bound, and everything in a segment that has a successor, was synced: damage there is
refused. So is damage in front of a write that began after a sync (synced.py). What else does not
end cleanly in the last segment is a tail that a crash tore: cut off.

What must not live here: writing new records (wal.py).
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgspec

from dss.base.errors import ConfigProblem, CorruptData
from dss.core.raft.messages import Configuration, Entry
from dss.storage import segments as fmt
from dss.storage import synced
from dss.storage.durable import DurableMark, Position
from dss.storage.files import File, Files
from dss.storage.grouplog import Checkpoint, GroupLog, GroupState
from dss.storage.records import Reader, Record

_REMEDY = "This node must be re-admitted with an empty data directory; its peers have the data."

_HEADER_BYTES_MAX: Final = 4096
"""A header record is below 100 bytes; one read of a page."""
_SCAN_BYTES: Final = 64 * 1024

_header = msgspec.msgpack.Decoder(fmt.Header)
_checkpoint = msgspec.msgpack.Decoder(Checkpoint)
_create = msgspec.msgpack.Decoder(tuple[int, Configuration])
_state = msgspec.msgpack.Decoder(tuple[int, int, str | None])
_append = msgspec.msgpack.Decoder(tuple[int, list[Entry]])
_snapshot = msgspec.msgpack.Decoder(tuple[int, int, int, int, Configuration, int])


class Recovered(msgspec.Struct):
    """What `recover` found: the groups, and where writing goes on."""

    logs: dict[int, GroupLog]
    entries: dict[int, list[Entry]]
    sizes: dict[int, int]
    number: int
    file: File
    offset: int
    seed: int
    torn_bytes: int
    key: int
    version: int

    def states(self) -> dict[int, GroupState]:
        return {
            group: GroupState(
                group,
                log.configuration,
                log.term,
                log.voted_for,
                log.snapshot_index,
                log.snapshot_term,
                log.snapshot_log_ms,
                self.entries[group],
            )
            for group, log in sorted(self.logs.items())
        }


def recover(files: Files, mark: DurableMark) -> Recovered | None:
    """Read every segment; repair a torn tail durably. None: the directory holds no log yet.

    Raises:
        CorruptData: stored data is damaged where it was known to be durable.
        ConfigProblem: a newer version of DSS wrote it.
    """
    numbers = [n for n in map(fmt.segment_number, files.list()) if n is not None]
    bound = mark.bound
    if not numbers:
        if bound is None or bound.segment > 0:
            where = "is damaged" if bound is None else f"names segment {bound.segment}"
            _refuse(files, "durable", 0, f"the side file {where}, but no segment is there")
        return None
    if numbers[-1] - numbers[0] + 1 != len(numbers):
        _refuse(files, fmt.segment_name(numbers[0]), 0, "a segment after this one is missing")
    if bound is not None and bound.segment > numbers[-1]:
        name = fmt.segment_name(bound.segment)
        _refuse(files, name, bound.offset, "was durable up to here, but the file is missing")
    replay = _Replay(files, numbers[0])
    for number in numbers[:-1]:
        _read_sealed(replay, number)
    return _read_last(replay, numbers[-1], bound)


def _read(files: Files, number: int, size: int | None = None) -> tuple[bytes, int]:
    """(the first `size` bytes of a segment, its length)."""
    file = files.open(fmt.segment_name(number), create=False)
    try:
        length = file.size()
        return file.pread(length if size is None else size, 0), length
    finally:
        file.close()


def _read_sealed(replay: _Replay, number: int) -> None:
    """A segment with a successor: its records must reach exactly the end the successor names."""
    successor = Reader(_read(replay.files, number + 1, _HEADER_BYTES_MAX)[0]).next()
    header = None if successor is None else _decode_header(successor)
    if header is None:
        _refuse(replay.files, fmt.segment_name(number + 1), 0, "its header is damaged")
    replay.check_header(number + 1, header)
    contents, length = _read(replay.files, number, header.previous_end)
    reader = Reader(contents)
    replay.segment(number, length, reader)
    if reader.offset != header.previous_end:
        problem = reader.problem or "its records end early"
        replay.refuse(number, reader.offset, f"{problem} (written up to {header.previous_end})")
    if reader.seed != header.previous_crc:
        replay.refuse(number, reader.offset, "its last record is not the one that was written")


def _read_last(replay: _Replay, number: int, bound: Position | None) -> Recovered:
    contents, length = _read(replay.files, number)
    reader = Reader(contents)
    replay.segment(number, length, reader)
    end = reader.offset
    problem = reader.problem
    if bound is not None and bound.segment == number and end < bound.offset:
        problem = problem or "its records end early"
        replay.refuse(number, end, f"{problem}; it was durable up to {bound.offset}")
    vouched = synced.vouched(contents, end, replay.key)
    if vouched > end:
        problem = problem or "its records end early"
        replay.refuse(number, end, f"{problem}; a later write says it was durable up to {vouched}")
    tail_bytes = _nonzero_end(contents, end) - end
    torn_bytes = 0
    if problem or (tail_bytes and not replay.recycled):
        torn_bytes = tail_bytes
    if bound is None and torn_bytes:
        problem = problem or "bytes after the last record"
        replay.refuse(
            number, end, f"{problem}, and the side file that tells a torn tail is damaged"
        )
    replay.check_complete(number)
    file = replay.files.open(fmt.segment_name(number), create=False)
    if tail_bytes:
        # Old bytes behind the tail must never pass as records once new ones reach them.
        file.pwrite(bytes(tail_bytes), end)
    # What a killed process wrote is read from the page cache: make it durable before it counts.
    file.datasync()
    return Recovered(
        replay.logs,
        replay.entries,
        replay.sizes,
        number,
        file,
        end,
        reader.seed,
        torn_bytes,
        replay.key,
        replay.version,
    )


def _nonzero_end(data: bytes, start: int) -> int:
    """Where the last byte that is not zero ends; `start` if all from there on are."""
    end = len(data)
    while end > start:
        piece = data[max(start, end - _SCAN_BYTES) : end]
        kept = len(piece.rstrip(b"\0"))
        if kept:
            return end - len(piece) + kept
        end -= len(piece)
    return start


def _decode_header(record: Record) -> fmt.Header | None:
    try:
        header = _header.decode(record.payload)
    except msgspec.MsgspecError:
        return None
    if record.kind != fmt.HEADER or header.magic != fmt.MAGIC:
        return None
    if header.version not in fmt.FORMATS_READ:
        raise ConfigProblem(
            f"the WAL has format {header.version}, this version of DSS reads"
            f" {fmt.FORMATS_READ[-1]}: start the version that wrote it"
        )
    return header


def _refuse(files: Files, name: str, offset: int, what: str) -> NoReturn:
    raise CorruptData(f"{files.where}/{name} at byte {offset}: {what}. {_REMEDY}")


class _Replay:
    """Applies records in order to the groups' logs; every impossible step is damage."""

    def __init__(self, files: Files, first: int) -> None:
        self.files = files
        self.logs: dict[int, GroupLog] = {}
        self.entries: dict[int, list[Entry]] = {}
        self.sizes: dict[int, int] = {}
        self.recycled = False
        """Whether the segment read last was made from an older one's file."""
        self.version = 0
        """Of the segment read last."""
        self.key = 0
        """CRC at the end of its opening."""
        self._first = first
        self._missing_to: dict[int, int] = {}
        """Per group: entries up to here stood in segments that are gone. They must turn out
        to be void or in a snapshot; otherwise a segment was lost."""
        self._group: int | None = None

    def refuse(self, number: int, offset: int, what: str) -> NoReturn:
        group = "" if self._group is None else f" (last record: group {self._group})"
        _refuse(self.files, fmt.segment_name(number), offset, what + group)

    def segment(self, number: int, size: int, reader: Reader) -> None:
        """One segment: its opening must be whole; records follow as far as they are valid."""
        self.sizes[number] = size
        self._group = None
        record = reader.next()
        header = None if record is None else _decode_header(record)
        if header is None:
            self.refuse(number, 0, f"its header is damaged ({reader.problem or 'not a header'})")
        self.check_header(number, header)
        self.recycled = header.recycled
        self._opening(number, header, reader)
        self.version, self.key = header.version, reader.seed
        while (record := reader.next()) is not None:
            try:
                self._apply(record, number)
            except (msgspec.MsgspecError, ValueError, KeyError) as error:
                self.refuse(number, record.offset, f"record of kind {record.kind}: {error}")

    def check_header(self, number: int, header: fmt.Header) -> None:
        if header.segment != number or header.salt != fmt.salt_of(number):
            self.refuse(number, 0, f"its header is that of segment {header.segment}")

    def _opening(self, number: int, header: fmt.Header, reader: Reader) -> None:
        marks: dict[int, Checkpoint] = {}
        for _ in range(header.groups):
            record = reader.next()
            if record is None or record.kind != fmt.CHECKPOINT:
                self.refuse(number, reader.offset, f"its checkpoint is damaged: {reader.problem}")
            try:
                mark = _checkpoint.decode(record.payload)
            except msgspec.MsgspecError as error:
                self.refuse(number, record.offset, f"its checkpoint is damaged: {error}")
            marks[mark.group] = mark
        if number == self._first:
            for group, mark in marks.items():
                self.logs[group] = GroupLog.from_checkpoint(mark)
                self.entries[group] = []
                self._missing_to[group] = mark.last_index
        elif marks != {group: log.checkpoint() for group, log in self.logs.items()}:
            self.refuse(number, 0, "its checkpoint contradicts the segments before it")

    def _apply(self, record: Record, number: int) -> None:
        kind = record.kind
        if kind == fmt.APPEND:
            group, entries = _append.decode(record.payload)
            self._group = group
            self._append(group, entries, number)
        elif kind == fmt.STATE:
            group, term, voted_for = _state.decode(record.payload)
            self._group = group
            self.logs[group].save_state(term, voted_for)
        elif kind == fmt.SNAPSHOT:
            group, *mark = _snapshot.decode(record.payload)
            self._group = group
            self._snapshot(group, mark)
        elif kind == fmt.CREATE:
            group, configuration = _create.decode(record.payload)
            self._group = group
            if group in self.logs:
                raise ValueError("the group exists already")
            self.logs[group] = GroupLog(group, configuration)
            self.entries[group] = []
            self._missing_to[group] = 0
        elif kind == fmt.SYNCED:
            offset = synced.decode(self.key, record.payload)
            if offset is None or offset > record.offset:
                raise ValueError("it vouches for what it cannot")
        else:
            raise ValueError("unknown kind")

    def _append(self, group: int, entries: list[Entry], number: int) -> None:
        self.logs[group].append(entries, number)
        first = entries[0].index
        held = self.entries[group]
        if held and first <= held[-1].index:
            del held[max(0, first - held[0].index) :]
        held.extend(entries)
        self._missing_to[group] = min(self._missing_to[group], first - 1)

    def _snapshot(self, group: int, mark: Any) -> None:
        log = self.logs[group]
        log.snapshot(*mark)
        self._missing_to[group] = min(self._missing_to[group], log.last_index)
        self.entries[group] = [
            entry
            for entry in self.entries[group]
            if log.snapshot_index < entry.index <= log.last_index
        ]

    def check_complete(self, number: int) -> None:
        """At the end nothing may be missing between a group's snapshot and its last entry."""
        for group, log in self.logs.items():
            if self._missing_to[group] > log.snapshot_index:
                self._group = group
                self.refuse(
                    number,
                    0,
                    f"group {group} lacks entries {log.snapshot_index + 1}"
                    f" to {self._missing_to[group]}: an older segment is missing",
                )
