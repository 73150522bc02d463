"""kubectl with documents on standard input, and a namespace that enforces restricted pods."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[3]
CALL_S: Final = 60.0
Object = dict[str, Any]


def _command() -> str:
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl") or "kubectl"


def kubectl(*arguments: str, document: Object | None = None) -> subprocess.CompletedProcess[str]:
    """One call; asks again while nobody listens (other tests may restart the API server)."""
    end = time.monotonic() + CALL_S
    while True:
        answer = subprocess.run(
            [_command(), *arguments],
            input=None if document is None else json.dumps(document),
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        unreachable = "was refused" in answer.stderr or "etcdserver" in answer.stderr
        if not unreachable or time.monotonic() > end:
            return answer
        time.sleep(1)


def must(*arguments: str, document: Object | None = None) -> str:
    answer = kubectl(*arguments, document=document)
    assert answer.returncode == 0, f"kubectl {' '.join(arguments)}: {answer.stderr}"
    return answer.stdout


@contextmanager
def namespace() -> Iterator[str]:
    """A new one; its end does not wait for its objects'."""
    name = f"topo-{uuid.uuid4().hex[:8]}"
    level = {f"pod-security.kubernetes.io/{what}": "restricted" for what in ("enforce", "warn")}
    must(
        "create", "-f", "-",
        document={
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": level | {"dss.io/test": "crd"}},
        },
    )  # fmt: skip
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def merged(base: Object, over: Object) -> Object:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = merged(below, value) if both else value
    return result


def cluster(namespace: str, spec: Object, name: str = "demo") -> Object:
    """A DSSCluster that an operator beside these tests leaves alone."""
    return {
        "apiVersion": "dss.io/v1alpha1",
        "kind": "DSSCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged({"paused": True}, spec),
    }
