"""One operating-system process per node: start, watch, restart with back-off, stop.

Three promises:

* A node that dies is started again, the longer it keeps dying the later; the user is told each
  time. Exit code 78 (bad configuration) is final: starting it again would only loop.
* `stop()` ends every node: SIGTERM, a grace period, SIGKILL.
* No orphans. Each child asks the kernel for SIGKILL when this process dies (`PR_SET_PDEATHSIG`,
  prctl(2)); a killed node loses nothing, its WAL is made for that. Where prctl does not exist
  (not Linux) nodes outlive a supervisor that is killed with -9; the next start names them by port.

Children run in sessions of their own, so that the terminal's Ctrl-C reaches this process alone
and it decides about the order.

What must not live here: what a node is (topology), how ready it is (readiness).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from dss.base import limits
from dss.base.errors import EXIT_CONFIG

_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 4096


class NodeCommand(msgspec.Struct, frozen=True):
    """How to start one node. `env` is its whole environment."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


class NodeState(msgspec.Struct):
    """What the supervisor knows of one node; `gave_up` is the last line of a final exit."""

    command: NodeCommand
    pid: int = 0
    starts: int = 0
    exit_code: int | None = None
    gave_up: str = ""


def backoff_s(failures: int) -> float:
    """Seconds to wait before start number `failures` + 1 of a node that keeps dying."""
    ms = limits.RESTART_DELAY_MS_MIN << min(max(failures, 1) - 1, 16)
    return min(ms, limits.RESTART_DELAY_MS_MAX) / 1000


class Supervisor:
    """Keeps the given nodes running until `stop()`.

    Args:
        commands: the nodes.
        say: called with one line for the user whenever a node ended by itself.
    """

    def __init__(self, commands: Sequence[NodeCommand], say: Callable[[str], None]) -> None:
        self.nodes = {command.name: NodeState(command) for command in commands}
        self._say = say
        self._stopping = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._prctl = _load_prctl()

    def start(self) -> None:
        """Start all nodes; returns at once. Order does not matter to nodes."""
        self._watchers = [
            asyncio.create_task(self._watch(node), name=f"watch {name}")
            for name, node in self.nodes.items()
        ]

    def given_up(self) -> list[NodeState]:
        """Nodes that ended with a bad configuration and stay down."""
        return [node for node in self.nodes.values() if node.gave_up]

    async def stop(self, grace_s: float = limits.STOP_GRACE_MS / 1000) -> None:
        """SIGTERM to all at once, SIGKILL to what is left after `grace_s`. Safe to call twice."""
        self._stopping.set()
        self._signal_all(signal.SIGTERM)
        if self._watchers:
            _, late = await asyncio.wait(self._watchers, timeout=grace_s)
            if late:
                names = " ".join(self._running)
                self._say(f"{names} did not stop within {grace_s:g} s: killed")
                self._signal_all(signal.SIGKILL)
            await asyncio.gather(*self._watchers)

    def kill(self) -> None:
        """A second Ctrl-C: do not wait for the grace period."""
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _watch(self, node: NodeState) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(node)
            node.exit_code = code
            if self._stopping.is_set():
                return
            last = last_line(node.command.log)
            if code == EXIT_CONFIG:
                node.gave_up = last or "no message"
                self._say(f"{node.command.name} refused its configuration: {node.gave_up}")
                return
            steady = time.monotonic() - began >= limits.RESTART_STEADY_MS / 1000
            failures = 1 if steady else failures + 1
            delay_s = backoff_s(failures)
            self._say(
                f"{node.command.name} {describe_exit(code)}; starting it again in {delay_s:g} s. "
                f"Last log line: {last or '(none)'}"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self, node: NodeState) -> int:
        """One life of the node's process; its exit code, negative for a signal."""
        command = node.command
        try:
            with open_log(command.log) as log:
                process = await asyncio.create_subprocess_exec(
                    *command.argv,
                    env=dict(command.env),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=self._prctl,  # a few async-signal-safe calls
                )
        except OSError as error:
            with contextlib.suppress(OSError), open_log(command.log) as log:
                log.write(f"{command.argv[0]}: {error.strerror}\n".encode())
            return 127
        node.pid = process.pid
        node.starts += 1
        self._running[command.name] = process
        if self._stopping.is_set():  # stop() came while the process was being made
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            return await process.wait()
        finally:
            node.pid = 0
            self._running.pop(command.name, None)


def open_log(path: Path) -> IO[bytes]:
    """Append to a node's log; one that has grown large becomes `.1` first (at starts only)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > limits.LOCAL_LOG_BYTES_MAX:
            path.replace(path.with_name(path.name + ".1"))
    return open(path, "ab", buffering=0)


def last_line(log: Path) -> str:
    """The last non-empty line of a log, without its line end; "" when there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in tail.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def describe_exit(code: int) -> str:
    """`ended with exit code 1`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _load_prctl() -> Callable[[], None] | None:
    """What a child runs between fork and exec; None where prctl(2) does not exist."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call: no signal will come
            os._exit(1)

    return die_with_parent
