"""The operating system's files behind a protocol, so that the simulator can put a faulty disk
under the real WAL, snapshot and identity code.

What lives here: the protocol and its one real implementation. What must not: formats, recovery.
Durability rules that callers rely on (POSIX on Linux): data is durable after `datasync`; a
created, renamed or removed name is durable after `sync_dir`; an open File survives a rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final, Protocol

_ZEROS: Final = bytes(1 << 20)


class File(Protocol):
    """One open file, read and written at absolute offsets. Errors are OSError."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data`; a short write is continued, never reported."""

    def pread(self, size: int, offset: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""
        ...

    def size(self) -> int: ...

    def allocate(self, size: int) -> None:
        """Reserve and zero `size` bytes, durably: later overwrites need no metadata."""

    def datasync(self) -> None:
        """All written data (and the size, if it grew) is durable when this returns."""

    def truncate(self, size: int) -> None: ...

    def close(self) -> None: ...


class Files(Protocol):
    """One flat directory."""

    @property
    def where(self) -> str:
        """The directory as a person would type it: for messages."""
        ...

    def open(self, name: str, create: bool) -> File:
        """Open for reading and writing. `create` makes it, empty, when it is not there."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self) -> list[str]:
        """The names, sorted."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces `new` if it exists."""

    def remove(self, name: str) -> None: ...

    def sync_dir(self) -> None:
        """Names created, renamed and removed before are durable when this returns."""


class OsFile:
    """A File on a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pwrite(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], offset + written)

    def pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        held = len(data)
        while held < size:
            data = os.pread(self._fd, size - held, offset + held)
            if not data:
                break
            parts.append(data)
            held += len(data)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def allocate(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise  # some file systems cannot reserve; the zeros below do it there
        # posix_fallocate leaves extents marked "unwritten" on ext4 and xfs; the first write into
        # one is a metadata change. Real zeros turn them into plain data blocks once and for all.
        for offset in range(0, size, len(_ZEROS)):
            self.pwrite(_ZEROS[: min(len(_ZEROS), size - offset)], offset)
        os.fsync(self._fd)

    def datasync(self) -> None:
        _datasync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_datasync = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync in Python; fsync is the stronger one."""


class OsFiles:
    """Files of one existing directory. Names are flat: a separator in a name is refused."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if not os.path.isdir(self._path):
            raise NotADirectoryError(self._path)

    @property
    def where(self) -> str:
        return self._path

    def _full(self, name: str) -> str:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"not a flat file name: {name!r}")
        return os.path.join(self._path, name)

    def open(self, name: str, create: bool) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return OsFile(os.open(self._full(name), flags, 0o600))

    def exists(self, name: str) -> bool:
        return os.path.exists(self._full(name))

    def list(self) -> list[str]:
        with os.scandir(self._path) as entries:
            return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))

    def rename(self, old: str, new: str) -> None:
        os.replace(self._full(old), self._full(new))

    def remove(self, name: str) -> None:
        os.remove(self._full(name))

    def sync_dir(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_if_there(files: Files, name: str) -> None:
    """Remove `name`; not being there is fine."""
    with contextlib.suppress(FileNotFoundError):
        files.remove(name)
