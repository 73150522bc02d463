"""Several nodes' services in one process: a consensus that applies at once, links that are calls.

Groups have one machine per node and a leader that a test may move; commands and results go through
their codecs, as they would between processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from dss.base.errors import DssError, NoQuorum, RemoteError, Unavailable
from dss.base.ids import META_GROUP
from dss.core.machine import join_items
from dss.core.meta.machine import MetaMachine
from dss.drivers.metadata import MetadataService, MetadataView
from dss.drivers.queues import QueueService
from dss.topology.nodes import NodeConfig, NodeSpec
from dss.transport.ports import Peer

_encode = msgspec.msgpack.Encoder().encode


class Group:
    """One group over all nodes. `leader` None: no quorum."""

    def __init__(self) -> None:
        self.machines: dict[str, Any] = {}
        self.leader: str | None = None
        self.index = 0


class World:
    """All nodes. `applied` counts the entries of each group."""

    def __init__(self, locks: int = 1, queues: int = 3, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.groups: dict[int, Group] = {META_GROUP: Group()}
        self.nodes: dict[str, Node] = {}
        self.cut: dict[str, None] = {}
        """Nodes whose links are down."""
        lock_nodes = _specs("lock", locks)
        queue_nodes = _specs("queue", queues)
        self.configs = {
            spec.id: NodeConfig(
                node_id=spec.id,
                role=role,
                data_dir="/nowhere",
                raft_peers=lock_nodes,
                queue_nodes=queue_nodes,
                **{"partitions": 8, **settings},
            )
            for role, specs in (("lock", lock_nodes), ("queue", queue_nodes))
            for spec in specs
        }
        self._ticker = self.loop.call_later(0.01, self._tick)

    def node(self, node_id: str, incarnation: str = "") -> Node:
        node = self.nodes[node_id] = Node(self, self.configs[node_id], incarnation)
        return node

    def now_ms(self) -> int:
        return int(self.loop.time() * 1_000)

    def _tick(self) -> None:
        for number, group in list(self.groups.items()):
            if group.leader is not None:
                for command in group.machines[group.leader].due(self.now_ms()):
                    self.apply(number, [command])
        self._ticker = self.loop.call_later(0.01, self._tick)

    def apply(self, number: int, commands: Sequence[Any]) -> list[tuple[int, Any]]:
        group = self.groups[number]
        assert group.leader is not None
        group.index += 1
        results: list[tuple[int, Any]] = []
        for node_id, machine in group.machines.items():
            payload = join_items(
                len(commands), [machine.codec.encode_item(1, command) for command in commands]
            )
            answer = machine.apply(group.index, self.now_ms(), machine.codec.decode(payload))
            machine.check_invariants()
            if node_id == group.leader:
                results = answer
        for node_id in group.machines:
            if node_id in self.nodes:
                self.nodes[node_id].consensus.applied(number)
        return results

    def lead(self, number: int, leader: str | None) -> None:
        """Make `leader` the leader of a group, and tell everyone."""
        group = self.groups[number]
        group.leader = leader
        for node_id, node in list(self.nodes.items()):
            if node_id in group.machines:
                role = "leader" if node_id == leader else "follower"
                for listener in node.consensus.role_listeners:
                    listener(number, role, 1, leader)

    def queue_groups(self) -> list[int]:
        return [number for number in self.groups if number != META_GROUP]

    def link(self, node_id: str, up: bool) -> None:
        if up:
            self.cut.pop(node_id, None)
        else:
            self.cut[node_id] = None
        for other, node in self.nodes.items():
            if other != node_id:
                for listener in node.transport.link_listeners:
                    listener(node_id, up, "test")

    async def start(self, locks: int = 1, queues: int = 3) -> list[QueueService]:
        """Everything up and ready; the queue services."""
        for number in range(1, locks + 1):
            await self.node(f"lock-{number}").start()
        for number in range(1, queues + 1):
            await self.node(f"queue-{number}").start()
        await until(lambda: all(node.readiness() is None for node in self.nodes.values()))
        return [self.nodes[f"queue-{number}"].queues for number in range(1, queues + 1)]

    async def stop(self) -> None:
        self._ticker.cancel()
        for node in list(self.nodes.values()):
            await node.stop()


class Node:
    """One node's services over the fakes."""

    def __init__(self, world: World, config: NodeConfig, incarnation: str) -> None:
        self.config = config
        self.peer = Peer(config.node_id, incarnation or f"{config.node_id}-disk", "boot")
        self.consensus = FakeConsensus(world, config.node_id)
        self.transport = FakeTransport(world, self.peer)
        if config.role == "lock":
            self.metadata = MetadataService(self.consensus, self.transport, config)
            world.groups[META_GROUP].machines[config.node_id] = MetaMachine()
            world.groups[META_GROUP].leader = world.groups[META_GROUP].leader or config.node_id
            self.services: list[Any] = [self.metadata]
        else:
            self.view = MetadataView(self.transport, config)
            self.queues = QueueService(self.consensus, self.transport, self.view, config)
            self.services = [self.view, self.queues]

    async def start(self) -> None:
        for service in self.services:
            await service.start()

    async def stop(self) -> None:
        for service in reversed(self.services):
            await service.stop()

    def readiness(self) -> str | None:
        reasons = [service.readiness() for service in self.services]
        return next((reason for reason in reasons if reason is not None), None)


