"""A benchmark's result: a table for people, JSON for machines.

Shared with the locks' benchmark, whose goals are in goals.py: `ratio`, `rates`, `write_json`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Workload

RATIOS = (
    ("stream 64 / etcd 64", "stream-64", "etcd-64", 1.0, "≥ 4x"),
    ("stream 1 / etcd 1", "stream-1", "etcd-1", 1.0, ""),
    ("HTTP lock requests 64 / hello, JSON POST 64", "http-64", "post-64", 2.0, "≥ 0.5x"),
    ("HTTP lock requests 64 / hello, GET 64", "http-64", "get-64", 2.0, ""),
    ("HTTP lock requests 1 / hello, JSON POST 1", "http-1", "post-1", 2.0, ""),
)
"""Title, numerator, denominator, requests a cycle of the numerator, the aim."""


def ratio(workloads: Sequence[Workload], over: str, under: str) -> float | None:
    """The median over the rounds of each round's ratio: the machine's drift cancels out."""
    rounds = {w.key: w.rounds for w in workloads if w.rounds}
    if over not in rounds or under not in rounds:
        return None
    pairs = zip(rounds[over], rounds[under], strict=False)  # a failed run ends within a round
    return median(a.per_s / b.per_s for a, b in pairs)


def ratios(workloads: Sequence[Workload]) -> dict[str, float]:
    """Those of RATIOS that there are figures for."""
    found = {title: (ratio(workloads, a, b), factor) for title, a, b, factor, _ in RATIOS}
    return {title: value * factor for title, (value, factor) in found.items() if value is not None}


def write(
    path: Path, workloads: Sequence[Workload], idle: dict[str, Any], settings: dict[str, Any]
) -> None:
    write_json(path, workloads, settings, {"ratios": ratios(workloads), "idle": idle})


def write_json(
    path: Path, workloads: Sequence[Workload], settings: dict[str, Any], rest: dict[str, Any]
) -> None:
    """What was measured, on what and when, and what follows from it (`rest`)."""
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "settings": settings,
        "workloads": {
            w.key: {
                "title": w.title,
                "unit": w.unit,
                "in_flight": w.in_flight,
                "median": asdict(w.median()),
                "rounds": [asdict(r) for r in w.rounds],
            }
            for w in workloads
            if w.rounds
        },
        **rest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def rates(workloads: Sequence[Workload]) -> Table:
    """What was measured; the units only where there are any."""
    units = any(w.unit for w in workloads)
    table = Table(title="median of the rounds", title_justify="left")
    unit = ["unit"] if units else []
    for column in ("what", "in flight", "per second", *unit, "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for w in workloads:
        if w.rounds:
            m = w.median()
            unit = [w.unit] if units else []
            table.add_row(
                w.title, str(w.in_flight), f"{m.per_s:,.0f}", *unit,
                f"{m.p50_ms:.2f}", f"{m.p99_ms:.2f}",
            )  # fmt: skip
    return table


def show(console: Console, workloads: Sequence[Workload], idle: dict[str, Any]) -> None:
    console.print(rates(workloads))
    aims = {title: aim for title, _, _, _, aim in RATIOS}
    for title, value in ratios(workloads).items():
        aim = f"   (aim {aims[title]})" if aims[title] else ""
        console.print(f"{title}: [bold]{value:.2f}x[/bold]{aim}")
    if not idle:
        return
    for who, part in idle.items():
        cpu = part["cpu_percent"]
        rss = part["rss_mib"]
        console.print(
            f"idle {who}: {cpu['all']:.1f} % of one core together"
            + ("   (aim 10 %)" if who == "dss" else "")
            + f"; memory {max(rss.values()):.0f} MiB at most"
            + ("   (aim 60 MiB)" if who == "dss" else "")
        )
        console.print(
            "   " + ", ".join(f"{n} {cpu[n]:.1f} % {rss[n]:.0f} MiB" for n in rss), highlight=False
        )
