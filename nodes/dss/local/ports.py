"""Which process has a TCP port: `/proc/net/tcp` gives the socket, `/proc/*/fd` its owner.

What must not live here: choosing ports (topology does). Linux only; elsewhere the owner is unknown.
Source: proc(5), `struct tcp_info` states: 0A is LISTEN.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

_LISTEN = "0A"


class Holder(msgspec.Struct, frozen=True):
    """A process that listens on a port; unknown (0, "") when /proc does not tell."""

    pid: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else "another process"


class PortTaken(msgspec.Struct, frozen=True):
    """A port a node needs and cannot have."""

    port: int
    holder: Holder


def first_taken(host: str, ports: Iterable[int]) -> PortTaken | None:
    """The first of `ports` that cannot be bound on `host`, with its holder; None: all are free."""
    for port in ports:
        if not _bindable(host, port):
            return PortTaken(port, holder_of(port))
    return None


def _bindable(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As a server does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def holder_of(port: int, proc: Path = Path("/proc")) -> Holder:
    """The process that listens on TCP `port`, as far as this user may see it."""
    inodes = _listening_inodes(port, proc)
    if not inodes:
        return Holder()
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in _processes(proc):
        if _has_socket(process, wanted):
            return Holder(int(process.name), _name(process))
    return Holder()


def _listening_inodes(port: int, proc: Path) -> list[str]:
    inodes: list[str] = []
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.append(fields[9])
    return inodes


def _processes(proc: Path) -> list[Path]:
    try:
        return [entry for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _has_socket(process: Path, wanted: set[str]) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:  # another user's process, or it has just ended
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor) in wanted:
                return True
        except OSError:
            continue
    return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"
