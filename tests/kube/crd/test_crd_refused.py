"""Resources that cannot work: the API server itself says no, and what was expected instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from crd_kubectl import cluster, kubectl, must

pytestmark = pytest.mark.kube

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"lock": {"replicas": 0}}, "spec.lock.replicas in body should be greater than or equal to 1"),
    ({"lock": {"replicas": 4}}, "spec.lock.replicas: expected an odd number"),
    ({"lock": {"replicas": 11}}, "spec.lock.replicas in body should be less than or equal to 9"),
    ({"lock": {"replicas": "3"}}, 'spec.lock.replicas in body must be of type integer: "string"'),
    ({"lock": {"heartbeatMs": 5}}, "heartbeatMs in body should be greater than or equal to 10"),
    ({"lock": {"heartbeatMs": 500}}, "electionTimeoutMs.min: expected more than twice heartbeatMs"),
    ({"lock": {"electionTimeoutMs": {"min": 200}}},
     "spec.lock.electionTimeoutMs.min: expected more than twice heartbeatMs"),
    ({"lock": {"electionTimeoutMs": {"max": 1_400}}},
     "spec.lock.electionTimeoutMs.max: expected at least 1.5 times min"),
    ({"lock": {"electionTimeoutMs": {"min": 10}}},
     "electionTimeoutMs.min in body should be greater than or equal to 50"),
    ({"lock": {"electionTimeoutMs": {"max": 500_000}}},
     "electionTimeoutMs.max in body should be less than or equal to 120000"),
    ({"lock": {"electionTimeoutMs": {"max": 4_000}}},
     "spec.remediation.windowSeconds: expected ten times lock.electionTimeoutMs.max"),
    ({"queue": {"replicas": 2}}, "spec.queue.replicationFactor: expected at most queue.replicas"),
    ({"queue": {"replicationFactor": 2}}, 'spec.queue.replicationFactor: Unsupported value: 2'),
    ({"queue": {"partitions": 0}}, "partitions in body should be greater than or equal to 1"),
    ({"queue": {"partitions": 257}}, "partitions in body should be less than or equal to 256"),
    ({"cache": {"replicas": 10}}, "spec.cache.replicas in body should be less than or equal to 9"),
    ({"cache": {"capacityMiB": 0}}, "capacityMiB in body should be greater than or equal to 1"),
    ({"cache": {"leaseMs": 50}}, "leaseMs in body should be greater than or equal to 100"),
    ({"cache": {"policy": "lru"}}, 'spec.cache.policy: Unsupported value: "lru"'),
    ({"cache": {"write": "back"}}, 'spec.cache.write: Unsupported value: "back": supported values: '
     '"through"'),
    ({"lock": {"storage": {"size": "10"}}}, "spec.lock.storage.size: expected a whole number with"),
    ({"queue": {"storage": {"size": "1.5Gi"}}}, "spec.queue.storage.size: expected a whole number"),
    ({"cache": {"storage": {"size": "64Mi"}}}, "spec.cache.storage.size: expected at least 128Mi"),
    ({"redis": {"storage": {"size": "-1Gi"}}}, "spec.redis.storage.size: expected a whole number"),
    ({"monitoring": {"prometheus": {"storage": {"size": "1Mi"}}}},
     "spec.monitoring.prometheus.storage.size: expected at least 128Mi"),
    ({"lock": {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}}}},
     "spec.lock.resources: expected every request to be at most its limit"),
    ({"queue": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
     "spec.queue.resources: expected every request to be at most its limit"),
    ({"cache": {"resources": {"limits": {"memory": "lots"}}}}, "spec.cache.resources.limits"),
    ({"redis": {"externalUrl": "redis://r.example:6379"}}, "spec.redis: expected exactly one of"),
    ({"redis": {"enabled": False}}, "spec.redis: expected exactly one of enabled: true"),
    ({"redis": {"secretRef": {"name": "mine"}}}, "spec.redis: expected exactly one of"),
    ({"redis": {"enabled": False, "externalUrl": "redis://:pw@r.example:6379"}},
     "without a password: put a URL with one into a Secret"),
    ({"redis": {"enabled": False, "externalUrl": "http://r.example"}},
     "spec.redis.externalUrl: expected redis://host[:port][/db]"),
    ({"redis": {"enabled": False, "secretRef": {"name": "mine", "key": "a b"}}},
     "spec.redis.secretRef.key: expected a Secret's key"),
    ({"redis": {"enabled": False, "secretRef": {"name": "Mine"}}},
     "spec.redis.secretRef.name: expected lower-case letters"),
    ({"redis": {"image": "redis 7"}}, "spec.redis.image: expected an image's name without spaces"),
    ({"monitoring": {"prometheus": {"enabled": False}}},
     "spec.monitoring.grafana.enabled: expected false without prometheus.enabled"),
    ({"ingress": {"enabled": True}}, "spec.ingress.host: expected a host name"),
    ({"ingress": {"host": "DSS.local"}}, "spec.ingress.host: expected lower-case letters"),
    ({"ingress": {"controller": "haproxy"}}, 'spec.ingress.controller: Unsupported value: '
     '"haproxy": supported values: "contour", "nginx", "none", "traefik"'),
    ({"ingress": {"annotations": {"a b": "c"}}}, "spec.ingress.annotations: expected names like"),
    ({"ingress": {"tls": {"secretName": "-x"}}}, "spec.ingress.tls.secretName: expected lower"),
    ({"auth": {"enabled": "yes"}}, "spec.auth.enabled in body must be of type boolean"),
    ({"tls": {"enabled": True}}, "spec.tls.enabled: expected false: this version has no cert"),
    ({"remediation": {"mode": "Maybe"}}, 'spec.remediation.mode: Unsupported value: "Maybe"'),
    ({"remediation": {"windowSeconds": 5}}, "windowSeconds in body should be greater than or"),
    ({"remediation": {"windowSeconds": 19}},
     "spec.remediation.windowSeconds: expected ten times lock.electionTimeoutMs.max"),
    ({"remediation": {"cooldownSeconds": 1}}, "cooldownSeconds in body should be greater than"),
    ({"remediation": {"maxPerHour": 7}}, "maxPerHour in body should be less than or equal to 6"),
    ({"pod": {"imagePullPolicy": "Sometimes"}}, 'imagePullPolicy: Unsupported value: "Sometimes"'),
    ({"pod": {"imagePullSecrets": [{}]}}, "spec.pod.imagePullSecrets[0].name: Required value"),
    ({"pod": {"nodeSelector": {"disk": "very fast"}}}, "spec.pod.nodeSelector: expected at most"),
    ({"pod": {"nodeSelector": {"a b": "c"}}}, "spec.pod.nodeSelector: expected names of labels"),
    ({"pod": {"tolerations": [{"effect": "Never"}]}}, 'effect: Unsupported value: "Never"'),
    ({"pod": {"tolerations": [{}]}}, "spec.pod.tolerations: expected operator: Exists where there"),
    ({"pod": {"tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]}},
     "spec.pod.tolerations: expected no value with operator: Exists"),
    ({"pod": {"tolerations": [{"key": "a", "value": "b", "tolerationSeconds": 9}]}},
     "spec.pod.tolerations: expected effect: NoExecute with tolerationSeconds"),
    ({"pod": {"labels": {"app.kubernetes.io/name": "x"}}},
     "spec.pod.labels: labels of app.kubernetes.io/ and dss.io/ are the operator's own"),
    ({"pod": {"labels": {"team": "-"}}}, "spec.pod.labels: expected at most 63 letters"),
    ({"pod": {"annotations": {"dss.io/restartedAt": "x"}}},
     "spec.pod.annotations: annotations of dss.io/ are the operator's own"),
    ({"pod": {"storageClassName": "Fast"}}, "spec.pod.storageClassName: expected lower-case"),
    ({"pod": {"affinity": "near"}}, "spec.pod.affinity in body must be of type object"),
    ({"image": ""}, "spec.image in body should be at least 1 chars long"),
    ({"image": "dss node"}, "spec.image: expected an image's name without spaces"),
    ({"paused": "no"}, "spec.paused in body must be of type boolean"),
    ({"reclaim": "Keep"}, 'reclaim: Unsupported value: "Keep": supported values: "Delete", '
     '"Retain"'),
    ({"colour": "red"}, 'unknown field "spec.colour"'),
    ({"lock": {"nodes": 3}}, 'unknown field "spec.lock.nodes"'),
    ({"name": "demo"}, 'unknown field "spec.name"'),
]  # fmt: skip


def _id(case: Any) -> str | None:
    return json.dumps(case)[:60] if isinstance(case, dict) else ""


@pytest.mark.parametrize(("spec", "message"), INVALID, ids=_id)
def test_invalid_resource__refused_with_what_was_expected(
    namespace: str, spec: dict[str, Any], message: str
) -> None:
    document = cluster(namespace, spec)
    answer = kubectl("create", "--dry-run=server", "-f", "-", document=document)
    assert answer.returncode != 0, "accepted"
    assert message in answer.stderr


NAMES = ["x" * 41, "1st", "my.cluster", "a-"]


@pytest.mark.parametrize("name", NAMES)
def test_name_that_no_service_can_have__refused(namespace: str, name: str) -> None:
    document = cluster(namespace, {}, name)
    answer = kubectl("create", "--dry-run=server", "-f", "-", document=document)
    assert answer.returncode != 0, "accepted"
    assert "metadata.name: " in answer.stderr


@pytest.fixture(scope="module")
def made(namespace: str) -> Iterator[str]:
    """A real object: what cannot change later shows only there."""
    document = cluster(namespace, {"monitoring": {"grafana": {"enabled": False}}}, "made")
    must("create", "-f", "-", document=document)
    yield "made"
    kubectl("-n", namespace, "delete", "dss", "made", "--wait=false")


FIXED: list[tuple[dict[str, Any], str]] = [
    ({"queue": {"partitions": 64}}, "spec.queue.partitions cannot change: messages would land"),
    ({"queue": {"replicationFactor": 1}}, "spec.queue.replicationFactor cannot change"),
    ({"redis": {"enabled": False, "externalUrl": "redis://r"}}, "spec.redis.enabled cannot change"),
    ({"pod": {"storageClassName": "fast"}}, "spec.pod.storageClassName cannot change"),
    ({"lock": {"storage": {"size": "4Gi"}}}, "spec.lock.storage.size cannot change"),
    ({"queue": {"storage": {"size": "1Gi"}}}, "spec.queue.storage.size cannot change"),
    ({"cache": {"storage": {"size": "1Gi"}}}, "spec.cache.storage.size cannot change"),
    ({"redis": {"storage": {"size": "2Gi"}}}, "spec.redis.storage.size cannot change"),
    ({"monitoring": {"prometheus": {"storage": {"size": "4Gi"}}}},
     "spec.monitoring.prometheus.storage.size cannot change"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), FIXED, ids=_id)
def test_what_cannot_change_later__refused_says_put_it_back(
    namespace: str, made: str, spec: dict[str, Any], message: str
) -> None:
    patch = json.dumps({"spec": spec})
    answer = kubectl(
        "-n", namespace, "patch", "dss", made, "--type=merge", "--dry-run=server", "-p", patch
    )
    assert answer.returncode != 0, "accepted"
    assert message in answer.stderr
    assert "put the old value back" in answer.stderr


CHANGEABLE = [
    {"image": "dss-node:9.9.9"},
    {"lock": {"replicas": 5, "heartbeatMs": 150}},
    {"queue": {"replicas": 5}},
    {"cache": {"capacityMiB": 512, "leaseMs": 2_000}},
    {"ingress": {"enabled": True, "host": "dss.local"}},
    {"monitoring": {"prometheus": {"enabled": False}}},
    {"auth": {"enabled": False}},
    {"reclaim": "Delete", "paused": False},
]


@pytest.mark.parametrize("spec", CHANGEABLE, ids=_id)
def test_what_may_change_later__accepted(namespace: str, made: str, spec: dict[str, Any]) -> None:
    patch = json.dumps({"spec": spec})
    must("-n", namespace, "patch", "dss", made, "--type=merge", "--dry-run=server", "-p", patch)
