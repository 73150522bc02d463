"""A faulty disk in memory, under the real WAL, snapshot and identity code.

The fault model:

* A sector is 512 bytes. Written but unsynced sectors are, after a power loss, each on its own:
  kept, lost (the old bytes), torn (new bytes up to some point, old ones behind it, or the other
  way round) or zeroed. Only bytes that the write *changed* are torn or zeroed: disks write
  sectors such that a neighbour's bytes inside the same sector survive; no log that appends
  within a sector could hold otherwise.
* A grown or truncated size is durable after `datasync`; before, either size may be found.
* Created, renamed and removed names are durable after `sync_dir`; before, any of them, in order,
  may be found or not.
* A failed `datasync` leaves the data visible but *not* durable, and a later successful one does
  not repair that (Linux marks the pages clean: "fsyncgate").
* ENOSPC when the capacity is used up; EIO on request; bits flip on request.
* The process may die in any operation (`crash_at`): a write is then applied in part.

What lives here: the disk. What must not: when to use which fault (the simulator and the tests).
Source: SQLite's and TigerBeetle's published storage fault models; Rebello et al., "Can
Applications Recover from fsync Failures?" (ATC 2020).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from random import Random

SECTOR_BYTES = 512


class SimCrash(Exception):
    """The simulated process died inside a disk operation."""


class _Inode:
    """A file's bytes as the process sees them, and as the disk holds them."""

    __slots__ = ("data", "dirty", "durable", "lost")

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytearray(data)
        self.dirty: dict[int, None] = {}
        """Sectors written since the last datasync."""
        self.lost: dict[int, None] = {}
        """Sectors whose datasync failed: clean to the kernel, never written to the disk."""

    def copy(self) -> _Inode:
        """The same state, the unsynced and the lost included."""
        twin = _Inode(self.data)
        twin.durable[:] = self.durable
        twin.dirty, twin.lost = dict(self.dirty), dict(self.lost)
        return twin

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        for sector in range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            self.dirty[sector] = None
            self.lost.pop(sector, None)

    def resize(self, size: int) -> None:
        if size < len(self.data):
            del self.data[size:]
        else:
            self.write(bytes(size - len(self.data)), len(self.data))

    def sync(self) -> None:
        held, size = len(self.durable), len(self.data)
        if size < held:
            del self.durable[size:]
        elif size > held:
            self.durable.extend(bytes(size - held))
        for sector in self.dirty:
            start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, size)
            if start < end:
                self.durable[start:end] = self.data[start:end]
        self.dirty.clear()

    def sync_fails(self) -> None:
        self.lost.update(self.dirty)
        self.dirty.clear()

    def crashed(self, rng: Random, weights: tuple[int, int, int, int]) -> _Inode:
        """What a power loss leaves."""
        size = len(self.durable)
        if len(self.data) != size:
            size = rng.choice((size, len(self.data), rng.randint(*sorted((size, len(self.data))))))
        disk = bytearray(self.durable[:size])
        disk.extend(bytes(size - len(disk)))
        for sector in sorted(self.dirty):
            start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, size)
            if start < end:
                new = bytes(self.data[start:end]).ljust(end - start, b"\0")
                old = bytes(disk[start:end])
                disk[start:end] = _sector_after_crash(old, new, rng, weights)
        return _Inode(disk)


def _sector_after_crash(
    old: bytes, new: bytes, rng: Random, weights: tuple[int, int, int, int]
) -> bytes:
    fate = rng.choices(("kept", "lost", "torn", "zeroed"), weights)[0]
    if fate == "kept":
        return new
    if fate == "lost":
        return old
    if fate == "torn":
        cut = rng.randrange(len(new) + 1)
        return new[:cut] + old[cut:] if rng.random() < 0.5 else old[:cut] + new[cut:]
    return bytes(n if n == o else 0 for n, o in zip(new, old, strict=True))


