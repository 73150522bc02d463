"""`dss lock run`: a command that must not outlive its lock.

The SDK holds the lock; the command is stopped as soon as it is lost, at the latest when the session
may end on the servers. What must not live here: arguments, keeping a session alive (dss.client).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from dss.base.errors import EXIT_TRY_AGAIN, DssError
from dss.cli.http import CliError
from dss.client import LockLost
from dss.client.sync import Held, LockHandle

_KILL_AFTER_S = 5.0
"""From SIGTERM to SIGKILL for a command whose lock is lost."""
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def run_holding(handle: LockHandle, held: Held, command: Sequence[str]) -> int:
    """Run `command`, then give the lock back; its exit code, 128 + n for signal n.

    Raises:
        CliError: the lock was lost, and the command has been stopped: code 75.
    """
    changed = threading.Event()
    code = None
    try:
        # Lost when the command has ended well: it had the lock while it ran.
        with contextlib.suppress(LockLost), held.guard(on_lost=changed.set):
            code = _run(command, held, changed)
    finally:
        with contextlib.suppress(DssError):  # its session ends with this process at the latest
            handle.release()
    if code is None:
        raise _lost(held, f"{command[0]} was not started")
    return code


def _run(command: Sequence[str], held: Held, changed: threading.Event) -> int:
    environ = os.environ | {
        "DSS_LOCK_NAME": held.name,
        "DSS_LOCK_SESSION": held.session_id,
        "DSS_LOCK_TOKEN": str(held.token),
    }
    try:
        process = subprocess.Popen(command, env=environ)  # noqa: S603 (the user's own command)
    except FileNotFoundError:
        print(f"{command[0]}: command not found", file=sys.stderr)
        return _NOT_FOUND
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_EXECUTABLE

    def watch() -> None:
        process.wait()
        changed.set()

    ended = threading.Thread(target=watch, name="command", daemon=True)
    ended.start()
    with _signals_go_to(process):
        changed.wait()
        if process.poll() is None:
            _end(process)
            raise _lost(
                held,
                f"{command[0]} was stopped. Check what it had done, then run it again",
            )
    ended.join()
    code = process.returncode
    return code if code >= 0 else 128 - code


def _lost(held: Held, what: str) -> CliError:
    message = f'lock "{held.name}" was lost ({held.loss().reason}): {what}'
    return CliError(message, EXIT_TRY_AGAIN, "lock_lost")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _signals_go_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C reaches the command by the terminal, SIGTERM by us; we end when it ends."""
    old = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
