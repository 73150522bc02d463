"""Cluster metadata at both ends: served by lock nodes, followed by everyone else.

`MetadataService` (lock nodes) makes the partition table once all queue nodes have registered, and
answers watches and proposals. `MetadataView` (queue nodes) registers its node and keeps a copy by
long-polling any lock node; it retries for ever, so the order in which nodes start never matters.

What must not live here: what the metadata means to a partition or a queue (drivers/queues.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Invalid
from dss.base.ids import META_GROUP
from dss.core.machine import join_items
from dss.core.meta.commands import (
    DeleteQueue,
    Member,
    Partition,
    PutQueue,
    QueueEntry,
    RegisterNode,
    Replica,
    SetTable,
    State,
    Sync,
    meta_codec,
)
from dss.core.meta.machine import MetaMachine
from dss.core.ring.placement import place
from dss.drivers.ports import Consensus
from dss.topology.nodes import NodeConfig
from dss.transport.ports import Peer, Transport

log = logging.getLogger("dss.metadata")

WATCH: Final = "meta.watch"
PROPOSE: Final = "meta.propose"
REGISTER: Final = "meta.register"

WATCH_MS: Final = 10_000
"""How long a watch waits for news before it is answered with nothing."""
WATCH_TIMEOUT_MS: Final = WATCH_MS + 5_000
CALL_TIMEOUT_MS: Final = 5_000
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
CATCH_UP_S: Final = 2.0
"""How long a proposal waits for this node's own copy to show it; it is committed by then."""

_PROPOSABLE: Final = (PutQueue, DeleteQueue, Sync)
"""What a peer may propose. It registers by its proven identity; tables are the leader's work."""

_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(State).decode
_decode_since = msgspec.msgpack.Decoder(int).decode


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What `meta.propose` and `meta.register` return: the group's own answer."""

    status: int
    body: Any
    incarnation: str = ""
    """Of the asking node, as its link proved it (register only)."""


_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class _ReplySink:
    """Passes the one answer of a proposal on to the peer that asked."""

    __slots__ = ("_incarnation", "_reply")

    def __init__(self, reply: Callable[[int, bytes], None], incarnation: str) -> None:
        self._reply = reply
        self._incarnation = incarnation

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._reply(200, _encode(Answer(status, body, self._incarnation)))

    def flush(self) -> None:
        """Nothing is buffered."""


class _Watcher(msgspec.Struct):
    since: int
    reply: Callable[[int, bytes], None]
    timer: asyncio.TimerHandle


