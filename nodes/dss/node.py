"""The composition root of one node process: configuration in, a running node out.

What lives here: which parts a role is made of, the order in which they start and stop. What must
not: any of their logic.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import uvloop
from aiohttp import web

import dss
from dss.api import app as web_app
from dss.api import cluster
from dss.api.auth import Guard
from dss.api.routes import Route
from dss.api.stream import close_streams
from dss.base import limits
from dss.base.errors import EXIT_CONFIG, EXIT_FAILED, ConfigProblem, CorruptData, DssError
from dss.base.ids import LOCK_GROUP, META_GROUP
from dss.core.locks.machine import LockMachine
from dss.core.meta.machine import MetaMachine
from dss.core.raft.settings import RaftSettings
from dss.drivers import raft_metrics
from dss.drivers.founding import Founding
from dss.drivers.host import Host
from dss.drivers.levels import LevelKeeper
from dss.drivers.raft_admin import RaftAdmin
from dss.drivers.raft_members import RaftMembers
from dss.drivers.split_vote import SplitVote, settings_of
from dss.drivers.watched_file import WatchedFile
from dss.observe import logs
from dss.observe.metrics import ProcessMonitor, Registry
from dss.storage.identity import DataDir
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.topology.config import load_node_config, parse_watched
from dss.topology.nodes import NodeConfig
from dss.transport.handshake import Identity
from dss.transport.links import Links

if TYPE_CHECKING:
    from dss.drivers.locks import LockService

log = logging.getLogger("dss.node")

QUIESCE_AFTER: Final = 20
"""Idle heartbeats after which a partition's group rests: a second, or two on Kubernetes."""
SWITCH_INTERVAL_S: Final = 0.0005


