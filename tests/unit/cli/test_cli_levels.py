"""Feature levels in `dss status` and `dss members ls`."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from dss.cli import cluster, members

NODE = {"id": "lock-1", "role": "lock", "url": "http://a", "up": True}


def seen(supports: int | None, *groups: dict[str, Any]) -> dict[str, Any]:
    rows = [{"group_id": n, "role": "follower", "term": 1} | each for n, each in enumerate(groups)]
    return {"url": "http://a", "groups": rows, "problem": "", "supports": supports}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (seen(2, {"feature_level": 2}, {"feature_level": 2}), "2"),
        (seen(2, {"feature_level": 2}, {"feature_level": 1}), "1 of 2"),
        (seen(None, {}, {}), "1"),
        (seen(2), ""),
        (None, ""),
    ],
)
def test_status__level_of_the_groups_and_what_the_node_supports(
    said: dict[str, Any] | None, shown: str
) -> None:
    view = cluster._merge(NODE, said)
    [row] = cluster._rows({"nodes": [view]})
    assert row[-1] == shown


def test_members__level_of_each_group_and_what_each_member_supports(
    capsys: pytest.CaptureFixture[str],
) -> None:
    member = {
        "node_id": "lock-1", "incarnation": "f" * 32, "role": "voter", "leader": True, "up": True,
        "lost_disk": False, "lag": 0, "last_contact_ms": 0,
    }  # fmt: skip
    groups = [
        {"group_id": 0, "feature_level": 3, "members": [member | {"supports_level": 7}]},
        {"group_id": 1, "members": [member]},
    ]
    members._show(argparse.Namespace(json=False), {"groups": groups})
    header, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[-3:] == ["level", "supports", "incarnation"]
    assert first[-3:-1] == ["3", "7"]
    assert second[-3:-1] == ["1", "-"], "a release without levels says none"
