"""The terminal's foreground process group, so that Ctrl-C under `make` ends well.

The terminal sends Ctrl-C to every process of its foreground group: `make up` would get it too,
print an error and fail, although all nodes stopped cleanly. While `dss up` runs under make it
therefore moves into a group of its own, makes that the foreground, and gives it back at the end.
Ctrl-Z is ignored meanwhile: make would wait for a stopped child without a way to continue it.

What must not live here: colours, tables. Source: setpgid(2), tcsetpgrp(3).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def own_foreground(environ: Mapping[str, str]) -> Iterator[None]:
    """Take the terminal's foreground while the block runs, if make is the parent."""
    if "MAKELEVEL" not in environ or not sys.stdin.isatty():
        yield
        return
    terminal, before = sys.stdin.fileno(), os.getpgrp()
    if os.tcgetpgrp(terminal) != before or os.getpid() == before:
        yield
        return
    # A background process that sets the foreground group is sent SIGTTOU.
    old = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTTOU, signal.SIGTSTP)
    }
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal is gone
            os.tcsetpgrp(terminal, before)
        for number, handler in old.items():
            signal.signal(number, handler)
