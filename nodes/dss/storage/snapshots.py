"""Snapshots of state machines: one file per (group, index), whole or absent, checksummed in blocks.

A file is written under a temporary name, synced, renamed, and the directory synced: a snapshot
with its final name is complete. Each 64 KiB block has its own CRC32C, so that a piece for a
follower is read and checked without the rest. The bytes are in docs/disk-format.md § Snapshots.

What must not live here: what the data means; when to take one (drivers/snapshotting.py).
Threads: `save` may run in a thread beside everything else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec

from dss.base import limits
from dss.base.errors import ConfigProblem, CorruptData, Invalid
from dss.core.raft.messages import Configuration
from dss.storage.files import File, Files, remove_if_there
from dss.storage.records import extend_crc

_MAGIC: Final = b"DSSSNAP\n"
_FORMAT_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sII")
_U32: Final = struct.Struct("<I")
_NAME: Final = re.compile(r"([0-9]{10})-([0-9]{16})\.snap")
_BLOCK: Final = limits.SNAPSHOT_BLOCK_BYTES
_HEADER_BYTES_MAX: Final = limits.MIB
_REMEDY: Final = (
    "This node must be re-admitted with an empty data directory; its peers have the data."
)


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot is of. `size` is the length of its data in bytes."""

    group: int
    index: int
    term: int
    log_ms: int
    configuration: Configuration
    size: int
    version: int = _FORMAT_VERSION
    block_bytes: int = _BLOCK


class _Layout(msgspec.Struct, frozen=True):
    """A checked header and block table."""

    meta: SnapshotMeta
    start: int
    seed: int
    sums: tuple[int, ...]
    checksum: int


_decode_meta = msgspec.msgpack.Decoder(SnapshotMeta)


def _name(group: int, index: int) -> str:
    return f"{group:010d}-{index:016d}.snap"


class SnapshotReceiver:
    """A snapshot that comes in pieces, in order, into a temporary file.

    Attributes:
        identity: (index, term, size, checksum) as announced: only pieces of the same go together.
        received: how many bytes are held: the next offset wanted.
    """

    def __init__(
        self, store: SnapshotStore, meta: SnapshotMeta, tmp: str, checksum: int = 0
    ) -> None:
        self.identity = (meta.index, meta.term, meta.size, checksum)
        self.received = 0
        self._store = store
        self._meta = meta
        self._tmp = tmp
        header = msgspec.msgpack.encode(meta)
        self._seed = extend_crc(0, header)
        self._start = _PREFIX.size + len(header)
        self._sums: list[int] = []
        self._file: File = store.files.open(tmp, create=True)
        self._file.truncate(0)
        self._file.pwrite(_PREFIX.pack(_MAGIC, len(header), self._seed) + header, 0)

    def write_chunk(self, offset: int, data: bytes) -> int:
        """Keep `data` if it continues what is held; returns `received`.

        A chunk from elsewhere is not kept: the answer tells the sender where to go on.

        Raises:
            Invalid: the chunk reaches beyond the announced size.
        """
        if offset != self.received:
            return self.received
        if offset + len(data) > self._meta.size:
            raise Invalid(
                f"snapshot chunk at {offset} reaches beyond the announced {self._meta.size} bytes"
            )
        self._file.pwrite(data, self._start + offset)
        at = 0
        while at < len(data):
            filled = (offset + at) % _BLOCK
            if filled == 0:
                self._sums.append(_block_seed(self._seed, len(self._sums)))
            piece = data[at : at + _BLOCK - filled]
            self._sums[-1] = extend_crc(self._sums[-1], piece)
            at += len(piece)
        self.received += len(data)
        return self.received

    def finish(self) -> None:
        """Make it a durable snapshot of the store.

        Raises:
            Invalid: bytes are still missing.
        """
        meta = self._meta
        if self.received != meta.size:
            raise Invalid(f"snapshot has {self.received} of {meta.size} bytes")
        table = b"".join(map(_U32.pack, self._sums))
        self._file.pwrite(table + _U32.pack(extend_crc(self._seed, table)), self._start + meta.size)
        self._file.datasync()
        self._file.close()
        self._store.adopt(self._tmp, meta)

    def abandon(self) -> None:
        """Throw away what was received."""
        self._file.close()
        remove_if_there(self._store.files, self._tmp)


