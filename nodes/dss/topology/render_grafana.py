"""The Grafana dashboard: is it good, who leads, how much, how fast.

What must not live here: provisioning (render_prometheus.py), which metrics exist (the services).
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

DATASOURCE: Final = {"type": "prometheus", "uid": "dss-prometheus"}
_WIDTH: Final = 24


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel; `queries` are (PromQL, legend)."""

    title: str
    description: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    options: dict[str, Any] = {}


def _quantile(quantile: str, metric: str, by: str = "node", where: str = "") -> str:
    rate = f"rate({metric}_bucket{where}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by ({by}, le) ({rate}))"


_HTTP: Final = "dss_http_request_duration_seconds"
_COMMITS: Final = '{route=~".*/(release|ack)"}'
_UP_MAP: Final = {
    "mappings": [
        {
            "type": "value",
            "options": {
                "0": {"text": "down", "color": "red", "index": 0},
                "1": {"text": "up", "color": "green", "index": 1},
            },
        }
    ]
}

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Cluster",
        (
            Panel(
                title="Nodes", kind="stat", width=12, height=5, options=_UP_MAP,
                description="Up means that Prometheus could scrape the node.",
                queries=(('up{job=~"dss-.*"}', "{{node}}"),),
            ),
            Panel(
                title="Leader of locks and metadata", kind="table", width=6, height=5,
                description="The node that leads each group now.",
                queries=(('dss_raft_is_leader{group=~"0|1"} == 1', "{{node}}"),),
            ),
            Panel(
                title="Groups without a leader", kind="stat", width=6, height=5,
                description="0 is good. Queue partitions are groups too.",
                queries=(
                    ("count(sum by (job, group) (dss_raft_is_leader) == 0) or vector(0)", ""),
                ),
            ),
        ),
    ),
    (
        "Raft",
        (
            Panel(
                title="Term changes", description="Elections, per group, in 5 minutes.",
                queries=(
                    ("max by (group) (changes(dss_raft_term[5m])) > 0", "group {{group}}"),
                ),
            ),
            Panel(
                title="Groups led, by node", description="Even lines are good.",
                queries=(("sum by (node) (dss_raft_is_leader)", "{{node}}"),),
            ),
            Panel(
                title="Elections by outcome", unit="ops",
                description="Splits mean that the election timeout's span is too small.",
                queries=(
                    (
                        "sum by (outcome) (rate(dss_raft_elections_total[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
            ),
            Panel(
                title="Fsync time", unit="s", description="Each acknowledged write waits for one.",
                queries=(
                    (_quantile("0.5", "dss_raft_fsync_seconds"), "{{node}} p50"),
                    (_quantile("0.99", "dss_raft_fsync_seconds"), "{{node}} p99"),
                ),
            ),
            Panel(
                title="Commands applied", unit="ops",
                description="Replicated commands; far more than fsyncs: batching works.",
                queries=(
                    (
                        "sum by (node) (rate(dss_raft_commands_applied_total[$__rate_interval]))",
                        "{{node}} commands",
                    ),
                    (
                        "sum by (node) (rate(dss_raft_wal_syncs_total[$__rate_interval]))",
                        "{{node}} fsyncs",
                    ),
                ),
            ),
            Panel(
                title="Behind the leader",
                description="Log entries committed but not applied here.",
                queries=(
                    (
                        "max by (group, node) (dss_raft_commit_index - dss_raft_applied_index) > 0",
                        "{{node}} group {{group}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Locks",
        (
            Panel(
                title="Locks granted", unit="ops",
                description="Grants and releases a second, as any one replica applies them.",
                queries=(
                    ("max(rate(dss_lock_grants_total[$__rate_interval]))", "granted"),
                    ("max(rate(dss_lock_releases_total[$__rate_interval]))", "released"),
                    ("max(rate(dss_lock_timeouts_total[$__rate_interval]))", "timed out"),
                    (
                        "max(rate(dss_lock_session_expirations_total[$__rate_interval]))",
                        "sessions expired",
                    ),
                ),
            ),
            Panel(
                title="Held and waiting", description="Many waiters on few locks: contention.",
                queries=(
                    ("max(dss_lock_held)", "held"),
                    ("max(dss_lock_waiting)", "waiting"),
                    ("max(dss_lock_sessions)", "sessions"),
                ),
            ),
            Panel(
                title="Commit latency", unit="s",
                description="Writes over HTTP that wait for nothing but the quorum: lock release, "
                "queue ack.",
                queries=(
                    (_quantile("0.5", _HTTP, "route", _COMMITS), "{{route}} p50"),
                    (_quantile("0.99", _HTTP, "route", _COMMITS), "{{route}} p99"),
                ),
            ),
        ),
    ),
    (
        "Queues",
        (
            Panel(
                title="Queue depth",
                description="Messages by queue and state; leased ones are with a consumer.",
                queries=(
                    ("sum by (queue, state) (dss_queue_messages) > 0", "{{queue}} {{state}}"),
                ),
            ),
            Panel(
                title="Messages", unit="ops",
                description="Redelivered ones were neither acknowledged nor extended in time.",
                queries=tuple(
                    (f"sum(rate(dss_queue_{what}_total[$__rate_interval]))", what)
                    for what in ("sent", "received", "acked", "redelivered", "nacked")
                ),
            ),
            Panel(
                title="Partitions led, receives waiting",
                description="Leaders spread evenly over the nodes are good.",
                queries=(
                    ("dss_queue_partitions_led", "{{node}} leads"),
                    ("dss_queue_waiting_receives", "{{node}} long polls"),
                ),
            ),
        ),
    ),
    (
        "Cache",
        (
            Panel(
                title="Hit ratio", unit="percentunit",
                description="Reads answered by a local copy.",
                queries=(
                    (
                        "sum by (node) (rate(dss_cache_hits_total[$__rate_interval])) / "
                        "(sum by (node) (rate(dss_cache_hits_total[$__rate_interval])) + "
                        "sum by (node) (rate(dss_cache_misses_total[$__rate_interval])))",
                        "{{node}}",
                    ),
                ),
            ),
            Panel(
                title="Reads, writes, invalidations", unit="ops",
                description="Many invalidations: keys that several nodes write.",
                queries=tuple(
                    (f"sum(rate(dss_cache_{what}_total[$__rate_interval]))", what)
                    for what in ("hits", "misses", "writes", "invalidations", "evictions")
                ),
            ),
            Panel(
                title="Memory of copies", unit="percentunit",
                description="Of CACHE_CAPACITY_MIB.",
                queries=(("dss_cache_bytes / dss_cache_capacity_bytes", "{{node}}"),),
            ),
        ),
    ),
    (
        "HTTP and process",
        (
            Panel(
                title="Requests", unit="reqps", description="By node, all routes.",
                queries=(
                    (
                        "sum by (node) (rate("
                        "dss_http_request_duration_seconds_count[$__rate_interval]))",
                        "{{node}}",
                    ),
                ),
            ),
            Panel(
                title="HTTP p99", unit="s",
                description="By route; long polls include their wait.",
                queries=(
                    (
                        _quantile("0.99", "dss_http_request_duration_seconds", "route"),
                        "{{route}}",
                    ),
                ),
            ),
            Panel(
                title="Errors", unit="reqps", description="Answers of 500 and above, by status.",
                queries=(
                    (
                        "sum by (status) (rate(dss_http_request_duration_seconds_count"
                        '{status=~"5.."}[$__rate_interval]))',
                        "{{status}}",
                    ),
                ),
            ),
            Panel(
                title="Loop lag p99", unit="s",
                description="How late the event loop runs its timers.",
                queries=((_quantile("0.99", "dss_event_loop_lag_seconds"), "{{node}}"),),
            ),
            Panel(
                title="CPU", unit="percentunit", description="Of one core.",
                queries=(
                    (
                        'rate(process_cpu_seconds_total{job=~"dss-.*"}[$__rate_interval])',
                        "{{node}}",
                    ),
                ),
            ),
            Panel(
                title="Memory", unit="bytes", description="Resident.",
                queries=(('process_resident_memory_bytes{job=~"dss-.*"}', "{{node}}"),),
            ),
        ),
    ),
)  # fmt: skip


def render_dashboard() -> str:
    """dss.json. JSON has no comments: its description says that it is generated."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1},
                "panels": [],
            }
        )
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.width > _WIDTH:
                top, left, height = top + height, 0, 0
            panels.append(_panel(panel, len(panels) + 1, left, top))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    dashboard = {
        "uid": "dss-overview",
        "title": "DSS",
        "description": "Generated by `make generate` from nodes/dss/topology: do not edit.",
        "tags": ["dss"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    instant = panel.kind in ("stat", "table")
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit} | panel.options, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend or "__auto",
                "instant": instant,
                "range": not instant,
            }
            | ({"format": "table"} if panel.kind == "table" else {})
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "background",
        "graphMode": "none",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "table": {"showHeader": True},
}
