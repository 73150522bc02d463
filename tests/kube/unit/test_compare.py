"""What counts as a difference between declared and live objects, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from dss_operator.compare import differences, removal_patch

Object = dict[str, Any]

# (declared, live, fields that are missing or other, fields that are extra)
CASES: list[tuple[str, Object, Object, list[str], list[str]]] = [
    ("same", {"a": 1}, {"a": 1}, [], []),
    ("default added", {"a": 1}, {"a": 1, "b": 2}, [], []),
    ("value changed", {"a": 1}, {"a": 2}, ["a"], []),
    ("value lost", {"a": 1}, {}, ["a"], []),
    ("type changed", {"a": 1}, {"a": "1"}, ["a"], []),
    ("deep", {"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["a.b.c"], []),
    ("map lost", {"a": {"b": 1, "c": 2}}, {}, ["a.b", "a.c"], []),
    ("map became text", {"a": {"b": 1}}, {"a": "x"}, ["a"], []),
    ("empty map left out", {"a": {}}, {}, [], []),
    ("empty list left out", {"a": []}, {}, [], []),
    ("false left out", {"a": False}, {}, [], []),
    ("empty text left out", {"a": ""}, {}, [], []),
    ("zero left out", {"a": 0}, {}, [], []),
    ("none declared", {"a": None}, {}, [], []),
    ("false against true", {"a": False}, {"a": True}, ["a"], []),
    ("true lost", {"a": True}, {}, ["a"], []),
    ("status ignored", {"a": 1, "status": {"x": 1}}, {"a": 1}, [], []),
    ("inner status compared", {"a": {"status": 1}}, {"a": {}}, ["a.status"], []),
    ("label added", {"labels": {"a": "1"}}, {"labels": {"a": "1", "b": "2"}}, [], []),
    ("data added", {"data": {"a": "1"}}, {"data": {"a": "1", "b": "2"}}, [], ["data.b"]),
    ("data changed", {"data": {"a": "1"}}, {"data": {"a": "2"}}, ["data.a"], []),
    ("selector added", {"selector": {"a": "1"}}, {"selector": {"a": "1", "b": "2"}}, [],
     ["selector.b"]),
    ("node selector added", {"nodeSelector": {}}, {"nodeSelector": {"b": "2"}}, [],
     ["nodeSelector.b"]),
    ("plain list", {"a": [1, 2]}, {"a": [1, 2]}, [], []),
    ("plain list longer", {"a": [1]}, {"a": [1, 2]}, ["a"], []),
    ("plain list shorter", {"a": [1, 2]}, {"a": [1]}, ["a"], []),
    ("plain list reordered", {"a": ["x", "y"]}, {"a": ["y", "x"]}, ["a[0]", "a[1]"], []),
    ("list of lists", {"a": [[1]]}, {"a": [[2]]}, ["a[0][0]"], []),
    ("named items reordered", {"env": [{"name": "a"}, {"name": "b"}]},
     {"env": [{"name": "b"}, {"name": "a"}]}, [], []),
    ("named item changed", {"env": [{"name": "a", "value": "1"}]},
     {"env": [{"name": "a", "value": "2"}]}, ["env[0].value"], []),
    ("named item lost", {"env": [{"name": "a"}, {"name": "b"}]}, {"env": [{"name": "b"}]},
     ["env[0]"], []),
    ("named item added", {"env": [{"name": "a"}]}, {"env": [{"name": "a"}, {"name": "b"}]}, [],
     ["env"]),
    ("named item with default", {"ports": [{"name": "a", "port": 1}]},
     {"ports": [{"name": "a", "port": 1, "protocol": "TCP"}]}, [], []),
    ("mount by its path", {"m": [{"mountPath": "/a", "name": "x"}, {"mountPath": "/b"}]},
     {"m": [{"mountPath": "/b"}, {"mountPath": "/a", "name": "x"}]}, [], []),
    ("same port twice", {"p": [{"port": 1, "protocol": "TCP"}, {"port": 1, "protocol": "UDP"}]},
     {"p": [{"port": 1, "protocol": "TCP"}, {"port": 1, "protocol": "UDP"}]}, [], []),
    ("owner added", {"ownerReferences": [{"uid": "1"}]},
     {"ownerReferences": [{"uid": "1"}, {"uid": "2"}]}, [], []),
    ("owner lost", {"ownerReferences": [{"uid": "1"}]}, {}, ["ownerReferences[0]"], []),
    ("same quantity", {"limits": {"memory": "1024Mi"}}, {"limits": {"memory": "1Gi"}}, [], []),
    ("same cpu", {"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}, [], []),
    ("cpu as number", {"limits": {"cpu": 1}}, {"limits": {"cpu": "1"}}, [], []),
    ("other quantity", {"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1G"}},
     ["requests.memory"], []),
    ("quantity elsewhere is text", {"value": "1024Mi"}, {"value": "1Gi"}, ["value"], []),
    ("pod default added", {"template": {"spec": {}}}, {"template": {"spec": {"dnsPolicy": "x"}}},
     [], []),
    ("host network added", {"template": {"spec": {}}},
     {"template": {"spec": {"hostNetwork": True}}}, [], ["template.spec.hostNetwork"]),
    ("host network off", {"template": {"spec": {}}},
     {"template": {"spec": {"hostNetwork": False}}}, [], []),
    ("init container added", {"template": {"spec": {"containers": []}}},
     {"template": {"spec": {"initContainers": [{"name": "a"}]}}}, [],
     ["template.spec.initContainers"]),
    ("command added", {"containers": [{"name": "a"}]},
     {"containers": [{"name": "a", "command": ["sh"], "terminationMessagePath": "/x"}]}, [],
     ["containers[0].command"]),
    ("request added", {"requests": {"cpu": "1"}}, {"requests": {"cpu": "1", "gpu": "1"}}, [],
     ["requests.gpu"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "live", "missing", "extra"),
    [case[1:] for case in CASES],
    ids=[c[0] for c in CASES],
)
def test_declared_against_live__exactly_these_differences(
    declared: Object, live: Object, missing: list[str], extra: list[str]
) -> None:
    found = differences(declared, live)
    assert [str(each) for each in found if not each.extra] == missing
    assert [str(each) for each in found if each.extra] == extra


def test_removal_patch__null_for_keys_and_whole_lists_for_items() -> None:
    declared = {"data": {"a": "1"}, "spec": {"env": [{"name": "a"}], "deep": [{"env": []}]}}
    live = {
        "data": {"a": "1", "b": "2"},
        "spec": {"env": [{"name": "a"}, {"name": "b"}], "deep": [{"env": []}]},
    }
    patch = removal_patch(declared, differences(declared, live))
    assert patch == {"data": {"b": None}, "spec": {"env": [{"name": "a"}]}}


def test_removal_patch_inside_a_list__replaces_the_outermost_list() -> None:
    declared = {"spec": {"containers": [{"name": "c", "env": [{"name": "a"}]}]}}
    live = {"spec": {"containers": [{"name": "c", "env": [{"name": "a"}, {"name": "b"}]}]}}
    patch = removal_patch(declared, differences(declared, live))
    assert patch == {"spec": {"containers": declared["spec"]["containers"]}}