class SnapshotStore:
    """All snapshots of one node, in one directory."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._layouts: dict[str, _Layout] = {}
        self._known: dict[int, dict[int, None]] = {}
        """Group -> indexes that have a file, so that asking costs no system call."""
        for name in files.list():
            match = _NAME.fullmatch(name)
            if name.endswith(".tmp"):
                remove_if_there(files, name)
            elif match:
                self._known.setdefault(int(match[1]), {})[int(match[2])] = None
        # A killed process may have left names that only the kernel knows yet.
        files.sync_dir()

    # --- writing ------------------------------------------------------------------------------

    def save(
        self,
        group: int,
        index: int,
        term: int,
        log_ms: int,
        configuration: Configuration,
        pieces: Sequence[bytes],
    ) -> None:
        """Write a snapshot; durable when this returns. Blocks: run it in a thread if large."""
        size = sum(map(len, pieces))
        if size > limits.SNAPSHOT_BYTES_MAX:
            raise Invalid(_too_large(size))
        meta = SnapshotMeta(group, index, term, log_ms, configuration, size)
        writer = SnapshotReceiver(self, meta, f"save-{group}.tmp")
        try:
            for piece in pieces:
                for at in range(0, len(piece), limits.MIB):
                    writer.write_chunk(writer.received, piece[at : at + limits.MIB])
            writer.finish()
        except OSError:
            writer.abandon()
            raise

    def begin_receive(
        self,
        group: int,
        index: int,
        term: int,
        log_ms: int,
        configuration: Configuration,
        size: int,
        checksum: int = 0,
    ) -> SnapshotReceiver:
        """Begin a snapshot of `size` bytes that comes in chunks; one at a time per group."""
        if not 0 <= size <= limits.SNAPSHOT_BYTES_MAX:
            raise Invalid(_too_large(size))
        meta = SnapshotMeta(group, index, term, log_ms, configuration, size)
        return SnapshotReceiver(self, meta, f"receive-{group}.tmp", checksum)

    def adopt(self, tmp: str, meta: SnapshotMeta) -> None:
        """Give the synced file `tmp` its final name. A whole snapshot there before stays."""
        name = _name(meta.group, meta.index)
        if self.files.exists(name) and self._is_whole(meta.group, meta.index):
            remove_if_there(self.files, tmp)
        else:
            self._layouts.pop(name, None)
            self.files.rename(tmp, name)
        self.files.sync_dir()
        self._known.setdefault(meta.group, {})[meta.index] = None

    def prune(self, group: int, keep_index: int) -> int:
        """Remove the group's snapshots before `keep_index`; returns how many.

        Only once the WAL's mark at `keep_index` is durable (`Wal.durable_snapshot`): recovery
        asks for the snapshot that the WAL names.
        """
        old = [index for index in self._indexes(group) if index < keep_index]
        for index in old:
            self._layouts.pop(_name(group, index), None)
            del self._known[group][index]
            remove_if_there(self.files, _name(group, index))
        return len(old)

    # --- reading ------------------------------------------------------------------------------

    def latest(self, group: int) -> SnapshotMeta | None:
        """The newest snapshot of `group`; None when it has none."""
        indexes = self._indexes(group)
        return self._layout(group, indexes[-1]).meta if indexes else None

    def meta(self, group: int, index: int) -> SnapshotMeta | None:
        """The snapshot of `group` at `index`; None when it is not there (any more)."""
        return self._layout(group, index).meta if index in self._indexes(group) else None

    def checksum(self, group: int, index: int) -> int:
        """Of the whole snapshot at `index`: other bytes, or the same of another index, differ.

        Raises:
            CorruptData: damaged or missing.
        """
        return self._layout(group, index).checksum

    def load(self, group: int, index: int) -> bytes:
        """The whole data.

        Raises:
            CorruptData: damaged or missing.
        """
        layout = self._layout(group, index)
        return self._blocks(layout, 0, layout.meta.size)

    def read(self, group: int, index: int, offset: int, size: int) -> tuple[bytes, int]:
        """(at most `size` bytes at `offset`, the whole length), checked.

        Raises:
            CorruptData: damaged or missing.
        """
        layout = self._layout(group, index)
        whole = layout.meta.size
        end = min(offset + size, whole)
        if not 0 <= offset <= end:
            return b"", whole
        first = offset - offset % _BLOCK
        last = min(-(-end // _BLOCK) * _BLOCK, whole)
        data = self._blocks(layout, first, last)
        return data[offset - first : end - first], whole

    def _indexes(self, group: int) -> list[int]:
        return sorted(self._known.get(group, ()))

    def _is_whole(self, group: int, index: int) -> bool:
        try:
            self.load(group, index)
        except CorruptData:
            return False
        return True

    def _blocks(self, layout: _Layout, first: int, last: int) -> bytes:
        """Bytes `first` (a block's start) to `last` (a block's end), each block checked."""
        meta = layout.meta
        name = _name(meta.group, meta.index)
        file = self.files.open(name, create=False)
        try:
            data = file.pread(last - first, layout.start + first)
        finally:
            file.close()
        if len(data) != last - first:
            self._refuse(meta.group, name, layout.start + first + len(data), "cut off")
        for at in range(0, len(data), _BLOCK):
            number = (first + at) // _BLOCK
            found = extend_crc(_block_seed(layout.seed, number), data[at : at + _BLOCK])
            if found != layout.sums[number]:
                where = layout.start + first + at
                self._refuse(meta.group, name, where, f"checksum mismatch in block {number}")
        return data

    def _layout(self, group: int, index: int) -> _Layout:
        name = _name(group, index)
        layout = self._layouts.get(name)
        if layout is None:
            try:
                file = self.files.open(name, create=False)
            except FileNotFoundError:
                self._refuse(group, name, 0, "the file is missing")
            try:
                layout = self._read_layout(file, group, index)
            finally:
                file.close()
            self._layouts[name] = layout
        return layout

    def _read_layout(self, file: File, group: int, index: int) -> _Layout:
        name = _name(group, index)
        prefix = file.pread(_PREFIX.size, 0)
        if len(prefix) < _PREFIX.size:
            self._refuse(group, name, 0, "cut off inside its header")
        magic, length, seed = _PREFIX.unpack(prefix)
        if magic != _MAGIC or length > _HEADER_BYTES_MAX:
            self._refuse(group, name, 0, "its header is damaged")
        header = file.pread(length, _PREFIX.size)
        if len(header) != length or extend_crc(0, header) != seed:
            self._refuse(group, name, _PREFIX.size, "its header is damaged (checksum mismatch)")
        try:
            meta = _decode_meta.decode(header)
        except msgspec.MsgspecError as error:
            self._refuse(group, name, _PREFIX.size, f"its header is not one: {error}")
        if meta.version != _FORMAT_VERSION or meta.block_bytes != _BLOCK:
            raise ConfigProblem(
                f"{self.files.where}/{name}: snapshot format {meta.version}, this version of DSS"
                f" reads {_FORMAT_VERSION}: start the version that wrote it"
            )
        if (meta.group, meta.index) != (group, index):
            self._refuse(group, name, _PREFIX.size, "it is another snapshot's file")
        start = _PREFIX.size + length
        blocks = -(-meta.size // _BLOCK)
        table = file.pread(blocks * _U32.size + _U32.size, start + meta.size)
        sums = table[:-4]
        if len(table) != (blocks + 1) * _U32.size or _U32.unpack(table[-4:])[0] != extend_crc(
            seed, sums
        ):
            self._refuse(group, name, start + meta.size, "its block table is damaged")
        checksum = extend_crc(seed, sums)
        return _Layout(meta, start, seed, struct.unpack(f"<{blocks}I", sums), checksum)

    def _refuse(self, group: int, name: str, offset: int, what: str) -> NoReturn:
        raise CorruptData(
            f"{self.files.where}/{name} at byte {offset} (group {group}): {what}. {_REMEDY}"
        )


def _block_seed(seed: int, number: int) -> int:
    """Blocks of another snapshot, or in another place, must not pass."""
    return extend_crc(seed, _U32.pack(number))


def _too_large(size: int) -> str:
    return f"a snapshot of {size} bytes is beyond the limit of {limits.SNAPSHOT_BYTES_MAX}"
