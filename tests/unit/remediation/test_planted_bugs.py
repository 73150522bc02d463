"""Each guard taken out of the rules by itself: a case of the tables must notice.

The text of a rule is changed, the changed module is run over the tables. A text that is no longer
found fails the test: move the planted bug along with the rule.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_decide
import test_diagnose
from scenes import NOW_MS, POLICY, VOTERS, split_vote

import dss.remediation

FOLDER = Path(dss.remediation.__file__).parent

DIAGNOSE = [
    ("self._strangers() or ", ""),
    ("self._silent() or ", ""),
    ("self._unsettled_members() or ", ""),
    (" or self._lost_links()", ""),
    ("if missed:", "if False:"),
    ("if without:", "if False:"),
    ("if not self.voters:", "if False:"),
    ("if tuple(sorted(seen.group.voters)) != self.voters:", "if False:"),
    ("if len(peers) + 1 < need:", "if len(peers) + 1 < need - 1:"),
    ("[p for p in self.voters if p != voter and p in sample.links_up]", "list(sample.links_up)"),
    ('if age_ms > self.gap_ms else ""', 'if False else ""'),
    ("        if led:\n", "        if False:\n"),
    ("role == _LEADER or group.leader is not None", "role == _LEADER"),
    ("group.role == _LEADER or group.leader", "group.leader"),
    ("if watching:", "if False:"),
    ("if len(run) < self.policy.min_samples:", "if False:"),
    (" and max(gaps) <= self.gap_ms", ""),
    ("times[0] <= self.now_ms - self.policy.window_ms and ", ""),
    ("return tuple(recent[start:])", "return tuple(recent)"),
    ("if rise < policy.min_term_rise:", "if False:"),
    ("if rise < policy.min_term_rise:", "if rise <= policy.min_term_rise:"),
    ("if len(standing) < 2:", "if False:"),
    ("if seen.group.term > base\n", "if True\n"),
    ("if member not in self.volatile", "if True"),
    ("and self.latest[member].group.role != _LEARNER", ""),
    ("and not self._strictly_ahead(member)", ""),
    ("self._log(member) > other", "self._log(member) >= other"),
    ("-ordinal(m), m)", "ordinal(m), m)"),
    ("return min(allowed", "return max(allowed"),
    ("(group.last_log_term, group.last_log_index)", "(group.last_log_index,)"),
    (">= quorum(voters)", ">= 1"),
    (
        "(view.group.leader, view.group.term) == (leader.member, leader.group.term)",
        "view.group.leader == leader.member",
    ),
]

DECIDE = [
    ('if policy.mode == "Off":', "if False:"),
    ("if recovered is not None:", "if False:"),
    ("    if busy:", "    if False:"),
    ("if waits is not None:", "if False:"),
    ("if row.action in TOUCHING and is_open(row) and now", "if row.action in TOUCHING and now"),
    ("or row.outcome != DRY_RUN", "or True"),
    ('policy.mode == "DryRun" or row.outcome', "row.outcome"),
    ("if before and _left_alone(before, row.at):", "if False:"),
    ("2.0 ** min(restarts, 32)", "1.0"),
    ("if now < until:", "if False:"),
    ("if recent >= cap:", "if False:"),
    ("if recent >= cap:", "if recent > cap:"),
    ("min(policy.max_per_hour, ACTIONS_PER_HOUR_MAX)", "policy.max_per_hour"),
    ("sum(row.action in TOUCHING and", "sum("),
    ('if "backoff" not in taken:', "if True:"),
    ('elif "restart" not in taken:', "elif True:"),
    ("if found.candidate is None:", "if False:"),
    ('if episode and episode[-1].action == "alert":', "if False:"),
    ("row.group_id == found.group_id and is_open(row)]\n    taken", "is_open(row)]\n    taken"),
    (" and is_open(row)]\n    taken", "]\n    taken"),
    ("found.leaderless_ms < 2 * policy.window_ms", "found.leaderless_ms < policy.window_ms"),
    (' or found.reason == "Watching"', ""),
    ("or _acted_lately(rows, policy, now)", ""),
]


def changed(name: str, old: str, new: str) -> ModuleType:
    """The module with the first `old` made `new`."""
    source = (FOLDER / f"{name}.py").read_text()
    assert old in source, f"{name}.py has no {old!r} any more"
    module = ModuleType(f"planted_{name}")
    exec(compile(source.replace(old, new, 1), f"{name}.py", "exec"), module.__dict__)
    return module


def diagnose_cases_pass(module: ModuleType) -> bool:
    expected: list[tuple[Any, dict[str, Any], tuple[Any, ...]]] = [
        *((case[1], case[2], (case[3], case[4], None)) for case in test_diagnose.NOT_STUCK),
        *(
            (change, options, ("ElectionStuck", None, candidate))
            for _, change, options, candidate in test_diagnose.STILL_STUCK
        ),
    ]
    for change, options, (state, reason, candidate) in expected:
        defaults = {"members": VOTERS, "policy": POLICY, "now_ms": NOW_MS, "groups": (1,)}
        try:
            [found] = module.diagnose(change(split_vote()), **(defaults | options))
        except (KeyError, StopIteration, RuntimeError):
            return False
        if (found.state, found.candidate) != (state, candidate):
            return False
        if reason is not None and found.reason != reason:
            return False
    return True


def decide_cases_pass(module: ModuleType) -> bool:
    for _, diagnoses, policy, history, busy, kind, reason in test_decide.CASES:
        try:
            action = module.decide(diagnoses, policy, history, busy, test_decide.NOW)
        except AssertionError:
            return False
        if (action.kind, action.reason) != (kind, reason):
            return False
    return True


@pytest.mark.parametrize(("old", "new"), DIAGNOSE)
def test_guard_taken_out_of_diagnose__noticed(old: str, new: str) -> None:
    assert not diagnose_cases_pass(changed("diagnose", old, new))


@pytest.mark.parametrize(("old", "new"), DECIDE)
def test_guard_taken_out_of_decide__noticed(old: str, new: str) -> None:
    assert not decide_cases_pass(changed("decide", old, new))


def test_nothing_taken_out__all_cases_pass() -> None:
    assert diagnose_cases_pass(changed("diagnose", "Whatever", "Whatever"))
    assert decide_cases_pass(changed("decide", "Diagnoses", "Diagnoses"))
