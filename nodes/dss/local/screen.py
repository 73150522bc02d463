"""What `dss up` prints: lines that stay, one progress line that does not, the table.

What must not live here: what the lines say about nodes (up), colours beyond a terminal.
Plain text on purpose: `dss up` runs for days and must not keep a table library in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

_CLEAR = "\r\x1b[K"


class Screen:
    """Writes to a terminal or a file. Progress and colours only on a terminal."""

    def __init__(self, out: TextIO, environ: Mapping[str, str]) -> None:
        self._out = out
        self._terminal = out.isatty() and environ.get("TERM") != "dumb"
        self._colour = self._terminal and not environ.get("NO_COLOR")
        self._open = False
        encoding = getattr(out, "encoding", None) or "utf-8"
        try:
            "✔✘·".encode(encoding)
            self._good, self._bad = "✔", "✘"
        except (UnicodeEncodeError, LookupError):
            self._good, self._bad = "ok", "!!"

    def line(self, text: str = "") -> None:
        """One line that stays."""
        if self._open:
            self._out.write(_CLEAR)
            self._open = False
        self._out.write(text + "\n")
        self._out.flush()

    def good(self, text: str) -> None:
        self.line(f"{self._paint('32', self._good)} {text}")

    def bad(self, text: str) -> None:
        self.line(f"{self._paint('31', self._bad)} {text}")

    def progress(self, text: str) -> None:
        """One line that the next one replaces; nothing where lines cannot be replaced."""
        if self._terminal:
            self._out.write(f"{_CLEAR}  {text[:100]}")
            self._out.flush()
            self._open = True

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for index, row in enumerate((header, *rows)):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            text = "  " + "   ".join(cells).rstrip()
            self.line(self._paint("1", text) if index == 0 else text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text
