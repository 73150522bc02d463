"""Who belongs to the lock nodes' groups: looking, adding, removing. On every lock node.

Whoever is asked leads the change through all groups, one after another; each step happens at that
group's leader, which is found with the call `raft.members`. A new member's address comes from
RAFT_PEERS: a node with a new disk keeps its id and needs nothing, a new id must be listed on every
lock node first. What must not live here: the rules of a change (core/raft/leadership.py), HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dss.base.errors import (
    Conflict,
    DssError,
    Indeterminate,
    Invalid,
    NotFound,
    Unavailable,
)
from dss.base.levels import BASE_LEVEL
from dss.core.raft.messages import Member
from dss.drivers.founding import CALL_TIMEOUT_MS, GROUPS, JOIN, FoundingStatus
from dss.drivers.host import Host
from dss.topology.nodes import NodeConfig
from dss.transport.ports import Peer, Transport

METHOD: Final = "raft.members"
VIEW, ADD, REMOVE = "view", "add", "remove"

STEP_TIMEOUT_MS: Final = 5_000
"""One group's change at its leader: a commit, for an addition after the new member has answered."""
RETRY_S: Final = 0.1
SETTLE_S: Final = 5.0
"""For so long a change that comes between two leaders, or behind another change, is repeated."""

_AGAIN: Final = frozenset(("not_leader", "transferring", "not_ready", "change_under_way"))
"""The core's refusals that pass by themselves."""
_encode = msgspec.msgpack.Encoder().encode


class _Step(msgspec.Struct, frozen=True, array_like=True):
    """One group's part of a request, for its leader."""

    op: str
    group: int
    node_id: str = ""


_step = msgspec.msgpack.Decoder(_Step)
_status = msgspec.msgpack.Decoder(FoundingStatus)


