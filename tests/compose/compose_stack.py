"""A compose project for tests: docker's commands, waiting, HTTP, and what to say when it fails.

Nothing here decides what is right; that is in test_compose.py.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dss.local.ports import holder_of
from dss.topology.envfile import read_env_file

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker/docker-compose.yml"
BUILD_S = 900.0
"""A first build on a slow network fetches every dependency."""
HEALTHY_S = 180.0


def say(text: str) -> None:
    """One line of progress (the target runs pytest with -s)."""
    print(f"compose: {text}", flush=True)


def run(*command: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def services() -> dict[str, dict[str, Any]]:
    """The compose file's services, as written."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    return found


def why_no_docker() -> str | None:
    """None when a Docker Engine with Compose v2 answers, else what is missing and the remedy."""
    try:
        engine = run("docker", "version", "-f", "{{.Server.Version}}")
    except FileNotFoundError:
        return "docker is not installed. Install Docker Engine with the Compose v2 plugin"
    if engine.returncode:
        return f"no Docker Engine answers: {engine.stderr.strip().splitlines()[-1]}. Start it"
    compose = run("docker", "compose", "version", "--short")
    if compose.returncode or not compose.stdout.strip().lstrip("v").startswith(("2.", "5.")):
        return "docker compose is missing or older than 2. Install the Compose v2 plugin"
    return None


def can_have(image: str) -> bool:
    """The image is local, or could be pulled just now."""
    if run("docker", "image", "inspect", image).returncode == 0:
        return True
    say(f"pulling {image}")
    try:
        return run("docker", "pull", "-q", image, timeout=300).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def taken_ports(names: list[str]) -> list[str]:
    """A sentence for each published port of these services that somebody listens on."""
    sentences = []
    for name in names:
        for mapping in services()[name].get("ports", []):
            port = int(mapping.split(":")[1])
            container = run(
                "docker", "ps", "--filter", f"publish={port}", "--format", "{{.Names}}"
            ).stdout.strip()
            if container:
                sentences.append(f"port {port} is taken by the container {container}")
            elif (holder := holder_of(port)).pid:
                sentences.append(f"port {port} is taken by {holder}")
    return sentences


@dataclass
class Stack:
    """One compose project of its own, with an `.env` of its own."""

    project: str
    env_file: Path
    leave_out: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def write_env(self, **changes: str) -> None:
        """`.env.example` with fresh secrets and `changes`."""
        self.env = read_env_file(ROOT / ".env.example").values
        self.env |= {
            "CLUSTER_SECRET": secrets.token_hex(16),
            "REDIS_PASSWORD": secrets.token_hex(16),
        }
        self.env |= changes
        text = "".join(f"{name}={value}\n" for name, value in self.env.items())
        self.env_file.write_text(text)

    @property
    def names(self) -> list[str]:
        return [name for name in services() if name not in self.leave_out]

    def compose(self, *args: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return run(
            "docker", "compose", "-p", self.project, "-f", str(COMPOSE_FILE),
            "--env-file", str(self.env_file), *args, timeout=timeout,
        )  # fmt: skip

    def must(self, *args: str, timeout: float = 120.0) -> str:
        answer = self.compose(*args, timeout=timeout)
        assert answer.returncode == 0, (
            f"docker compose {' '.join(args)} failed:\n{answer.stdout[-2000:]}"
            f"{answer.stderr[-4000:]}\n{self.logs()}"
        )
        return answer.stdout

    def logs(self) -> str:
        """The last lines of every service, for a failure's message."""
        return self.compose("logs", "--no-color", "--tail", "15").stdout[-12_000:]

    def states(self) -> dict[str, str]:
        """Service -> `running (healthy)` and the like."""
        answer = self.must("ps", "-a", "--format", "json")
        rows = [json.loads(line) for line in answer.splitlines() if line.startswith("{")]
        return {row["Service"]: f"{row['State']} ({row['Health']})" for row in rows}

    def up(self) -> None:
        began = time.monotonic()
        self.must(
            "up", "-d", "--wait", "--wait-timeout", str(int(HEALTHY_S)), *self.names,
            timeout=HEALTHY_S + 60,
        )  # fmt: skip
        say(f"{len(self.names)} services up and healthy ({time.monotonic() - began:.0f} s)")

    def down(self, *, volumes: bool) -> None:
        self.must("down", "--remove-orphans", *(["-v"] if volumes else []))

    def left_over(self, what: str) -> list[str]:
        """Containers (`container`), networks or volumes of this project that still exist."""
        label = f"label=com.docker.compose.project={self.project}"
        every = ["-a"] if what == "container" else []
        listing = run("docker", what, "ls", *every, "--filter", label, "-q")
        return listing.stdout.split()

    def container(self, service: str) -> dict[str, Any]:
        """`docker inspect` of a service's container."""
        identity = self.must("ps", "-aq", service).strip()
        inspected: dict[str, Any] = json.loads(run("docker", "inspect", identity).stdout)[0]
        return inspected
