"""What is done about diagnoses: the ladder, and each guard alone in the way of an action."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from scenes import healthy, row, stuck

from dss.remediation import Action, Attempt, Diagnosis, Policy, cooldown_until, decide

NOW = 1_800_000_000.0
HOUR = 3_600.0
POLICY = Policy()
DRY = Policy(mode="DryRun")


def electing(leaderless_ms: int = 60_000, state: Any = "Electing") -> Diagnosis:
    return Diagnosis(
        group_id=1, state=state, reason="TermsNotRising", message="no leader",
        leaderless_ms=leaderless_ms,
    )  # fmt: skip


def uncertain(leaderless_ms: int = 60_000) -> Diagnosis:
    return electing(leaderless_ms, "Uncertain")


def ladder(*ages_s: float, **fields: Any) -> list[Attempt]:
    """backoff, restart, alert, so many seconds ago."""
    kinds = ("backoff", "restart", "alert")
    return [row(k, NOW - s, **fields) for k, s in zip(kinds, ages_s, strict=False)]


def closed(action: str, age_s: float, recovered_age_s: float, **fields: Any) -> Attempt:
    return row(action, NOW - age_s, recovered_at=NOW - recovered_age_s, **fields)


CASES: list[tuple[str, list[Diagnosis], Policy, list[Attempt], str, str, str]] = [
    # the ladder
    ("stuck: back off first", [stuck()], POLICY, [], "", "backoff", "SplitVote"),
    ("still stuck after a window: restart", [stuck()], POLICY, ladder(30), "",
     "restart", "SplitVote"),
    ("still stuck after that: alert", [stuck()], POLICY, ladder(70, 30), "",
     "alert", "LadderExhausted"),
    ("alerted: nothing more", [stuck()], POLICY, ladder(100, 60, 30), "", "none", "Alerted"),
    ("alerted, hours ago: nothing more", [stuck()], POLICY, ladder(9e5, 8e5, 7e5), "",
     "none", "Alerted"),
    ("a backoff that could not be carried out is not repeated", [stuck()], POLICY,
     ladder(30, outcome="HTTP 503"), "", "restart", "SplitVote"),
    ("a backoff begun by an operator that died is not repeated", [stuck()], POLICY,
     ladder(30, outcome="started"), "", "restart", "SplitVote"),
    ("a restart begun by an operator that died is not repeated", [stuck()], POLICY,
     [*ladder(60), row("restart", NOW - 30, outcome="started")], "", "alert", "LadderExhausted"),
    ("an alert before does not stand for the one after", [stuck()], POLICY,
     [row("alert", NOW - 200), *ladder(100, 60)], "", "alert", "LadderExhausted"),
    ("an earlier alert does not stand in the way of the ladder", [stuck()], POLICY,
     [row("alert", NOW - 200)], "", "backoff", "SplitVote"),
    ("a new episode begins at the first rung", [stuck()], POLICY,
     [closed("backoff", 2 * HOUR, 2 * HOUR - 60)], "", "backoff", "SplitVote"),
    # nobody may be touched: tell
    ("no safe candidate: alert", [stuck(candidate=None, reason="NoSafeCandidate")], POLICY, [], "",
     "alert", "NoSafeCandidate"),
    ("no safe candidate: alert once", [stuck(candidate=None, reason="NoSafeCandidate")], POLICY,
     [row("alert", NOW - 5)], "", "none", "Alerted"),
    ("no leader and not to be seen why: alert", [uncertain()], POLICY, [], "", "alert", "NoLeader"),
    ("alert once", [uncertain()], POLICY, [row("alert", NOW - 5)], "", "none", "Alerted"),
    ("electing for two windows: alert", [electing()], POLICY, [], "", "alert", "NoLeader"),
    ("the restarted one is still away: no alert yet", [uncertain()], POLICY, ladder(99, 59), "",
     "none", "TermsNotRising"),
    ("the restarted one is being watched: no alert yet",
     [msgspec.structs.replace(electing(), reason="Watching")], POLICY, ladder(99, 69), "",
     "none", "Watching"),
    ("the restarted one stays away: alert", [uncertain()], POLICY, ladder(99, 60), "",
     "alert", "NoLeader"),
    # nothing to do, or not yet
    ("healthy", [healthy()], POLICY, [], "", "none", "Healthy"),
    ("electing", [electing(59_999)], POLICY, [], "", "none", "TermsNotRising"),
    ("uncertain", [uncertain(59_999)], POLICY, [], "", "none", "TermsNotRising"),
    ("no groups", [], POLICY, [], "", "none", "Healthy"),
    ("switched off", [stuck()], Policy(mode="Off"), [], "", "none", "Off"),
    ("switched off, recovered", [healthy()], Policy(mode="Off"), ladder(60), "", "none", "Off"),
    ("a rollout", [stuck()], POLICY, [], "a rollout is under way", "none", "Busy"),
    ("a rollout, nobody to be touched", [uncertain(59_999)], POLICY, [], "scaling", "none",
     "Busy"),
    ("busy for two windows: alert", [stuck(leaderless_ms=60_000)], POLICY, [], "a pod is ending",
     "alert", "Busy"),
    ("busy for two windows: alert once", [stuck(leaderless_ms=60_000)], POLICY,
     [row("alert", NOW - 5)], "a pod is ending", "none", "Alerted"),
    ("busy with the restart that was just made: no alert", [uncertain()], POLICY,
     ladder(99, 59), "a pod is ending", "none", "Busy"),
    ("busy, of another group long ago: alert", [stuck(leaderless_ms=60_000)], POLICY,
     [closed("restart", 2 * HOUR, HOUR, group_id=0)], "a pod is ending", "alert", "Busy"),
    # one action in flight
    ("the backoff has its window", [stuck()], POLICY, ladder(29.9), "", "none", "InFlight"),
    ("the restart has its window", [stuck()], POLICY, ladder(70, 29.9), "", "none", "InFlight"),
    ("one in flight, of another group", [stuck()], POLICY,
     [row("backoff", NOW - 5, group_id=0)], "", "none", "InFlight"),
    ("in flight though it could not be carried out", [stuck()], POLICY,
     ladder(5, outcome="HTTP 503"), "", "none", "InFlight"),
    ("in flight: no alert either", [uncertain()], POLICY, ladder(5), "", "none", "InFlight"),
    ("the window is the policy's", [stuck()], Policy(window_ms=60_000), ladder(45), "",
     "none", "InFlight"),
    ("the clock was set back", [stuck()], POLICY, ladder(-500), "", "none", "InFlight"),
    ("recovered: no longer in flight", [stuck()], POLICY, [closed("backoff", 5, 1, group_id=0)],
     "", "backoff", "SplitVote"),
    # cooldown after a restart
    ("cooldown", [stuck()], POLICY, [closed("restart", 299, 250)], "", "none", "Cooldown"),
    ("cooldown is over", [stuck()], POLICY, [closed("restart", 300, 250)], "",
     "backoff", "SplitVote"),
    ("cooldown holds for every group", [stuck()], POLICY,
     [closed("restart", 200, 150, group_id=0)], "", "none", "Cooldown"),
    ("cooldown does not hold back the alert", [stuck()], POLICY, ladder(70, 31), "",
     "alert", "LadderExhausted"),
    ("a backoff has no cooldown", [stuck()], POLICY, [closed("backoff", 31, 20)], "",
     "backoff", "SplitVote"),
    ("doubled by the second restart", [stuck()], POLICY,
     [closed("restart", 3_000, 2_900), closed("restart", 599, 500)], "", "none", "Cooldown"),
    ("the doubled one is over", [stuck()], POLICY,
     [closed("restart", 3_000, 2_900), closed("restart", 600, 500)], "", "backoff", "SplitVote"),
    ("not doubled after an hour of health", [stuck()], POLICY,
     [closed("restart", 6_000, 5_000), closed("restart", 400, 350)], "",
     "backoff", "SplitVote"),
    ("doubled: it took long to recover", [stuck()], Policy(cooldown_ms=600_000),
     [closed("restart", 6_000, 2_000), closed("restart", 1_100, 1_000)], "", "none", "Cooldown"),
    # the hourly cap
    ("two in the last hour", [stuck()], POLICY,
     [closed("backoff", 900, 800), closed("backoff", 700, 600)], "", "backoff", "SplitVote"),
    ("three in the last hour", [stuck()], POLICY,
     [closed("backoff", 900, 800), closed("backoff", 700, 600), closed("backoff", 500, 400)], "",
     "alert", "HourlyCap"),
    ("one of the three is an hour old", [stuck()], POLICY,
     [closed("backoff", 3_600, 800), closed("backoff", 700, 600), closed("backoff", 500, 400)], "",
     "backoff", "SplitVote"),
    ("restarts count", [stuck()], Policy(max_per_hour=2),
     [closed("backoff", 3_400, 3_000), closed("restart", 3_300, 3_000)], "", "alert", "HourlyCap"),
    ("alerts do not count", [stuck()], Policy(max_per_hour=1), [closed("alert", 900, 800)], "",
     "backoff", "SplitVote"),
    ("failures count", [stuck()], Policy(max_per_hour=1),
     [closed("backoff", 900, 800, outcome="HTTP 503")], "", "alert", "HourlyCap"),
    ("the cap stops the second rung", [stuck()], Policy(max_per_hour=1), ladder(31), "",
     "alert", "HourlyCap"),
    ("the cap is told of once", [stuck()], Policy(max_per_hour=1),
     [*ladder(900), row("alert", NOW - 800)], "", "none", "Alerted"),
    ("the ladder goes on when the hour has passed", [stuck()], Policy(max_per_hour=1),
     [*ladder(3_600), row("alert", NOW - 800)], "", "restart", "SplitVote"),
    ("none allowed", [stuck()], Policy(max_per_hour=0), [], "", "alert", "HourlyCap"),
    ("a cap beyond the history counts as six", [stuck()], Policy(max_per_hour=99),
     [closed("backoff", 600 - n * 60, 590 - n * 60) for n in range(6)], "", "alert", "HourlyCap"),
    ("five of six", [stuck()], Policy(max_per_hour=99),
     [closed("backoff", 600 - n * 60, 590 - n * 60) for n in range(5)], "",
     "backoff", "SplitVote"),
    # recovered
    ("a leader again", [healthy()], POLICY, ladder(10), "", "recovered", "Recovered"),
    ("a leader again, though busy", [healthy()], POLICY, ladder(10), "rollout",
     "recovered", "Recovered"),
    ("a leader again after an alert", [healthy()], POLICY, [row("alert", NOW - 9)], "",
     "recovered", "Recovered"),
    ("a leader in the other group only", [healthy(0), stuck()], POLICY, ladder(10), "",
     "none", "InFlight"),
    ("recovered once", [healthy()], POLICY, [closed("backoff", 10, 5)], "", "none", "Healthy"),
    # dry runs
    ("dry: back off", [stuck()], DRY, [], "", "backoff", "SplitVote"),
    ("dry: not each tick", [stuck()], DRY, ladder(5, outcome="dry-run"), "", "none", "InFlight"),
    ("dry: next rung", [stuck()], DRY, ladder(30, outcome="dry-run"), "", "restart", "SplitVote"),
    ("dry: alert", [stuck()], DRY, ladder(70, 30, outcome="dry-run"), "",
     "alert", "LadderExhausted"),
    ("dry: nothing more", [stuck()], DRY, ladder(90, 60, 5, outcome="dry-run"), "",
     "none", "Alerted"),
    ("dry: capped", [stuck()], DRY,
     [closed("backoff", 900 - n, 800, outcome="dry-run") for n in range(3)], "",
     "alert", "HourlyCap"),
    ("what was withheld does not bind later", [stuck()], POLICY, ladder(5, outcome="dry-run"), "",
     "backoff", "SplitVote"),
    ("what was done binds dry runs", [stuck()], DRY, ladder(30), "", "restart", "SplitVote"),
    ("a leader again, dry", [healthy()], DRY, ladder(10, outcome="dry-run"), "",
     "recovered", "Recovered"),
    # several groups
    ("the lower group first", [stuck(0), stuck(1)], POLICY, [], "", "backoff", "SplitVote"),
    ("group 0 is done with, group 1 waits for the cooldown", [stuck(0), stuck(1)], POLICY,
     ladder(100, 60, 31, group_id=0), "", "none", "Alerted"),
    ("what was done for group 0 counts for group 0 alone", [stuck(0), stuck(1)], POLICY,
     ladder(2_000, 1_900, 1_800, group_id=0), "", "backoff", "SplitVote"),
    ("group 0 healthy", [healthy(0), stuck(1)], POLICY, [], "", "backoff", "SplitVote"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("diagnoses", "policy", "history", "busy", "kind", "reason"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_decision(
    diagnoses: list[Diagnosis],
    policy: Policy,
    history: list[Attempt],
    busy: str,
    kind: str,
    reason: str,
) -> None:
    action = decide(diagnoses, policy, history, busy, NOW)
    assert (action.kind, action.reason) == (kind, reason), action.message
    assert action.message
    assert action.dry_run == (policy.mode == "DryRun" and kind in ("backoff", "restart", "alert"))
    if kind in ("backoff", "restart"):
        assert (action.member, action.boot_id, action.term) == ("lock-3", "boot-lock-3", 20)
    else:
        assert (action.member, action.boot_id) == ("", "")


def test_action__says_whom_what_and_why() -> None:
    action = decide([stuck(0), stuck(1)], POLICY, [], "", NOW)
    assert action == Action(
        kind="backoff", group_id=0, member="lock-3", boot_id="boot-lock-3", term=20,
        reason="SplitVote",
        message="group 0: split vote; lock-3 gives up its candidacy for a while",
    )  # fmt: skip


def test_group_that_is_done_with__the_other_group_goes_on() -> None:
    history = ladder(2_000, 1_900, 1_800, group_id=0)
    action = decide([stuck(0), stuck(1)], POLICY, history, "", NOW)
    assert (action.kind, action.group_id) == ("backoff", 1)


def test_cooldown__doubles_up_to_an_hour_and_starts_anew_after_an_hour_of_health() -> None:
    history: list[Attempt] = []
    lengths = []
    at = NOW
    for _ in range(6):
        history.append(row("restart", at, recovered_at=at + 60))
        lengths.append(cooldown_until(history, POLICY) - at)
        at += 3_650  # recovered for less than an hour
    assert lengths == [300, 600, 1_200, 2_400, 3_600, 3_600]
    history.append(row("restart", at + 100, recovered_at=at + 160))
    assert cooldown_until(history, POLICY) - (at + 100) == 300


def test_cooldown__a_group_that_never_recovered_is_no_hour_of_health() -> None:
    history = [closed("restart", 7_100, 7_000), row("backoff", NOW - 6_900, group_id=0)]
    history.append(row("restart", NOW, group_id=0))
    assert cooldown_until(history, POLICY) - NOW == 600


def test_cooldown__without_restarts_none() -> None:
    assert cooldown_until(ladder(5), POLICY) == 0
    assert cooldown_until([row("restart", NOW, outcome="dry-run")], POLICY) == 0
    assert cooldown_until([row("restart", NOW, outcome="dry-run")], DRY) == NOW + 300
