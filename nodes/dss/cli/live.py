"""A table on a terminal that is drawn again in place. rich is imported only when there is one.

What must not live here: asking nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from dss.cli.output import style_of


class LiveOutput:
    """`with LiveOutput() as live`, then `live.update(...)` as often as there is news."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(no_color=bool(os.environ.get("NO_COLOR")))
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveOutput:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def update(
        self, lines: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """The lines, the table below, and the time."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
        now = Text(time.strftime("%H:%M:%S"), style="dim")
        self._live.update(Group(*(Text(line) for line in lines), table, now), refresh=True)
