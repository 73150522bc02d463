"""`dss up`: all nodes of a cluster as processes of this machine, until Ctrl-C.

Exit codes: 0 stopped on request; 1 the data directory or a port is in use; 78 the data belongs to
other counts, or a node refused its configuration.

What must not live here: rendering of node environments (topology), restarts (supervisor).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import aiohttp
import msgspec

from dss.base import limits
from dss.base.errors import EXIT_CONFIG, DssError
from dss.local import ports
from dss.local.datadir import DataDir
from dss.local.readiness import NodeView, leader_line, look, partitions_led
from dss.local.screen import Screen
from dss.local.supervisor import NodeCommand, Supervisor
from dss.local.terminal import own_foreground
from dss.topology.model import BASE_PORT, cluster_of
from dss.topology.render_local import HOST, LocalNode, render_local

_POLL_S = 0.2
"""Between two looks at nodes that are not ready: eight nodes on two cores have better to do."""
_ROLES = ("lock", "queue", "cache")
_TEST_VARIABLES = ("TEST_MODE", "ALLOW_TEST_MODE")
"""For tests of DSS alone; they are the lock nodes' business."""


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The command line of `dss up`."""

    lock: int = 3
    queue: int = 3
    cache: int = 2
    base_port: int = BASE_PORT
    data_dir: Path = Path(".dss")
    log_dir: Path | None = None
    program: str = "dss"
    """How the user calls this program, for the lines to try."""


class PortInUse(DssError):
    """A port that a node needs is taken."""

    code = "port_in_use"
    status = 409


def up(options: UpOptions, environ: Mapping[str, str], out: TextIO) -> int:
    """Run the cluster until SIGINT, SIGTERM or SIGHUP; the exit code.

    Raises:
        ConfigProblem: counts, data directory or base port cannot work.
        AlreadyRunning: another `dss up` has the data directory.
        PortInUse: names the port, its process and a remedy.
    """
    cluster = cluster_of(options.lock, options.queue, options.cache)
    with DataDir(options.data_dir) as data:
        data.expect(options.lock, options.queue, options.cache)
        nodes = render_local(
            cluster, data.path, base_port=options.base_port, cluster_secret=data.secret()
        )
        _refuse_taken_ports(nodes, options.base_port)
        data.remember(options.lock, options.queue, options.cache)
        log_dir = options.log_dir or data.path / "logs"
        screen = Screen(out, environ)
        with own_foreground(environ):
            return asyncio.run(_Cluster(options, nodes, screen, environ, log_dir).run())


def _refuse_taken_ports(nodes: Sequence[LocalNode], base_port: int) -> None:
    taken = ports.first_taken(HOST, [port for node in nodes for port in node.ports])
    if taken is None:
        return
    other = base_port + 10_000 if base_port + 10_000 + 3_000 < 65_536 else 18_000
    raise PortInUse(
        f"port {taken.port} is taken by {taken.holder}. Stop it, or: dss up --base-port {other}"
    )


class _Cluster:
    """One run of `dss up`."""

    def __init__(
        self,
        options: UpOptions,
        nodes: Sequence[LocalNode],
        screen: Screen,
        environ: Mapping[str, str],
        log_dir: Path,
    ) -> None:
        self._options = options
        self._screen = screen
        self._environ = environ
        self._log_dir = log_dir
        self._nodes = nodes
        self._views = [NodeView(node.id, node.role, node.url) for node in nodes]
        argv = [sys.executable, "-m", "dss.cli.main", "node"]
        self._supervisor = Supervisor(
            [
                NodeCommand(node.id, argv, _environment(environ, node), log_dir / f"{node.id}.log")
                for node in nodes
            ],
            self._screen.bad,
        )
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self._began = time.monotonic()
        if mode := self._environ.get("TEST_MODE"):
            self._screen.bad(f"TEST_MODE={mode}: lock nodes break elections ON PURPOSE; test only")
        self._supervisor.start()
        try:
            if await self._wait_ready():
                self._show_table()
                await self._stop.wait()
            if self._supervisor.given_up() and not self._stop.is_set():
                return EXIT_CONFIG
            return 0
        finally:
            began = time.monotonic()
            self._screen.line("stopping …")
            await self._supervisor.stop()
            self._screen.good(f"all nodes stopped  {time.monotonic() - began:.1f} s")

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._supervisor.kill()

    async def _wait_ready(self) -> bool:
        """True once every node is ready; False when asked to stop or a node gave up."""
        notice_at = self._began + limits.READY_NOTICE_MS / 1000
        token = self._environ.get("DSS_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(headers=headers) as session:
            for role in _ROLES:
                while not self._role_ready(role):
                    if self._stop.is_set() or self._supervisor.given_up():
                        return False
                    self._views = await look(session, self._views)
                    if time.monotonic() >= notice_at:
                        notice_at += limits.READY_NOTICE_MS / 1000
                        self._say_what_is_missing()
                    if not self._role_ready(role):
                        self._show_progress(role)
                        await self._pause()
                self._screen.good(f"{self._summary(role):<56} {self._elapsed():5.1f} s")
        return True

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), _POLL_S)
        except TimeoutError:
            return

    def _of(self, role: str) -> list[NodeView]:
        return [view for view in self._views if view.role == role]

    def _role_ready(self, role: str) -> bool:
        views = self._of(role)
        if not all(view.ready for view in views):
            return False
        return role != "lock" or leader_line(views) is not None

    def _summary(self, role: str) -> str:
        views = self._of(role)
        names = " ".join(view.name for view in views)
        if role == "lock":
            return f"{names}   {leader_line(views)}"
        if role == "queue":
            return f"{names}   {partitions_led(views)} partitions placed"
        memory = next(node.env.get("MEMORY_URL", "") for node in self._nodes if node.role == role)
        return f"{names}   main memory: {memory.split(':', 1)[0]}"

    def _show_progress(self, role: str) -> None:
        late: dict[str, list[str]] = {}
        for view in self._of(role):
            if view.problem:
                late.setdefault(view.problem, []).append(view.name)
        reasons = [f"{' '.join(names)}: {problem}" for problem, names in late.items()]
        waiting = "; ".join(reasons) or "a leader"
        self._screen.progress(f"{self._elapsed():.1f} s  waiting for {waiting}")

    def _say_what_is_missing(self) -> None:
        for view in self._views:
            if view.problem:
                self._screen.bad(
                    f"{view.name} is not ready after {self._elapsed():.0f} s: {view.problem}  "
                    f"(log: {_shown(self._log_dir / (view.name + '.log'))})"
                )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _show_table(self) -> None:
        screen, program = self._screen, self._options.program
        screen.line()
        rows = [(view.name, view.role, view.url, view.state()) for view in self._views]
        screen.table(("node", "role", "url", "state"), rows)
        screen.line()
        if self._options.base_port != BASE_PORT:
            urls = ",".join(view.url for view in self._views)
            screen.line(f"First: export DSS_ENDPOINTS={urls}")
            screen.line()
        lines = (
            (f"{program} lock run demo -- sleep 5", "hold a lock while a command runs"),
            (
                f"""{program} queue send jobs '{{"id": 1}}'""",
                "send a message, then: dss queue receive jobs",
            ),
            (f"{program} status", "watch it            (Ctrl-C stops all)"),
        )
        width = max(len(command) for command, _ in lines)
        for index, (command, what) in enumerate(lines):
            screen.line(f"{'Try:' if index == 0 else '    '}  {command:<{width}}   {what}")


def _environment(environ: Mapping[str, str], node: LocalNode) -> dict[str, str]:
    """The user's environment (PATH, LOG_LEVEL, …) under what the topology has decided."""
    decided = dict(node.env)
    inherited = {
        name: value for name, value in environ.items() if name.removesuffix("_FILE") not in decided
    }
    if node.role != "lock":
        for name in _TEST_VARIABLES:
            inherited.pop(name, None)
    return inherited | decided


def _shown(path: Path) -> str:
    """The shorter of the absolute and the relative path."""
    return min(str(path), os.path.relpath(path), key=len)
