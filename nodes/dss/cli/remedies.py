"""Carrying out what `dss doctor --fix` decided: a backoff by HTTP, a restart of one local node.

A restart hits the process that was diagnosed or none: its boot id is compared just before. Nodes
are found by the port of their URL, on this machine alone: a process whose environment says that
it is this node (`dss up`, `dss node`), else the container that publishes the port (compose).

What must not live here: deciding.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from dss.base import limits
from dss.cli.http import CliError, Nodes, Problem
from dss.local.ports import holder_of
from dss.remediation import Action

_DOCKER_S: Final = 60.0
_POLL_S: Final = 0.2
_STOP_S: Final = limits.STOP_GRACE_MS / 1000 + 5
"""A node ends within its own grace period; the rest is for a busy machine."""
_RETURN_S: Final = limits.RESTART_DELAY_MS_MAX / 1000 + 30
"""Until a supervisor has started it again at the latest, and it answers."""
_OTHER_SUPERVISOR_S: Final = 5.0
"""How long somebody unknown (systemd, a shell loop) may take to start it, before we do."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class _Refused(Exception):
    """Why an action is not carried out, in one sentence."""


class _Process(msgspec.Struct, frozen=True):
    """A node's process and how it was started."""

    pid: int
    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: str
    """Where its standard output goes, when that is a file; else ""."""
    supervised: bool
    """Its parent is a `dss up`, which starts it again."""


class Remedies:
    """Acts on one member at a time.

    Args:
        say: called with a line for the user when something takes long.
    """

    def __init__(
        self, client: Nodes, say: Callable[[str], None], proc: Path = Path("/proc")
    ) -> None:
        self._client = client
        self._say = say
        self._proc = proc

    def carry_out(self, action: Action, url: str) -> str:
        """`done`, or why it was not carried out.

        Raises:
            Problem: the token does not allow it. A harder action is no answer to that.
        """
        try:
            if action.kind == "backoff":
                self._backoff(action, url)
            else:
                self._restart(action, url)
        except (_Refused, CliError) as error:
            if isinstance(error, Problem) and error.status in (401, 403):
                raise
            return str(error)
        return "done"

    def _backoff(self, action: Action, url: str) -> None:
        body = {"group_id": action.group_id, "boot_id": action.boot_id}
        if self._client.tell_one(url, "/v1/raft/backoff", body) is None:
            raise _Refused(f"{action.member} does not answer")

    def _restart(self, action: Action, url: str) -> None:
        member, parts = action.member, urlsplit(url)
        if parts.hostname not in _LOOPBACK or parts.port is None:
            raise _Refused(f"{member} at {url} is not on this machine: restart it there by hand")
        process = self._process(member, parts.port)
        container = None if process is not None else _container(member, parts.port)
        if process is None and container is None:
            raise _Refused(
                f"neither a process nor a container of this user has {url}: restart {member} by "
                "hand"
            )
        boot_id = self._boot_id(url)
        if not boot_id:
            raise _Refused(f"{member} does not answer: what runs there may be another process")
        if boot_id != action.boot_id:
            raise _Refused(f"{member} has been restarted since it was diagnosed")
        if process is not None:
            self._restart_process(member, url, process)
        else:
            self._say(f"docker restart {container} ({member})")
            _docker("restart", str(container))
        self._await_return(member, url, boot_id)

    def _boot_id(self, url: str) -> str:
        """Of the process that answers now; "" when none does."""
        try:
            answer = self._client.ask_one(url, "/v1/raft/status", 2.0)
            return str(answer.json().get("boot_id", "")) if answer is not None else ""
        except CliError:
            return ""

    def _await_return(self, member: str, url: str, old: str) -> None:
        end = time.monotonic() + _RETURN_S
        while self._boot_id(url) in ("", old):
            if time.monotonic() >= end:
                raise _Refused(f"{member} was stopped and does not answer again: see its log")
            time.sleep(_POLL_S)

    # --- a process of this machine ------------------------------------------------------------

    def _process(self, member: str, port: int) -> _Process | None:
        """The process that listens there, if its environment says that it is this node."""
        pid = holder_of(port, self._proc).pid
        if not pid:
            return None
        here = self._proc / str(pid)
        try:
            env = dict(entry.split("=", 1) for entry in _strings(here / "environ") if "=" in entry)
            if env.get("NODE_ID") != member:
                return None
            log = os.readlink(here / "fd/1")
            return _Process(
                pid=pid,
                argv=_strings(here / "cmdline"),
                env=env,
                cwd=os.readlink(here / "cwd"),
                log=log if log.startswith("/") and Path(log).is_file() else "",
                supervised=self._is_up(_parent(here)),
            )
        except OSError:  # another user's, or it has just ended
            return None

    def _is_up(self, pid: int) -> bool:
        try:
            argv = _strings(self._proc / str(pid) / "cmdline")
        except OSError:
            return False
        return "up" in argv and any("dss" in word for word in argv)

    def _restart_process(self, member: str, url: str, process: _Process) -> None:
        self._say(f"SIGTERM to {member} (pid {process.pid})")
        try:
            os.kill(process.pid, signal.SIGTERM)
        except OSError as error:
            raise _Refused(f"{member} (pid {process.pid}): {error.strerror}") from None
        end = time.monotonic() + _STOP_S
        while self._runs(process.pid):
            if time.monotonic() >= end:
                raise _Refused(f"{member} (pid {process.pid}) does not stop on SIGTERM")
            time.sleep(_POLL_S)
        if not process.supervised and not self._comes_back(url):
            self._say(f"nothing started {member} again within {_OTHER_SUPERVISOR_S:g} s: starting")
            _start(process)

    def _runs(self, pid: int) -> bool:
        """A process that has ended but was not waited for by its parent does not run."""
        try:
            stat = (self._proc / str(pid) / "stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    def _comes_back(self, url: str) -> bool:
        port = urlsplit(url).port or 0
        end = time.monotonic() + _OTHER_SUPERVISOR_S
        while time.monotonic() < end:
            if holder_of(port, self._proc).pid:
                return True
            time.sleep(_POLL_S)
        return False


def _strings(path: Path) -> list[str]:
    """A file of NUL-ended strings, as /proc has them."""
    return path.read_bytes().decode(errors="surrogateescape").rstrip("\0").split("\0")


def _parent(here: Path) -> int:
    return int((here / "stat").read_text().rpartition(")")[2].split()[1])


def _start(process: _Process) -> None:
    """As it was started before, in a session of its own: it outlives this command."""
    try:
        with open(process.log or os.devnull, "ab") as log:
            subprocess.Popen(  # noqa: S603 (its own command line)
                process.argv,
                env=process.env,
                cwd=process.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        raise _Refused(f"{process.argv[0]}: {error.strerror}: start the node by hand") from None


# --- a container of this machine -----------------------------------------------------------------


def _container(member: str, port: int) -> str | None:
    """The one container of Compose service `member` that publishes this port."""
    if shutil.which("docker") is None:
        return None
    label = f"label=com.docker.compose.service={member}"
    found = _docker(
        "ps", "--filter", label, "--filter", f"publish={port}", "--format", "{{.Names}}"
    ).split()
    return found[0] if len(found) == 1 else None


def _docker(*words: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (no shell, fixed words)
            ["docker", *words],  # noqa: S607 (the user's docker)
            capture_output=True,
            text=True,
            timeout=_DOCKER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Refused(f"docker {words[0]}: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise _Refused(f"docker {words[0]}: {reason}")
    return done.stdout
