"""Diagnoses, policy and history -> the one thing to do now.

The ladder of an episode, of each group by itself: `backoff`, then `restart` of the competing
candidate, then `alert`, then nothing more. An episode of a group lasts from its first row until
its rows are marked as recovered; so it is known from the history alone, and who is restarted in
the middle forgets nothing. Each rung is taken at most once in an episode, whatever came of it.

A group that has had no leader for two windows and is no split vote is only told of (`alert`).

Between two actions the whole window passes, so that what is seen then was caused by nothing
before the first one. After a restart a cooldown runs, doubled by each further one until the
cluster has been left alone, recovered, for an hour; and so many actions an hour are the most:
beyond them a person is told, and the ladder goes on when the hour has passed.

What must not live here: clocks, acting, how history is kept (record.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dss.remediation.model import HISTORY_MAX, Action, ActionKind, Attempt, Diagnosis, Policy

HOUR_S: Final = 3_600.0
ACTIONS_PER_HOUR_MAX: Final = HISTORY_MAX - 4
"""A higher `max_per_hour` counts as this: the history has to hold these rows beside the open
episode of the other group (backoff, restart, alert) and this group's alert."""
DRY_RUN: Final = "dry-run"
TOUCHING: Final[tuple[ActionKind, ...]] = ("backoff", "restart")
"""The actions that touch a member."""


def decide(
    diagnoses: Sequence[Diagnosis],
    policy: Policy,
    history: Sequence[Attempt],
    busy: str,
    now: float,
) -> Action:
    """The next action; its `kind` is `none` when there is nothing to do, or not yet.

    Args:
        history: rows in the order in which they were made.
        busy: why nothing may be done now (rollout, scaling, deletion, paused); "" when free.
        now: unix seconds.
    """
    if policy.mode == "Off":
        return _none("Off", "remediation is switched off")
    recovered = _recovered(diagnoses, history)
    if recovered is not None:
        return recovered
    leaderless = [d for d in diagnoses if d.state != "Healthy"]
    if not leaderless:
        return _none("Healthy", "every group has a leader")
    rows = counted(history, policy)
    if busy:
        return _while_busy(leaderless, policy, rows, busy, now)
    waits = _in_flight(rows, policy, now)
    if waits is not None:
        return waits
    refusals = []
    for found in leaderless:
        action = _for_group(found, policy, rows, now)
        if action.kind != "none":
            return action
        refusals.append(action)
    return refusals[0]


def counted(history: Sequence[Attempt], policy: Policy) -> list[Attempt]:
    """The rows that bear on this mode: what was only withheld binds no later `Enforce`."""
    return [row for row in history if policy.mode == "DryRun" or row.outcome != DRY_RUN]


def is_open(row: Attempt) -> bool:
    return row.recovered_at <= 0


def cooldown_until(history: Sequence[Attempt], policy: Policy) -> float:
    """Until when no member is touched after the last restart, unix seconds; 0 when none was."""
    until, restarts = 0.0, 0
    before: list[Attempt] = []
    for row in counted(history, policy):
        if row.action not in TOUCHING:
            continue
        if before and _left_alone(before, row.at):
            restarts = 0
        if row.action == "restart":
            cooldown_s = min(policy.cooldown_ms / 1000 * 2.0 ** min(restarts, 32), HOUR_S)
            until = row.at + cooldown_s
            restarts += 1
        before.append(row)
    return until


def _left_alone(rows: Sequence[Attempt], now: float) -> bool:
    """All of them recovered, and that an hour ago."""
    return not any(map(is_open, rows)) and now - max(r.recovered_at for r in rows) >= HOUR_S


def _none(reason: str, message: str) -> Action:
    return Action(kind="none", reason=reason, message=message)


def _recovered(diagnoses: Sequence[Diagnosis], history: Sequence[Attempt]) -> Action | None:
    for found in diagnoses:
        rows = [row for row in history if row.group_id == found.group_id and is_open(row)]
        if rows and found.state == "Healthy":
            return Action(
                kind="recovered",
                group_id=found.group_id,
                term=found.term,
                reason="Recovered",
                message=f"group {found.group_id} has a leader again: {found.message}",
            )
    return None


