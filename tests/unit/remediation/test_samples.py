"""Answers of members as samples, and the bounded window of them."""

from __future__ import annotations

from typing import Any

import pytest

from dss.remediation import GroupSample, Sample, SampleWindow, parse_status, unanswered
from dss.remediation.samples import SAMPLES_MAX

GROUP = {
    "group_id": 1,
    "term": 7,
    "voted_for": "lock-2",
    "role": "candidate",
    "leader": None,
    "last_log_term": 6,
    "last_log_index": 40,
    "commit_index": 39,
    "voters": ["lock-1", "lock-2", "lock-3"],
    "elections": {"started": 3},
}
BODY: dict[str, Any] = {
    "node_id": "lock-2",
    "boot_id": "b1",
    "role": "lock",
    "links": {
        "lock-3": {"up": True, "since_ms": 5},
        "lock-1": {"up": True, "since_ms": 9, "reason": ""},
        "queue-1": {"up": False, "since_ms": 5},
    },
    "groups": [GROUP],
}


def test_status__what_matters_is_taken_and_the_rest_ignored() -> None:
    sample = parse_status("lock-2", BODY, 77)
    assert sample.answered
    assert (sample.at_ms, sample.member, sample.boot_id) == (77, "lock-2", "b1")
    assert sample.links_up == ("lock-1", "lock-3")
    assert sample.groups == (
        GroupSample(
            group_id=1, role="candidate", leader=None, term=7, voted_for="lock-2",
            last_log_term=6, last_log_index=40, voters=("lock-1", "lock-2", "lock-3"),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"node_id": "lock-1"}, "lock-1 answers at its address"),
        ({"boot_id": 5}, "not understood"),
        ({"links": None}, "not understood"),
        ({"groups": [GROUP | {"term": "7"}]}, "not understood"),
        ({"groups": [{"group_id": 1}]}, "not understood"),
        ({"groups": {}}, "not understood"),
    ],
)
def test_status_that_says_something_else__counts_as_no_answer(
    change: dict[str, Any], reason: str
) -> None:
    sample = parse_status("lock-2", BODY | change, 1)
    assert not sample.answered
    assert reason in sample.reason
    assert sample.groups == ()


def test_body_that_is_no_object__counts_as_no_answer() -> None:
    assert not parse_status("lock-2", ["x"], 1).answered  # type: ignore[arg-type]


def test_unanswered_without_a_reason__still_unanswered() -> None:
    assert not unanswered("lock-1", 5, "").answered


def sample_at(at_ms: int, member: str = "lock-1") -> Sample:
    return Sample(at_ms=at_ms, member=member, boot_id="b")


def test_two_windows__kept_with_the_newest_one_before_them() -> None:
    window = SampleWindow(15_000)
    for at_ms in range(0, 100_000, 7_000):
        window.add(sample_at(at_ms))
    assert [s.at_ms for s in window.samples()] == [63_000, 70_000, 77_000, 84_000, 91_000, 98_000]
    assert window.latest("lock-1") == sample_at(98_000)
    assert window.latest("lock-2") is None


def test_window_sampled_too_often__stays_bounded() -> None:
    window = SampleWindow(10**9)
    for at_ms in range(3 * SAMPLES_MAX):
        window.add(sample_at(at_ms))
    assert len(window.samples()) == SAMPLES_MAX


def test_window__forgets_members_that_are_gone() -> None:
    window = SampleWindow(30_000)
    for member in ("lock-1", "lock-2"):
        window.add(sample_at(1, member))
    window.keep(["lock-2"])
    assert [s.member for s in window.samples()] == ["lock-2"]
    window.clear()
    assert window.samples() == []
