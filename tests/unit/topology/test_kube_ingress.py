"""The Ingress: every client route reaches its role; presets; one's own annotations."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from dss.api import cache, locks, queues
from dss.topology.crd import cluster_of_resource
from dss.topology.kube import ClusterRef, render_objects
from dss.topology.kube.ingress import COLON_ROUTES, PREFIXES

REF = ClusterRef(name="demo", namespace="team", uid="u-1")
TABLES = {"lock": locks.routes, "queue": queues.routes, "cache": cache.routes}


def ingress(**given: Any) -> dict[str, Any]:
    spec = {"ingress": {"enabled": True, "host": "dss.local"} | given}
    cluster = cluster_of_resource({"metadata": {"name": "demo"}, "spec": spec})
    (found,) = [obj for obj in render_objects(cluster, REF) if obj["kind"] == "Ingress"]
    return found


def served() -> dict[str, str]:
    """Every route of the nodes that belongs to one role -> that role."""
    return {route.path: role for role, table in TABLES.items() for route in table(Mock())}


def test_colon_routes__exactly_those_of_the_nodes() -> None:
    first_segments = {path: role for path, role in served().items() if ":" in path}
    assert first_segments == COLON_ROUTES


def test_prefixes__cover_every_client_route() -> None:
    internal = {"/v1/ring", "/v1/partitions"}
    for path, role in served().items():
        if ":" not in path and path not in internal:
            prefix = "/".join(path.split("/")[:3])
            assert PREFIXES[prefix] == role, path


def test_paths__each_goes_to_the_service_of_its_role() -> None:
    found = ingress()
    (rule,) = found["spec"]["rules"]
    assert rule["host"] == "dss.local"
    for path in rule["http"]["paths"]:
        role = (PREFIXES | COLON_ROUTES)[path["path"]]
        service = {"name": f"demo-{role}", "port": {"number": 8_000}}
        assert path["backend"] == {"service": service}
        assert path["pathType"] == ("Exact" if ":" in path["path"] else "Prefix")
    assert len(rule["http"]["paths"]) == len(PREFIXES) + len(COLON_ROUTES)


def test_contour__long_polls_and_every_stream_pass() -> None:
    annotations = ingress()["metadata"]["annotations"]
    assert annotations["projectcontour.io/response-timeout"] == "infinity"
    streams = annotations["projectcontour.io/websocket-routes"].split(",")
    assert streams == [path for path in COLON_ROUTES if path.endswith(":stream")]


@pytest.mark.parametrize(
    ("controller", "prefix"), [("nginx", "nginx."), ("traefik", ""), ("none", "")]
)
def test_other_controllers__have_no_foreign_annotations(controller: str, prefix: str) -> None:
    found = ingress(controller=controller)
    annotations = found["metadata"].get("annotations", {})
    assert bool(annotations) == bool(prefix)
    assert all(name.startswith(prefix) for name in annotations)
    colon_types = {
        path["pathType"]
        for path in found["spec"]["rules"][0]["http"]["paths"]
        if ":" in path["path"]
    }
    assert colon_types == {"ImplementationSpecific" if controller == "nginx" else "Exact"}


def test_ones_own_annotations__win() -> None:
    own = {"projectcontour.io/response-timeout": "90s", "example.com/a": "b"}
    annotations = ingress(annotations=own)["metadata"]["annotations"]
    assert annotations.items() >= own.items()
    assert "projectcontour.io/websocket-routes" in annotations


def test_class_and_certificate__only_when_given() -> None:
    assert not {"ingressClassName", "tls"} & set(ingress()["spec"])
    spec = ingress(className="contour", tls={"secretName": "cert"})["spec"]
    assert spec["ingressClassName"] == "contour"
    assert spec["tls"] == [{"hosts": ["dss.local"], "secretName": "cert"}]