class RaftMembers:
    """See the module."""

    def __init__(self, config: NodeConfig, host: Host, links: Transport) -> None:
        self._config = config
        self._host = host
        self._links = links
        self._tasks: dict[asyncio.Task[None], None] = {}
        links.on_call(METHOD, self._on_call)

    async def start(self) -> None:
        """Nothing runs by itself."""

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def readiness(self) -> str | None:
        return None

    # --- for the API --------------------------------------------------------------------

    async def view(self) -> dict[str, Any]:
        """The members of every group as its leader sees them.

        Raises:
            NoQuorum: a group has no leader that could be asked.
        """
        return {"groups": [await self._at_leader(_Step(VIEW, group)) for group in GROUPS]}

    async def add(self, node_id: str) -> dict[str, Any]:
        """Make `node_id` a learner of every group; it becomes a voter when it has caught up.

        Returns:
            The view. A node that is a member already is left as it is.

        Raises:
            Invalid: RAFT_PEERS does not list it; it is no lock node.
            Unavailable: it cannot be reached.
            Conflict: `other_incarnation`, `change_under_way`, `not_empty`, `feature_level`.
        """
        known = [node.id for node in self._config.raft_peers]
        if node_id not in known:
            self._refuse_other_roles(node_id)
            raise Invalid(
                f"RAFT_PEERS of {self._config.node_id} does not list {node_id} (it lists "
                f"{', '.join(known)}): set it on every lock node, restart them one after "
                "another, start the new node, then add it"
            )
        return await self._everywhere(_Step(ADD, GROUPS[0], node_id))

    async def remove(self, node_id: str) -> dict[str, Any]:
        """Take `node_id` out of every group; a leader hands over first.

        Raises:
            NotFound: no group has it.
            Invalid: it is no lock node.
            Conflict: `breaks_quorum`, `change_under_way`, `last_voter`.
        """
        view = await self.view()
        if not any(node_id == m["node_id"] for g in view["groups"] for m in g["members"]):
            self._refuse_other_roles(node_id)
            raise NotFound(f"{node_id} is a member of no group of the lock nodes")
        return await self._everywhere(_Step(REMOVE, GROUPS[0], node_id))

    def _refuse_other_roles(self, node_id: str) -> None:
        role = self._config.role_of(node_id)
        if role == "queue":
            raise Invalid(
                f"{node_id} is a queue node: only the lock nodes' groups can change their members "
                "so far. With its old data directory it goes on by itself; if that is lost, its "
                "partitions run on with their other replicas, and it cannot be let in again yet"
            )
        if role == "cache":
            raise Invalid(f"{node_id} is a cache node: it belongs to no Raft group; just start it")

    async def _everywhere(self, step: _Step) -> dict[str, Any]:
        for group in GROUPS:
            await self._at_leader(msgspec.structs.replace(step, group=group))
        return await self.view()

    # --- finding the leader -------------------------------------------------------------

    async def _at_leader(self, step: _Step) -> dict[str, Any]:
        """Carry `step` out at its group's leader; again while that is only a matter of time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while True:
            try:
                return await self._try(step)
            except DssError as error:
                # An unknown outcome may be asked for again too: adding a member, or removing
                # what is gone, changes nothing.
                passes = error.code in _AGAIN or error.status in (503, 504)
                if not passes or loop.time() + RETRY_S > until:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _try(self, step: _Step) -> dict[str, Any]:
        """At the leader as far as it is known here, else as far as another lock node knows it."""
        host = self._host
        if host.is_leader(step.group):
            return await self._carry_out(step)
        leader = host.leader_of(step.group)
        others = [node.id for node in self._config.raft_peers if node.id != host.node_id]
        error: DssError = host.no_quorum(step.group)
        for node_id in [leader] if leader is not None else others:
            if self._links.peer(node_id) is None:
                continue
            timeout_ms = STEP_TIMEOUT_MS + CALL_TIMEOUT_MS
            try:
                answer = await self._links.call(node_id, METHOD, _encode(step), timeout_ms)
            except DssError as failure:
                error = failure
                if failure.code != "not_leader":
                    raise
                continue
            decoded: dict[str, Any] = msgspec.msgpack.decode(answer)
            return decoded
        raise error

    def _on_call(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        step = _step.decode(body)
        if self._config.role_of(peer.node_id) != "lock":
            raise Invalid(f"{peer.node_id} is no lock node")
        task = asyncio.get_running_loop().create_task(self._reply(step, reply))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _reply(self, step: _Step, reply: Callable[[int, bytes], None]) -> None:
        try:
            reply(200, _encode(await self._carry_out(step)))
        except DssError as error:
            reply(error.status, _encode(error.body()))

    # --- at the leader ------------------------------------------------------------------

    async def _carry_out(self, step: _Step) -> dict[str, Any]:
        host, group = self._host, step.group
        if group not in GROUPS or not host.is_leader(group):
            leader = host.leader_of(group)
            raise Conflict("not_leader", f"{host.node_id} does not lead group {group}",
                           leader=leader)  # fmt: skip
        if step.op == ADD:
            await self._add(group, step.node_id)
        elif step.op == REMOVE:
            await self._remove(group, step.node_id)
        return self._describe(group)

    def _describe(self, group: int) -> dict[str, Any]:
        raft = self._host.engine.groups[group].raft
        status, membership = raft.status(), raft.membership
        peers = status["peers"]
        rows = []
        for node_id, member in sorted(membership.members.items()):
            me = node_id == self._host.node_id
            peer = self._links.peer(node_id)
            match = raft.last_index if me else peers[node_id]["match"]
            rows.append(
                {
                    "node_id": node_id,
                    "incarnation": member.incarnation,
                    "role": "voter" if node_id in membership.voters else "learner",
                    "leader": me,
                    "up": me or (peer is not None and peer.incarnation == member.incarnation),
                    "lost_disk": peer is not None and peer.incarnation != member.incarnation,
                    "lag": raft.last_index - match,
                    "last_contact_ms": 0 if me else peers[node_id]["last_contact_ms"],
                    "supports_level": self._supports(node_id),
                }
            )
        return {
            "group_id": group,
            "leader": self._host.node_id,
            "term": raft.term,
            "change_under_way": raft.commit_index < membership.index,
            "feature_level": self._host.machine(group).level,
            "members": rows,
        }

    def _supports(self, node_id: str) -> int | None:
        if node_id == self._host.node_id:
            return self._host.engine.feature_level
        peer = self._links.peer(node_id)
        return peer.feature_level if peer is not None else None

    async def _add(self, group: int, node_id: str) -> None:
        if node_id == self._host.node_id:
            return  # who leads is a member
        peer = self._links.peer(node_id)
        if peer is None:
            reason = self._links.links().get(node_id, {}).get("reason", "")
            raise Unavailable(
                f"{node_id} cannot be reached by {self._host.node_id}: {reason or 'no link'}",
                retry_after_ms=1_000,
            )
        member = Member(node_id, peer.incarnation)
        known = self._host.engine.groups[group].raft.membership.members.get(node_id)
        if known == member:
            return
        if peer.feature_level < self._host.engine.groups[group].level:
            raise self._refusal("feature_level", group, member)
        if known is None:
            # Its groups must be there, durably, before anybody sends it a log.
            body = _encode(peer.incarnation)
            joined = await self._links.call(node_id, JOIN, body, CALL_TIMEOUT_MS)
            if _status.decode(joined).empty:
                raise Conflict(
                    "not_empty", f"{node_id} did not join: it is being founded, or has a new disk"
                )
        await self._change(group, member, remove=False, feature_level=peer.feature_level)

    async def _remove(self, group: int, node_id: str) -> None:
        raft = self._host.engine.groups[group].raft
        member = raft.membership.members.get(node_id)
        if member is None:
            return
        if node_id == self._host.node_id:
            await self._hand_over(group)
        await self._change(group, member, remove=True)

    async def _hand_over(self, group: int) -> None:
        """This leader is to go: another one must carry its removal out."""
        raft = self._host.engine.groups[group].raft
        if len(raft.membership.voters) == 1:
            raise Conflict(
                "last_voter",
                f"{self._host.node_id} is the only voter of group {group}: without it the group's "
                "data has nobody; add another member first",
            )
        self._host.transfer(group, None)
        loop = asyncio.get_running_loop()
        until = loop.time() + 2 * self._host.settings.election_max_ms / 1_000
        # Bounded, and rare: a hand-over takes a few round trips.
        while self._host.is_leader(group) and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(RETRY_S / 10)

    async def _change(
        self, group: int, member: Member, *, remove: bool, feature_level: int = BASE_LEVEL
    ) -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def done(code: str) -> None:
            if not future.done():
                future.set_result(code)

        self._host.engine.change_members(
            group, member, remove=remove, done=done, feature_level=feature_level
        )
        try:
            async with asyncio.timeout(STEP_TIMEOUT_MS / 1_000):
                code = await future
        except TimeoutError:
            code = "indeterminate"
        if code in ("", "already_member", "not_member"):
            return
        raise self._refusal(code, group, member)

    def _refusal(self, code: str, group: int, member: Member) -> DssError:
        node_id = member.node_id
        if code == "indeterminate":
            return Indeterminate(
                f"the change of {node_id} in group {group} is not committed (yet): look at "
                "GET /v1/raft/members, and repeat it"
            )
        text = {
            "breaks_quorum": f"without {node_id} group {group} would have no quorum: too many of "
            "the other voters do not answer; bring them back first",
            "other_incarnation": f"group {group} lists {node_id} with another disk: it was lost or "
            f"replaced; remove {node_id} first, then add it (dss members replace {node_id})",
            "change_under_way": f"group {group} is just changing its members: repeat it when that "
            "is committed",
            "feature_level": f"group {group} is at feature level "
            f"{self._host.engine.groups[group].level}, {node_id} supports up to "
            f"{self._supports(node_id)}: start it with the release that the other nodes run (and "
            "without FEATURE_LEVEL_MAX), then add it",
        }.get(code, f"group {group} cannot change its members now ({code}): repeat it")
        return Conflict(code, text, leader=self._host.leader_of(group))
