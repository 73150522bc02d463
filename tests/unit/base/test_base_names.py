"""The rule of names: the client, the routes and the lock machine refuse the same ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dss.api import problem
from dss.base.errors import Invalid
from dss.base.limits import NAME_BYTES_MAX
from dss.base.names import excess_size, has_dot_segment
from dss.client import checks
from dss.core.locks import commands

GOOD = (
    "a", "orders/42", "...", ".hidden", "a.", "..a/b..", "a/.../b", "é" * (NAME_BYTES_MAX // 2),
    "x" * NAME_BYTES_MAX,
)  # fmt: skip
DOTS = (".", "..", "/", "/a", "a/", "a//b", "./a", "a/..", "a/./b", "../" + "x" * 60)
LONG = (
    "x" * (NAME_BYTES_MAX + 1),
    "é" * (NAME_BYTES_MAX // 2 + 1),
    "😀" * (NAME_BYTES_MAX // 4 + 1),
)
CHECKS: dict[str, Callable[[str], None]] = {
    "client": checks.check_name, "routes": problem.check_name, "machine": commands.check_name,
}  # fmt: skip


def test_names__one_rule_in_bytes_and_segments():
    assert [excess_size(name) for name in GOOD] == [0] * len(GOOD)
    assert [excess_size(name) for name in LONG] == [257, 258, 260]
    assert [name for name in GOOD if has_dot_segment(name)] == []
    assert [name for name in ("", *DOTS) if not has_dot_segment(name)] == []


@pytest.mark.parametrize("where", CHECKS)
def test_names__the_same_ones_are_refused_by_the_client_the_routes_and_the_machine(where: str):
    check = CHECKS[where]
    for name in GOOD:
        check(name)
    for name in (*DOTS, *LONG):
        with pytest.raises((Invalid, ValueError), match=r"segment|part between|bytes"):
            check(name)
