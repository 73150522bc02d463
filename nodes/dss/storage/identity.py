"""The data directory of one node: who owns it, and that only one process works in it.

    DATA_DIR/lock            held with flock while the node runs; holds its pid
    DATA_DIR/identity.json   format, cluster id, node id, incarnation, creation time
    DATA_DIR/wal/ snapshots/ …

The incarnation is 128 random bits made with the directory. Raft configurations list it, so that
a node whose disk was lost or swapped is not taken for the voter it was (architecture § Raft).

What must not live here: the contents of the sub-directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from datetime import UTC, datetime
from typing import Final, NoReturn

import msgspec

from dss.base.errors import ConfigProblem, CorruptData
from dss.storage.files import OsFiles, remove_if_there

IDENTITY_NAME: Final = "identity.json"
LOCK_NAME: Final = "lock"
_FORMAT_VERSION: Final = 1
_IDENTITY_BYTES_MAX: Final = 64 * 1024


class Identity(msgspec.Struct, frozen=True):
    """The contents of identity.json."""

    format_version: int
    cluster_id: str
    node_id: str
    incarnation: str
    created: str


class DataDir:
    """An open, locked data directory. Make one with `DataDir.open`.

    Attributes:
        path: the directory.
        incarnation: 32 hex digits, for the directory's life.
        boot_id: 32 hex digits, for this process's life.
    """

    def __init__(self, path: str, lock_fd: int, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self.incarnation = identity.incarnation
        self.boot_id = secrets.token_hex(16)
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: str | os.PathLike[str], cluster_id: str, node_id: str) -> DataDir:
        """Open the directory, making it if need be, and hold it until `close`.

        Raises:
            ConfigProblem: it cannot be written, is held by another process, or belongs to
                another node or cluster.
            CorruptData: identity.json is damaged, or gone from a directory with data.
        """
        full = os.path.abspath(os.fspath(path))
        try:
            if not os.path.isdir(full):
                os.makedirs(full, mode=0o700, exist_ok=True)
                OsFiles(os.path.dirname(full)).sync_dir()
            lock_fd = os.open(
                os.path.join(full, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ConfigProblem(
                f"DATA_DIR {full}: cannot be written ({error.strerror}). Expected a directory that"
                f" uid {os.getuid()} owns, on a disk with room; for example DATA_DIR=/data"
            ) from error
        try:
            _lock(full, lock_fd)
            identity = _identity(OsFiles(full), cluster_id, node_id)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(full, lock_fd, identity)

    def files(self, sub: str) -> OsFiles:
        """The sub-directory `sub`, made (durably) if need be."""
        full = os.path.join(self.path, sub)
        if os.path.basename(sub) != sub or sub in ("", ".", ".."):
            raise ValueError(f"not a flat directory name: {sub!r}")
        if not os.path.isdir(full):
            os.mkdir(full, 0o700)
        OsFiles(self.path).sync_dir()
        return OsFiles(full)

    def close(self) -> None:
        """Release the lock. The lock file stays: removing it would race with the next holder."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        raise ConfigProblem(
            f"DATA_DIR {path} is in use by {_describe(holder)}. Stop it, or give this node a"
            " directory of its own (DATA_DIR)"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _describe(holder: str) -> str:
    """`dss (pid 12)`: the process that holds the lock, as far as the system tells."""
    if not holder.isdigit():
        return "another process"
    with contextlib.suppress(OSError), open(f"/proc/{holder}/comm", encoding="utf-8") as comm:
        return f"{comm.read().strip()} (pid {holder})"
    return f"pid {holder}"


def _identity(files: OsFiles, cluster_id: str, node_id: str) -> Identity:
    remove_if_there(files, IDENTITY_NAME + ".tmp")
    # A killed process may have left names that only the kernel knows yet.
    files.sync_dir()
    if files.exists(IDENTITY_NAME):
        return _read(files, cluster_id, node_id)
    for sub in sorted(os.listdir(files.where)):
        full = os.path.join(files.where, sub)
        if os.path.isdir(full) and sub != "lost+found" and os.listdir(full):
            raise CorruptData(
                f"{files.where}/{IDENTITY_NAME} is missing, but {sub}/ has data: it cannot be told"
                " whose. Put the file back, or re-admit this node with an empty data directory;"
                " its peers have the data."
            )
    identity = Identity(
        format_version=_FORMAT_VERSION,
        cluster_id=cluster_id,
        node_id=node_id,
        incarnation=secrets.token_hex(16),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write(files, identity)
    return identity


def _write(files: OsFiles, identity: Identity) -> None:
    tmp = IDENTITY_NAME + ".tmp"
    file = files.open(tmp, create=True)
    try:
        data = msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n"
        file.pwrite(data, 0)
        file.datasync()
    finally:
        file.close()
    files.rename(tmp, IDENTITY_NAME)
    files.sync_dir()


def _read(files: OsFiles, cluster_id: str, node_id: str) -> Identity:
    name = f"{files.where}/{IDENTITY_NAME}"
    file = files.open(IDENTITY_NAME, create=False)
    try:
        data = file.pread(_IDENTITY_BYTES_MAX, 0)
    finally:
        file.close()
    try:
        identity = msgspec.json.decode(data, type=Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptData(
            f"{name} is damaged ({error}). Put it back from a copy, or re-admit this node with an"
            " empty data directory; its peers have the data."
        ) from error
    if identity.format_version != _FORMAT_VERSION:
        raise ConfigProblem(
            f"{name}: format {identity.format_version}, this version of DSS reads"
            f" {_FORMAT_VERSION}: start the version that wrote it"
        )
    if identity.cluster_id != cluster_id:
        _belongs(files, f"cluster {identity.cluster_id!r}", "CLUSTER_ID", cluster_id)
    if identity.node_id != node_id:
        _belongs(files, f"node {identity.node_id!r}", "NODE_ID", node_id)
    return identity


def _belongs(files: OsFiles, owner: str, variable: str, value: str) -> NoReturn:
    raise ConfigProblem(
        f"DATA_DIR {files.where} belongs to {owner}, but {variable} is {value!r}: correct one of"
        " them; the data of another node must never be reused"
    )
