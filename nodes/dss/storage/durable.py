"""The side file: up to where the WAL was durable, so that damage below it is never taken for a
torn tail (architecture § Raft, "a lost disk must not vote twice").

Three slots of 40 bytes in sectors of their own. Slot 0 is written and synced when a segment
begins; slots 1 and 2 take turns after each fsync of the WAL and are not synced, so a power loss
may tear them: then slot 0 still holds a true, only smaller, bound. Every slot that passes its
checksum is a lower bound of what was durable, so the largest one counts.

What must not live here: what to do about damage (recovery.py).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from dss.storage.files import File, Files
from dss.storage.records import extend_crc

NAME: Final = "durable"
_SLOT: Final = struct.Struct("<8sQQQ")
_CRC: Final = struct.Struct("<I")
_MAGIC: Final = b"DSSDUR1\n"
_SLOT_STEP: Final = 4096
"""A slot per physical sector (4 KiB on current disks), so that a torn one spares the others."""
_SLOTS: Final = 3


class Position(NamedTuple):
    """An offset in a segment; ordered as the log is."""

    segment: int
    offset: int


START: Final = Position(0, 0)


class DurableMark:
    """The open side file.

    Attributes:
        bound: the largest bound found at open; None when no slot could be trusted.
    """

    def __init__(self, file: File, bound: Position | None, sequence: int) -> None:
        self._file = file
        self._sequence = sequence
        self._turn = 1
        self.bound = bound

    @classmethod
    def open(cls, files: Files, *, fresh: bool) -> DurableMark:
        """Read the side file. `fresh`: the directory holds no segments, so make it if missing."""
        missing = not files.exists(NAME)
        file = files.open(NAME, create=True)
        best: Position | None = None
        sequence = 0
        for slot in range(_SLOTS):
            found = _decode(file.pread(_SLOT.size + _CRC.size, slot * _SLOT_STEP))
            if found is not None:
                sequence = max(sequence, found[0])
                best = found[1] if best is None else max(best, found[1])
        turned = file.pread((_SLOTS - 1) * _SLOT_STEP, _SLOT_STEP).strip(b"\0")
        if best is None and fresh and not turned:
            # New, or a crash while it was made: no slot has been noted since.
            file.allocate(_SLOTS * _SLOT_STEP)
            mark = cls(file, START, sequence)
            mark.begin(START)
            files.sync_dir()
            return mark
        mark = cls(file, best, sequence)
        if missing:
            file.allocate(_SLOTS * _SLOT_STEP)
            files.sync_dir()
        return mark

    def begin(self, position: Position) -> None:
        """Slot 0, durably: a segment begins, or recovery has ended, at `position`."""
        self._put(0, position)
        self._file.datasync()

    def note(self, position: Position) -> None:
        """A slot that takes turns, not synced: everything before `position` is durable."""
        self._put(self._turn, position)
        self._turn = 3 - self._turn

    def _put(self, slot: int, position: Position) -> None:
        self._sequence += 1
        body = _SLOT.pack(_MAGIC, self._sequence, *position)
        self._file.pwrite(body + _CRC.pack(extend_crc(0, body)), slot * _SLOT_STEP)

    def close(self) -> None:
        self._file.close()


def _decode(data: bytes) -> tuple[int, Position] | None:
    body = data[: _SLOT.size]
    if len(data) != _SLOT.size + _CRC.size or _CRC.unpack_from(data, _SLOT.size)[0] != extend_crc(
        0, body
    ):
        return None
    magic, sequence, segment, offset = _SLOT.unpack(body)
    return (sequence, Position(segment, offset)) if magic == _MAGIC else None
