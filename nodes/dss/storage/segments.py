"""WAL segments: their names, their opening records, and the making of a new one.

What must not live here: groups' bookkeeping, recovery of what the records mean.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from dss.storage.files import File, Files, remove_if_there
from dss.storage.grouplog import Checkpoint
from dss.storage.records import FIRST_SEED, TERMINATOR, frame

MAGIC: Final = "DSS WAL"
FORMAT_VERSION: Final = 2
FORMATS_READ: Final = (1, 2)
"""Version 1 has no SYNCED records. A segment keeps the version it began with."""

HEADER: Final = 1
CHECKPOINT: Final = 2
CREATE: Final = 3
STATE: Final = 4
APPEND: Final = 5
SNAPSHOT: Final = 6
SYNCED: Final = 7

_SEGMENT: Final = re.compile(r"([0-9]{16})\.wal")
_SPARE: Final = re.compile(r"spare-([0-9]{8})\.free")
_TMP_SUFFIX: Final = ".tmp"


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The first record of every segment.

    `previous_end` is where the records of the segment before end (0: there is none before) and
    `previous_crc` the CRC of its last record, so that the chain goes on across segments;
    `groups` is how many checkpoint records follow; `recycled` says that the file held an older
    segment, so that bytes behind the last record mean nothing.
    """

    magic: str
    version: int
    segment: int
    salt: int
    previous_end: int
    previous_crc: int
    groups: int
    recycled: bool


def segment_name(number: int) -> str:
    return f"{number:016d}.wal"


def segment_number(name: str) -> int | None:
    match = _SEGMENT.fullmatch(name)
    return int(match[1]) if match else None


def salt_of(number: int) -> int:
    """A salt per segment number, no two alike in 2**32 segments (an odd factor is a bijection).

    Not random: a number is used for one segment's life only, and the simulator stays repeatable.
    """
    return (number * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF


def opening(
    number: int,
    previous_end: int,
    previous_crc: int,
    recycled: bool,
    marks: Sequence[Checkpoint],
) -> tuple[bytes, int, int]:
    """(bytes, their length without the terminator, seed of the next record) of a new segment."""
    encode = msgspec.msgpack.encode
    header = Header(
        MAGIC,
        FORMAT_VERSION,
        number,
        salt_of(number),
        previous_end,
        previous_crc,
        len(marks),
        recycled,
    )
    parts: list[bytes] = []
    seed = FIRST_SEED
    bodies = [(HEADER, encode(header)), *((CHECKPOINT, encode(mark)) for mark in marks)]
    for kind, payload in bodies:
        head, seed = frame(seed, kind, payload)
        parts += (head, payload)
    length = sum(map(len, parts))
    return b"".join([*parts, TERMINATOR]), length, seed


class Spares:
    """Preallocated files without a segment number yet: fresh ones and reclaimed segments.

    `prepare` may run in a thread beside everything else: `list.append`/`pop` are atomic and
    names come from one counter.
    """

    def __init__(self, files: Files, segment_bytes: int, spares_max: int) -> None:
        self._files = files
        self._segment_bytes = segment_bytes
        self._spares_max = spares_max
        self._names: list[str] = []
        self._new: dict[str, bool] = {}
        """Spares known to hold zeros only (made by this process)."""
        highest = 0
        for name in files.list():
            match = _SPARE.fullmatch(name)
            if name.endswith(_TMP_SUFFIX):
                remove_if_there(files, name)
            elif match:
                highest = max(highest, int(match[1]))
                self._adopt(name)
        self._counter = itertools.count(highest + 1)

    def _adopt(self, name: str) -> None:
        file = self._files.open(name, create=False)
        size = file.size()
        file.close()
        if size == self._segment_bytes and len(self._names) < self._spares_max:
            self._names.append(name)
        else:
            remove_if_there(self._files, name)

    def __len__(self) -> int:
        return len(self._names)

    def prepare(self) -> None:
        """Have a spare: allocates, zero-fills and syncs one file when there is none."""
        if not self._names:
            name = self._make(self._segment_bytes)
            self._new[name] = True
            self._names.append(name)

    def _make(self, size: int) -> str:
        number = next(self._counter)
        name = f"spare-{number:08d}.free"
        tmp = name + _TMP_SUFFIX
        try:
            file = self._files.open(tmp, create=True)
            try:
                file.allocate(size)
            finally:
                file.close()
            self._files.rename(tmp, name)
        except OSError:
            remove_if_there(self._files, tmp)
            raise
        self._files.sync_dir()
        return name

    def take(self, size: int) -> tuple[str, bool]:
        """(name, whether it held an older segment) of a spare of at least `size` bytes."""
        if size > self._segment_bytes:
            return self._make(size), False
        try:
            name = self._names.pop()
        except IndexError:
            return self._make(self._segment_bytes), False
        return name, name not in self._new

    def become(self, name: str, number: int, content: bytes) -> File:
        """Turn the spare `name` into the durable segment `number` that begins with `content`.

        The content is durable before the segment's name is, and the name before anything else is
        written: a file with a segment's name always has a whole opening.
        """
        self._new.pop(name, None)
        file = self._files.open(name, create=False)
        file.pwrite(content, 0)
        file.datasync()
        self._files.rename(name, segment_name(number))
        self._files.sync_dir()
        return file

    def recycle(self, number: int, size: int) -> None:
        """Segment `number` is needed no more: keep its file as a spare, or remove it.

        The directory is synced before this returns, so that the file is never overwritten while
        a crash could still bring back its segment name.
        """
        name = segment_name(number)
        if size == self._segment_bytes and len(self._names) < self._spares_max:
            spare = f"spare-{next(self._counter):08d}.free"
            self._files.rename(name, spare)
            self._files.sync_dir()
            self._names.append(spare)
        else:
            self._files.remove(name)
            self._files.sync_dir()
