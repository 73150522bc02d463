"""How results look: JSON for programs, aligned text for pipes, rich tables for a terminal.

What must not live here: asking nodes. rich is imported only when a table goes to a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO


class Output:
    """Standard output of one command. `as_json` turns every result into one JSON document."""

    def __init__(self, as_json: bool, out: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout

    def show(self, data: Any, *lines: str) -> None:
        """`data` with --json, else the lines."""
        if self.as_json:
            self._write(json.dumps(data, ensure_ascii=False, indent=2))
        else:
            for line in lines:
                self._write(line)

    def table(
        self, data: Any, header: Sequence[str], rows: Sequence[Sequence[object]], empty: str
    ) -> None:
        """`data` with --json, else the rows; `empty` is said when there are none."""
        if self.as_json:
            self.show(data)
            return
        cells = [[_cell(value) for value in row] for row in rows]
        if not cells:
            self._write(empty)
        elif self._out.isatty():
            self._rich(header, cells)
        else:
            widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
            for row in (list(header), *cells):
                padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                self._write("  ".join(padded).rstrip())

    def raw(self, body: bytes) -> None:
        """Bytes as they are; a line end follows on a terminal only."""
        self._out.flush()
        self._out.buffer.write(body)
        if self._out.isatty() and not body.endswith(b"\n"):
            self._out.buffer.write(b"\n")
        self._out.buffer.flush()

    def _rich(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
        Console(file=self._out, no_color=bool(os.environ.get("NO_COLOR"))).print(table)

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")


_GOOD: Final = ("leader", "ready", "up", "holds")
_WRONG: Final = ("down", "does not answer", "its disk was lost", "no leader")


def style_of(cell: str) -> str:
    """A colour for what a reader looks for: who leads, who waits, what is wrong."""
    if cell in _GOOD or cell.startswith("leads "):
        return "green"
    if cell.startswith("waits"):
        return "yellow"
    return "red" if cell.startswith(_WRONG) else ""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):  # zeros say nothing: `S 3`, not `I 0 S 3 E 0 M 0`
        return " ".join(f"{name} {_cell(item)}" for name, item in value.items() if item) or "-"
    if isinstance(value, (list, tuple)):
        return " ".join(_cell(item) for item in value) or "-"
    return (value or "-") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(ms: float | None) -> str:
    """`350 ms`, `12 s`, `4 min`, `2 h`: for people; JSON keeps the ms."""
    if ms is None:
        return "-"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 120_000:
        text = f"{ms / 1_000:.1f}" if ms < 10_000 else f"{ms / 1_000:.0f}"
        return text.removesuffix(".0") + " s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.0f} h"
