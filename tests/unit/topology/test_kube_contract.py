"""One cluster, two renderings: Kubernetes and compose agree service by service.

Image, ports, environment and probes are compared; each difference that is meant stands here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dss.topology.kube import ClusterRef, render_objects
from dss.topology.model import KUBE_DEFAULTS, ROLES, cluster_environment
from dss.topology.render_compose import render_compose
from dss.topology.render_env import container_peers
from dss.topology.variables import PEER_LISTS, VARIABLES

REF = ClusterRef(name="demo", namespace="team", uid="u-1")
OBJECTS = {
    (obj["kind"], obj["metadata"]["name"]): obj for obj in render_objects(KUBE_DEFAULTS, REF)
}
SERVICES: dict[str, Any] = yaml.safe_load(render_compose(KUBE_DEFAULTS))["services"]
NAMES = list(SERVICES)

NOT_IN_PODS = {"SNAPSHOT_EVERY_ENTRIES", "FEATURE_LEVEL_MAX", "LOG_LEVEL"}
"""Compose hands on what `.env` may set; a pod has the node's own defaults."""
KUBE_ONLY = {"ALLOW_TEST_MODE", "TEST_MODE", "AUTH_TOKENS"}


def component(service: str) -> str:
    return service.rpartition("-")[0] or service


def pod(service: str) -> dict[str, Any]:
    found: dict[str, Any] = OBJECTS["StatefulSet", f"demo-{component(service)}"]
    template: dict[str, Any] = found["spec"]["template"]["spec"]
    return template


def container(service: str) -> dict[str, Any]:
    found: dict[str, Any] = pod(service)["containers"][0]
    return found


@pytest.mark.parametrize("service", NAMES)
def test_each_service__is_one_pod_with_the_same_name(service: str) -> None:
    workload = OBJECTS["StatefulSet", f"demo-{component(service)}"]["spec"]
    first = workload["ordinals"]["start"]
    ordinal = int(service.rpartition("-")[2]) if component(service) != service else 1
    assert first <= ordinal < first + workload["replicas"]


def test_all_pods__are_services_of_compose() -> None:
    pods = {
        f"{name.removeprefix('demo-')}-{ordinal}"
        for (kind, name), obj in OBJECTS.items()
        if kind == "StatefulSet"
        for ordinal in range(1, obj["spec"]["replicas"] + 1)
    }
    support = {f"{name}-1" for name in ("redis", "prometheus", "grafana")}
    assert pods - support == {name for name in NAMES if component(name) in ROLES}
    assert {name for name in NAMES if component(name) not in ROLES} == {
        name.removesuffix("-1") for name in pods & support
    }


@pytest.mark.parametrize("service", NAMES)
def test_image_and_user__the_same(service: str) -> None:
    assert container(service)["image"] == SERVICES[service]["image"]
    user = int(SERVICES[service]["user"].partition(":")[0])
    assert pod(service)["securityContext"]["runAsUser"] == user
    assert SERVICES[service]["read_only"] is True
    assert SERVICES[service]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("service", NAMES)
def test_memory__the_same_limit_but_for_a_larger_cache(service: str) -> None:
    limit = container(service)["resources"]["limits"]["memory"]
    assert SERVICES[service]["mem_limit"] == "512m"
    assert limit == ("640Mi" if component(service) == "cache" else "512Mi")


@pytest.mark.parametrize("service", NAMES)
def test_ports__what_compose_publishes_the_pod_listens_on(service: str) -> None:
    ports = [each["containerPort"] for each in container(service)["ports"]]
    published = [int(each.rpartition(":")[2]) for each in SERVICES[service].get("ports", [])]
    assert set(published) <= set(ports)
    if component(service) in ROLES:
        assert ports == [8_000, 9_000]
    elif service == "redis":
        assert (ports, published) == ([6_379], [])
    else:
        assert ports == published


