"""One process's operator: the client, the Lease, the metrics and one task per cluster.

What must not live here: kopf (handlers.py), what a cluster's task does (cluster.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Final

from prometheus_client import start_http_server

from dss_operator.cluster import Cluster, Deps
from dss_operator.kube import ApiError, Kube, Transport
from dss_operator.lease import Leadership
from dss_operator.metrics import Metrics
from dss_operator.observe import Observer
from dss_operator.sampling import HttpNodes, Nodes
from dss_operator.settings import Settings
from dss_operator.state import FIELD_MANAGER

log = logging.getLogger(__name__)

SERVED_S: Final = 2.0
"""Between two questions whether the CRD is there."""
SECRET_BYTES: Final = 32
"""Random bytes in each generated secret; 43 characters of base64url."""


class Runtime:
    """Started once, closed once."""

    def __init__(
        self, settings: Settings, transport: Transport, nodes: Nodes | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.kube = Kube(
            transport,
            write_s=lambda: self.leadership.left_s,
            on_call=self.metrics.on_call,
            exit_at_call=settings.exit_at_call,
        )
        scope = f".{settings.watch_namespace}" if settings.watch_namespace else ""
        self.leadership = Leadership(
            self.kube,
            namespace=settings.pod_namespace,
            name=f"{FIELD_MANAGER}{scope}",
            identity=settings.pod_id,
            lease_s=settings.lease_s,
            clock=time.monotonic,
        )
        self._own_nodes = HttpNodes() if nodes is None else None
        self._deps = Deps(
            kube=self.kube,
            observer=Observer(self.kube, time.monotonic),
            nodes=nodes or self._own_nodes or HttpNodes(),
            leadership=self.leadership,
            metrics=self.metrics,
            settings=settings,
            gate=asyncio.Semaphore(settings.parallel),
            clock=time.monotonic,
            wall=time.time,
            new_secret=lambda: secrets.token_urlsafe(SECRET_BYTES),
        )
        self._clusters: dict[tuple[str, str], Cluster] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease_task: asyncio.Task[None] | None = None

    async def served(self) -> None:
        """Until the API server knows DSSClusters: kopf looks for them only once, and the CRD may
        be installed after the operator."""
        told = False
        while True:
            try:
                if await self.kube.served():
                    return
                problem = "the CRD dssclusters.dss.io is not installed"
            except ApiError as error:
                problem = str(error)
            if not told:
                log.warning("waiting: %s", problem)
            told = True
            await asyncio.sleep(SERVED_S)

    def start(self) -> None:
        if self.settings.metrics_port:
            start_http_server(self.settings.metrics_port, registry=self.metrics.registry)
        self.metrics.holder.set_function(lambda: float(self.leadership.held))
        self._lease_task = asyncio.create_task(self.leadership.run(), name="lease")

    def changed(self, namespace: str, name: str, meaning: object) -> None:
        """A DSSCluster's event. One whose `meaning` its task has seen (a change of the status
        alone) wakes nothing."""
        cluster = self._clusters.get((namespace, name))
        if cluster is not None and cluster.meaning == meaning:
            return
        self.wake(namespace, name)
        self._clusters[namespace, name].meaning = meaning

    def wake(self, namespace: str, name: str, *, known_only: bool = False) -> None:
        """Something about a cluster changed; its task looks.

        Args:
            known_only: the event is an owned object's: no task is begun for it.
        """
        key = (namespace, name)
        cluster = self._clusters.get(key)
        if cluster is None:
            if known_only:
                return
            cluster = self._clusters[key] = Cluster(self._deps, namespace, name)
            task = asyncio.create_task(self._run(key, cluster), name=f"{namespace}/{name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        cluster.wake()

    async def _run(self, key: tuple[str, str], cluster: Cluster) -> None:
        self.metrics.clusters.inc()
        try:
            await cluster.run()
        finally:
            self.metrics.clusters.dec()
            if self._clusters.get(key) is cluster:
                del self._clusters[key]

    async def close(self) -> None:
        """Ends all tasks, gives the Lease back."""
        tasks = [*self._tasks] + ([self._lease_task] if self._lease_task else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._own_nodes is not None:
            await self._own_nodes.close()
        await self.kube.close()
