"""Prometheus: what to scrape, when to alert, and docs/alerts.md with a paragraph for each alert.

What must not live here: dashboards (render_grafana.py), which metrics exist (the services).
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import yaml

from dss.topology.model import HTTP_PORT, ROLES, DSSCluster, ensure_valid
from dss.topology.render_compose import HEADER

SCRAPE_INTERVAL: Final = "5s"
RUNBOOK: Final = "docs/alerts.md"


def render_prometheus(
    cluster: DSSCluster, *, jobs: list[dict[str, Any]] | None = None, name: str = ""
) -> str:
    """prometheus.yml: one job for each role; without `jobs` those of the compose stack.

    Args:
        name: what the label `cluster` says; the cluster's own name by default.
    """
    ensure_valid(cluster)
    config: dict[str, Any] = {
        "global": {
            "scrape_interval": SCRAPE_INTERVAL,
            "scrape_timeout": "4s",
            "evaluation_interval": SCRAPE_INTERVAL,
            "external_labels": {"cluster": name or cluster.name},
        },
        "rule_files": ["/etc/prometheus/rules.yml"],
        "scrape_configs": jobs or [_job(cluster, role) for role in ROLES],
    }
    return HEADER + _dump(config)


def _job(cluster: DSSCluster, role: str) -> dict[str, Any]:
    targets = [f"{m.id}:{HTTP_PORT}" for m in cluster.members() if m.role == role]
    return {
        "job_name": f"dss-{role}",
        "static_configs": [{"targets": targets}],
        "relabel_configs": [
            {"source_labels": ["__address__"], "regex": "([^:]+):.*", "target_label": "node"}
        ],
    }


def dns_jobs(services: dict[str, str]) -> list[dict[str, Any]]:
    """Jobs that find a role's nodes by the SRV records of its Service.

    SRV, not A: their targets are the pods' names, so that `node` says lock-1 and no address.

    Args:
        services: role -> the name to look up.
    """
    return [
        {
            "job_name": f"dss-{role}",
            "dns_sd_configs": [{"names": [name], "type": "SRV", "refresh_interval": "10s"}],
            "relabel_configs": [
                {
                    "source_labels": ["__address__"],
                    "regex": rf"(?:[^.]+-)?({role}-\d+)\..*",
                    "target_label": "node",
                }
            ],
        }
        for role, name in services.items()
    ]


def operator_job(address: str, namespace: str, cluster: str) -> dict[str, Any]:
    """What the operator at `address` says about one cluster; it knows all of them."""
    names = "election_stuck|cluster_ready|remediation_decisions_total"
    return {
        "job_name": "operator",
        "static_configs": [{"targets": [address]}],
        "metric_relabel_configs": [
            {
                "source_labels": ["__name__", "namespace", "cluster"],
                "regex": f"dss_operator_({names});{namespace};{cluster}",
                "action": "keep",
            }
        ],
    }


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert: when it fires, what it means and what to do."""

    name: str
    expr: str
    hold: str
    severity: str
    summary: str
    meaning: str
    action: str
    operator: bool = False
    """Out of the operator's metrics: there is none in compose."""


