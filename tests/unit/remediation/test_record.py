"""What is stored of decisions: counters, rows, which go first, and the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scenes import healthy, row, stuck

from dss.remediation import HISTORY_MAX, TOUCHING, Action, Attempt, Policy, Record, decide

NOW = 1_800_000_000.123
POLICY = Policy()
BACKOFF = Action(kind="backoff", group_id=1, member="lock-3", boot_id="b", term=20)


def test_begin__a_row_before_anything_is_done_and_its_outcome_after() -> None:
    record = Record().begin(BACKOFF, NOW)
    assert record.history == (row("backoff", NOW, outcome="started"),)
    assert (record.attempts, record.backoffs, record.restarts) == (1, 1, 0)
    assert record.ended("done").history == (row("backoff", NOW, outcome="done"),)


def test_ended_twice__the_first_outcome_stays() -> None:
    record = Record().begin(BACKOFF, NOW).ended("HTTP 409").ended("done")
    assert record.history[-1].outcome == "HTTP 409"
    assert Record().ended("done") == Record()


def test_dry_run__a_row_but_no_count() -> None:
    action = Action(kind="restart", group_id=1, member="lock-3", term=20, dry_run=True)
    record = Record().begin(action, NOW)
    assert record.history == (row("restart", NOW, outcome="dry-run"),)
    assert (record.attempts, record.restarts) == (0, 0)


def test_merged_with_an_older_copy__the_row_its_outcome_and_its_count_stay() -> None:
    at = NOW + 0.0004567  # finer than what is stored
    older = Record()
    started = older.begin(BACKOFF, at)
    stored = Record.from_status(json.loads(json.dumps(started.to_status(POLICY))))
    done = started.ended("done")
    assert older.merged(done) == done
    assert stored.merged(done) == done
    assert done.merged(stored) == done
    assert done.merged(done) == done


def test_merged_with_what_another_did__both_rows_in_their_order() -> None:
    mine = Record().begin(BACKOFF, NOW).ended("done")
    theirs = Record().begin(Action(kind="restart", group_id=1, member="lock-2", term=9), NOW - 60)
    both = theirs.ended("done").merged(mine)
    assert [each.action for each in both.history] == ["restart", "backoff"]
    assert (both.backoffs, both.restarts) == (1, 1)
    recovered = mine.begin(Action(kind="recovered", group_id=1), NOW + 60)
    assert recovered.merged(mine).history[0].recovered_at > 0
    assert mine.merged(recovered).history[0].recovered_at > 0


def test_none__changes_nothing() -> None:
    record = Record().begin(BACKOFF, NOW)
    assert record.begin(Action(kind="none", reason="Healthy"), NOW + 1) is record


def test_recovered__marks_the_groups_open_rows() -> None:
    rows = (
        row("backoff", NOW - 9, recovered_at=NOW - 5),
        row("backoff", NOW - 4),
        row("backoff", NOW - 3, group_id=0),
    )
    record = Record(history=rows).begin(Action(kind="recovered", group_id=1), NOW)
    assert [r.recovered_at for r in record.history] == [NOW - 5, NOW, 0.0]
    assert record.recoveries == 1


def test_record__through_json_unchanged() -> None:
    record = Record(backoffs=4, restarts=3, alerts=2, recoveries=1).begin(BACKOFF, NOW)
    record = record.begin(Action(kind="recovered", group_id=1), NOW + 2)
    record = record.begin(Action(kind="restart", group_id=0, member="lock-1", term=3), NOW + 9)
    status = json.loads(json.dumps(record.to_status(POLICY)))
    assert Record.from_status(status) == record
    assert status["attempts"] == 9
    assert status["lastActionAt"] == "2027-01-15T08:00:09.123Z"
    assert status["cooldownUntil"] == "2027-01-15T08:05:09.123Z"
    assert status["history"][0] == {
        "at": "2027-01-15T08:00:00.123Z", "groupId": 1, "action": "backoff", "member": "lock-3",
        "term": 20, "outcome": "started", "recoveredAt": "2027-01-15T08:00:02.123Z",
    }  # fmt: skip
    assert "recoveredAt" not in status["history"][1]


@pytest.mark.parametrize("status", [None, {}, {"attempts": 0, "history": []}])
def test_nothing_stored__an_empty_record(status: Any) -> None:
    assert Record.from_status(status) == Record()


@pytest.mark.parametrize(
    "status",
    [
        {"history": [{}]},
        {"history": 5},
        {"history": ["x"]},
        {"backoffs": "many"},
        {"history": [{"at": "yesterday", "groupId": 1, "action": "backoff", "outcome": "done"}]},
        {"history": [{"at": "2027-01-15T08:00:00Z", "groupId": 1, "action": "x", "outcome": ""}]},
    ],
)
def test_nonsense_stored__refused(status: Any) -> None:
    with pytest.raises(ValueError, match=r"status\.remediation was not understood"):
        Record.from_status(status)


def kept(rows: list[Attempt]) -> tuple[Attempt, ...]:
    """The rows after one more backoff now."""
    made = Record(history=tuple(rows)).begin(BACKOFF, NOW)
    assert len(made.history) == HISTORY_MAX
    assert made.history[-1].at == NOW
    return made.history


def test_history_full__closed_rows_older_than_an_hour_go_before_those_within_it() -> None:
    old = [row("backoff", NOW - 4_000 - n, recovered_at=NOW - 3_900) for n in range(4)]
    new = [row("backoff", NOW - 600 + n, recovered_at=NOW - 100) for n in range(6)]
    assert kept([*old, *new]) == (*old[1:], *new, row("backoff", NOW, outcome="started"))


def test_history_full__alerts_that_bind_nothing_go_first() -> None:
    open_rows = [row("backoff", NOW - 9_000), row("restart", NOW - 8_000)]
    alerts = [row("alert", NOW - 7_000), row("alert", NOW - 6_000)]
    new = [row("backoff", NOW - 600 + n, group_id=0, recovered_at=NOW - 100) for n in range(6)]
    history = kept([*open_rows, *alerts, *new])
    assert alerts[0] not in history
    assert alerts[1] in history
    assert set(open_rows) < set(history)


def test_history_full__dry_runs_go_before_what_was_done() -> None:
    done = [row("backoff", NOW - 900 + n, recovered_at=NOW - 100) for n in range(6)]
    dry = [row("backoff", NOW - 60 + n, outcome="dry-run") for n in range(4)]
    assert kept([*done, *dry])[:6] == tuple(done)


def test_six_an_hour_with_the_other_group_open__all_rows_that_bind_fit() -> None:
    """The bound that ACTIONS_PER_HOUR_MAX is chosen for."""
    policy = Policy(max_per_hour=99)
    record = Record(
        history=(
            row("backoff", NOW - 9_000, group_id=0),
            row("restart", NOW - 8_900, group_id=0),
            row("alert", NOW - 8_800, group_id=0),
        )
    )
    acted: list[float] = []
    now = NOW
    while now < NOW + 5 * 3_600:
        action = decide([stuck(0), stuck(1)], policy, record.history, "", now)
        assert action.group_id != 0, "the exhausted ladder of group 0 was forgotten"
        record = record.begin(action, now).ended("done")
        if action.kind in TOUCHING:
            acted.append(now)
            recovered = decide([stuck(0), healthy(1)], policy, record.history, "", now + 5)
            record = record.begin(recovered, now + 5)
        now += 30
        assert sum(at > now - 3_600 for at in acted) <= 6
    assert len(acted) == 30
