"""Who waits on a terminal is told for whom, after a second.

What must not live here: waiting itself.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Final

from dss.cli.connect import nodes
from dss.cli.http import CliError, segment
from dss.cli.output import duration

TELL_AFTER_S: Final = 1.0


@contextlib.contextmanager
def patience(args: argparse.Namespace) -> Iterator[None]:
    """While `args.name` is waited for, for up to `args.wait` seconds."""
    if args.json or args.wait <= TELL_AFTER_S or not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def tell() -> None:
        if over.wait(TELL_AFTER_S):
            return
        path = f"/v1/locks/{segment(args.name)}/explain"
        with contextlib.suppress(CliError):
            summary = nodes(args).ask("lock", "GET", path).json()["summary"]
            if not over.is_set():
                wait = duration(1_000 * args.wait)
                print(f'waiting up to {wait} for lock "{args.name}":', file=sys.stderr)
                print("\n".join(f"  {line}" for line in summary), file=sys.stderr)

    threading.Thread(target=tell, name="patience", daemon=True).start()
    try:
        yield
    finally:
        over.set()