class MetadataService:
    """Metadata on a lock node. Calls `meta.watch`, `meta.propose`, `meta.register`."""

    def __init__(self, consensus: Consensus, transport: Transport, config: NodeConfig) -> None:
        self._consensus = consensus
        self._transport = transport
        self._config = config
        self._codec = meta_codec()
        self._watchers: dict[str, _Watcher] = {}
        """By node: a node watches with one call at a time, a newer one ends the older."""
        self._encoded: tuple[int, bytes] = (0, b"")
        self._making_table = False
        self._waiting_for = ""

    async def start(self) -> None:
        self._transport.on_call(WATCH, self._on_watch)
        self._transport.on_call(PROPOSE, self._on_propose)
        self._transport.on_call(REGISTER, self._on_register)
        self._consensus.on_applied(META_GROUP, self._applied)
        self._consensus.on_role(self._role_changed)

    async def stop(self) -> None:
        for node_id in list(self._watchers):
            self._answer_watcher(node_id, b"")

    def readiness(self) -> str | None:
        """None once this node has the metadata group; never a matter of leaders."""
        if self._machine() is None:
            return "the metadata group is not founded yet"
        return None

    def status(self) -> dict[str, Any]:
        machine = self._machine()
        if machine is None:
            return {"version": 0}
        return {
            "version": machine.version,
            "table_version": machine.table_version,
            "queues": len(machine.queues),
            "members": {key: value.incarnation for key, value in machine.members.items()},
            "watchers": len(self._watchers),
        }

    def _machine(self) -> MetaMachine | None:
        try:
            machine: MetaMachine = self._consensus.machine(META_GROUP)
        except KeyError:
            return None
        return machine

    # --- watches ------------------------------------------------------------------------

    def _on_watch(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        since = _decode_since(body)
        self._answer_watcher(peer.node_id, b"")
        machine = self._machine()
        if machine is not None and machine.version > since:
            reply(200, self._state(machine))
            return
        timer = asyncio.get_running_loop().call_later(
            WATCH_MS / 1_000, self._answer_watcher, peer.node_id, b""
        )
        self._watchers[peer.node_id] = _Watcher(since, reply, timer)

    def _answer_watcher(self, node_id: str, state: bytes) -> None:
        watcher = self._watchers.pop(node_id, None)
        if watcher is not None:
            watcher.timer.cancel()
            watcher.reply(200, state)

    def _state(self, machine: MetaMachine) -> bytes:
        if self._encoded[0] != machine.version:
            self._encoded = (machine.version, machine.snapshot())
        return self._encoded[1]

    def _applied(self) -> None:
        machine = self._machine()
        if machine is None:
            return
        for node_id, watcher in list(self._watchers.items()):
            if machine.version > watcher.since:
                self._answer_watcher(node_id, self._state(machine))
        self._make_table()

    # --- proposals ----------------------------------------------------------------------

    def _on_propose(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        items = self._codec.split(join_items(1, [body]))
        command = self._codec.decode_args(items[0][1], items[0][2])
        if not isinstance(command, _PROPOSABLE):
            raise Invalid(f"{items[0][1]!r} is not for peers to propose")
        sink = _ReplySink(reply, "")
        self._consensus.submit(META_GROUP, (items[0][0],), body, (command,), sink)

    def _on_register(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        role = self._config.role_of(peer.node_id)
        if role is None:
            raise Invalid(f"{peer.node_id} is in none of the peer lists of {self._config.node_id}")
        arguments = {"node_id": peer.node_id, "role": role, "incarnation": peer.incarnation}
        command = msgspec.convert(arguments, RegisterNode)
        item = self._codec.encode_item(1, command)
        sink = _ReplySink(reply, peer.incarnation)
        self._consensus.submit(META_GROUP, (1,), item, (command,), sink)

    # --- the partition table ------------------------------------------------------------

    def _role_changed(self, group: int, role: str, term: int, leader: str | None) -> None:
        if group == META_GROUP and role == "leader":
            self._make_table()

    def _make_table(self) -> None:
        """The leader's duty: the first table, as soon as every configured queue node is known."""
        machine = self._machine()
        if (
            machine is None
            or machine.table
            or self._making_table
            or not self._consensus.is_leader(META_GROUP)
        ):
            return
        nodes = [node.id for node in self._config.queue_nodes]
        missing = [node for node in nodes if node not in machine.members]
        if missing or not nodes:
            self._note_missing(missing)
            return
        command = make_table(machine.members, nodes, self._config)
        self._making_table = True
        future = asyncio.ensure_future(self._consensus.call(META_GROUP, command))
        future.add_done_callback(self._table_made)

    def _note_missing(self, missing: list[str]) -> None:
        waiting_for = ", ".join(missing)
        if waiting_for and waiting_for != self._waiting_for:
            log.info("the partition table waits for %s to register", waiting_for)
        self._waiting_for = waiting_for

    def _table_made(self, future: asyncio.Future[tuple[int, Any]]) -> None:
        self._making_table = False
        if future.cancelled():
            return
        status, body = future.result()
        if status == 200:
            log.info(
                "partition table made: %d partitions on %d queue nodes",
                self._config.partitions,
                len(self._config.queue_nodes),
            )
        else:
            log.info("the partition table was not made: %s", body.get("message", status))


def make_table(members: dict[str, Member], nodes: list[str], config: NodeConfig) -> SetTable:
    """The first table over the registered `nodes`, as the ring places it."""
    rows = place(config.partitions, nodes, config.replication_factor)
    return SetTable(
        expected_version=0,
        partitions=tuple(
            Partition(tuple(Replica(node, members[node].incarnation) for node in row))
            for row in rows
        ),
    )


class MetadataView:
    """This node's copy of the metadata, and its way to change it."""

    def __init__(self, transport: Transport, config: NodeConfig) -> None:
        self._transport = transport
        self._config = config
        self._codec = meta_codec()
        self._lock_nodes = [node.id for node in config.raft_peers]
        self._next = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._link_up = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._refreshes = 0
        self._refresh_status = 200
        self.state = State(version=0)
        self.queues: dict[str, QueueEntry] = {}
        self.incarnation = ""
        """This node's, as its links prove it; empty until it has registered."""
        self.problem = "waiting for a lock node to answer"
        """Why this node is not registered; empty when it is."""

    @property
    def version(self) -> int:
        return self.state.version

    @property
    def table(self) -> tuple[Partition, ...]:
        """The partition table; empty while there is none, or none is known yet."""
        return self.state.table

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport.on_link(self._on_link)
        self._tasks = [loop.create_task(self._register()), loop.create_task(self._follow())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def readiness(self) -> str | None:
        return self.problem or None

    def on_change(self, listener: Callable[[], None]) -> None:
        """listener() after every change of the copy, and once this node has registered."""
        self._listeners.append(listener)

    async def propose(self, command: PutQueue | DeleteQueue | Sync) -> tuple[int, Any]:
        """The metadata group's answer, once this copy shows the change (or after 2 s).

        Errors are answers too: 503 `no_quorum` (nothing was done), 504 `indeterminate`.
        """
        try:
            answer = await self._ask(PROPOSE, self._codec.encode_item(1, command))
        except DssError as error:
            return error.status, error.body()
        if answer.status < 400:
            await self._reached(answer.body["version"])
        return answer.status, answer.body

    async def refresh(self) -> bool:
        """Bring the copy up to at least what was committed when this was called.

        Many callers share one round. False: no lock node with a quorum answered.
        """
        wanted = self._refreshes + 1
        async with self._refreshing:
            if self._refreshes < wanted:
                self._refreshes += 1
                self._refresh_status, _ = await self.propose(Sync())
        return self._refresh_status == 200

    # --- inside -------------------------------------------------------------------------

    def _on_link(self, node_id: str, up: bool, reason: str) -> None:
        if up and node_id in self._lock_nodes:
            self._link_up.set()

    async def _ask(self, method: str, body: bytes) -> Answer:
        """Ask lock nodes in turn until one has got the question."""
        error: DssError | None = None
        for _ in self._lock_nodes:
            node = self._lock_nodes[self._next % len(self._lock_nodes)]
            try:
                return _decode_answer(
                    await self._transport.call(node, method, body, CALL_TIMEOUT_MS)
                )
            except DssError as failure:
                self._next += 1
                error = failure
                if failure.status == 504:
                    break
        assert error is not None, "the lock nodes' list is never empty"
        raise error

    async def _pause(self, delay_s: float) -> float:
        """Wait `delay_s`, or until a lock node's link comes up; the next delay."""
        self._link_up.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._link_up.wait()
        return min(delay_s * 2, RETRY_MAX_S)

    async def _register(self) -> None:
        """Until the metadata group knows this node, or says that its disk was lost."""
        delay_s = RETRY_MIN_S
        while True:
            try:
                answer = await self._ask(REGISTER, b"")
            except DssError as error:
                self.problem = f"not registered with the lock nodes: {error.message}"
            else:
                self.incarnation = answer.incarnation
                if answer.status == 200:
                    self.problem = ""
                    break
                self.problem = f"not registered: {answer.body.get('message', answer.status)}"
                if answer.body.get("code") == "lost_disk":
                    log.error("%s", self.problem)
                    break
            delay_s = await self._pause(delay_s)
        self._changed()

    async def _follow(self) -> None:
        delay_s = RETRY_MIN_S
        number = 0
        while True:
            node = self._lock_nodes[number % len(self._lock_nodes)]
            try:
                body = await self._transport.call(
                    node, WATCH, _encode(self.version), WATCH_TIMEOUT_MS
                )
            except DssError:
                number += 1
                delay_s = await self._pause(delay_s)
                continue
            delay_s = RETRY_MIN_S
            if body:
                self._adopt(_decode_state(body))
            else:
                number += 1  # no news: ask another one, this one may be cut off from its leader

    def _adopt(self, state: State) -> None:
        """Take a newer state; an older one (of a lock node that lags) is ignored."""
        if state.version <= self.version:
            return
        self.state = state
        self.queues = {queue.name: queue for queue in state.queues}
        waiting, self._waiting = self._waiting, []
        for version, future in waiting:
            if future.done():
                continue
            if version <= state.version:
                future.set_result(None)
            else:
                self._waiting.append((version, future))
        self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    async def _reached(self, version: int) -> None:
        if self.version >= version:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((version, future))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                await future