def _acted_lately(rows: Sequence[Attempt], policy: Policy, now: float) -> bool:
    """A member that was restarted may still be away."""
    since = now - 2 * policy.window_ms / 1000
    return any(row.action in TOUCHING and is_open(row) and row.at > since for row in rows)


def _in_flight(rows: Sequence[Attempt], policy: Policy, now: float) -> Action | None:
    """One action at a time in a cluster; an action has the window to show what it did."""
    settle_s = policy.window_ms / 1000
    for row in rows:
        if row.action in TOUCHING and is_open(row) and now < row.at + settle_s:
            return _none(
                "InFlight",
                f"the {row.action} of {row.member} has {settle_s:.0f} s to show its effect",
            )
    return None


def _while_busy(
    leaderless: Sequence[Diagnosis],
    policy: Policy,
    rows: Sequence[Attempt],
    busy: str,
    now: float,
) -> Action:
    """Nothing is touched; but what keeps the cluster busy may itself never end."""
    for found in leaderless:
        long = found.leaderless_ms >= 2 * policy.window_ms
        if long and not _acted_lately(rows, policy, now):
            episode = [row for row in rows if row.group_id == found.group_id and is_open(row)]
            return _alert(found, policy, episode, "Busy", f"not touched, for {busy}: ")
    return _none("Busy", f"not now: {busy}")


def _for_group(found: Diagnosis, policy: Policy, rows: Sequence[Attempt], now: float) -> Action:
    episode = [row for row in rows if row.group_id == found.group_id and is_open(row)]
    taken = {row.action for row in episode}
    if found.state != "ElectionStuck":
        early = found.leaderless_ms < 2 * policy.window_ms or found.reason == "Watching"
        if early or _acted_lately(rows, policy, now):
            return _none(found.reason, found.message)
        return _alert(found, policy, episode, "NoLeader", "nothing is done, for: ")
    if found.candidate is None:
        return _alert(found, policy, episode, found.reason, "")
    if "backoff" not in taken:
        kind: ActionKind = "backoff"
    elif "restart" not in taken:
        kind = "restart"
    else:
        return _alert(
            found, policy, episode, "LadderExhausted", "backoff and restart did not help: "
        )
    until = cooldown_until(rows, policy)
    if now < until:
        left = f"{until - now:.0f} s more"
        return _none("Cooldown", f"the cooldown after the last restart lasts {left}")
    cap = min(policy.max_per_hour, ACTIONS_PER_HOUR_MAX)
    recent = sum(row.action in TOUCHING and row.at > now - HOUR_S for row in rows)
    if recent >= cap:
        why = f"{recent} actions in the last hour, {cap} are allowed: "
        return _alert(found, policy, episode, "HourlyCap", why)
    return _touch(kind, found, policy)


def _touch(kind: ActionKind, found: Diagnosis, policy: Policy) -> Action:
    assert found.candidate is not None
    what = "gives up its candidacy for a while" if kind == "backoff" else "is restarted"
    return Action(
        kind=kind,
        group_id=found.group_id,
        member=found.candidate,
        boot_id=found.boot_id,
        term=found.term,
        reason="SplitVote",
        message=f"group {found.group_id}: {found.message}; {found.candidate} {what}",
        dry_run=policy.mode == "DryRun",
    )


def _alert(
    found: Diagnosis, policy: Policy, episode: Sequence[Attempt], reason: str, why: str
) -> Action:
    """Tell a person, unless that was the last thing done in this episode."""
    if episode and episode[-1].action == "alert":
        return _none("Alerted", f"{why}{found.message}; an alert has been raised")
    return Action(
        kind="alert",
        group_id=found.group_id,
        term=found.term,
        reason=reason,
        message=f"group {found.group_id}: {why}{found.message}; a person must look",
        dry_run=policy.mode == "DryRun",
    )
