"""The planned stop of a node's Raft groups: somebody else leads, and what is owed is answered.

Nodes tell each other that they go, so that none hands over to another that goes as well: when all
stop at once nobody is left to wait for. What must not live here: HTTP (api/app.py), waits in the
lock machine (locks.py), stopping itself (host.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dss.core.raft import effects as fx
from dss.transport.links import Links
from dss.transport.ports import Peer

if TYPE_CHECKING:
    from dss.drivers.host import Host

LEAVING: Final = "node.leaving"
LOOK_S: Final = 0.01
"""Polling is fine here: at the end of a life, and bounded."""
DRAIN_MS: Final = 1_500
"""After the hand-over: time for the next leader to commit what is in our log, and to answer what
was sent to it. A busy machine may need all of it."""
DRAIN_QUIET_MS: Final = 150
"""The drain is over when nothing has waited for so long: peers that have not heard of the next
leader yet still forward to this node."""


class HandOver:
    """See the module."""

    def __init__(self, host: Host, links: Links) -> None:
        self._host = host
        self._links = links
        self._leaving: dict[str, None] = {}
        links.on_cast(LEAVING, self._on_leaving)
        links.on_link(self._on_link)

    async def run(self) -> None:
        """Let others lead, then wait until what we took is answered, or cannot be any more."""
        host = self._host
        for node_id in self._links.known:
            self._links.cast(node_id, LEAVING, b"")
        led = await self._pass_on()
        busy_ms = host.now_ms()
        until_ms = busy_ms + DRAIN_MS
        while host.now_ms() < until_ms and not host.stopped:
            if self._owes():
                busy_ms = host.now_ms()
            elif not any(map(self._heirs, led)) or host.now_ms() - busy_ms >= DRAIN_QUIET_MS:
                break
            await asyncio.sleep(LOOK_S)

    async def _pass_on(self) -> list[int]:
        """Hand over what this node leads, or comes to lead meanwhile; the groups."""
        host = self._host
        asked: dict[int, None] = {}
        deadline_ms = host.now_ms() + host.settings.election_max_ms
        while host.now_ms() < deadline_ms and not host.stopped:
            leading = [gid for gid in host.engine.groups if host.is_leader(gid)]
            leading = [gid for gid in leading if self._heirs(gid)]
            if not leading:
                break
            for gid in leading:
                if gid not in asked:
                    asked[gid] = None
                    self._host.engine.event(gid, fx.Transfer(self._target(gid)))
            await asyncio.sleep(LOOK_S)
        return list(asked)

    def _voters(self, gid: int) -> list[str]:
        return list(self._host.engine.groups[gid].raft.membership.voters)

    def _heirs(self, gid: int) -> list[str]:
        """Who may lead the group after this node."""
        return [
            voter
            for voter in self._voters(gid)
            if voter != self._host.node_id
            and voter not in self._leaving
            and self._links.peer(voter) is not None
        ]

    def _target(self, gid: int) -> str | None:
        """None: the most caught-up voter, when all of them stay."""
        heirs = self._heirs(gid)
        return None if len(heirs) == len(self._voters(gid)) - 1 else heirs[0]

    def _owes(self) -> bool:
        """Whether this node owes answers that may still come."""
        host = self._host
        return any(map(self._may_commit, host.forwarder.owed_groups() + host.engine.owed_groups()))

    def _may_commit(self, gid: int) -> bool:
        """Whether a quorum is there, those who are about to go included."""
        if gid not in self._host.engine.groups:
            return False
        membership = self._host.engine.groups[gid].raft.membership
        here = [
            voter
            for voter in membership.voters
            if voter == self._host.node_id or self._links.peer(voter) is not None
        ]
        return len(here) >= membership.quorum

    def _on_leaving(self, peer: Peer, body: bytes) -> None:
        self._leaving[peer.node_id] = None

    def _on_link(self, node_id: str, up: bool, reason: str) -> None:
        self._leaving.pop(node_id, None)  # up: another process by that name
