"""What `dss up` keeps in its data directory besides the nodes' own data.

```
.dss/up.lock        held (flock) while a `dss up` runs; holds its pid
.dss/cluster.json   format and node counts: made by the first start
.dss/secret         the cluster secret, mode 0600
.dss/logs/NODE.log  standard output and error of each node
.dss/NODE/          the node's DATA_DIR
```

What must not live here: what nodes write (storage).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import msgspec

from dss.base.errors import ConfigProblem, DssError

_FORMAT = 1
_SECRET_BYTES = 32
"""256 bits: as strong as the HMAC it keys."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What data in this directory belongs to. Changing a count needs membership changes."""

    lock: int
    queue: int
    cache: int
    format: int = _FORMAT

    def counts(self) -> str:
        return f"--lock {self.lock} --queue {self.queue} --cache {self.cache}"


class AlreadyRunning(DssError):
    """Another `dss up` works on this data directory."""

    code = "already_running"
    status = 409


class DataDir:
    """One cluster's directory; used as a context manager it holds the directory's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    def __enter__(self) -> DataDir:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # O_CLOEXEC (Python's default) matters: a node that inherited the lock would keep it.
            lock = open(self.path / "up.lock", "a+", encoding="utf-8")
        except OSError as error:
            raise ConfigProblem(
                f"--data-dir {self.path}: cannot be written ({error.strerror}). "
                "Choose another directory, for example: dss up --data-dir /tmp/dss-data"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            lock.close()
            raise AlreadyRunning(
                f"a dss up (pid {pid}) already runs on {self.path}. Stop it with Ctrl-C or "
                f"kill {pid}, or start a second cluster: "
                "dss up --data-dir .dss-2 --base-port 18000"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def remembered(self) -> Shape | None:
        """The cluster whose data lies here; None: a fresh directory.

        Raises:
            ConfigProblem: `cluster.json` cannot be read as one.
        """
        path = self.path / "cluster.json"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            shape = msgspec.json.decode(raw, type=Shape)
        except msgspec.DecodeError as error:
            raise ConfigProblem(
                f"{path}: {error}. It says which cluster the data belongs to; restore it, or "
                "start over without the old data: make clean"
            ) from None
        if shape.format != _FORMAT:
            raise ConfigProblem(
                f"{path}: format {shape.format}, this dss knows {_FORMAT}. "
                "Use the dss version that wrote it, or another --data-dir"
            )
        return shape

    def expect(self, lock: int, queue: int, cache: int) -> None:
        """Refuse counts that the data here was not made for.

        Raises:
            ConfigProblem: names the counts that would work.
        """
        old, new = self.remembered(), Shape(lock, queue, cache)
        if old is not None and old != new:
            raise ConfigProblem(
                f"{self.path} holds a cluster of {old.counts()}, asked for: {new.counts()}. "
                f"Counts cannot change over existing data yet: dss up {old.counts()}, "
                "or another --data-dir"
            )

    def remember(self, lock: int, queue: int, cache: int) -> None:
        """Note the counts, before any node writes the first data."""
        if self.remembered() is None:
            text = msgspec.json.format(msgspec.json.encode(Shape(lock, queue, cache)))
            _write(self.path / "cluster.json", text + b"\n")

    def secret(self) -> str:
        """The cluster secret, made on first use, readable by this user alone."""
        path = self.path / "secret"
        try:
            found = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            found = ""
        if not found:
            found = secrets.token_hex(_SECRET_BYTES)
            _write(path, found.encode() + b"\n")
        path.chmod(0o600)
        return found


def _write(path: Path, content: bytes) -> None:
    """Durable and all or nothing: a torn file would lock the user out of the data."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
