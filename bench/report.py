"""The benchmark's result: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
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


def ratios(workloads: list[Workload]) -> dict[str, float]:
    """The median over the rounds of each round's ratio: the machine's drift cancels out."""
    rounds = {w.key: w.rounds for w in workloads if w.rounds}
    return {
        title: median(
            factor * a.per_s / b.per_s for a, b in zip(rounds[over], rounds[under], strict=True)
        )
        for title, over, under, factor, _ in RATIOS
        if over in rounds and under in rounds
    }


def write(
    path: Path, workloads: list[Workload], idle: dict[str, Any], settings: dict[str, Any]
) -> None:
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
        "ratios": ratios(workloads),
        "idle": idle,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def show(console: Console, workloads: list[Workload], idle: dict[str, Any]) -> None:
    table = Table(title="median of the rounds", title_justify="left")
    for column, right in (
        ("what", False), ("in flight", True), ("per second", True), ("unit", False),
        ("p50 ms", True), ("p99 ms", True),
    ):  # fmt: skip
        table.add_column(column, justify="right" if right else "left")
    for w in workloads:
        if w.rounds:
            m = w.median()
            table.add_row(
                w.title, str(w.in_flight), f"{m.per_s:,.0f}", w.unit,
                f"{m.p50_ms:.2f}", f"{m.p99_ms:.2f}",
            )  # fmt: skip
    console.print(table)
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