class FakeConsensus:
    """dss.drivers.ports.Consensus over the world's groups."""

    def __init__(self, world: World, node_id: str) -> None:
        self.world = world
        self.node_id = node_id
        self.role_listeners: list[Callable[[int, str, int, str | None], None]] = []
        self.applied_listeners: dict[int, list[Callable[[], None]]] = {}

    def applied(self, group: int) -> None:
        for listener in self.applied_listeners.get(group, []):
            listener()

    def _apply(self, group: int, command: Any) -> tuple[int, Any]:
        leader = self.world.groups[group].leader
        if leader is None or (leader != self.node_id and leader in self.world.cut):
            return 503, NoQuorum("no leader").body()
        [result] = self.world.apply(group, [command])
        if leader != self.node_id:
            result = tuple(msgspec.msgpack.decode(_encode(result)))  # type: ignore[assignment]
        return result

    def call(self, group: int, command: msgspec.Struct) -> Awaitable[tuple[int, Any]]:
        self.machine(group)
        future: asyncio.Future[tuple[int, Any]] = self.world.loop.create_future()

        def run() -> None:
            result = self._apply(group, command)
            if not future.done():
                future.set_result(result)

        self.world.loop.call_soon(run)
        return future

    def submit(
        self, group: int, request_ids: Sequence[int], items: bytes, commands: Any, sink: Any
    ) -> None:
        def run() -> None:
            for request_id, command in zip(request_ids, commands, strict=True):
                sink.answer(request_id, *self._apply(group, command))
            sink.flush()

        self.world.loop.call_soon(run)

    async def read(self, group: int) -> None:
        if not self.is_leader(group):
            raise NoQuorum("not the leader")

    def leader_of(self, group: int) -> str | None:
        found = self.world.groups.get(group)
        if found is None or self.node_id not in found.machines:
            return None
        return found.leader

    def is_leader(self, group: int) -> bool:
        return self.leader_of(group) == self.node_id

    def machine(self, group: int) -> Any:
        return self.world.groups[group].machines[self.node_id]

    def log_ms(self, group: int) -> int:
        return self.world.now_ms()

    def create_group(self, group: int, configuration: Any, machine: Any) -> None:
        assert [m.node_id for m in configuration.voters] == sorted(
            m.node_id for m in configuration.voters
        )
        found = self.world.groups.setdefault(group, Group())
        if found.machines:
            machine.restore(next(iter(found.machines.values())).snapshot())
        found.machines[self.node_id] = machine
        if len(found.machines) == len(configuration.voters):
            voters = [member.node_id for member in configuration.voters]
            leader = voters[group % len(voters)]
            self.world.loop.call_soon(self.world.lead, group, leader)

    def open_group(self, group: int, machine: Any) -> bool:
        return False

    def has_recovered(self) -> dict[int, Any]:
        return {}

    def on_role(self, listener: Callable[[int, str, int, str | None], None]) -> None:
        self.role_listeners.append(listener)

    def on_applied(self, group: int, listener: Callable[[], None]) -> None:
        self.applied_listeners.setdefault(group, []).append(listener)

    def transfer(self, group: int, target: str | None) -> None:
        self.world.loop.call_soon(self.world.lead, group, target)

    def group_status(self) -> list[dict[str, Any]]:
        return []


class FakeTransport:
    """dss.transport.ports.Transport: every message arrives in the next turn of the loop."""

    def __init__(self, world: World, me: Peer) -> None:
        self.world = world
        self.me = me
        self.calls: dict[str, Any] = {}
        self.casts: dict[str, Any] = {}
        self.link_listeners: list[Callable[[str, bool, str], None]] = []
        self.called: list[tuple[str, str]] = []
        """(node, method) of every call made, for tests that count them."""

    def send(self, node_id: str, message: Any) -> None:
        raise AssertionError("services make calls and casts")

    def flush(self) -> None:
        """Nothing is buffered."""

    def _reach(self, node_id: str) -> FakeTransport | None:
        node = self.world.nodes.get(node_id)
        if node is None or node_id in self.world.cut or self.me.node_id in self.world.cut:
            return None
        return node.transport

    def call(
        self, node_id: str, method: str, body: bytes, timeout_ms: int
    ) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = self.world.loop.create_future()
        other = self._reach(node_id)
        self.called.append((node_id, method))
        if other is None or method not in other.calls:
            future.set_exception(Unavailable(f"{node_id}: link is down"))
            return future

        def reply(status: int, answer: bytes) -> None:
            if future.done():
                return
            if status == 200:
                future.set_result(answer)
            else:
                future.set_exception(RemoteError(status, msgspec.msgpack.decode(answer)))

        def run() -> None:
            try:
                other.calls[method](self.me, body, reply)
            except DssError as error:
                reply(error.status, _encode(error.body()))

        self.world.loop.call_soon(run)
        return future

    def cast(self, node_id: str, method: str, body: bytes) -> None:
        other = self._reach(node_id)
        if other is not None and method in other.casts:
            self.world.loop.call_soon(other.casts[method], self.me, body)

    def on_call(self, method: str, handler: Any) -> None:
        self.calls[method] = handler

    def on_cast(self, method: str, handler: Any) -> None:
        self.casts[method] = handler

    def on_link(self, listener: Callable[[str, bool, str], None]) -> None:
        self.link_listeners.append(listener)

    def peer(self, node_id: str) -> Peer | None:
        other = self._reach(node_id)
        return other.me if other is not None else None

    def links(self) -> dict[str, dict[str, Any]]:
        return {}


def _specs(role: str, count: int) -> tuple[NodeSpec, ...]:
    return tuple(NodeSpec(f"{role}-{n}", "127.0.0.1", 1, 2) for n in range(1, count + 1))


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Poll until `condition`; AssertionError after `within_s`."""
    end = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.005)
