"""Which node to ask: the given endpoints, the cluster's own list, and who leads the locks.

Addresses given by the user come before advertised ones: inside Compose or Kubernetes nodes
advertise names that mean nothing outside. An endpoint may also be an ingress that serves all
roles. What must not live here: requests of any service.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import msgspec

from dss.base.errors import Invalid
from dss.base.ids import LOCK_GROUP

DEFAULT_ENDPOINTS: Final = tuple(
    f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003, 8011, 8012, 8013, 8021, 8022)
)
"""Where `dss up` and Compose publish the nodes."""
ASK_S: Final = aiohttp.ClientTimeout(total=2.0)
"""For one look at one node: discovery asks all of them at once."""


def endpoints_of(given: str | Sequence[str] | None) -> list[str]:
    """Base URLs from an argument, else DSS_ENDPOINTS (comma-separated), else the local ports."""
    if given is None:
        given = os.environ.get("DSS_ENDPOINTS", "")
    parts = given.split(",") if isinstance(given, str) else given
    urls = [part.strip().rstrip("/") for part in parts if part.strip()]
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise Invalid(f"endpoint {url!r}: expected a URL such as http://127.0.0.1:8001")
    return urls or list(DEFAULT_ENDPOINTS)


GRACE_S: Final = 0.25
"""For the other nodes' answers once one has come: a stopped node must not hold a client up."""


class Nodes:
    """The nodes of one cluster, best first per role.

    Args:
        http: for discovery; its headers carry the token.
    """

    def __init__(self, http: aiohttp.ClientSession, endpoints: Sequence[str]) -> None:
        self._http = http
        self._given = list(endpoints)
        self._by_role: dict[str, list[str]] = {}
        self._url_of: dict[str, str] = {}
        self._given_as: dict[str, str] = {}
        """Node id -> the URL at which it was asked, which comes before what it advertises."""
        self._refreshing: asyncio.Task[None] | None = None

    async def of_role(self, role: str) -> list[str]:
        """URLs to try, in order; never empty."""
        if not self._by_role:
            await self.refresh()
        return self._by_role.get(role) or list(self._given)

    def worked(self, role: str, url: str) -> None:
        """Ask `url` first from now on."""
        urls = self._by_role.get(role)
        if urls and urls[0] != url and url in urls:
            urls.remove(url)
            urls.insert(0, url)

    async def locks(self) -> list[str]:
        """Lock nodes, the leader first: the stream asks before each connection."""
        await self.refresh()
        urls = await self.of_role("lock")
        statuses = await self._ask_all(urls, "/v1/raft/status")
        groups = [group for status in statuses.values() if (group := _lock_group(status))]
        newest = max(groups, key=lambda group: int(group.get("term") or 0), default={})
        leader = self._url_of.get(str(newest.get("leader") or ""))
        return sorted(urls, key=lambda url: (url not in statuses, url != leader))

    async def refresh(self) -> None:
        """Ask all given endpoints for the cluster list; concurrent callers share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="dss-nodes")
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        # The given ones may be gone: the lock nodes found before know as well.
        known = dict.fromkeys([*self._given, *self._by_role.get("lock", ())])
        views = await self._ask_all(list(known), "/v1/cluster")
        for url, view in views.items():
            self._given_as[str(view.get("node_id"))] = url
        listed: dict[str, tuple[str, str]] = {}  # node id -> (role, URL to use)
        for view in views.values():
            for node in view.get("nodes", ()):
                node_id = str(node["id"])
                url = self._given_as.get(node_id, str(node["url"]).rstrip("/"))
                listed.setdefault(node_id, (str(node["role"]), url))
        if not listed:
            return
        self._url_of = {node_id: url for node_id, (_, url) in listed.items()}
        for role in ("lock", "queue", "cache"):
            own = [url for node_role, url in listed.values() if node_role == role]
            own.sort(key=lambda url: url not in self._given)
            before = self._by_role.get(role, [])
            urls = list(dict.fromkeys([*own, *self._given]))
            if before and before[0] in urls:  # keep what worked last
                urls.remove(before[0])
                urls.insert(0, before[0])
            self._by_role[role] = urls

    async def _ask_all(self, urls: Sequence[str], path: str) -> dict[str, dict[str, Any]]:
        """The answers that have come by GRACE_S after the first one: none waits for the silent."""
        asked = {asyncio.create_task(self._get(url + path)): url for url in urls}
        waiting = set(asked)
        found: dict[str, dict[str, Any]] = {}
        try:
            while waiting:
                pause_s = GRACE_S if found else None
                done, waiting = await asyncio.wait(
                    waiting, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                found |= {asked[task]: view for task in done if (view := task.result())}
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return found

    async def _get(self, url: str) -> dict[str, Any] | None:
        try:
            async with self._http.get(url, timeout=ASK_S) as response:
                if response.status != 200:
                    return None
                body = msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
            return None
        return body if isinstance(body, dict) else None


def _lock_group(status: dict[str, Any]) -> dict[str, Any]:
    """Of a node's `/v1/raft/status`."""
    for group in status.get("groups", ()):
        if group.get("group_id") == LOCK_GROUP and group.get("leader"):
            return dict(group)
    return {}
