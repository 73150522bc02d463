"""The partitions of a queue node: opened, founded, kept at the registry's settings, reached.

The partition table says where partitions should be; a group is founded from it only where the
table names this node with its own incarnation. Whoever leads a partition brings it to the queue
registry: a PUT or DELETE does it at once, this repairs what that missed. What must not live here:
what a client asks for (queues.py), who waits for messages (queue_polls.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Unavailable
from dss.base.ids import FIRST_PARTITION_GROUP, GroupId, group_partition, partition_group
from dss.core.machine import join_items
from dss.core.meta.commands import QueueEntry
from dss.core.queueing.commands import Configure, Drop, queue_codec
from dss.core.queueing.machine import QueueMachine
from dss.core.raft.messages import Configuration, Member
from dss.drivers.metadata import MetadataView
from dss.drivers.ports import Consensus
from dss.topology.nodes import NodeConfig
from dss.transport.ports import Peer, Transport

log = logging.getLogger("dss.queues")

COMMAND: Final = "queue.command"
COMMAND_TIMEOUT_MS: Final = 5_000
REPAIR_EVERY_S: Final = 5.0
"""How often a leader compares its partitions with the registry, besides on every change, and
hands some of those that another node should lead to it."""
TRANSFERS_AT_ONCE: Final = 4
"""Leaderships handed over per turn: each makes its partition wait for a round trip."""
TRANSFER_AGAIN_S: Final = 60.0
"""A hand-over that did not happen, or came back, is not repeated before this time."""

Answers = tuple[int, Any]

_encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
_decode_answer = msgspec.msgpack.Decoder(tuple[int, Any]).decode


class _ReplySink:
    __slots__ = ("_reply",)

    def __init__(self, reply: Callable[[int, bytes], None]) -> None:
        self._reply = reply

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._reply(200, _encode((status, body)))

    def flush(self) -> None:
        """Nothing is buffered."""


class Partitions:
    """This node's replicas, and the way to those it has none of.

    Args:
        on_ready: called with (queue, partition) when a message became visible in a partition
            that this node leads, and for each queue with visible ones when it begins to lead.
    """

    def __init__(
        self,
        consensus: Consensus,
        transport: Transport,
        view: MetadataView,
        config: NodeConfig,
        on_ready: Callable[[str, int], None],
    ) -> None:
        self._consensus = consensus
        self._transport = transport
        self._view = view
        self._me = config.node_id
        self._on_ready = on_ready
        self._codec = queue_codec()
        self.machines: dict[int, QueueMachine] = {}
        """The replicas of this node, by partition."""
        self.led: list[int] = []
        """Those of them that this node leads, in order."""
        self.refusal = ""
        """Why the table's partitions are not founded here; empty: nothing is wrong."""
        self._repair_timer: asyncio.TimerHandle | None = None
        self._repairing: dict[tuple[int, str], None] = {}
        self._offered_s: dict[int, float] = {}
        """When a partition's leadership was last offered to its preferred leader."""

    def start(self) -> None:
        self._transport.on_call(COMMAND, self._on_command)
        self._consensus.on_role(self._role_changed)
        for group in sorted(self._consensus.has_recovered()):
            if group >= FIRST_PARTITION_GROUP:
                self._open(group_partition(GroupId(group)))
        self._view.on_change(self._view_changed)
        self._view_changed()
        self._arm()

    def stop(self) -> None:
        if self._repair_timer is not None:
            self._repair_timer.cancel()

    @property
    def count(self) -> int:
        """The number of partitions of the cluster.

        Raises:
            Unavailable: the table is not known here yet.
        """
        count = len(self._view.table)
        if not count:
            raise Unavailable(
                "the partition table is not known yet: it comes from the lock nodes once all "
                "queue nodes have registered",
                retry_after_ms=500,
            )
        return count

    def readiness(self) -> str | None:
        if self.refusal:
            return self.refusal
        if not self._view.table:
            return "waiting for the partition table from the lock nodes"
        leaderless = [
            partition
            for partition in self.machines
            if self._consensus.leader_of(partition_group(partition)) is None
        ]
        if leaderless:
            return f"{len(leaderless)} of {len(self.machines)} partitions have no leader yet"
        return None

    def leader(self, partition: int) -> str | None:
        """The leader's node id, as far as this node knows."""
        return self._consensus.leader_of(partition_group(partition))

    def leaders(self) -> dict[str, None]:
        """The other nodes that lead something, and those that may: replicas of partitions
        that this node has no replica of."""
        found: dict[str, None] = {}
        for partition, row in enumerate(self._view.table):
            if partition in self.machines:
                leader = self.leader(partition)
                if leader is not None and leader != self._me:
                    found[leader] = None
            else:
                found.update((replica.node_id, None) for replica in row.replicas)
        return found

    def log_ms(self, partition: int) -> int:
        return self._consensus.log_ms(partition_group(partition))

    # --- commands -----------------------------------------------------------------------

    def submit(self, partition: int, command: msgspec.Struct) -> asyncio.Future[Answers]:
        """(status, body) of `command`, here or through a node that has a replica.

        The future never fails: errors are answers, as consensus gives them.
        """
        if partition in self.machines:
            return asyncio.ensure_future(self._consensus.call(partition_group(partition), command))
        return self._elsewhere(partition, command)

    def _elsewhere(self, partition: int, command: msgspec.Struct) -> asyncio.Future[Answers]:
        answer: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        replicas = [replica.node_id for replica in self._view.table[partition].replicas]
        linked = [node for node in replicas if self._transport.peer(node) is not None]
        node = (linked or replicas)[0]
        body = _encode((partition, self._codec.encode_item(1, command)))

        def done(call: asyncio.Future[bytes]) -> None:
            error = call.exception()
            if answer.done():
                return
            if isinstance(error, DssError):
                answer.set_result((error.status, error.body()))
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(_decode_answer(call.result()))

        self._transport.call(node, COMMAND, body, COMMAND_TIMEOUT_MS).add_done_callback(done)
        return answer

    def _on_command(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        partition, item = _decode_command(body)
        if partition not in self.machines:
            # No second hop: the asker goes by the same table, one of the two is behind.
            raise Unavailable(f"{self._me} has no replica of partition {partition}")
        [(request_id, op, arguments)] = self._codec.split(join_items(1, [item]))
        command = self._codec.decode_args(op, arguments)
        self._consensus.submit(
            partition_group(partition), (request_id,), item, (command,), _ReplySink(reply)
        )

    # --- groups -------------------------------------------------------------------------

    def _open(self, partition: int) -> None:
        machine = QueueMachine(partition)
        if self._consensus.open_group(partition_group(partition), machine):
            self._adopt(partition, machine)

    def _adopt(self, partition: int, machine: QueueMachine) -> None:
        self.machines[partition] = machine
        group = partition_group(partition)
        self._consensus.on_applied(group, lambda: self._applied(partition, machine))
        if self._consensus.is_leader(group):
            self._lead(partition)

    def _found(self) -> None:
        """Found the partitions that the table puts on this node."""
        mine = Member(self._me, self._view.incarnation)
        for partition, row in enumerate(self._view.table):
            listed = [replica for replica in row.replicas if replica.node_id == self._me]
            if not listed or partition in self.machines:
                continue
            if listed[0].incarnation != mine.incarnation:
                self._refuse(listed[0].incarnation)
                return
            voters = sorted(
                (Member(replica.node_id, replica.incarnation) for replica in row.replicas),
                key=lambda member: member.node_id,
            )
            machine = QueueMachine(partition)
            self._consensus.create_group(
                partition_group(partition), Configuration(tuple(voters)), machine
            )
            self._adopt(partition, machine)

    def _refuse(self, listed: str) -> None:
        refusal = (
            f"the partition table lists {self._me} with the data of incarnation {listed}, but its "
            f"data directory is {self._view.incarnation}: the disk was lost or exchanged. Give it "
            "back its old data directory."
        )
        if refusal != self.refusal:
            log.error("%s", refusal)
        self.refusal = refusal

    # --- what changes -------------------------------------------------------------------

    def _view_changed(self) -> None:
        if self._view.incarnation and self._view.table:
            self._found()
        for partition in self.led:
            self._repair(partition)

    def _role_changed(self, group: int, role: str, term: int, leader: str | None) -> None:
        partition = group_partition(GroupId(group))
        if partition not in self.machines:
            return
        if role == "leader":
            self._lead(partition)
        elif partition in self.led:
            self.led.remove(partition)

    def _lead(self, partition: int) -> None:
        if partition not in self.led:
            self.led = sorted([*self.led, partition])
        self._repair(partition)
        for queue in self.machines[partition].ready_queues():
            self._on_ready(queue, partition)

    def _applied(self, partition: int, machine: QueueMachine) -> None:
        if partition in self.led:
            for queue in machine.take_ready():
                self._on_ready(queue, partition)

    # --- the registry -------------------------------------------------------------------

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._repair_timer = loop.call_later(REPAIR_EVERY_S, self._repair_all)

    def _repair_all(self) -> None:
        for partition in self.led:
            self._repair(partition)
        self._hand_over()
        self._arm()

    def _hand_over(self) -> None:
        """Offer partitions to their preferred leaders, where these have a link to this node."""
        now_s = asyncio.get_running_loop().time()
        offers = 0
        for partition in self.led:
            row = self._view.table[partition].replicas if self._view.table else ()
            if not row or row[0].node_id == self._me or offers == TRANSFERS_AT_ONCE:
                continue
            peer = self._transport.peer(row[0].node_id)
            if peer is None or peer.incarnation != row[0].incarnation:
                continue
            if now_s - self._offered_s.get(partition, -TRANSFER_AGAIN_S) >= TRANSFER_AGAIN_S:
                self._offered_s[partition] = now_s
                self._consensus.transfer(partition_group(partition), row[0].node_id)
                offers += 1

    def _repair(self, partition: int) -> None:
        """Propose what the registry has and this partition has not, and the other way round."""
        for command in repairs(self._view.queues, self._view.version, self.machines[partition]):
            key = (partition, command.queue)
            if key in self._repairing:
                continue
            self._repairing[key] = None
            future = self.submit(partition, command)
            future.add_done_callback(partial(self._repaired, key))

    def _repaired(self, key: tuple[int, str], future: asyncio.Future[Answers]) -> None:
        del self._repairing[key]


def repairs(
    queues: dict[str, QueueEntry], version: int, machine: QueueMachine
) -> Iterator[Configure | Drop]:
    """The commands that bring a partition to the registry as of `version`.

    A queue that the registry copy lacks is dropped only if the copy is as new as the queue: an
    older copy does not know of it yet.
    """
    here = machine.queues()
    for name, entry in queues.items():
        if here.get(name, (0, 0)) < (entry.incarnation, entry.version):
            yield configure(entry)
    for name, (incarnation, configured) in here.items():
        if name not in queues and configured <= version:
            yield Drop(name, incarnation)


def configure(entry: QueueEntry) -> Configure:
    """The command that brings a partition to a registry entry."""
    return Configure(entry.name, entry.incarnation, entry.version, entry.settings)