ALERTS: Final = (
    Alert(
        name="DssNodeDown",
        expr='up{job=~"dss-.*"} == 0',
        hold="30s",
        severity="warning",
        summary="{{ $labels.node }} does not answer",
        meaning="Prometheus cannot scrape the node: it is stopped, unreachable or overloaded.",
        action="Look at its log. Nothing is lost while a quorum of its role is up; a lock or "
        "queue node catches up by itself when it is back with its data.",
    ),
    Alert(
        name="DssLockQuorumLost",
        expr='(sum(up{job="dss-lock"}) or vector(0)) < QUORUM',
        hold="10s",
        severity="critical",
        summary="fewer than QUORUM lock nodes answer",
        meaning="Without a quorum no lock is granted and no metadata changes: writes get 503.",
        action="Start the missing lock nodes with the data they had. Never start one with an "
        "empty disk in the place of a lost one without removing the lost member first.",
    ),
    Alert(
        name="DssNoLeader",
        expr="sum by (job, group) (dss_raft_is_leader) == 0",
        hold="15s",
        severity="critical",
        summary="Raft group {{ $labels.group }} has no leader",
        meaning="No member of the group won an election for 15 s: its requests get 503. Group "
        "0 is metadata, 1 is locks, 16 and up are queue partitions.",
        action="Check that a quorum of the group's nodes is up and that they reach each other "
        "on the peer port (`GET /v1/raft/status` shows links and terms).",
    ),
    Alert(
        name="DssElectionsOften",
        expr="max by (job, group) (changes(dss_raft_term[5m])) > 5",
        hold="1m",
        severity="warning",
        summary="the term of Raft group {{ $labels.group }} changes again and again",
        meaning="Leaders do not last: nodes restart, the network is slow, or fsync and the "
        "event loop are slower than the election timeout.",
        action="Look at fsync time and loop lag; if they are high and cannot be lowered, raise "
        "ELECTION_MIN_MS and ELECTION_MAX_MS on all nodes.",
    ),
    Alert(
        name="DssFsyncSlow",
        expr="histogram_quantile(0.99, "
        "sum by (node, le) (rate(dss_raft_fsync_seconds_bucket[5m]))) > 0.1",
        hold="5m",
        severity="warning",
        summary="fsync on {{ $labels.node }} takes over 100 ms",
        meaning="Every acknowledged write waits for an fsync on a quorum: the disk is too slow "
        "or shared with something heavy.",
        action="Give DATA_DIR a disk of its own, or find who writes on it.",
    ),
    Alert(
        name="DssLoopLag",
        expr="histogram_quantile(0.99, "
        "sum by (node, le) (rate(dss_event_loop_lag_seconds_bucket[5m]))) > 0.25",
        hold="5m",
        severity="warning",
        summary="the event loop of {{ $labels.node }} is late by over 250 ms",
        meaning="The process gets too little CPU or something blocks its loop; heartbeats "
        "suffer next.",
        action="Look at the machine's CPU and at the node's garbage collection pauses.",
    ),
    Alert(
        name="DssServerErrors",
        expr="sum by (node) "
        '(rate(dss_http_request_duration_seconds_count{status=~"50[04]"}[5m])) > 0.1',
        hold="2m",
        severity="warning",
        summary="{{ $labels.node }} answers with 500 or 504",
        meaning="500 is a defect or damaged data; 504 is a write whose outcome is unknown.",
        action="Look at the node's log for the request's problem document.",
    ),
    Alert(
        name="DssDeadLetters",
        expr='sum by (queue) (dss_queue_messages{state="dead"}) > 0',
        hold="1m",
        severity="warning",
        summary="queue {{ $labels.queue }} has dead letters",
        meaning="Messages were delivered as often as the queue allows and never acknowledged.",
        action="Find in the consumer's log why it fails on them. They stay in the queue, apart "
        "from the others; `GET /v1/queues/{queue}` counts them.",
    ),
    Alert(
        name="DssDiskReplaced",
        expr="increase(dss_raft_mismatched_incarnations_total[5m]) > 0",
        hold="0s",
        severity="critical",
        summary="{{ $labels.node }} refuses a member that came back with another disk",
        meaning="A node runs under a known id with an empty or foreign DATA_DIR. It must not "
        "vote, so the group runs with one member less.",
        action="Give the node its old DATA_DIR back, or remove the member and add it anew.",
    ),
    Alert(
        name="DssElectionStuck",
        expr="max(dss_operator_election_stuck) > 0",
        hold="1m",
        severity="critical",
        summary="an election of the lock nodes is stuck",
        meaning="Candidates stand against each other and nobody wins; the operator is at work, or "
        "may not act (`spec.remediation.mode`).",
        action="`kubectl describe dss`: the condition ElectionStuck and the Events say what was "
        "seen and done.",
        operator=True,
    ),
    Alert(
        name="DssRemediationGaveUp",
        # Not increase(): a counter that is born at 1 has not increased.
        expr='sum(dss_operator_remediation_decisions_total{action="alert"}) - '
        '(sum(dss_operator_remediation_decisions_total{action="alert"} offset 10m) or vector(0)) '
        "> 0",
        hold="0s",
        severity="critical",
        summary="the operator cannot end a stuck election",
        meaning="Every rung of the ladder was tried, or the hourly cap is reached: nothing more "
        "is done about it.",
        action="Look at the lock nodes' logs, and at the clocks, disks and CPU of their machines. "
        "Restart one candidate at a time, never the one whose log is ahead of all others.",
        operator=True,
    ),
)
"""QUORUM stands for the lock nodes' quorum."""


