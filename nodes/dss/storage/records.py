"""Record framing of the write-ahead log: what one record looks like and how a reader walks them.

    u32 length (of type + payload) | u32 CRC32C | u8 type | payload          little endian

The CRC covers type and payload and is *chained*: its seed is the CRC of the record before, and
the first record's seed is a constant. A segment's first record holds the segment's number and
salt, so every later CRC depends on them: stale records of a recycled segment never pass, and no
record can be lost, doubled or moved inside a segment without breaking the chain.
A length of zero ends the records (docs/disk-format.md).

What must not live here: what the payloads mean, files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import google_crc32c

_HEAD: Final = struct.Struct("<IIB")
_LENGTH_CRC: Final = struct.Struct("<II")
HEAD_BYTES: Final = _HEAD.size
TERMINATOR: Final = bytes(_LENGTH_CRC.size)
"""Stands after the last record, so that a reader knows a clean end from a torn one."""
FIRST_SEED: Final = 0x44535357
"""Seed of a segment's first record ("DSSW"): a block of zeros must not pass as a record."""
_KIND_BYTES: Final = [bytes([kind]) for kind in range(256)]

extend_crc: Callable[[int, bytes], int] = google_crc32c.extend
"""CRC32C of `data` continuing from `seed`. Takes bytes only, no views."""


class Record(NamedTuple):
    """A record whose CRC was right."""

    kind: int
    payload: bytes
    offset: int


def frame(seed: int, kind: int, payload: bytes) -> tuple[bytes, int]:
    """The head of a record (the payload follows it) and the seed of the next one."""
    crc = extend_crc(extend_crc(seed, _KIND_BYTES[kind]), payload)
    return _HEAD.pack(len(payload) + 1, crc, kind), crc


def framed_bytes(payload: bytes) -> int:
    """How long the record of `payload` is on disk."""
    return HEAD_BYTES + len(payload)


class Reader:
    """Walks the records of one segment held in memory.

    Attributes:
        offset: where the next record starts; after `next` returned None, where the valid ones end.
        seed: the chain at `offset`: what a new record written there must be seeded with.
        problem: why the walk ended; "" when at a terminator (or at the very end of the data).
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0
        self.seed = FIRST_SEED
        self.problem = ""

    def next(self) -> Record | None:
        """The next record, or None where the valid ones end."""
        data, at = self._data, self.offset
        if at + len(TERMINATOR) > len(data):
            self.problem = "" if at == len(data) else "cut off inside a record's head"
            return None
        length, crc = _LENGTH_CRC.unpack_from(data, at)
        if length == 0:
            self.problem = "" if crc == 0 else "length 0 with a checksum"
            return None
        start = at + len(TERMINATOR)
        end = start + length
        if end > len(data):
            self.problem = f"a record of {length} bytes does not fit into the segment"
            return None
        body = data[start:end]
        if extend_crc(self.seed, body) != crc:
            self.problem = "checksum mismatch"
            return None
        self.offset, self.seed = end, crc
        return Record(body[0], body[1:], at)
