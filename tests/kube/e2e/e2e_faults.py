"""What only some clusters offer: nodes and control plane parts to break, the audit log, an ingress.

| environment | what | without it |
|---|---|---|
| `E2E_FAULT_CMD` | a command with `pid NAME`, `start NAME`, `kill-node N` | nothing is broken |
| `E2E_AUDIT_LOG` | the API server's audit log, JSON lines | no look at the API calls |
| `E2E_INGRESS` | where the ingress controller listens, `http://127.0.0.1:18080` | port-forwards |

Whatever needs a missing one is skipped, loudly. What must not live here: what is right or wrong.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from e2e_kubectl import ROOT, say, say_loudly

WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def need(variable: str, purpose: str) -> str:
    """The variable's value; without it the test is skipped, loudly."""
    value = os.environ.get(variable, "")
    if not value:
        say_loudly(f"SKIPPED: {purpose}", f"It needs {variable}: see docs/testing.md, Kubernetes.")
        pytest.skip(f"{variable} is not set: {purpose}")
    return value


def ingress_url() -> str:
    return os.environ.get("E2E_INGRESS", "").rstrip("/")


class Faults:
    """E2E_FAULT_CMD."""

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)

    def __call__(self, *args: str) -> str:
        done = subprocess.run(
            [*self._command, *args], capture_output=True, text=True, timeout=120, check=False,
            cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, f"{self._command} {args}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def stop(self, part: str) -> None:
        """Kill a part of the control plane at once."""
        os.kill(int(self("pid", part)), signal.SIGKILL)
        say(f"{part} killed")

    def start(self, part: str) -> None:
        self("start", part)
        say(f"{part} started")


@dataclass(frozen=True)
class Call:
    """One request in the audit log."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int
    message: str

    @property
    def line(self) -> str:
        return f"{self.verb} {self.resource} {self.namespace}/{self.name} -> {self.code}"

    @property
    def kind(self) -> tuple[str, str, str]:
        return (self.group, self.resource, self.verb)


class AuditLog:
    """The audit log from one moment on. API servers write it within a second or two."""

    def __init__(self, file: Path, offset: int | None = None) -> None:
        self._file = file
        self._offset = file.stat().st_size if offset is None else offset

    def since(self, user: str) -> list[Call]:
        """Finished requests of this user (a suffix) since the log was opened."""
        return list(self._read(lambda name: name.endswith(user)))

    def settle(self) -> AuditLog:
        """Wait until what has happened is written, and begin there."""
        time.sleep(1.5)
        return AuditLog(self._file)

    def _read(self, wanted: Callable[[str], bool]) -> Iterator[Call]:
        with open(self._file, encoding="utf-8") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith("\n"):
                    return
                event = json.loads(line)
                # A watch is written at its start and at its end.
                if event["stage"] not in ("ResponseComplete", "ResponseStarted", "Panic"):
                    continue
                call = _call(event)
                if wanted(call.user):
                    yield call


def _call(event: dict[str, Any]) -> Call:
    at = event.get("objectRef") or {}
    resource = at.get("resource", event.get("requestURI", ""))
    if sub := at.get("subresource"):
        resource += f"/{sub}"
    return Call(
        user=event.get("user", {}).get("username", ""),
        verb=event["verb"],
        group=at.get("apiGroup", ""),
        resource=resource,
        namespace=at.get("namespace", ""),
        name=at.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
        message=(event.get("responseStatus") or {}).get("message", ""),
    )
