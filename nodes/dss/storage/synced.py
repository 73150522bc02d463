"""SYNCED records: each write of the log says up to where the log was durable when it was made.

So damage is told from a torn tail by what stands behind it, wherever the side file is after a power
loss: only the newest write has no successor that vouches for it. What such a record says is found
without its neighbours (they may be the damage): it carries a checksum of its own, whose key is the
CRC at the end of the segment's opening. An older life of the file had another one, and a client
whose data imitates such a record does not know it (but in segment 1, whose opening is always the
same). What must not live here: files, what to do about damage (recovery.py).
"""

from __future__ import annotations

import struct
from typing import Final

from dss.storage.records import extend_crc

_MAGIC: Final = b"DSSSYNC\n"
_BODY: Final = struct.Struct("<8sQ")
_CRC: Final = struct.Struct("<I")
PAYLOAD_BYTES: Final = _BODY.size + _CRC.size


def encode(key: int, offset: int) -> bytes:
    """The payload of a SYNCED record: everything before `offset` of this segment was durable."""
    body = _BODY.pack(_MAGIC, offset)
    return body + _CRC.pack(extend_crc(key, body))


def decode(key: int, payload: bytes) -> int | None:
    """The offset; None: this is no such payload of this segment."""
    if len(payload) != PAYLOAD_BYTES or not payload.startswith(_MAGIC):
        return None
    body = payload[: _BODY.size]
    if _CRC.unpack_from(payload, _BODY.size)[0] != extend_crc(key, body):
        return None
    offset: int = _BODY.unpack(body)[1]
    return offset


def vouched(data: bytes, start: int, key: int) -> int:
    """The largest offset that a SYNCED record at or behind `start` vouches for; 0: none does."""
    best = 0
    at = data.find(_MAGIC, start)
    while at >= 0:
        offset = decode(key, data[at : at + PAYLOAD_BYTES])
        if offset is not None and best < offset <= at:
            best = offset
        at = data.find(_MAGIC, at + 1)
    return best
