"""How the lock nodes' groups come into being, once; and how a node comes to them later.

The lock node with the smallest id is the only founder. It founds when *every* listed lock node
answers and reports an empty data directory; the founding record (ids and incarnations) is durable
on the founder before anyone else hears of it, and another node adopts it only if it is empty and
the record names its own incarnation. So two different foundings cannot both gather members, and a
node whose disk was lost never votes under its old name (docs/architecture.md § Consensus).

Such a node, or a new one, waits until a leader lets it join (raft_members.py): it then has groups
that know no members, and learns everything from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from dss.base.errors import DssError, Invalid
from dss.base.ids import LOCK_GROUP, META_GROUP
from dss.core.machine import Machine
from dss.core.raft.messages import Configuration, Member
from dss.drivers.host import Host
from dss.observe.logs import unexpected
from dss.topology.nodes import NodeConfig
from dss.transport.links import Links
from dss.transport.ports import Peer

log = logging.getLogger("dss.raft")

GROUPS: Final = (META_GROUP, LOCK_GROUP)
JOIN: Final = "found.join"
LOOK_EVERY_S: Final = 0.1
LOOK_EVERY_S_MAX: Final = 2.0
CALL_TIMEOUT_MS: Final = 1_000

_encode = msgspec.msgpack.Encoder().encode


class FoundingStatus(msgspec.Struct, frozen=True, array_like=True):
    """What a lock node says of itself: its incarnation, and whether it belongs to a group."""

    incarnation: str
    empty: bool


class Founding:
    """Opens or founds the groups of a lock node.

    Args:
        machines: makes a fresh machine per group id.
    """

    def __init__(
        self,
        config: NodeConfig,
        host: Host,
        links: Links,
        machines: dict[int, Callable[[], Machine]],
    ) -> None:
        self._config = config
        self._host = host
        self._links = links
        self._machines = machines
        self._voters = sorted(peer.id for peer in config.raft_peers)
        self._founder = self._voters[0]
        self._task: asyncio.Task[None] | None = None
        self._adopting: dict[asyncio.Task[None], None] = {}
        self._lost: dict[str, str] = {}
        self.founded = asyncio.Event()
        self.waiting_for = "the lock nodes to answer"
        links.on_call("found.status", self._on_status)
        links.on_call("found.adopt", self._on_adopt)
        links.on_call(JOIN, self._on_join)

    async def start(self) -> None:
        opened = [gid for gid in GROUPS if self._host.open_group(gid, self._machines[gid]())]
        if opened:
            if len(opened) < len(GROUPS):
                # The power failed within the one write that founds both groups, so this node has
                # never acknowledged anything in either: it may finish that write now.
                log.warning("finishing a founding that was cut short")
            await self._create(self._host.engine.groups[opened[0]].configuration)
        if self._config.node_id == self._founder:
            self._task = asyncio.get_running_loop().create_task(self._lead())
            self._task.add_done_callback(_ended)

    async def stop(self) -> None:
        tasks = list(self._adopting)
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def readiness(self) -> str | None:
        """None once this node belongs to the groups; else what it waits for."""
        if self.founded.is_set():
            return self._outside() or self._lagging()
        if self._config.node_id == self._founder:
            return f"not founded: waiting for {self.waiting_for}"
        return (
            f"not a member yet: waiting for {self._founder} to found the cluster, or, if this "
            "node's data directory was lost, to be re-admitted: dss members replace "
            f"{self._config.node_id}"
        )

    def _lagging(self) -> str | None:
        lagging = [gid for gid in GROUPS if not self._host.caught_up(gid)]
        return f"catching up in group {lagging[0]}" if lagging else None

    def _outside(self) -> str | None:
        """Why this node is no member although it has the groups."""
        for gid in GROUPS:
            raft = self._host.engine.groups[gid].raft
            membership = raft.membership
            if not membership.members:
                return f"joined group {gid}, waiting for its log"
            if not membership.listed or raft.removed_at:
                me = self._config.node_id
                return f"no member of group {gid} any longer: stop it, or dss members add {me}"
        return None

    def _on_status(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        reply(200, _encode(FoundingStatus(self._host.incarnation, not self.founded.is_set())))

    def _on_adopt(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        configuration = msgspec.msgpack.decode(body, type=Configuration)
        me = Member(self._config.node_id, self._host.incarnation)
        if peer.node_id == self._founder and not self.founded.is_set():
            if me in configuration.voters:
                task = asyncio.get_running_loop().create_task(self._adopt(configuration, reply))
                self._adopting[task] = None
                task.add_done_callback(self._adopting.pop)
                task.add_done_callback(_ended)
                return
            else:
                log.error(
                    "%s founded the cluster with another incarnation of this node: its data "
                    "directory was lost; it must be re-admitted",
                    peer.node_id,
                )
        reply(200, _encode(FoundingStatus(self._host.incarnation, not self.founded.is_set())))

    def _on_join(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        """A leader is about to add this node, by the incarnation that its link has proved."""
        incarnation = msgspec.msgpack.decode(body, type=str)
        if self._config.role_of(peer.node_id) != "lock":
            raise Invalid(f"{peer.node_id} is no lock node")
        if incarnation != self._host.incarnation or self.founded.is_set():
            reply(200, _encode(FoundingStatus(self._host.incarnation, not self.founded.is_set())))
            return
        log.info("%s lets this node join", peer.node_id)
        task = asyncio.get_running_loop().create_task(self._adopt(Configuration(()), reply))
        self._adopting[task] = None
        task.add_done_callback(self._adopting.pop)
        task.add_done_callback(_ended)

    async def _adopt(
        self, configuration: Configuration, reply: Callable[[int, bytes], None]
    ) -> None:
        await self._create(configuration)
        if configuration.voters:
            log.info("adopted the founding record of %s", self._founder)
        reply(200, _encode(FoundingStatus(self._host.incarnation, False)))

    async def _create(self, configuration: Configuration) -> None:
        for gid in GROUPS:
            self._host.create_group(gid, configuration, self._machines[gid]())
        # Nobody may count this node as a member before the record is on its disk.
        await self._host.durable()
        self.founded.set()

    async def _lead(self) -> None:
        """The founder's work: found if nobody has, then bring the record to every member."""
        delay_s = LOOK_EVERY_S
        while True:
            statuses = await self._statuses()
            if not self.founded.is_set():
                await self._try_found(statuses)
            if self.founded.is_set() and await self._spread(statuses):
                return
            await asyncio.sleep(delay_s)
            if self.founded.is_set():
                delay_s = min(delay_s * 2, LOOK_EVERY_S_MAX)

    async def _statuses(self) -> dict[str, FoundingStatus]:
        others = [node_id for node_id in self._voters if node_id != self._config.node_id]
        futures = [
            self._links.call(node_id, "found.status", b"", CALL_TIMEOUT_MS) for node_id in others
        ]
        answers = await asyncio.gather(*futures, return_exceptions=True)
        statuses: dict[str, FoundingStatus] = {}
        for node_id, answer in zip(others, answers, strict=True):
            if isinstance(answer, bytes):
                # An unreadable answer is like none: it must not end the founder's work.
                with contextlib.suppress(msgspec.MsgspecError):
                    statuses[node_id] = msgspec.msgpack.decode(answer, type=FoundingStatus)
            elif not isinstance(answer, DssError):
                raise answer
        return statuses

    async def _try_found(self, statuses: dict[str, FoundingStatus]) -> None:
        me = self._config.node_id
        missing = [node for node in self._voters if node != me and node not in statuses]
        if missing:
            self.waiting_for = ", ".join(missing)
            return
        members = [node for node, status in statuses.items() if not status.empty]
        if members:
            self.waiting_for = (
                f"re-admission: {', '.join(members)} already belong to a cluster, so this "
                f"node's data directory was lost: dss members replace {me}"
            )
            return
        if self._host.split_vote is not None:
            await asyncio.sleep(self._host.split_vote.pause_before_founding_s())
        incarnations = {node: status.incarnation for node, status in statuses.items()}
        incarnations[me] = self._host.incarnation
        await self._create(
            Configuration(tuple(Member(node, incarnations[node]) for node in self._voters))
        )
        log.info("founded the cluster with %s", ", ".join(self._voters))

    async def _spread(self, statuses: dict[str, FoundingStatus]) -> bool:
        """Offer the record to members that are empty. True: every member has it."""
        configuration = self._host.engine.groups[LOCK_GROUP].configuration
        done = True
        for member in configuration.voters:
            if member.node_id == self._config.node_id:
                continue
            status = statuses.get(member.node_id)
            if status is None:
                done = False
            elif status.empty:
                done = False
                if status.incarnation != member.incarnation:
                    self._warn_lost(member, status)
                else:
                    future = self._links.call(
                        member.node_id, "found.adopt", _encode(configuration), CALL_TIMEOUT_MS
                    )
                    await asyncio.gather(future, return_exceptions=True)
        return done

    def _warn_lost(self, member: Member, status: FoundingStatus) -> None:
        if self._lost.get(member.node_id) != status.incarnation:
            self._lost[member.node_id] = status.incarnation
            log.warning(
                "%s is empty and has incarnation %s, the cluster was founded with %s: its data "
                "directory was lost; it must be re-admitted and does not vote until then",
                member.node_id,
                status.incarnation[:8],
                member.incarnation[:8],
            )


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        unexpected(log, "founding", error)
