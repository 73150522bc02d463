"""The ledger: one line of JSON for every seed that was run, and the figures over all of them.

It is appended to as seeds finish, so a run that was stopped goes on where it was. All lines must
come from the same code: the first names its digest. What must not live here: running (runner.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

import dss
from dss.testing.runner import Outcome

SIMULATED: Final = ("base", "core", "drivers", "storage", "testing")


class Line(msgspec.Struct):
    """One seed."""

    code: str
    seconds: float
    outcome: Outcome


_decode = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


def code_digest() -> str:
    """Of the sources that the simulation runs."""
    digest = hashlib.blake2b(digest_size=6)
    for package in SIMULATED:
        for path in sorted((Path(dss.__file__).parent / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Ledger:
    """A file of lines. Raises ValueError when it was begun with other code or another length."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._code = code_digest()
        self.outcomes: dict[int, Outcome] = {}
        if path.exists():
            for text in path.read_bytes().splitlines():
                self._read(_decode(text))

    def _read(self, line: Line) -> None:
        if (line.code, line.seconds) != (self._code, self._seconds):
            raise ValueError(
                f"{self._path} has seeds of {line.seconds:g} s of the code {line.code}, these "
                f"would be {self._seconds:g} s of {self._code}: begin a new file"
            )
        self.outcomes[line.outcome.seed] = line.outcome

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.seed] = outcome
        with self._path.open("ab") as file:
            file.write(_encode(Line(self._code, self._seconds, outcome)) + b"\n")

    def report(self) -> str:
        """For docs/testing.md."""
        return f"code {self._code}, {self._seconds:g} s a seed\n{report(self.outcomes.values())}"


def report(outcomes: Iterable[Outcome]) -> str:
    """The figures, in lines of markdown."""
    outcomes = sorted(outcomes, key=lambda each: each.seed)
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for each in outcomes:
        totals.update(each.totals)
        faults.update(each.faults)
    failed = [each.seed for each in outcomes if each.failure]
    ends = sorted(each.settle_ms for each in outcomes) or [0.0]
    worst = max(outcomes, key=lambda each: each.settle_ms, default=None)
    cpu_s = sum(each.cpu_s for each in outcomes) / max(1, len(outcomes))
    return "\n".join(
        (
            f"| seeds | {len(outcomes):,} ({_ranges([each.seed for each in outcomes])}) |",
            "|---|---|",
            f"| failed | {len(failed)} {failed or ''} |",
            f"| CPU a seed | {cpu_s:.2f} s |",
            f"| converged after the heal | at most {ends[-1] / 1000:.2f} s "
            f"(seed {worst.seed if worst else 0}), 99 % within "
            f"{ends[int(0.99 * (len(ends) - 1))] / 1000:.2f} s, half within "
            f"{ends[len(ends) // 2] / 1000:.2f} s |",
            f"| totals | {_figures(totals)} |",
            f"| faults | {_figures(faults)} |",
        )
    )


def _figures(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts) if counts[name])


def _ranges(seeds: list[int]) -> str:
    """1-40, 51-60"""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and parts[-1][1] == seed - 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in parts)
