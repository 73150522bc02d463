"""Holding a lock from the command line: session, keepalive, a command that must not outlive it.

The command is stopped when the lock is lost, at the latest when the session may end on the servers:
the last acknowledged keepalive's *send* time + TTL, less the clock drift allowed (1,000 ppm).
What must not live here: arguments, tables.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dss.base.errors import EXIT_TRY_AGAIN
from dss.base.limits import WAIT_MS_MAX
from dss.cli.http import CliError, Nodes, Problem, segment

_DRIFT = 0.001
_KILL_AFTER_S = 5.0
"""From SIGTERM to SIGKILL for a command whose lock is lost."""
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def now_s() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def open_session(client: Nodes, ttl_s: float) -> str:
    """A session that others see as `host:pid`."""
    label = f"{socket.gethostname()[:64]}:{os.getpid()}"
    body = {"ttl_ms": round(ttl_s * 1000), "name": label}
    return str(client.ask("lock", "POST", "/v1/sessions", body).json()["session"])


def end_session(client: Nodes, session: str) -> None:
    """Give back all that the session holds; a session that cannot be reached ends by its TTL."""
    with contextlib.suppress(CliError):
        client.ask("lock", "DELETE", f"/v1/sessions/{segment(session)}")


def acquire_lock(
    client: Nodes, name: str, session: str, shared: bool, wait_s: float
) -> dict[str, Any]:
    """Wait up to `wait_s` for the lock; `{token, mode, expires_in_ms}`. Problem when it is busy."""
    deadline = now_s() + wait_s
    path = f"/v1/locks/{segment(name)}/acquire"
    mode = "shared" if shared else "exclusive"
    while True:
        wait_ms = min(WAIT_MS_MAX, max(0, round((deadline - now_s()) * 1000)))
        body = {"session": session, "mode": mode, "wait_ms": wait_ms}
        try:
            granted: dict[str, Any] = client.ask("lock", "POST", path, body, wait_ms=wait_ms).json()
            return granted
        except Problem as problem:
            if problem.code != "lock_timeout" or now_s() >= deadline:
                raise


class KeepAlive(threading.Thread):
    """Renews a session every third of its TTL until `stop()` or until it is lost.

    `changed` is set when the session is lost; `reason` says why.
    """

    def __init__(self, client: Nodes, session: str, ttl_s: float, changed: threading.Event) -> None:
        super().__init__(name="keepalive", daemon=True)
        self._client = client
        self._path = f"/v1/sessions/{segment(session)}/keepalive"
        self._ttl_s = ttl_s
        self._stopped = threading.Event()
        self._changed = changed
        self.reason = ""
        self.granted: tuple[str, int] | None = None
        """The lock and its token, once it is held: an administrator may break it."""
        self.safe_until_s = now_s() + ttl_s * (1 - _DRIFT)

    def run(self) -> None:
        pause_s = self._ttl_s / 3
        while not self._stopped.wait(pause_s):
            sent_s = now_s()
            try:
                self._client.ask("lock", "POST", self._path, {})
            except Problem as problem:
                if problem.status in (404, 409, 410):
                    self._lose(str(problem))
                    return
                pause_s = min(1.0, self._ttl_s / 10)
            except CliError:
                pause_s = min(1.0, self._ttl_s / 10)
            else:
                self.safe_until_s = sent_s + self._ttl_s * (1 - _DRIFT)
                pause_s = self._ttl_s / 3
                if self._is_broken():
                    self._lose("it was taken away; see dss lock history")
                    return

    def _is_broken(self) -> bool:
        """The session lives, but a node says that the lock is not held with our token."""
        if self.granted is None:
            return False
        name, token = self.granted
        try:
            path = f"/v1/locks/{segment(name)}/verify"
            verdict = self._client.ask("lock", "POST", path, {"token": token}).json()
        except CliError:
            return False  # nobody can say: the lease decides
        return verdict.get("valid") is False

    def _lose(self, reason: str) -> None:
        self.reason = reason
        self._changed.set()

    def stop(self) -> None:
        self._stopped.set()

    def lost(self) -> bool:
        """True once the lock may be someone else's."""
        if not self.reason and now_s() >= self.safe_until_s:
            self.reason = f"no lock node confirmed the session for {self._ttl_s:g} s"
        return bool(self.reason)


def run_holding(
    client: Nodes, name: str, command: Sequence[str], ttl_s: float, wait_s: float, *, shared: bool
) -> int:
    """Run `command` while holding the lock; its exit code, 128 + n for signal n.

    Raises:
        CliError: the lock was not granted, or was lost (the command has been stopped): code 75.
    """
    changed = threading.Event()
    began_s = now_s()
    session = open_session(client, ttl_s)
    keepalive = KeepAlive(client, session, ttl_s, changed)
    keepalive.safe_until_s = began_s + ttl_s * (1 - _DRIFT)
    keepalive.start()
    try:
        granted = acquire_lock(client, name, session, shared, wait_s)
        keepalive.granted = (name, int(granted["token"]))
        environ = os.environ | {
            "DSS_LOCK_NAME": name,
            "DSS_LOCK_SESSION": session,
            "DSS_LOCK_TOKEN": str(granted["token"]),
        }
        return _run(name, command, environ, keepalive, changed)
    finally:
        keepalive.stop()
        end_session(client, session)


def _run(
    name: str,
    command: Sequence[str],
    environ: dict[str, str],
    keepalive: KeepAlive,
    changed: threading.Event,
) -> int:
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
        while process.poll() is None:
            changed.wait(max(0.0, keepalive.safe_until_s - now_s()))
            if process.poll() is None and keepalive.lost():
                _end(process)
                raise CliError(
                    f'lock "{name}" was lost ({keepalive.reason}): {command[0]} was stopped. '
                    "Check what it had done, then run it again",
                    EXIT_TRY_AGAIN,
                    "lock_lost",
                )
    ended.join()
    code = process.returncode
    return code if code >= 0 else 128 - code


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