def alerts(cluster: DSSCluster, *, operator: bool = False) -> tuple[Alert, ...]:
    """All alerts of a cluster with these counts; with an operator also those about it."""
    quorum = str(cluster.lock.replicas // 2 + 1)
    return tuple(
        msgspec.structs.replace(
            alert,
            expr=alert.expr.replace("QUORUM", quorum),
            summary=alert.summary.replace("QUORUM", quorum),
        )
        for alert in ALERTS
        if operator or not alert.operator
    )


def render_rules(cluster: DSSCluster, *, operator: bool = False) -> str:
    """rules.yml: the alerts."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.hold,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.meaning,
                "runbook": f"{RUNBOOK}#{alert.name.lower()}",
            },
        }
        for alert in alerts(cluster, operator=operator)
    ]
    return HEADER + _dump({"groups": [{"name": "dss", "rules": rules}]})


def render_alerts_page(cluster: DSSCluster) -> str:
    """docs/alerts.md: the runbook of each alert."""
    parts = [
        "<!-- Generated by `make generate` from nodes/dss/topology/render_prometheus.py: "
        "do not edit. -->\n# Alerts\n\nPrometheus shows them at http://127.0.0.1:9090/alerts.\n"
    ]
    for alert in alerts(cluster, operator=True):
        where = " On Kubernetes alone." if alert.operator else ""
        summary = alert.summary.replace("{{ $labels.", "<").replace(" }}", ">")
        parts.append(
            f"\n## {alert.name}\n\n*{alert.severity}, after {alert.hold}:* {summary}.{where}\n\n"
            f"**Meaning.** {alert.meaning}\n\n**Do.** {alert.action}\n\n"
            f"```\n{alert.expr}\n```\n"
        )
    return "".join(parts)


def render_datasource(url: str = "http://prometheus:9090") -> str:
    """Grafana's provisioning of its one datasource."""
    return HEADER + _dump(
        {
            "apiVersion": 1,
            "datasources": [
                {
                    "name": "Prometheus",
                    "uid": "dss-prometheus",
                    "type": "prometheus",
                    "access": "proxy",
                    "url": url,
                    "isDefault": True,
                    "editable": False,
                    "jsonData": {"timeInterval": SCRAPE_INTERVAL},
                }
            ],
        }
    )


def render_dashboard_provider() -> str:
    """Grafana's provisioning of the folder of dashboards."""
    return HEADER + _dump(
        {
            "apiVersion": 1,
            "providers": [
                {
                    "name": "dss",
                    "folder": "DSS",
                    "type": "file",
                    "disableDeletion": True,
                    "allowUiUpdates": False,
                    "options": {"path": "/etc/grafana/dashboards"},
                }
            ],
        }
    )


def _dump(document: dict[str, Any]) -> str:
    # Through JSON: PyYAML writes an alias where one object stands twice.
    plain = json.loads(json.dumps(document))
    text: str = yaml.safe_dump(plain, sort_keys=False, width=4096, allow_unicode=True)
    return text
