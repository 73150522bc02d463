"""Resources that cannot work: the API server itself says no, and what was expected instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from crd_cases import FIXED, INVALID, NAMES
from crd_kubectl import cluster, kubectl, must

pytestmark = pytest.mark.kube


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