@pytest.mark.parametrize("service", [name for name in NAMES if component(name) in ROLES])
def test_node_environment__the_same_variables_with_the_same_values(service: str) -> None:
    in_pod = {each["name"]: each.get("value") for each in container(service)["env"]}
    in_compose = dict(SERVICES[service]["environment"])
    stem = {name.removesuffix("_FILE") for name in in_pod} - {"POD_INDEX"}
    assert stem - KUBE_ONLY == set(in_compose) - NOT_IN_PODS - KUBE_ONLY
    # Compose takes the cluster's settings from `.env`, which is rendered from the same model.
    values = cluster_environment(KUBE_DEFAULTS)
    for name, value in values.items():
        if name != "CLUSTER_ID":
            assert in_pod[name] == value, name
            assert in_compose[name] == f"${{{name}-}}"
    assert in_pod["NODE_ID"] == f"{component(service)}-$(POD_INDEX)"
    for name in ("NODE_ROLE", "DATA_DIR", "BIND_HOST"):
        assert in_pod[name] == in_compose[name]


def test_every_variable_of_the_cluster__is_in_the_pods_or_named_here() -> None:
    names = {each["name"].removesuffix("_FILE") for each in container("cache-1")["env"]}
    for variable in VARIABLES:
        if variable.scope != "stack" and variable.name not in NOT_IN_PODS | KUBE_ONLY:
            assert variable.name.removesuffix("_FILE") in names, variable.name


@pytest.mark.parametrize(("name", "role"), PEER_LISTS.items())
def test_peer_lists__the_same_ids_and_ports(name: str, role: str) -> None:
    in_kube = json.loads(OBJECTS["ConfigMap", "demo-peers"]["data"][name])
    in_compose = json.loads(container_peers(KUBE_DEFAULTS, role))
    without_host = [
        [{key: value for key, value in peer.items() if key != "host"} for peer in peers]
        for peers in (in_kube, in_compose)
    ]
    assert without_host[0] == without_host[1]


@pytest.mark.parametrize("service", NAMES)
def test_probes__ask_the_same_as_compose_does(service: str) -> None:
    test = " ".join(SERVICES[service]["healthcheck"]["test"])
    ready = container(service)["readinessProbe"]
    if component(service) in ROLES:
        # healthcheck.py asks /readyz at the port that it is given.
        assert test.endswith("/opt/dss/healthcheck.py 8000")
        assert ready["httpGet"] == {"path": "/readyz", "port": "http"}
        assert container(service)["livenessProbe"]["httpGet"]["path"] == "/healthz"
    elif service == "redis":
        assert "redis-cli ping | grep -q PONG" in test
        assert "redis-cli ping | grep -q PONG" in ready["exec"]["command"][-1]
    else:
        path = ready["httpGet"]["path"]
        port = container(service)["ports"][0]["containerPort"]
        assert test.endswith(f"http://127.0.0.1:{port}{path}")


def test_redis__the_same_settings() -> None:
    def options(script: str) -> list[str]:
        return re.findall(r"--\S+ '?[^\s']*'?", script.partition("exec redis-server")[2])

    in_pod = options(container("redis")["command"][-1])
    assert in_pod == options(SERVICES["redis"]["command"][-1])
    assert "--appendfsync always" in in_pod


def test_prometheus_and_grafana__the_same_arguments_and_settings() -> None:
    assert container("prometheus")["args"] == SERVICES["prometheus"]["command"]
    in_pod = {each["name"]: each["value"] for each in container("grafana")["env"]}
    in_compose = SERVICES["grafana"]["environment"]
    secret = {"GF_SECURITY_ADMIN_USER", "GF_SECURITY_ADMIN_PASSWORD"}
    assert {name.removesuffix("__FILE") for name in in_pod} == set(in_compose)
    assert all(in_pod[name] == in_compose[name] for name in set(in_compose) - secret)


def test_healthcheck_script__asks_readyz() -> None:
    text = (Path(__file__).parents[3] / "docker/healthcheck.py").read_text()
    assert "/readyz" in text
