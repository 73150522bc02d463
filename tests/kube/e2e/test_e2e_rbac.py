"""The operator's rights are the least: each one given was used by this suite, none was missing.

Runs late: it looks back at all that the suite has made the operator do.
"""

from __future__ import annotations

import time

import pytest
from e2e_faults import AuditLog, Call, need
from e2e_kubectl import Kubectl, Object, say
from e2e_operator import DEPLOYMENT, SYSTEM, USER, Operator

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def calls(suite_audit: AuditLog | None) -> list[Call]:
    need("E2E_AUDIT_LOG", "the operator's rights are compared with what it did")
    assert suite_audit is not None
    time.sleep(2)
    return suite_audit.since(USER)


def granted(kubectl: Kubectl) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of all roles bound to the operator."""
    found: set[tuple[str, str, str]] = set()
    bindings = kubectl.items("clusterrolebindings") + kubectl.items("-n", SYSTEM, "rolebindings")
    for binding in bindings:
        subjects = [(found["kind"], found["name"], found.get("namespace", ""))
                    for found in binding.get("subjects") or []]  # fmt: skip
        if ("ServiceAccount", DEPLOYMENT, SYSTEM) not in subjects:
            continue
        ref = binding["roleRef"]
        at = ["-n", SYSTEM] if ref["kind"] == "Role" else []
        role: Object = kubectl.get(*at, ref["kind"].lower(), ref["name"])
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], rule
            found |= {(group, resource, verb) for group in rule["apiGroups"]
                      for resource in rule["resources"] for verb in rule["verbs"]}  # fmt: skip
    return found


def test_each_right_left_out__was_not_needed(calls: list[Call], operator: Operator) -> None:
    # In a namespace that is being deleted everything new is forbidden, whatever the rights.
    refused = sorted({call.line for call in calls if call.code == 403
                      and "being terminated" not in call.message})  # fmt: skip
    assert refused == []
    assert len(calls) > 100
    say(f"{len(calls)} API calls of the operator in the suite, none refused for lack of a right")


def test_each_right_given__was_used(
    calls: list[Call], kubectl: Kubectl, operator: Operator
) -> None:
    used = {call.kind for call in calls if call.code < 400 or call.code in (404, 409, 429)}
    # A server-side apply that makes an object is asked for as a patch, and allowed as both.
    used |= {(c.group, c.resource, "create") for c in calls if (c.verb, c.code) == ("patch", 201)}
    unused = sorted(right for right in granted(kubectl) if right not in used)
    assert unused == [], "given, and never used by the whole suite"
