"""Ctrl-C on a real terminal while `make` runs a program that ends well by itself."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from dss.local.terminal import own_foreground

stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
with own_foreground(os.environ):
    print("ready", flush=True)
    while not stop:
        signal.pause()
    print("stopped cleanly", flush=True)
"""
# A session of its own with the terminal as its controlling one, as a login shell has it.
AS_A_SHELL = (
    "import os; os.setsid(); os.close(os.open(os.ttyname(0), os.O_RDWR)); "
    "os.execvp('make', ['make', 'up'])"
)


@pytest.mark.parametrize("under_make_only", [True, False])
def test_ctrl_c_under_make__no_error_and_exit_0(tmp_path: Path, under_make_only: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # The counter-example: without MAKELEVEL make gets the Ctrl-C too and fails.
    prefix = "" if under_make_only else "unset MAKELEVEL; "
    (tmp_path / "Makefile").write_text(f"up:\n\t@{prefix}exec {sys.executable} program.py\n")
    main_fd, terminal_fd = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AS_A_SHELL],
        cwd=tmp_path, stdin=terminal_fd, stdout=terminal_fd, stderr=terminal_fd,
    )  # fmt: skip
    os.close(terminal_fd)
    try:
        seen = read_until(main_fd, b"ready", 20)
        assert b"ready" in seen, seen.decode()
        os.write(main_fd, b"\x03")
        seen = read_until(main_fd, b"\0", 20)  # to the end
        code = process.wait(20)
    finally:
        process.kill()
        process.wait()
        os.close(main_fd)
    assert b"stopped cleanly" in seen, seen.decode()
    if under_make_only:
        assert code == 0, seen.decode()
        assert b"***" not in seen, seen.decode()
    else:
        assert code in (2, 130, -signal.SIGINT)


def read_until(fd: int, wanted: bytes, timeout_s: float) -> bytes:
    """What the terminal shows, up to `wanted` or until every program has closed it."""
    seen, deadline = b"", time.monotonic() + timeout_s
    while wanted not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                seen += os.read(fd, 4096)
            except OSError:  # EIO: nobody has the terminal open any more
                break
    return seen
