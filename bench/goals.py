"""What the locks are to reach beside their peers, and how a run did: the table and the JSON.

Source: docs/performance.md. What must not live here: measuring, tables of rates (report.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Workload
from bench.report import rates, ratio, write_json


@dataclass(slots=True, frozen=True)
class Goal:
    """`measured` against `goal`; between `floor` and `goal` it is acceptable, not reached."""

    title: str
    measured: float
    goal: float
    unit: str
    at_most: bool = False
    floor: float | None = None

    @property
    def reached(self) -> bool:
        return self._meets(self.goal)

    @property
    def acceptable(self) -> bool:
        return self.reached or (self.floor is not None and self._meets(self.floor))

    def _meets(self, bound: float) -> bool:
        return self.measured <= bound if self.at_most else self.measured >= bound

    @property
    def mark(self) -> str:
        """✔ reached, ~ above the floor, ✘ below it."""
        return "✔" if self.reached else "~" if self.acceptable else "✘"

    def wanted(self) -> str:
        sign = "≤" if self.at_most else "≥"
        floor = f" (never below {self.floor:g})" if self.floor is not None else ""
        return f"{sign} {self.goal:g} {self.unit}{floor}"


RATIOS = (
    ("64 in flight, stream / etcd v3lock", "stream-64", "etcd-64", 10.0, 7.0),
    ("64 in flight, stream / PySyncObj tuned (no fsync)", "stream-64", "pysync-64", 4.0, None),
    ("64 in flight, HTTP / etcd v3lock", "http-64", "etcd-64", 1.5, None),
    ("1 in flight, stream / etcd v3lock", "stream-1", "etcd-1", 3.0, 2.5),
    ("hand-offs, 16 on one lock, stream / etcd v3lock", "handoff", "etcd-handoff", 10.0, None),
)
"""Title, numerator, denominator, goal, floor."""

HANDOFF_SPREAD = 3.0
FAILOVER_S = 0.5
FAILOVER_OF_ETCD = 0.4
LOCK_KIB = 1.0
RECOVERY_S = 10.0
KEEPALIVE_PERCENT = 20.0


def judge(workloads: Sequence[Workload], found: dict[str, Any]) -> list[Goal]:
    """The goals that this run has figures for."""
    goals = []
    for title, over, under, goal, floor in RATIOS:
        value = ratio(workloads, over, under)
        if value is not None:
            goals.append(Goal(title, value, goal, "x", floor=floor))
    for workload in workloads:
        if workload.key == "handoff" and workload.rounds:
            spread = median(r.p99_ms / r.p50_ms for r in workload.rounds)
            goals.append(Goal("hand-offs, p99 / p50", spread, HANDOFF_SPREAD, "x", at_most=True))
    if "out_of_turn" in found:
        goals.append(Goal("hand-offs out of turn", found["out_of_turn"], 0, "", at_most=True))
    if "failover" in found:
        p99 = found["failover"]["p99_s"]
        goals.append(Goal("fail-over, p99", p99, FAILOVER_S, "s", at_most=True))
        if "etcd_failover" in found:
            part = p99 / found["etcd_failover"]["median_s"]
            title = "fail-over, p99 / etcd's median"
            goals.append(Goal(title, part, FAILOVER_OF_ETCD, "x", at_most=True))
    for key, title, most, unit in (
        ("lock_kib", "memory per held lock", LOCK_KIB, "KiB"),
        ("recovery_s", "recovery of the log", RECOVERY_S, "s"),
    ):
        if key in found:
            goals.append(Goal(title, found[key], most, unit, at_most=True))
    if "keepalive" in found:
        kept = found["keepalive"]
        percent = kept["leader_percent"]
        title = "sessions kept alive, leader's CPU"
        goals.append(Goal(title, percent, KEEPALIVE_PERCENT, "% of a core", at_most=True))
        goals.append(Goal("sessions lost meanwhile", kept["expired"], 0, "", at_most=True))
    return goals


def show(console: Console, workloads: Sequence[Workload], goals: Sequence[Goal]) -> None:
    table = rates(workloads)
    if table.row_count:
        console.print(table)
    table = Table(title="goals", title_justify="left")
    for column in ("", "what", "measured", "to reach"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for goal in goals:
        style = "green" if goal.reached else "yellow" if goal.acceptable else "bold red"
        measured = f"{goal.measured:.2f} {goal.unit}"
        table.add_row(f"[{style}]{goal.mark}[/{style}]", goal.title, measured, goal.wanted())
    if table.row_count:
        console.print(table)


def write(
    path: Path,
    workloads: Sequence[Workload],
    goals: Sequence[Goal],
    found: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    judged = [
        {**asdict(goal), "reached": goal.reached, "acceptable": goal.acceptable} for goal in goals
    ]
    write_json(path, workloads, settings, {"found": found, "goals": judged})
