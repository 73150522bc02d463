"""The operator's own metrics, served on /metrics.

What must not live here: the nodes' metrics (dss.observe), any decision.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

TICK_BUCKETS_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """One set per process; tests make their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.clusters = Gauge(
            "dss_operator_clusters", "DSSClusters with a running task.", registry=self.registry
        )
        self.holder = Gauge(
            "dss_operator_lease_held", "1 while this process may write.", registry=self.registry
        )
        self.ticks = Counter(
            "dss_operator_reconciles", "Looks at a cluster, by how they ended.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.tick_seconds = Histogram(
            "dss_operator_reconcile_seconds", "Duration of one look at a cluster.",
            buckets=TICK_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.calls = Counter(
            "dss_operator_api_calls", "Calls to the API server, by verb, resource and status.",
            ["verb", "resource", "code"], registry=self.registry,
        )  # fmt: skip
        self.actions = Counter(
            "dss_operator_actions", "Writes to owned objects, by verb and kind.",
            ["action", "kind"], registry=self.registry,
        )  # fmt: skip
        self.decisions = Counter(
            "dss_operator_remediation_decisions", "Decisions about elections: what and why.",
            ["namespace", "cluster", "action", "reason"], registry=self.registry,
        )  # fmt: skip
        self.stuck = Gauge(
            "dss_operator_election_stuck", "1 while an election of the cluster is stuck.",
            ["namespace", "cluster"], registry=self.registry,
        )  # fmt: skip
        self.ready = Gauge(
            "dss_operator_cluster_ready", "1 while the cluster serves.",
            ["namespace", "cluster"], registry=self.registry,
        )  # fmt: skip

    def on_call(self, verb: str, plural: str, status: int) -> None:
        self.calls.labels(verb, plural, str(status)).inc()

    def forget(self, namespace: str, cluster: str) -> None:
        """A cluster is gone: its series end."""
        for gauge in (self.stuck, self.ready):
            gauge.remove_by_labels({"namespace": namespace, "cluster": cluster})
        self.decisions.remove_by_labels({"namespace": namespace, "cluster": cluster})
