"""What the Raft groups of one process are like now, and what they can be asked for.

`Host` adds what makes them move. What must not live here: the loop, time, the disk.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dss.base.errors import NoQuorum, Unavailable
from dss.core.raft import effects as fx
from dss.core.raft.settings import RaftSettings
from dss.drivers.engine import Engine
from dss.drivers.forwarding import Forwarder
from dss.drivers.ports import Sink
from dss.drivers.waits import Place
from dss.storage.wal import GroupState
from dss.transport.links import Links


class GroupViews:
    """The half of ports.Consensus that only looks, or leaves an event for the next cycle."""

    engine: Engine
    forwarder: Forwarder
    links: Links
    loop: asyncio.AbstractEventLoop
    node_id: str
    settings: RaftSettings

    def now_ms(self) -> int:
        """Monotonic ms."""
        raise NotImplementedError

    @property
    def stopped(self) -> bool:
        """Nothing is written, sent or answered any more."""
        raise NotImplementedError

    async def read(self, group: int) -> None:
        if self.stopped:
            raise Unavailable(f"{self.node_id} stops", retry_after_ms=self.settings.election_max_ms)
        if not self.is_leader(group):
            raise self.no_quorum(group)
        future: asyncio.Future[bool] = self.loop.create_future()

        def done(leader: str | None, ok: bool) -> None:
            if not future.done():
                future.set_result(ok)

        self.engine.read(group, done)
        try:
            async with asyncio.timeout(2 * self.settings.election_max_ms / 1000):
                ok = await future
        except TimeoutError:
            ok = False
        if not ok:
            raise self.no_quorum(group)

    def no_quorum(self, group: int) -> NoQuorum:
        """The error for a request that needs a leader which is not here or not known."""
        leader = self.leader_of(group)
        if leader is None or leader == self.node_id:
            reason = f"no leader with a quorum is known for group {group}"
        elif self.links.peer(leader) is None:
            reason = f"{leader} led group {group} when last heard, and cannot be reached"
        elif not self.forwarder.hears(leader):
            reason = f"{leader} leads group {group}, and does not hear this node"
        else:
            reason = f"{leader} is said to lead group {group}, and does not take requests yet"
        return NoQuorum(
            f"{reason}; nothing was done",
            retry_after_ms=self.settings.election_max_ms,
            leader=leader,
        )

    def leader_of(self, group: int) -> str | None:
        found = self.engine.groups.get(group)
        return found.raft.leader if found is not None else None

    def is_leader(self, group: int) -> bool:
        found = self.engine.groups.get(group)
        return found is not None and found.raft.role == "leader"

    def machine(self, group: int) -> Any:
        return self.engine.groups[group].machine

    def log_ms(self, group: int) -> int:
        found = self.engine.groups[group]
        if found.raft.role == "leader":
            return found.raft.log_ms(self.now_ms())
        return found.applied_log_ms

    def has_recovered(self) -> dict[int, GroupState]:
        return self.engine.recovered

    def transfer(self, group: int, target: str | None) -> None:
        """Hand the leadership of `group` to `target` (None: the most caught-up voter)."""
        if not self.is_leader(group):
            raise self.no_quorum(group)
        self.engine.event(group, fx.Transfer(target))

    def backoff(self, group: int, wait_ms: int) -> bool:
        """Ask this node's member of `group` not to campaign for `wait_ms`; False: it would not
        anyway, since it follows a live leader, leads, or has no vote."""
        if not self.engine.groups[group].raft.stands_for_election:
            return False
        self.engine.event(group, fx.Backoff(wait_ms))
        return True

    def adopt_wait(self, group: int, place: Place, sink: Sink, request_id: int) -> None:
        """A request that this node forwarded waits at `place`: answer it when that wait ends."""
        self.engine.groups[group].waits.adopt(place, sink, request_id)

    def claim_wait(self, group: int, place: Place) -> bool:
        """The leader answers an adopted wait. False: it was answered here already."""
        return self.engine.groups[group].waits.claim(place)

    def waits_here(self, group: int) -> list[Place]:
        found = self.engine.groups.get(group)
        return found.waits.here() if found is not None else []

    def group_status(self) -> list[dict[str, Any]]:
        return [
            group.raft.status()
            | {"applied_log_ms": group.applied_log_ms, "feature_level": group.machine.level}
            for _, group in sorted(self.engine.groups.items())
        ]

    def caught_up(self, group: int) -> bool:
        """Has this node applied what a leader had committed when it was first heard?"""
        found = self.engine.groups[group]
        return found.applied_index >= (found.commit_heard or 0)
