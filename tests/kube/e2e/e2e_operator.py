"""The operator for tests: installed by its manifests, its Deployment, its metrics, its user.

What must not live here: what is right or wrong.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import yaml
from asking import http, until
from e2e_kubectl import Kubectl, Object, forwarded, pod_ready, say

SYSTEM: Final = "dss-system"
DEPLOYMENT: Final = "dss-operator"
NODE_IMAGE: Final = os.environ.get("E2E_NODE_IMAGE", "dss-node:0.1.0")
OPERATOR_IMAGE: Final = os.environ.get("E2E_OPERATOR_IMAGE", "dss-operator:0.1.0")
DEFAULT_OPERATOR_IMAGE: Final = "dss-operator:0.1.0"
USER: Final = f"system:serviceaccount:{SYSTEM}:{DEPLOYMENT}"
"""As the audit log names the operator."""
METRICS_PORT: Final = 8_080
TICK_S: Final = 30.0
"""The operator's default: an unchanged cluster is looked at this often."""


class Operator:
    """`kubectl apply -k manifests`, and what became of it."""

    def __init__(self, kubectl: Kubectl, scratch: Path, base: str = "manifests") -> None:
        self.kubectl, self._scratch, self.base = kubectl, scratch, base

    def folder(self) -> str:
        """What to give to `-k`: the manifests, or a kustomization over them with other images."""
        if OPERATOR_IMAGE == DEFAULT_OPERATOR_IMAGE:
            return self.base
        name, _, tag = OPERATOR_IMAGE.rpartition(":")
        above = os.path.relpath(Path(self.base).resolve(), self._scratch)
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [above],
            "images": [{"name": "dss-operator", "newName": name, "newTag": tag}],
        }
        (self._scratch / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return str(self._scratch)

    def install(self) -> str:
        said = self.kubectl("apply", "-k", self.folder())
        self.wait()
        return said

    def uninstall(self) -> None:
        """Everything but the CRD, which would take all DSSClusters of everybody with it."""
        rendered = yaml.safe_load_all(self.kubectl("kustomize", self.folder()))
        objects = [obj for obj in rendered if obj["kind"] != "CustomResourceDefinition"]
        self.kubectl(
            "delete", "-f", "-", "--ignore-not-found", "--timeout=120s",
            stdin=yaml.safe_dump_all(objects), timeout_s=130,
        )  # fmt: skip

    def wait(self, timeout_s: float = 120.0) -> None:
        """The Deployment's pods are of its newest template, and ready."""
        self.kubectl(
            "-n", SYSTEM, "rollout", "status", f"deployment/{DEPLOYMENT}",
            f"--timeout={timeout_s:.0f}s", timeout_s=timeout_s + 10,
        )  # fmt: skip

    def deployment(self) -> Object:
        return self.kubectl.get("-n", SYSTEM, "deployment", DEPLOYMENT)

    def pods(self) -> list[Object]:
        selector = self.deployment()["spec"]["selector"]["matchLabels"]
        labels = ",".join(f"{key}={value}" for key, value in selector.items())
        return self.kubectl.items("-n", SYSTEM, "pods", "-l", labels)

    def pod(self) -> str:
        """The one ready pod."""

        def ready() -> list[str]:
            return [p["metadata"]["name"] for p in self.pods() if pod_ready(p)]

        return until("an operator pod is ready", ready)[0]

    def scale(self, replicas: int) -> None:
        self.kubectl("-n", SYSTEM, "scale", f"deployment/{DEPLOYMENT}", f"--replicas={replicas}")
        if replicas:
            self.wait()
        else:
            until("the operator's pods are gone", lambda: not self.pods())

    def set_env(self, **values: str) -> None:
        """Change the Deployment's environment, as a person would, and wait for the new pod."""
        assignments = [f"{name}={value}" if value else f"{name}-" for name, value in values.items()]
        self.kubectl("-n", SYSTEM, "set", "env", f"deployment/{DEPLOYMENT}", *assignments)
        self.wait()
        until("the old operator pod is gone", lambda: len(self.pods()) == 1)
        say(f"operator restarted with {' '.join(assignments)}")

    def logs(self, *args: str) -> str:
        return self.kubectl("-n", SYSTEM, "logs", f"deployment/{DEPLOYMENT}", *args)

    def metrics(self) -> Metrics:
        with forwarded(self.kubectl, SYSTEM, f"pod/{self.pod()}", METRICS_PORT) as url:
            answer = http("GET", f"{url}/metrics")
        assert answer.status == 200, answer.body
        return Metrics(answer.body.decode())


class Metrics:
    """A scrape in the text format."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            found = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if found and not line.startswith("#"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                self._samples.append((found[1], labels, float(found[3])))

    def sum(self, name: str, **labels: str) -> float:
        """Of all series with these labels."""
        return sum(value for found, have, value in self._samples
                   if found == name and labels.items() <= have.items())  # fmt: skip

    def names(self) -> set[str]:
        return {name for name, _, _ in self._samples}

    def by(self, name: str, label: str) -> dict[str, Any]:
        found: dict[str, float] = {}
        for sample, labels, value in self._samples:
            if sample == name:
                found[labels.get(label, "")] = found.get(labels.get(label, ""), 0.0) + value
        return found
