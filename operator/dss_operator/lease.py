"""One operator at work per scope: a Lease, taken, renewed and given back.

Whoever does not hold it waits; whoever could not renew it in time stops writing before another may
begin (`Kube` asks `held` before every write). A foreign renewal is dated by this process's own
clock, never by the holder's. What must not live here: what the holder does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from dss_operator.kube import LEASES, ApiError, Kube
from dss_operator.state import Object

log = logging.getLogger(__name__)

RENEWALS: Final = 3
"""Renewals in one Lease time."""
SAFETY: Final = 0.8
"""The part of the Lease time after which an unrenewed holder stops and has given up every write;
the rest covers one that left just before and that the API server has not carried out yet."""


class Leadership:
    """The Lease of one scope, as one process sees it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_s = lease_s
        self._clock = clock
        self._held_until = float("-inf")
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = clock()
        self._changed = asyncio.Event()
        self._waiting = False

    @property
    def held(self) -> bool:
        return self.left_s > 0

    @property
    def left_s(self) -> float:
        """For how long writes may be under way still; at most 0: it is not held."""
        return self._held_until - self._clock()

    async def wait(self) -> None:
        """Until it is held."""
        while not self.held:
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Takes and renews for ever; gives back when cancelled."""
        try:
            while True:
                await self._round()
                await asyncio.sleep(self._lease_s / RENEWALS)
        finally:
            if self.held:
                self._held_until = float("-inf")
                await asyncio.shield(self._give_back())

    async def _round(self) -> None:
        try:
            await self.try_once()
        except ApiError as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error)
        except Exception:  # a token that cannot be read, an answer that is no Lease: tried again
            log.exception("lease %s/%s", self._namespace, self._name)

    async def try_once(self) -> bool:
        """One attempt to take or renew it; whether it is held now."""
        began = self._clock()
        lease = await self._kube.get(LEASES, self._namespace, self._name)
        try:
            if lease is None:
                await self._kube.create(LEASES, self._namespace, self._body({}, self._identity))
            elif self._may_take(lease):
                body = self._body(lease, self._identity)
                await self._kube.replace(LEASES, self._namespace, self._name, body)
            else:
                self._note_waiting(lease)
                return False
        except ApiError as error:
            if error.status == HTTPStatus.CONFLICT:  # another one was faster
                return self.held
            raise
        if not self.held:
            log.info("lease %s/%s is held by %s", self._namespace, self._name, self._identity)
        self._held_until = began + self._lease_s * SAFETY
        self._waiting = False
        self._changed.set()
        return True

    def _may_take(self, lease: Object) -> bool:
        spec: dict[str, Any] = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        return self._clock() - self._seen_at > float(spec.get("leaseDurationSeconds") or 0)

    def _note_waiting(self, lease: Object) -> None:
        if not self._waiting:
            self._waiting = True
            holder = (lease.get("spec") or {}).get("holderIdentity")
            log.info("lease %s/%s is held by %s: waiting", self._namespace, self._name, holder)

    def _body(self, lease: Object, holder: str) -> Object:
        """`lease` renewed for `holder`; its resourceVersion makes the write a compare-and-set."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec |= {"holderIdentity": holder, "renewTime": now}
        spec["leaseDurationSeconds"] = max(1, round(self._lease_s))
        meta = {"name": self._name, "namespace": self._namespace}
        if lease:
            meta["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec,
        }  # fmt: skip

    async def _give_back(self) -> None:
        """So that a successor need not wait. Not vital: the Lease runs out by itself."""
        try:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
            if lease and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                body = self._body(lease, "")
                await self._kube.replace(LEASES, self._namespace, self._name, body)
        except ApiError as error:
            log.info("lease %s/%s not given back: %s", self._namespace, self._name, error)
