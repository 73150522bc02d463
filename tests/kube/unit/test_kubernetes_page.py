"""docs/kubernetes.md knows every condition's and Event's reason that the operator can write."""

from __future__ import annotations

import re
from pathlib import Path

from dss_operator.remedy import REASONS
from dss_operator.settings import VARIABLES
from dss_operator.status import CONDITIONS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/kubernetes.md").read_text()


def _found(pattern: str, *files: str) -> set[str]:
    return {
        word for file in files for word in re.findall(pattern, (ROOT / file).read_text(), re.DOTALL)
    }


def _missing(words: set[str]) -> list[str]:
    return sorted(word for word in words if not re.search(rf"\b{word}\b", PAGE))


def test_page__has_every_reason_of_a_condition() -> None:
    status = "operator/dss_operator/status.py"
    reasons = _found(r'Verdict\(\s*"\w+",\s*"(\w+)"', status)
    reasons |= _found(r'reason = "([A-Z]\w+)"', status)
    reasons |= _found(r'return "([A-Z]\w+)", ', "nodes/dss/remediation/diagnose.py")
    reasons |= _found(r'self\._is\("\w+", "(\w+)"', "nodes/dss/remediation/diagnose.py")
    assert {"Serving", "NotSupported", "FieldConflict", "Unreachable", "HasLeader"} <= reasons
    assert _missing(reasons | set(CONDITIONS)) == []


def test_page__has_every_reason_of_an_event() -> None:
    told, remedy = "operator/dss_operator/told.py", "operator/dss_operator/remedy.py"
    reasons = _found(r'Event\(\s*"(?:Normal|Warning)",\s*"(\w+)"', told, remedy)
    failed = {f"{REASONS[kind]}Failed" for kind in ("backoff", "restart")}
    assert {"Created", "Repaired", "SecretReplaced"} <= reasons
    assert _missing(reasons | set(REASONS.values()) | failed) == []


def test_page__has_every_setting_that_people_may_want() -> None:
    plumbing = {"POD_NAMESPACE", "POD_ID", "METRICS_PORT", "HEALTH_PORT", "DSS_TEST_EXIT_AT_CALL"}
    assert _missing(set(VARIABLES) - plumbing) == []
