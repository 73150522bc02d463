"""Prometheus and Grafana of one cluster: the same scrape settings, rules and dashboards as compose.

What must not live here: what an alert or a panel says (render_prometheus.py, render_grafana.py).
"""

from __future__ import annotations

import hashlib
from typing import Final

from dss.topology.kube.names import (
    ClusterRef,
    Object,
    headless_name,
    manifest,
    resource_name,
    selector,
)
from dss.topology.kube.pods import (
    Workload,
    config_volume,
    http_probe,
    mount,
    resources,
    secret_volume,
    stateful_set,
)
from dss.topology.model import GRAFANA_PORT, PROMETHEUS_PORT, ROLES, DSSCluster
from dss.topology.render_grafana import render_dashboard
from dss.topology.render_prometheus import (
    SCRAPE_INTERVAL,
    dns_jobs,
    operator_job,
    render_dashboard_provider,
    render_datasource,
    render_prometheus,
    render_rules,
)
from dss.topology.spec import GRAFANA_IMAGE, PROMETHEUS_IMAGE

PROMETHEUS_UID: Final = 65_534
GRAFANA_UID: Final = 472
OPERATOR_METRICS: Final = "dss-operator-metrics"
"""The Service of manifests/operator.yaml."""
OPERATOR_METRICS_PORT: Final = 8_080
GRAFANA_SECRET_PATH: Final = "/etc/dss/grafana"  # noqa: S105 - a path


def prometheus_config_map(cluster: DSSCluster, ref: ClusterRef) -> Object:
    services = {role: f"{headless_name(ref, role)}.{ref.namespace}.svc" for role in ROLES}
    jobs = dns_jobs({role: f"_http._tcp.{name}" for role, name in services.items()})
    if ref.operator_namespace:
        address = f"{OPERATOR_METRICS}.{ref.operator_namespace}.svc:{OPERATOR_METRICS_PORT}"
        jobs.append(operator_job(address, ref.namespace, ref.name))
    data = {
        "prometheus.yml": render_prometheus(cluster, jobs=jobs, name=ref.cluster_id),
        "rules.yml": render_rules(cluster, operator=bool(ref.operator_namespace)),
    }
    name = resource_name(ref, "prometheus")
    return manifest(ref, "v1", "ConfigMap", name, "prometheus", data=data)


def grafana_config_map(ref: ClusterRef) -> Object:
    prometheus = f"http://{resource_name(ref, 'prometheus')}.{ref.namespace}.svc:{PROMETHEUS_PORT}"
    data = {
        "datasource.yml": render_datasource(prometheus),
        "provider.yml": render_dashboard_provider(),
        "dss.json": render_dashboard(),
    }
    name = resource_name(ref, "grafana")
    return manifest(ref, "v1", "ConfigMap", name, "grafana", data=data)


def web_service(ref: ClusterRef, component: str, port: int) -> Object:
    spec = {
        "type": "ClusterIP",
        "selector": selector(ref, component),
        "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
    }
    name = resource_name(ref, component)
    return manifest(ref, "v1", "Service", name, component, spec=spec)


def prometheus_stateful_set(cluster: DSSCluster, ref: ClusterRef, config: Object) -> Object:
    """It finds the nodes by DNS and has no token for the API server."""
    spec = cluster.monitoring.prometheus
    name = resource_name(ref, "prometheus")
    workload = Workload(
        component="prometheus",
        replicas=1,
        service=name,
        uid=PROMETHEUS_UID,
        gid=PROMETHEUS_UID,
        container={
            "image": spec.image or PROMETHEUS_IMAGE,
            "args": [
                "--config.file=/etc/prometheus/prometheus.yml",
                "--storage.tsdb.path=/prometheus",
                "--storage.tsdb.retention.time=7d",
                "--storage.tsdb.retention.size=1GB",
            ],
            "ports": [{"name": "http", "containerPort": PROMETHEUS_PORT, "protocol": "TCP"}],
            "resources": resources(
                spec.resources, {"cpu": "50m", "memory": "128Mi"}, {"memory": "512Mi"}
            ),
            "startupProbe": http_probe("/-/ready", "http", period=2, failures=300),
            "livenessProbe": http_probe("/-/healthy", "http", period=10, failures=6),
            "readinessProbe": http_probe("/-/ready", "http", period=5, failures=3),
            "volumeMounts": [mount("config", "/etc/prometheus")],
        },
        volumes=[config_volume("config", name)],
        storage_size=spec.storage.size,
        data_path="/prometheus",
        grace_seconds=60,
        config=checksum(config),
    )
    return stateful_set(cluster, ref, workload)


