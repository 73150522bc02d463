"""When fdatasync runs inline, and when in a thread."""

from __future__ import annotations

import pytest

from dss.drivers.sync_policy import SYNC_WINDOW, THREADED_WINDOWS, SyncPolicy

MS = 1_000_000


def after(*syncs: tuple[int, int]) -> SyncPolicy:
    """A policy that has seen (how many, ns each)."""
    policy = SyncPolicy()
    for count, ns in syncs:
        for _ in range(count):
            policy.note(ns)
    return policy


@pytest.mark.parametrize(
    ("disk", "syncs", "threaded"),
    [
        ("quick", [(128, MS // 5)], False),
        ("slow", [(128, 2 * MS)], True),
        ("slow as a rule", [(63, MS // 5), (65, 2 * MS)], True),
        (
            "a processor that others want: a fifth take some ms",
            [(102, MS // 5), (26, 5 * MS)],
            False,
        ),
        ("one long stall", [(127, MS // 5), (1, 400 * MS)], False),
        ("stalls again and again", [(100, MS // 5), (28, 20 * MS)], True),
    ],
)
def test_disk__decides_where_it_is_synced(disk: str, syncs: list[tuple[int, int]], threaded: bool):
    assert sum(count for count, _ in syncs) == SYNC_WINDOW
    assert after(*syncs).threaded is threaded, disk


def test_slow_disk__is_looked_at_again_inline():
    policy = after((SYNC_WINDOW, 5 * MS))
    for _ in range(SYNC_WINDOW * THREADED_WINDOWS):
        assert policy.threaded
        policy.note(0)
    assert not policy.threaded
    for _ in range(SYNC_WINDOW):
        policy.note(MS // 10)
    assert not policy.threaded
