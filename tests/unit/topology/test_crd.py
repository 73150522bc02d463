"""The CRD's schema and the way back from a resource to the model (no API server here)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dss.base.errors import ConfigProblem
from dss.topology.crd import cluster_of_resource, default_spec, render_crd
from dss.topology.crd_schema import schema_of
from dss.topology.crd_status import CONDITIONS
from dss.topology.model import KUBE_DEFAULTS, DSSCluster, validate
from dss.topology.spec import LockSpec

Schema = dict[str, Any]
(VERSION,) = render_crd()["spec"]["versions"]
ROOT: Schema = VERSION["schema"]["openAPIV3Schema"]
SPEC: Schema = ROOT["properties"]["spec"]


def below(schema: Schema, path: str = "spec") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from below(each, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from below(schema[key], f"{path}[]")


def resource(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "demo"}, "spec": spec}


def test_empty_resource__is_the_default_cluster_under_its_own_name() -> None:
    expected = msgspec.structs.replace(KUBE_DEFAULTS, name="demo")
    assert cluster_of_resource({"metadata": {"name": "demo"}}) == expected
    assert cluster_of_resource(resource()) == expected
    assert validate(KUBE_DEFAULTS) == []


def test_defaults__at_every_level_the_whole_literal() -> None:
    assert SPEC["default"] == default_spec()
    for path, schema in below(SPEC):
        if "[]" in path or path.startswith("spec.pod.affinity."):
            continue
        assert "default" in schema, path
        if path == "spec.pod.affinity":
            continue
        for name, each in schema.get("properties", {}).items():
            assert schema["default"][name] == each["default"], f"{path}.{name}"


def test_every_field__says_what_it_is_or_is_a_pods_own() -> None:
    for path, schema in below(SPEC):
        if "[]" not in path and not path.startswith("spec.pod."):
            assert schema.get("description", "").endswith("."), path


def test_bounds__every_string_list_and_map_has_one() -> None:
    for path, schema in below(SPEC):
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


def test_rules__each_has_a_message_that_names_the_field() -> None:
    seen = 0
    for path, schema in [*below(SPEC), ("metadata.name", ROOT | {"properties": {}})]:
        for rule in schema.get("x-kubernetes-validations", []):
            seen += 1
            assert rule["message"].startswith(path.replace("[]", "")), rule
            assert rule["message"].isprintable()
    assert seen > 40


def test_a_rule_for_no_field__is_a_mistake() -> None:
    with pytest.raises(KeyError, match=r"lock\.nothing"):
        schema_of(KUBE_DEFAULTS, {"lock.nothing": []}, {}, leave_out=frozenset())


def test_columns__as_promised() -> None:
    columns = [each["name"] for each in VERSION["additionalPrinterColumns"]]
    shown = [
        each["name"] for each in VERSION["additionalPrinterColumns"] if not each.get("priority")
    ]
    assert shown == ["Ready", "Leader", "Term", "Locks", "Queues", "Caches", "Age"]
    assert "Reason" in columns
    assert VERSION["subresources"] == {"status": {}}


def test_status_conditions__a_map_by_type_for_server_side_apply() -> None:
    conditions = ROOT["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert all(name in conditions["items"]["properties"]["type"]["description"]
               for name in CONDITIONS)  # fmt: skip


def test_resource__fields_and_parts_of_them_override_the_defaults() -> None:
    cluster = cluster_of_resource(
        resource(
            lock={"electionTimeoutMs": {"min": 1_200}},
            pod={"affinity": {"podAffinity": {}}, "tolerations": [{"tolerationSeconds": 5}]},
            cache={"capacityMiB": 512},
        )
    )
    assert cluster.lock.election_timeout_ms.min == 1_200
    assert cluster.lock.election_timeout_ms.max == 2_000
    assert cluster.lock.heartbeat_ms == 100
    assert cluster.pod.affinity == {"podAffinity": {}}
    assert cluster.pod.tolerations[0].toleration_seconds == 5
    assert cluster.cache.capacity_mib == 512


REFUSED = [
    ({"name": "x"}, "unknown field `name`"),
    ({"colour": 1}, "unknown field `colour`"),
    ({"lock": {"nodes": 3}}, "unknown field `nodes` - at `spec.lock`"),
    ({"lock": {"replicas": "3"}}, "Expected `int`, got `str` - at `spec.lock.replicas`"),
    ({"lock": {"replicas": 4}}, "lock.replicas: expected an odd number from 1 to 9, found 4"),
    ({"lock": {"replicas": 11}}, "`spec.lock.replicas`"),
    ({"queue": {"replicas": 1}}, "queue.replicationFactor: expected 1, 3 or 5"),
    ({"queue": {"replicationFactor": 2}}, "`spec.queue.replicationFactor`"),
    ({"cache": {"write": "back"}}, "`spec.cache.write`"),
    ({"redis": {"externalUrl": "redis://r"}}, "redis: expected one of"),
    ({"redis": {"enabled": False}}, "redis: expected one of"),
    ({"redis": {"enabled": False, "externalUrl": "redis://:pw@r"}}, "expected no password"),
    ({"monitoring": {"prometheus": {"enabled": False}}}, "monitoring.grafana.enabled"),
    ({"ingress": {"enabled": True}}, "ingress.host"),
    ({"tls": {"enabled": True}}, "tls.enabled: expected false"),
    ({"remediation": {"windowSeconds": 19}}, "remediation.windowSeconds: expected at least ten"),
    ({"lock": {"electionTimeoutMs": {"max": 4_000}}}, "found 30"),
    ({"reclaim": "Keep"}, "`spec.reclaim`"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_impossible_resource__refused_with_the_field(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        cluster_of_resource(resource(**spec))
    assert message in str(caught.value)


def test_local_defaults__are_not_those_of_kubernetes() -> None:
    assert DSSCluster().lock == LockSpec()
    assert DSSCluster().lock.heartbeat_ms == 50
    assert KUBE_DEFAULTS.lock.heartbeat_ms == 100
    assert KUBE_DEFAULTS.cache.capacity_mib == 256