def grafana_stateful_set(cluster: DSSCluster, ref: ClusterRef, config: Object) -> Object:
    """Everything in it comes from files, so it has no volume to lose."""
    spec = cluster.monitoring.grafana
    name = resource_name(ref, "grafana")
    environment = {
        "GF_SECURITY_ADMIN_USER__FILE": f"{GRAFANA_SECRET_PATH}/admin-user",
        "GF_SECURITY_ADMIN_PASSWORD__FILE": f"{GRAFANA_SECRET_PATH}/admin-password",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_USERS_ALLOW_SIGN_UP": "false",
        "GF_LOG_MODE": "console",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/etc/grafana/dashboards/dss.json",
    }
    secret = secret_volume("admin", name, "admin-user")
    secret["secret"]["items"].append({"key": "admin-password", "path": "admin-password"})
    workload = Workload(
        component="grafana",
        replicas=1,
        service=name,
        uid=GRAFANA_UID,
        gid=GRAFANA_UID,
        container={
            "image": spec.image or GRAFANA_IMAGE,
            "env": [{"name": key, "value": value} for key, value in environment.items()],
            "ports": [{"name": "http", "containerPort": GRAFANA_PORT, "protocol": "TCP"}],
            "resources": resources(
                spec.resources, {"cpu": "50m", "memory": "128Mi"}, {"memory": "512Mi"}
            ),
            "startupProbe": http_probe("/api/health", "http", period=3, failures=100),
            "livenessProbe": http_probe("/api/health", "http", period=10, failures=6),
            "readinessProbe": http_probe("/api/health", "http", period=5, failures=3),
            "volumeMounts": [
                mount("datasources", "/etc/grafana/provisioning/datasources"),
                mount("providers", "/etc/grafana/provisioning/dashboards"),
                mount("dashboards", "/etc/grafana/dashboards"),
                mount("admin", GRAFANA_SECRET_PATH),
            ],
        },
        volumes=[
            config_volume("datasources", name, ("datasource.yml",)),
            config_volume("providers", name, ("provider.yml",)),
            config_volume("dashboards", name, ("dss.json",)),
            secret,
        ],
        storage_size="",
        data_path="/var/lib/grafana",
        grace_seconds=30,
        config=checksum(config),
    )
    return stateful_set(cluster, ref, workload)


def service_monitor(ref: ClusterRef) -> Object:
    """For somebody else's Prometheus Operator; its resource type may be missing in a cluster."""
    in_roles = {"key": "app.kubernetes.io/component", "operator": "In", "values": list(ROLES)}
    labels = selector(ref, "lock")
    del labels["app.kubernetes.io/component"]
    spec = {
        "selector": {"matchLabels": labels, "matchExpressions": [in_roles]},
        "endpoints": [{"port": "http", "path": "/metrics", "interval": SCRAPE_INTERVAL}],
    }
    name = resource_name(ref, "nodes")
    return manifest(ref, "monitoring.coreos.com/v1", "ServiceMonitor", name, "cluster", spec=spec)


def checksum(config_map: Object) -> str:
    """Prometheus and Grafana read their files at the start alone: new ones need a restart."""
    text = "\0".join(f"{key}\0{value}" for key, value in sorted(config_map["data"].items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
