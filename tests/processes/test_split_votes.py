"""TEST_MODE, for real: three lock nodes split every vote until one of them sits out a round."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_process import dss, environment, free_base_port, request, until

from dss.topology.model import cluster_of
from dss.topology.render_local import LocalNode, render_local

PERIOD_MS = 600
ROUNDS = 6
LOCKS = 1
TIMING = {
    "HEARTBEAT_MS": "50",
    "ELECTION_MIN_MS": "300",
    "ELECTION_MAX_MS": str(PERIOD_MS),
}


class LockNodes:
    """Three `dss node` processes with a TEST_MODE."""

    def __init__(self, data: Path, mode: str) -> None:
        nodes = render_local(
            cluster_of(3, 1, 1), data, base_port=free_base_port(), cluster_secret="s" * 32
        )
        self.nodes = {node.id: node for node in nodes if node.role == "lock"}
        self.data = data
        self.env = {"ALLOW_TEST_MODE": "1", "TEST_MODE": mode, **TIMING}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for node in self.nodes.values():
            self.start(node)

    def start(self, node: LocalNode) -> None:
        with open(self.data / f"{node.id}.log", "ab") as log:
            self.processes[node.id] = subprocess.Popen(
                [sys.executable, "-m", "dss.cli.main", "node"],
                stdout=log, stderr=log, env={**environment(), **node.env, **self.env},
            )  # fmt: skip

    def restart(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGTERM)
        assert self.processes[name].wait(15) == 0
        self.start(self.nodes[name])

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def groups(self) -> dict[str, dict[str, Any]]:
        """The lock group as each member that answers sees it."""
        found = {}
        for name, node in self.nodes.items():
            reply = request("GET", f"{node.url}/v1/raft/status", timeout=5)
            for group in reply.body["groups"] if reply.status == 200 else ():
                if group["group_id"] == LOCKS:
                    found[name] = group | {"boot_id": reply.body["boot_id"]}
        return found

    def leader(self) -> str | None:
        """Whom all three follow."""
        leaders = [group["leader"] for group in self.groups().values()]
        return leaders[0] if len(leaders) == 3 and len(set(leaders)) == 1 else None

    def splits_for(self, rounds: int) -> None:
        """Terms rise and nobody leads, `rounds` times over; all three vote for themselves."""
        first = until(lambda: _campaigning(self.groups()), f"elections\n{self.logs()}", 40)
        candidates = set()

        def risen() -> bool:
            groups = self.groups()
            assert all(g["role"] != "leader" for g in groups.values()), f"a leader\n{self.logs()}"
            candidates.update(n for n, g in groups.items() if g["voted_for"] == n)
            return max(group["term"] for group in groups.values()) >= first + rounds

        until(risen, "terms rise", 10 * rounds * PERIOD_MS / 1000)
        assert candidates == set(self.nodes)

    def backoff(self, name: str) -> dict[str, Any]:
        boot_id = self.groups()[name]["boot_id"]
        body = {"group_id": LOCKS, "boot_id": boot_id}
        reply = request("POST", f"{self.nodes[name].url}/v1/raft/backoff", body)
        assert reply.status == 200, reply
        assert reply.body["wait_ms"] == 2 * PERIOD_MS
        answer: dict[str, Any] = reply.body
        return answer

    def logs(self) -> str:
        tails = [
            f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-30:])
            for log in sorted(self.data.glob("*.log"))
        ]
        return "\n".join(tails)


def _campaigning(groups: dict[str, dict[str, Any]]) -> int | None:
    """The highest term, once all three have campaigned."""
    terms = [group["term"] for group in groups.values()]
    return max(terms) if len(terms) == 3 and min(terms) > 0 else None


@pytest.fixture
def lock_nodes(tmp_path: Path) -> Iterator[Callable[[str], LockNodes]]:
    made: list[LockNodes] = []

    def make(mode: str) -> LockNodes:
        made.append(LockNodes(tmp_path, mode))
        return made[-1]

    yield make
    for nodes in made:
        nodes.stop()


def test_split_vote__nobody_wins_until_one_candidate_backs_off(
    lock_nodes: Callable[[str], LockNodes],
) -> None:
    nodes = lock_nodes("split-vote")
    nodes.splits_for(ROUNDS)
    term = nodes.backoff("lock-2")["term"]
    leader = until(nodes.leader, f"a leader\n{nodes.logs()}", 10)
    assert leader != "lock-2", "whoever backs off votes for another"
    time.sleep(3 * PERIOD_MS / 1000)
    groups = nodes.groups()
    assert {group["leader"] for group in groups.values()} == {leader}, "it stays"
    assert {group["term"] for group in groups.values()} <= set(range(term, term + 5))


def test_split_vote_no_backoff__only_a_restart_of_one_ends_it(
    lock_nodes: Callable[[str], LockNodes],
) -> None:
    nodes = lock_nodes("split-vote-no-backoff")
    nodes.splits_for(ROUNDS)
    nodes.backoff("lock-2")
    nodes.splits_for(ROUNDS)
    nodes.restart("lock-3")
    leader = until(nodes.leader, f"a leader\n{nodes.logs()}", 15)
    assert leader != "lock-3", "whoever is started again misses a round and votes for another"


def test_test_mode_without_permission__refused_with_one_line_and_exit_code_78(
    tmp_path: Path,
) -> None:
    [node] = [n for n in render_local(cluster_of(1, 1, 1), tmp_path) if n.role == "lock"]
    ended = dss("node", env=node.env | {"TEST_MODE": "split-vote"})
    assert ended.returncode == 78
    assert "ALLOW_TEST_MODE=1" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
