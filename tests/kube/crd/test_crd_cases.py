"""The table of refusals is complete: every rule of the CRD is broken by one of its cases.

Needs no Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crd_cases import FIXED, INVALID

from dss.topology.crd import render_crd


def rules(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield from schema.get("x-kubernetes-validations", [])
    for each in schema.get("properties", {}).values():
        yield from rules(each)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from rules(schema[key])


def test_every_rule__has_a_case_that_breaks_it() -> None:
    (version,) = render_crd()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    messages = [message for _, message in INVALID + FIXED]
    untested = [
        rule["message"]
        for rule in rules(spec)
        if not any(message in rule["message"] for message in messages)
    ]
    assert untested == []
    assert len(INVALID) >= 40
