"""docs/dsscluster.md: every field, what a change does to it, every rule's message."""

from __future__ import annotations

import msgspec

from dss.topology.crd_rules import RULES
from dss.topology.model import KUBE_DEFAULTS
from dss.topology.render_fields import LATER, render_fields_page

PAGE = render_fields_page()


def test_page__has_every_field_of_the_model() -> None:
    def leaves(value: object, path: str) -> list[str]:
        if isinstance(value, dict) and value:
            return [each for key, below in value.items() for each in leaves(below, f"{path}.{key}")]
        return [path.lstrip(".")]

    spec = msgspec.to_builtins(KUBE_DEFAULTS)
    del spec["name"]
    for path in leaves(spec, ""):
        assert f"| `{path}" in PAGE, path


def test_page__what_a_transition_rule_refuses_says_so() -> None:
    spec = PAGE.partition("## What else")[0].splitlines()
    rows = {line.split("`")[1]: line for line in spec if line.startswith("| `")}
    for path in ("queue.partitions", "lock.storage.size", "redis.enabled", "pod.storageClassName"):
        assert rows[path].endswith("| refused |"), rows[path]
    assert "NotSupported" in rows["image"]
    assert "NotSupported" in rows["lock.replicas"]
    assert rows["paused"].endswith("| at once |")


def test_effects__are_of_fields_that_exist() -> None:
    for path in LATER:
        assert f"| `{path}" in PAGE, path


def test_page__quotes_every_rule_between_fields() -> None:
    for rules in RULES.values():
        for rule in rules:
            if "oldSelf" not in rule["rule"]:
                assert rule["message"].partition(": ")[2] in PAGE, rule
