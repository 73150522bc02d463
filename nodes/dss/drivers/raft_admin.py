"""What an administrator sees of this node's Raft groups, and may ask of them.

Always of this node's own members: nothing is forwarded, because who asks means this process (the
operator acts on one member of a stuck election). What must not live here: deciding whom to ask
(dss.remediation), HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from dss.base.errors import Conflict, Invalid, NotFound, Unavailable
from dss.base.levels import FEATURE_LEVEL
from dss.base.limits import BACKOFF_MS_MAX
from dss.drivers.host import Host
from dss.transport.ports import Transport

BACKOFF_ELECTIONS: Final = 2
"""Longest election timeouts that a backoff lasts by default: whoever else campaigns does so
within one of them, so this member sits out at least one round."""
TRANSFER_POLL_S: Final = 0.01


class RaftAdmin:
    """This node's part in its Raft groups.

    Args:
        host: None on a node without groups (cache).
        ignores_backoff: TEST_MODE only: a backoff is answered as if it were obeyed.
    """

    def __init__(
        self,
        *,
        node_id: str,
        role: str,
        boot_id: str,
        links: Transport,
        host: Host | None,
        ignores_backoff: bool = False,
        feature_level: int = FEATURE_LEVEL,
    ) -> None:
        self._node_id = node_id
        self._role = role
        self._boot_id = boot_id
        self._links = links
        self._host = host
        self._ignores_backoff = ignores_backoff
        self._feature_level = feature_level

    def status(self) -> dict[str, Any]:
        """The body of `GET /v1/raft/status`."""
        links = {
            peer: {"up": bool(link["up"]), "since_ms": int(link["since_ms"])}
            for peer, link in self._links.links().items()
        }
        return {
            "node_id": self._node_id,
            "boot_id": self._boot_id,
            "role": self._role,
            "feature_level": self._feature_level,
            "links": links,
            "groups": self._host.group_status() if self._host is not None else [],
        }

    def backoff(self, group: int, wait_ms: int | None, boot_id: str | None) -> dict[str, Any]:
        """Give up this member's candidacy in `group`, and do not campaign for `wait_ms`.

        Args:
            wait_ms: default BACKOFF_ELECTIONS longest election timeouts.
            boot_id: when given, of the process that is meant.

        Raises:
            NotFound: this node has no such group.
            Conflict: `boot_mismatch`, another process answers; `not_candidate`, it follows a live
                leader, leads, or has no vote.
        """
        host = self._member_of(group)
        if boot_id is not None and boot_id != self._boot_id:
            raise Conflict(
                "boot_mismatch",
                f"{self._node_id} has been restarted since: it is {self._boot_id}, not {boot_id}",
                boot_id=self._boot_id,
            )
        if wait_ms is None:
            wait_ms = min(BACKOFF_ELECTIONS * host.settings.election_max_ms, BACKOFF_MS_MAX)
        raft = host.engine.groups[group].raft
        before = {"group_id": group, "role": raft.role, "term": raft.term, "wait_ms": wait_ms}
        if self._ignores_backoff:
            return before
        if not host.backoff(group, wait_ms):
            raise Conflict(
                "not_candidate",
                f"{self._node_id} does not stand for election in group {group}: it is "
                f"{raft.role}, the leader is {raft.leader}",
                leader=raft.leader,
            )
        return before

    async def transfer(self, group: int, to: str | None) -> dict[str, Any]:
        """Hand the leadership of `group` to `to` (None: the most caught-up voter), and wait.

        Raises:
            NotFound: this node has no such group.
            NoQuorum: this node does not lead it (`leader` says who does, if it is known).
            Invalid: `to` is no other voter of the group.
            Unavailable: the target has not taken over within one election timeout.
        """
        host = self._member_of(group)
        raft = host.engine.groups[group].raft
        if not host.is_leader(group):
            raise Conflict(
                "not_leader",
                f"{self._node_id} does not lead group {group}; the leader is {raft.leader}",
                leader=raft.leader,
            )
        others = [voter for voter in raft.membership.voters if voter != self._node_id]
        if not others if to is None else to not in others:
            raise Invalid(
                f"field 'to': expected another voter of group {group}: {', '.join(others)}"
            )
        term = raft.term
        host.transfer(group, to)
        loop = asyncio.get_running_loop()
        until = loop.time() + 2 * host.settings.election_max_ms / 1000
        while raft.leader in (None, self._node_id):
            if loop.time() > until:
                raise Unavailable(
                    f"{to or 'no other voter'} has not taken over group {group} in time",
                    retry_after_ms=host.settings.election_max_ms,
                )
            await asyncio.sleep(TRANSFER_POLL_S)
        return {"group_id": group, "leader": raft.leader, "term": max(raft.term, term)}

    def _member_of(self, group: int) -> Host:
        if self._host is None or group not in self._host.engine.groups:
            raise NotFound(f"{self._node_id} has no member of group {group}")
        return self._host
