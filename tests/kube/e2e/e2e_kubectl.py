"""kubectl for tests: one cluster by KUBECONFIG, waiting, port-forwards, what to say at a failure.

Nothing here knows DSS; that is in e2e_dss.py. What must not live here: what is right or wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

ROOT: Final = Path(__file__).parents[3]
BEGAN: Final = time.monotonic()
CALL_S: Final = 60.0
"""For one kubectl call that waits for nothing."""
_T = TypeVar("_T")
Object = dict[str, Any]


def say(text: str) -> None:
    """One line of progress (the target runs pytest with -s)."""
    print(f"kube: {time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def say_loudly(*lines: str) -> None:
    say("!" * 80)
    for line in lines:
        say(line)
    say("!" * 80)


def holds(what: str, check: Callable[[], bool], for_s: float, *, every_s: float = 1.0) -> None:
    """`check` stays true for that long."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        assert check(), f"no longer true: {what}"
        time.sleep(every_s)


class KubectlFailed(AssertionError):
    """kubectl ended with an error; the message has what it said."""


def kubectl_command() -> str | None:
    """kubectl of the virtual environment (the `kube` extra) or on PATH."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl")


class Kubectl:
    """kubectl with the environment's KUBECONFIG, or with another one."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        self._command = kubectl_command() or "kubectl"
        self._env = dict(os.environ)
        if kubeconfig is not None:
            self._env["KUBECONFIG"] = kubeconfig

    def run(
        self, *args: str, stdin: str | None = None, timeout_s: float = CALL_S
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._command, *args], input=stdin, capture_output=True, text=True,
            timeout=timeout_s, check=False, env=self._env, cwd=ROOT,
        )  # fmt: skip

    def __call__(self, *args: str, stdin: str | None = None, timeout_s: float = CALL_S) -> str:
        """What kubectl prints. Raises KubectlFailed with what it said."""
        done = self.run(*args, stdin=stdin, timeout_s=timeout_s)
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(args)}: {done.stderr.strip()[-3000:]}")
        return done.stdout

    def get(self, *args: str) -> Object:
        """`get … -o json`: an object, or a List."""
        found: Object = json.loads(self("get", *args, "-o", "json"))
        return found

    def find(self, *args: str) -> Object | None:
        """The object, or None where there is none."""
        text = self("get", *args, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def items(self, *args: str) -> list[Object]:
        found: list[Object] = self.get(*args)["items"]
        return found

    def apply(self, *objects: Mapping[str, Any], args: Sequence[str] = ()) -> str:
        text = yaml.safe_dump_all([dict(obj) for obj in objects])
        return self("apply", *args, "-f", "-", stdin=text)

    def patch(self, namespace: str, kind: str, name: str, change: object, *args: str) -> str:
        return self(
            "-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(change), *args
        )

    def process(self, *args: str) -> subprocess.Popen[str]:
        """A kubectl that goes on until it is terminated."""
        return subprocess.Popen(
            [self._command, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self._env, cwd=ROOT,
        )  # fmt: skip

    def namespace(self, name: str, *, restricted: bool = True) -> None:
        """Make it; every pod in it must keep to the restricted Pod Security Standard."""
        labels = {"dss.io/test": "e2e"}
        if restricted:
            labels["pod-security.kubernetes.io/enforce"] = "restricted"
        metadata = {"name": name, "labels": labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def delete_namespace(self, name: str, *, wait_s: float = 120.0) -> None:
        """And everything in it; `wait_s` 0: it goes while other things are done."""
        if not wait_s:
            self("delete", "namespace", name, "--ignore-not-found", "--wait=false")
            return
        self(
            "delete", "namespace", name, "--ignore-not-found", f"--timeout={wait_s:.0f}s",
            timeout_s=wait_s + 10,
        )  # fmt: skip


class PortForward:
    """`kubectl port-forward` to one pod or Service; made anew by `open` when it has broken."""

    def __init__(self, kubectl: Kubectl, namespace: str, target: str, port: int) -> None:
        self._kubectl, self._namespace, self._target, self._port = kubectl, namespace, target, port
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def open(self, timeout_s: float = 15.0) -> str:
        """The local URL. Raises KubectlFailed when the target cannot be reached."""
        if self._process is not None and self._process.poll() is None:
            return self.url
        self.close()
        self._process = process = self._kubectl.process(
            "-n", self._namespace, "port-forward", "--address=127.0.0.1", self._target,
            f":{self._port}",
        )  # fmt: skip
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        line = process.stdout.readline() if ready else "no answer"
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            self.close()
            raise KubectlFailed(f"port-forward to {self._target}: {line.strip()}")
        self.url = f"http://127.0.0.1:{found[1]}"
        return self.url

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, namespace: str, target: str, port: int) -> Iterator[str]:
    forward = PortForward(kubectl, namespace, target, port)
    try:
        yield forward.open()
    finally:
        forward.close()


def dump(kubectl: Kubectl, namespaces: Sequence[str], operator_namespace: str) -> str:
    """What a person wants to see after a failure: objects, events, logs of what is not ready."""
    parts = []

    def show(title: str, *args: str, tail: int = 6_000) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = kubectl.run(*args, timeout_s=20)
            text = (done.stdout + done.stderr).strip()
            if text:
                parts.append(f"--- {title}\n{text[-tail:]}")

    show("nodes", "get", "nodes")
    for namespace in namespaces:
        show(f"objects in {namespace}", "-n", namespace, "get",
             "dss,statefulset,pod,pvc,service,ingress,pdb", "-o", "wide")  # fmt: skip
        show(f"clusters in {namespace}", "-n", namespace, "describe", "dss")
        show(f"events in {namespace}", "-n", namespace, "get", "events",
             "--sort-by=.lastTimestamp", tail=4_000)  # fmt: skip
        for name in _unready_pods(kubectl, namespace):
            show(f"pod {name}", "-n", namespace, "describe", "pod", name, tail=2_500)
            show(f"log of {name}", "-n", namespace, "logs", name, "--tail=25", tail=3_000)
    show("operator", "-n", operator_namespace, "get", "deployment,pod", "-o", "wide")
    show("operator's log", "-n", operator_namespace, "logs", "deployment/dss-operator",
         "--tail=60", tail=8_000)  # fmt: skip
    return "\n".join(parts)


def _unready_pods(kubectl: Kubectl, namespace: str) -> list[str]:
    with contextlib.suppress(KubectlFailed, subprocess.TimeoutExpired):
        return [p["metadata"]["name"] for p in kubectl.items("-n", namespace, "pods")
                if not pod_ready(p)][:4]  # fmt: skip
    return []


def pod_ready(pod: Object) -> bool:
    return condition(pod, "Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def condition(obj: Object | None, kind: str, field: str = "status") -> str:
    """The status (or `reason`, `message`) of one condition; empty where there is none."""
    for found in ((obj or {}).get("status") or {}).get("conditions", []):
        if found["type"] == kind:
            return str(found.get(field, ""))
    return ""
