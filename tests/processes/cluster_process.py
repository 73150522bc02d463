"""A real cluster for tests: `dss up` as a child process on free ports, and small HTTP helpers.

What must not live here: assertions about DSS.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from asking import http

from dss.local.ports import first_taken, holder_of

ROLE_OFFSET = {"lock": 0, "queue": 10, "cache": 20}
READY_S = 90
"""Two slow cores shared with other work: eight interpreters start, three groups elect."""

T = TypeVar("T")


class Reply(NamedTuple):
    """status 0: nobody answered."""

    status: int
    body: Any
    headers: dict[str, str]


def free_base_port() -> int:
    """A base whose whole range is free, below the ephemeral ports that clients are given."""
    for _ in range(100):
        base = random.randrange(11_000, 30_000, 50)
        ports = [base + extra + n for extra in (0, 1_000) for n in range(1, 30)]
        if first_taken("127.0.0.1", ports) is None:
            return base
    raise AssertionError("no free range of ports")


def environment() -> dict[str, str]:
    """This process's environment without any setting of DSS."""
    mine = (
        "ALLOW_", "AUTH_", "CACHE_", "CLUSTER_", "DATA_", "DSS_", "MAKE", "MEMORY_", "NODE_",
        "QUEUE_", "RAFT_", "TEST_",
    )  # fmt: skip
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)}


def dss(*arguments: str, env: dict[str, str] | None = None, timeout: float = 60) -> Any:
    """One `dss` command; a CompletedProcess with text."""
    return subprocess.run(
        [sys.executable, "-m", "dss.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**environment(), **(env or {})},
    )


def request(
    method: str,
    url: str,
    body: Any = None,
    *,
    raw: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 40,
) -> Reply:
    """One HTTP request; JSON both ways unless `raw`."""
    sent = raw if raw is not None else body
    try:
        answer = http(method, url, sent, headers=headers, timeout_s=timeout)
    except OSError as error:
        return Reply(0, str(error), {})
    found = {name.lower(): value for name, value in answer.headers.items()}
    is_json = answer.body and "json" in found.get("content-type", "")
    return Reply(answer.status, answer.json if is_json else answer.body, found)


def until(look: Callable[[], T | None], what: str, timeout_s: float = 30) -> T:
    """The first value of `look` that is neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


class Cluster:
    """One `dss up`. `stop()` is safe to call at any time; nothing outlives it."""

    def __init__(
        self,
        data_dir: Path,
        counts: tuple[int, int, int] = (3, 3, 2),
        env: dict[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.env = env or {}
        self.counts = dict(zip(ROLE_OFFSET, counts, strict=True))
        self.base_port = free_base_port()
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, wait: bool = True) -> None:
        counts = [word for role, n in self.counts.items() for word in (f"--{role}", str(n))]
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dss.cli.main", "up", *counts,
             "--base-port", str(self.base_port), "--data-dir", str(self.data_dir)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**environment(), **self.env},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._collect, args=(self.process,), daemon=True)
        self._reader.start()
        if wait:
            self.wait_ready()

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                self.lines.append(line.rstrip("\n"))

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"dss up ended:\n{self.report()}"
            return any(line.startswith("Try:") for line in list(self.lines))

        try:
            until(ready, "dss up is ready", READY_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """End `dss up`; its exit code. SIGKILL after 30 s."""
        process = self.process
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._reader.join(10)
        return code

    def report(self) -> str:
        """What `dss up` printed, and the end of each node's log."""
        parts = ["\n".join(self.lines)]
        for log in sorted(self.data_dir.glob("logs/*.log")):
            tail = log.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"--- {log.name}", *tail]))
        return "\n".join(parts)

    # --- addresses and processes ---

    def names(self, role: str) -> list[str]:
        return [f"{role}-{n}" for n in range(1, self.counts[role] + 1)]

    def port(self, name: str) -> int:
        role, ordinal = name.split("-")
        return self.base_port + ROLE_OFFSET[role] + int(ordinal)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port(name)}"

    def urls(self, role: str) -> list[str]:
        return [self.url(name) for name in self.names(role)]

    def all_names(self) -> list[str]:
        return [name for role in ROLE_OFFSET for name in self.names(role)]

    def endpoints(self) -> str:
        return ",".join(self.url(name) for name in self.all_names())

    def pid(self, name: str) -> int:
        """The process that listens on the node's port; 0 when none does."""
        return holder_of(self.port(name)).pid

    def pids(self) -> dict[str, int]:
        return {name: self.pid(name) for name in self.all_names()}

    def kill(self, name: str) -> int:
        """SIGKILL one node; its process id."""
        pid = self.pid(name)
        assert pid, f"{name} does not run\n{self.report()}"
        os.kill(pid, signal.SIGKILL)
        return pid

    # --- looking ---

    def raft_groups(self, name: str) -> list[dict[str, Any]]:
        reply = request("GET", f"{self.url(name)}/v1/raft/status", timeout=5)
        return reply.body["groups"] if reply.status == 200 else []

    def lock_leader(self) -> str:
        """The leader of the lock group, of the highest term seen."""

        def look() -> str | None:
            found = [
                (group["term"], name)
                for name in self.names("lock")
                for group in self.raft_groups(name)
                if group["group_id"] == 1 and group["role"] == "leader"
            ]
            return max(found)[1] if found else None

        return until(look, "a leader of the lock group")

    def all_ready(self) -> bool:
        return all(
            request("GET", f"{self.url(name)}/readyz", timeout=5).status == 200
            for name in self.all_names()
        )


def alive(pid: int) -> bool:
    """A process that runs, zombies not counted."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    match = re.search(r"\) (\w)", stat)
    return match is not None and match.group(1) != "Z"