class SimFile:
    """A File of SimFiles."""

    def __init__(self, disk: SimFiles, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def pwrite(self, data: bytes, offset: int) -> None:
        disk = self._disk
        if disk.step("pwrite"):
            part = disk.rng.randrange(len(data) + 1)
            self._inode.write(bytes(data[:part]), offset)
            disk.die()
        disk.room(offset + len(data) - len(self._inode.data))
        self._inode.write(bytes(data), offset)

    def pread(self, size: int, offset: int) -> bytes:
        self._disk.read_step()
        return bytes(self._inode.data[offset : offset + size])

    def size(self) -> int:
        self._disk.read_step()
        return len(self._inode.data)

    def allocate(self, size: int) -> None:
        disk = self._disk
        if disk.step("allocate"):
            self._inode.resize(disk.rng.randrange(size + 1))
            disk.die()
        disk.room(size - len(self._inode.data))
        self._inode.data[:] = bytes(size)
        self._inode.durable[:] = bytes(size)
        self._inode.dirty.clear()
        self._inode.lost.clear()

    def datasync(self) -> None:
        disk = self._disk
        try:
            dies = disk.step("datasync")
        except OSError:
            self._inode.sync_fails()
            raise
        if dies:
            if disk.rng.random() < 0.5:
                self._inode.sync()
            disk.die()
        self._inode.sync()

    def truncate(self, size: int) -> None:
        disk = self._disk
        dies = disk.step("truncate")
        if not dies or disk.rng.random() < 0.5:
            self._inode.resize(size)
        if dies:
            disk.die()

    def close(self) -> None:
        """Nothing: like the kernel, closing makes nothing durable."""


class SimFiles:
    """One directory on the faulty disk.

    Args:
        rng: decides what a death inside an operation leaves done.
        capacity_bytes: beyond, growing a file raises ENOSPC; None: no limit.

    Attributes:
        ops: operations so far that change something.
        crash_at: the operation (counted by `ops`, from 1) in which the process dies; from then
            on every operation raises SimCrash.
        fail: operation name (`pwrite`, `datasync`, `rename`, …) -> errnos of its next calls,
            0 for a call that succeeds.
        fail_at: the operation (counted like `crash_at`) that fails with EIO.
    """

    def __init__(self, rng: Random, *, capacity_bytes: int | None = None) -> None:
        self.rng = rng
        self.capacity_bytes = capacity_bytes
        self.ops = 0
        self.crash_at: int | None = None
        self.fail: dict[str, list[int]] = {}
        self.fail_at: int | None = None
        self._dead = False
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._undurable: list[tuple[str, str, _Inode | None]] = []
        """(name removed or "", name made or "", its inode) since the last sync_dir."""

    @property
    def where(self) -> str:
        return "simulated"

    # --- Files ----------------------------------------------------------------------------

    def open(self, name: str, create: bool) -> SimFile:
        self.read_step()
        inode = self._names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            inode = _Inode()
            self._change("create", "", name, inode)
        return SimFile(self, inode)

    def exists(self, name: str) -> bool:
        self.read_step()
        return name in self._names

    def list(self) -> list[str]:
        self.read_step()
        return sorted(self._names)

    def rename(self, old: str, new: str) -> None:
        self._must_exist(old)
        self._change("rename", old, new, self._names[old])

    def remove(self, name: str) -> None:
        self._must_exist(name)
        self._change("remove", name, "", None)

    def sync_dir(self) -> None:
        dies = self.step("sync_dir")
        if not dies or self.rng.random() < 0.5:
            self._durable_names = dict(self._names)
            self._undurable.clear()
        if dies:
            self.die()

    # --- faults ---------------------------------------------------------------------------

    def crash_after(self, operations: int) -> None:
        """The process dies in the changing operation that comes `operations` (>= 1) from now."""
        self.crash_at = self.ops + operations

    def fail_after(self, operations: int) -> None:
        """The changing operation that comes `operations` (>= 1) from now fails with EIO."""
        self.fail_at = self.ops + operations

    def heal(self) -> None:
        """No planned death, no planned error. What was lost stays lost."""
        self.crash_at = self.fail_at = None
        self.fail.clear()

    def crash(self, rng: Random) -> SimFiles:
        """The disk as a power loss at this moment leaves it. This one stays as it is."""
        after = SimFiles(rng, capacity_bytes=self.capacity_bytes)
        names = dict(self._durable_names)
        keep = rng.choice((0.0, 0.5, 1.0))
        for gone, made, inode in self._undurable:
            if rng.random() < keep and (not gone or gone in names):
                moved = names.pop(gone) if gone else inode
                if made and moved is not None:
                    names[made] = moved
        weights = rng.choice(((1, 0, 0, 0), (0, 1, 0, 0), (4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)))
        after._names = {name: inode.crashed(rng, weights) for name, inode in names.items()}
        after._durable_names = dict(after._names)
        return after

    def kill(self) -> SimFiles:
        """The disk as `kill -9` of the process leaves it: the kernel still has every write."""
        after = SimFiles(self.rng, capacity_bytes=self.capacity_bytes)
        copies = {
            id(inode): inode.copy()
            for names in (self._names, self._durable_names)
            for inode in names.values()
        }
        after._names = {name: copies[id(inode)] for name, inode in self._names.items()}
        after._durable_names = {
            name: copies[id(inode)] for name, inode in self._durable_names.items()
        }
        after._undurable = [
            (gone, made, None if inode is None else copies.get(id(inode)))
            for gone, made, inode in self._undurable
        ]
        return after

    def copy(self) -> SimFiles:
        """The same contents, everything durable: to damage on its own."""
        after = SimFiles(self.rng, capacity_bytes=self.capacity_bytes)
        after._names = {name: _Inode(bytes(inode.data)) for name, inode in self._names.items()}
        after._durable_names = dict(after._names)
        return after

    def flip(self, name: str, offset: int, bit: int) -> None:
        """Bit rot: one bit of the stored byte at `offset`."""
        inode = self._names[name]
        for data in (inode.data, inode.durable):
            if offset < len(data):
                data[offset] ^= 1 << bit

    def names(self) -> Sequence[str]:
        """All files, whether or not the process lives."""
        return sorted(self._names)

    def written_bytes(self, name: str) -> int:
        """Where the last byte that is not zero ends in what is stored."""
        return len(self._names[name].durable.rstrip(b"\0"))

    def contents(self, name: str) -> bytes:
        """What a reader of `name` sees."""
        return bytes(self._names[name].data)

    def used_bytes(self) -> int:
        return sum(len(inode.data) for inode in self._names.values())

    # --- used by the files ----------------------------------------------------------------

    def read_step(self) -> None:
        if self._dead:
            raise SimCrash("the process is dead")

    def step(self, op: str) -> bool:
        """Count a changing operation; True: the process dies in it. Raises a planned error."""
        self.read_step()
        self.ops += 1
        planned = self.fail.get(op)
        number = planned.pop(0) if planned else 0
        if self.ops == self.fail_at:
            number = errno.EIO
        if number:
            raise OSError(number, os.strerror(number))
        return self.ops == self.crash_at

    def die(self) -> None:
        """Raise SimCrash, now and in every later operation."""
        self._dead = True
        raise SimCrash(f"died in operation {self.ops}")

    def room(self, growth: int) -> None:
        """Raise ENOSPC when `growth` more bytes do not fit."""
        if self.capacity_bytes is None or growth <= 0:
            return
        if self.used_bytes() + growth > self.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _must_exist(self, name: str) -> None:
        self.read_step()
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _change(self, op: str, gone: str, made: str, inode: _Inode | None) -> None:
        dies = self.step(op)
        if not dies or self.rng.random() < 0.5:
            if gone:
                del self._names[gone]
            if made and inode is not None:
                self._names[made] = inode
            self._undurable.append((gone, made, inode))
        if dies:
            self.die()
