"""A real split vote in compose, found and ended by `dss doctor --fix` from outside.

An override file sets TEST_MODE on the lock services; nothing that ships does. The first stack
obeys a backoff; the second does not, so one container has to be restarted. What was locked before
is locked after.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import http, until
from compose_stack import BUILD_S, COMPOSE_FILE, Stack, run, say, taken_ports, why_no_docker

pytestmark = pytest.mark.compose

LOCKS = ("lock-1", "lock-2", "lock-3")
URLS = [f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003)]
PERIOD_MS = 2_000
"""Time between two elections: containers that start less than this apart may split their votes."""
WINDOW_S = str(10 * PERIOD_MS // 1_000)


class SplitStack(Stack):
    """The lock services alone, with an override file beside the shipped one."""

    @property
    def override(self) -> Path:
        return self.env_file.with_name("override.yml")

    def set_mode(self, mode: str) -> None:
        environment = {
            "ALLOW_TEST_MODE": "1",
            "TEST_MODE": mode,
            "ELECTION_MIN_MS": str(PERIOD_MS // 2),
            "ELECTION_MAX_MS": str(PERIOD_MS),
        }
        services = {name: {"environment": environment} for name in LOCKS}
        self.override.write_text(yaml.safe_dump({"services": services}))

    def compose(self, *args: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return run(
            "docker", "compose", "-p", self.project, "-f", str(COMPOSE_FILE),
            "-f", str(self.override), "--env-file", str(self.env_file), *args, timeout=timeout,
        )  # fmt: skip

    def start(self, mode: str) -> None:
        """Up with this mode, and split votes. Members that were founded before split them only
        when they start at about the same time: if they do not, they are started again."""
        self.set_mode(mode)
        for attempt in range(1, 11):
            self.must("up", "-d", "--no-build", *LOCKS)
            first = until("elections", lambda: [g["term"] for g in self.groups()], 90)
            while not any(group["leader"] for group in self.groups()):
                terms = [group["term"] for group in self.groups()]
                if len(terms) == len(first) and min(terms) >= max(first) + 3:
                    return
                time.sleep(PERIOD_MS / 4_000)
            say(f"{mode}: somebody won election {attempt}; once more")
            self.must("stop", *LOCKS)
        raise AssertionError(f"no split vote in ten starts\n{self.logs()}")

    def groups(self) -> list[dict[str, Any]]:
        """Groups 0 and 1 as each of the three members sees them; [] until all of them do."""
        found: list[dict[str, Any]] = []
        for url in URLS:
            try:
                found += http("GET", f"{url}/v1/raft/status", timeout_s=5).json["groups"]
            except OSError:
                return []
        return found if len(found) == 2 * len(LOCKS) else []

    def started(self) -> dict[str, str]:
        """When each lock container was last started."""
        return {name: str(self.container(name)["State"]["StartedAt"]) for name in LOCKS}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SplitStack]:
    missing = why_no_docker()
    assert missing is None, missing
    made = SplitStack("dss-e2e-split", tmp_path_factory.mktemp("split") / ".env")
    made.write_env()
    made.set_mode("split-vote")
    made.compose("down", "-v", "--remove-orphans")
    taken = taken_ports(list(LOCKS))
    assert not taken, "; ".join(taken) + ". Stop it and repeat: make e2e-compose"
    made.must("build", timeout=BUILD_S)
    try:
        yield made
    finally:
        made.compose("down", "-v", "--remove-orphans")


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dss.cli.main", "doctor", "--endpoints", ",".join(URLS),
         "--window", WINDOW_S, *options],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def holders(url: str) -> list[Any]:
    answer = http("GET", f"{url}/v1/locks/kept")
    assert answer.status == 200, answer.body
    return [holder["token"] for holder in answer.json["holders"]]


def test_split_vote__found_and_ended_by_a_backoff_then_kept_through_one_that_needs_a_restart(
    stack: SplitStack,
) -> None:
    stack.start("split-vote")
    before = stack.started()
    found = doctor()
    assert found.returncode == 1, found.stdout + found.stderr + stack.logs()
    assert "locks: ElectionStuck: split vote: lock-1, lock-2 and lock-3 stood" in found.stdout
    refused = http("POST", f"{URLS[0]}/v1/sessions", {"ttl_ms": 3_600_000})
    assert refused.status == 503, refused.body

    began = time.monotonic()
    fixed = doctor("--fix")
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr + stack.logs()
    assert "backoff of lock-3: done" in fixed.stdout
    assert "restart" not in fixed.stdout
    assert stack.started() == before
    say(f"split vote ended by a backoff, {time.monotonic() - began:.0f} s, window {WINDOW_S} s")
    session = http("POST", f"{URLS[0]}/v1/sessions", {"ttl_ms": 3_600_000}).json["session"]
    body = {"session": session, "mode": "exclusive"}
    held = http("POST", f"{URLS[1]}/v1/locks/kept/acquire", body)
    assert held.status == 200, held.body

    stack.must("stop", *LOCKS)  # their volumes stay
    stack.start("split-vote-no-backoff")
    before = stack.started()
    began = time.monotonic()
    fixed = doctor("--fix", "--json")
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr + stack.logs()
    told = [json.loads(line) for line in fixed.stdout.splitlines()]
    actions = [(e["kind"], e["member"]) for e in told if e["event"] == "action"]
    [restarted] = [member for kind, member in actions if kind == "restart"]
    assert actions[0] == ("backoff", restarted)
    after = stack.started()
    assert {name for name in LOCKS if before[name] != after[name]} == {restarted}
    say(f"split vote ended by a restart of {restarted}, {time.monotonic() - began:.0f} s")
    assert holders(URLS[2]) == [held.json["token"]]
    well = doctor()
    assert well.returncode == 0, well.stdout
