"""Starting, watching and stopping the measured processes; their CPU and memory out of /proc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import aiohttp

START_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Started:
    """A child process whose output goes to a file, stopped with SIGTERM, then SIGKILL."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        self._out: IO[bytes] = log.open("wb")
        self.process = subprocess.Popen(
            list(arguments), stdout=self._out, stderr=subprocess.STDOUT, cwd=cwd, env=env
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2_000:]
            raise RuntimeError(
                f"{self.process.args!r} ended with {self.process.returncode}:\n{tail}"
            )

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self._out.close()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._out.close()


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_base_port(offsets: Sequence[int]) -> int:
    """A base such that base + each offset can be bound now; below the ephemeral range."""
    for base in range(18_000, 31_000, 200):
        with contextlib.ExitStack() as stack:
            try:
                for offset in offsets:
                    one = stack.enter_context(socket.socket())
                    one.bind(("127.0.0.1", base + offset))
            except OSError:
                continue
            return base
    raise RuntimeError("no free range of ports between 18000 and 31000")


async def wait_ready(urls: Sequence[str], process: Started) -> None:
    """Until every URL answers 200."""
    until = time.monotonic() + START_S
    waiting = dict.fromkeys(urls, "not asked yet")
    async with aiohttp.ClientSession() as http:
        while waiting:
            process.check()
            for url in list(waiting):
                try:
                    async with http.get(url, timeout=aiohttp.ClientTimeout(2)) as response:
                        if response.status == 200:
                            del waiting[url]
                        else:
                            waiting[url] = (await response.text())[:300]
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    waiting[url] = str(error) or type(error).__name__
            if waiting and time.monotonic() > until:
                raise RuntimeError(f"not ready within {START_S:.0f} s: {waiting}")
            await asyncio.sleep(0.1)


def children(pid: int) -> list[int]:
    """All living descendants of `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def node_id(pid: int) -> str | None:
    """NODE_ID in the environment of a process, if it has one."""
    with contextlib.suppress(OSError):
        for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if pair.startswith(b"NODE_ID="):
                return pair[8:].decode()
    return None


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20