class Service(Protocol):
    """A role's part, or a piece of one: started in order, stopped in reverse."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def readiness(self) -> str | None: ...


def run(environ: Mapping[str, str]) -> int:
    """`dss node`: run until SIGTERM or SIGINT. Returns the exit code (78: bad configuration)."""
    try:
        config = load_node_config(environ)
    except ConfigProblem as problem:
        print(problem.message, file=sys.stderr)
        return EXIT_CONFIG
    logs.configure(config.log_level, config.log_format, node_id=config.node_id)
    # A thread that comes back from an fsync must not wait 5 ms for the interpreter lock.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return uvloop.run(Node(config).run())
    except ConfigProblem as problem:
        print(problem.message, file=sys.stderr)
        return EXIT_CONFIG
    except CorruptData as problem:
        log.error("%s", problem.message)
        return EXIT_FAILED


class Node:
    """One node process."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.registry = Registry()
        self._stop = asyncio.Event()
        self._failed = ""
        self._ending = web_app.Ending()
        self._services: list[Service] = []
        self._routes: list[Route] = []
        self._members: RaftMembers | None = None
        self._locks: LockService | None = None
        self._host: Host | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.set_exception_handler(self._unhandled)
        config = self.config
        data_dir = DataDir.open(config.data_dir, config.cluster_id, config.node_id)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack, data_dir)
                log.info(
                    "%s node %s listens on %s:%d (peers on %d), data in %s",
                    config.role,
                    config.node_id,
                    config.bind_host,
                    config.me.port,
                    config.me.peer_port,
                    config.data_dir,
                )
                await self._stop.wait()
                log.info("stopping%s", f": {self._failed}" if self._failed else "")
        finally:
            data_dir.close()
        if self._host is not None and self._host.unsupported:
            return EXIT_CONFIG
        return EXIT_FAILED if self._failed else 0

    async def _start(self, stack: contextlib.AsyncExitStack, data_dir: DataDir) -> None:
        config = self.config
        identity = Identity(
            config.cluster_id,
            config.node_id,
            data_dir.incarnation,
            data_dir.boot_id,
            config.cluster_secret.encode(),
            feature_level=config.feature_level_max,
        )
        links = Links(identity, config.me, config.bind_host, config.peers)
        stack.push_async_callback(links.stop)
        host = self._make_host(data_dir, links) if config.role != "cache" else None
        build: dict[str, Callable[[Host | None, Links, DataDir], None]] = {
            "lock": self._lock_role,
            "queue": self._queue_role,
            "cache": self._cache_role,
        }
        build[config.role](host, links, data_dir)
        admin = RaftAdmin(
            node_id=config.node_id,
            role=config.role,
            boot_id=data_dir.boot_id,
            links=links,
            host=host,
            ignores_backoff=config.test_mode == "split-vote-no-backoff",
            feature_level=config.feature_level_max,
        )
        self._routes += cluster.routes(admin) + cluster.member_routes(config, self._members)
        monitor = ProcessMonitor(
            self.registry, version=dss.__version__, node_id=config.node_id, role=config.role
        )
        monitor.start()
        stack.callback(monitor.stop)
        runner = await self._listen(links, stack)
        if host is not None:
            stack.push_async_callback(host.stop)
            host.start()
        for service in self._services:
            await service.start()
            stack.push_async_callback(service.stop)
        stack.push_async_callback(self._drain, host, runner)
        # What is alive now stays for the process's life: keep the collector off it.
        gc.collect()
        gc.freeze()

    async def _drain(self, host: Host | None, runner: web.AppRunner) -> None:
        """First of all at a planned stop: lead no more, and let requests under way end."""
        if self._failed:
            return
        self._ending.begun = True
        if host is not None:
            await host.hand_over()
        await web_app.leave(runner)
        if self._locks is not None:
            await self._locks.end_waits()
        await web_app.drain(runner)
        if self._locks is not None:  # what came meanwhile, on connections that were in use
            await self._locks.end_waits()

    async def _listen(self, links: Links, stack: contextlib.AsyncExitStack) -> web.AppRunner:
        config = self.config
        guard = self._watch_settings(links)
        app = web_app.build_app(
            config=config,
            routes=self._routes,
            readiness=self.readiness,
            registry=self.registry,
            cluster=lambda: cluster.cluster_view(config, links.links()),
            guard=guard,
            ending=self._ending,
        )
        app.on_shutdown.append(close_streams)
        try:
            await links.start()
            runner = await web_app.serve(app, config.bind_host, config.me.port)
        except OSError as error:
            raise ConfigProblem(
                f"{config.node_id} cannot listen on {config.bind_host} ports {config.me.port} "
                f"and {config.me.peer_port}: {error.strerror or error}"
            ) from error
        stack.push_async_callback(runner.cleanup)
        return runner

    def _watch_settings(self, links: Links) -> Guard | None:
        """What may change while the node runs: the tokens (None: nobody is asked), the secret."""
        config = self.config
        guard = Guard(config.auth_tokens) if config.auth_tokens else None

        def take_tokens(text: str) -> bool:
            assert guard is not None
            return guard.replace(parse_watched("AUTH_TOKENS", config.auth_tokens_file, text))

        def take_secret(text: str) -> bool:
            secret = parse_watched("CLUSTER_SECRET", config.cluster_secret_file, text)
            return links.use_secret(secret.encode())

        if config.auth_tokens_file:
            self._services.append(WatchedFile("AUTH_TOKENS", config.auth_tokens_file, take_tokens))
        if config.cluster_secret_file:
            self._services.append(
                WatchedFile("CLUSTER_SECRET", config.cluster_secret_file, take_secret)
            )
        return guard

    def _make_host(self, data_dir: DataDir, links: Links) -> Host:
        config = self.config
        wal, recovered = Wal.open(data_dir.files("wal"))
        if wal.torn_bytes:
            log.info("cut %d unfinished bytes off the end of the log", wal.torn_bytes)
        settings = RaftSettings(
            heartbeat_ms=config.heartbeat_ms,
            election_min_ms=config.election_min_ms,
            election_max_ms=config.election_max_ms,
            # Queue nodes have a group for each partition, of which many are idle.
            quiesce_after=QUIESCE_AFTER if config.role == "queue" else 0,
            lazy_ms=limits.LAZY_MS,
        )
        split_vote = None
        if config.test_mode:
            log.warning("TEST_MODE=%s: elections are broken on purpose", config.test_mode)
            settings = settings_of(settings)
            split_vote = SplitVote(config.election_max_ms)
        host = Host(
            node_id=config.node_id,
            incarnation=data_dir.incarnation,
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(data_dir.files("snapshots")),
            settings=settings,
            links=links,
            stop_node=self._fail,
            snapshot_every_entries=config.snapshot_every_entries,
            split_vote=split_vote,
            feature_level=config.feature_level_max,
        )
        self._host = host
        raft_metrics.register(self.registry, host)
        return host

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught; a broken invariant ends the node (exit code 1)."""
        loop.default_exception_handler(context)
        error = context.get("exception")
        if isinstance(error, AssertionError):
            self._fail(f"a defect of DSS, please report it: {error}")

    def _fail(self, reason: str) -> None:
        self._failed = reason
        self._stop.set()

    def readiness(self) -> str | None:
        """None when every part is ready, else the first reason why not."""
        if self._stop.is_set():
            return "it stops"
        for service in self._services:
            reason = service.readiness()
            if reason is not None:
                return reason
        return None

    # --- roles --------------------------------------------------------------------------

    def _lock_role(self, host: Host | None, links: Links, data_dir: DataDir) -> None:
        from dss.api import locks as locks_api
        from dss.drivers.locks import LockService, register_metrics
        from dss.drivers.metadata import MetadataService

        assert host is not None
        machines: dict[int, Callable[[], Any]] = {
            META_GROUP: MetaMachine,
            LOCK_GROUP: LockMachine,
        }
        founding = Founding(self.config, host, links, machines)
        metadata = MetadataService(host, links, self.config)
        locks = LockService(host, links)
        register_metrics(self.registry, locks)
        self._locks = locks
        self._members = RaftMembers(self.config, host, links)
        self._services += [founding, metadata, locks, self._members, LevelKeeper(host)]
        self._routes += locks_api.routes(locks)

    def _queue_role(self, host: Host | None, links: Links, data_dir: DataDir) -> None:
        from dss.api import queues as queues_api
        from dss.drivers import queue_metrics
        from dss.drivers.metadata import MetadataView
        from dss.drivers.queues import QueueService

        assert host is not None
        view = MetadataView(links, self.config)
        queues = QueueService(host, links, view, self.config)
        queue_metrics.register(self.registry, queues)
        self._services += [view, queues, LevelKeeper(host)]
        self._routes += queues_api.routes(queues)

    def _cache_role(self, host: Host | None, links: Links, data_dir: DataDir) -> None:
        from dss.api import cache as cache_api
        from dss.drivers.caches import CacheService
        from dss.memory import AnotherMemory, follow_url, open_memory

        config = self.config
        memory = open_memory(config.memory_url, config.cluster_id)
        if config.memory_url_file:
            url = config.memory_url

            def take_url(text: str) -> bool:
                nonlocal url
                new = parse_watched("MEMORY_URL", config.memory_url_file, text)
                try:
                    changed = follow_url(memory, url, new)
                except AnotherMemory:
                    self._fail("MEMORY_URL names another main memory now: start again with it")
                    return False
                url = new
                return changed

            self._services.append(WatchedFile("MEMORY_URL", config.memory_url_file, take_url))
        cache = CacheService(links, memory, config, data_dir.boot_id)
        cache.register(self.registry)
        self._services += [cache]
        self._routes += cache_api.routes(cache)


def main() -> int:
    """Entry point for `python -m dss.node` (the images use `dss node`)."""
    import os

    try:
        return run(os.environ)
    except DssError as error:
        print(error.message, file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
