"""`dss doctor` against real processes: well, ill, and in real split votes that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_process import Cluster, dss, environment, free_base_port, request, until

from dss.local.ports import holder_of
from dss.topology.model import cluster_of
from dss.topology.render_local import LocalNode, render_local

WINDOW_S = 10
"""Ten of `dss up`'s longest election timeouts are 9 s."""
SMALL = (3, 1, 1)
SPLIT_VOTE = {"ALLOW_TEST_MODE": "1", "TEST_MODE": "split-vote"}
NO_BACKOFF = {"ALLOW_TEST_MODE": "1", "TEST_MODE": "split-vote-no-backoff"}


def doctor(endpoints: str, *options: str, timeout: float = 150) -> Any:
    window = ("--window", str(WINDOW_S))
    return dss("doctor", "--endpoints", endpoints, *window, *options, timeout=timeout)


def lock_endpoints(cluster: Cluster) -> str:
    return ",".join(cluster.urls("lock"))


def split_votes_began(endpoints: str) -> bool:
    """All three lock nodes have voted for themselves in both groups."""
    for url in endpoints.split(","):
        reply = request("GET", f"{url}/v1/raft/status", timeout=5)
        if reply.status != 200 or len(reply.body["groups"]) < 2:
            return False
        name = reply.body["node_id"]
        if any(g["voted_for"] != name or g["term"] < 2 for g in reply.body["groups"]):
            return False
    return True


def events(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


# --- without split votes ---------------------------------------------------------------------


def test_healthy_cluster__said_at_once(cluster: Cluster) -> None:
    done = doctor(cluster.endpoints())
    assert done.returncode == 0, done.stdout + done.stderr
    *groups, verdict = done.stdout.splitlines()
    assert [line.split(":")[:2] for line in groups] == [
        ["metadata", " Healthy"], ["locks", " Healthy"],
    ]  # fmt: skip
    assert verdict == "healthy: every group of the lock nodes has a leader and all of them answer"
    assert not done.stderr


def test_endpoint_of_another_role__finds_the_lock_nodes_by_the_cluster_list(
    cluster: Cluster,
) -> None:
    done = doctor(cluster.url("cache-2"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    *diagnoses, verdict = events(done.stdout)
    assert [(e["event"], e["group_id"], e["state"]) for e in diagnoses] == [
        ("diagnosis", 0, "Healthy"), ("diagnosis", 1, "Healthy"),
    ]  # fmt: skip
    assert (verdict["event"], verdict["verdict"], verdict["exit_code"]) == ("verdict", "healthy", 0)


def test_nobody_there__exit_code_69_and_one_line() -> None:
    done = doctor(f"http://127.0.0.1:{free_base_port()}")
    assert done.returncode == 69
    assert "connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("window", ["0.5", "ten", "-1"])
def test_window_that_cannot_be__refused(window: str) -> None:
    done = dss("doctor", "--window", window)
    assert done.returncode == 2
    assert "--window" in done.stderr


def test_members_that_hang__degraded_then_uncertain_then_healthy(own_cluster: Cluster) -> None:
    own_cluster.counts = dict(zip(own_cluster.counts, SMALL, strict=True))
    own_cluster.start()
    endpoints = lock_endpoints(own_cluster)
    pids = {name: own_cluster.pid(name) for name in own_cluster.names("lock")}
    leader = own_cluster.lock_leader()
    others = [name for name in pids if name != leader]
    try:
        os.kill(pids[others[0]], signal.SIGSTOP)
        until(lambda: doctor(endpoints).returncode == 1, "the doctor misses one", 40)
        done = doctor(endpoints)
        assert done.returncode == 1, done.stdout
        assert done.stdout.splitlines()[-1].startswith("degraded: locks are served, but")
        assert f"{others[0]}: does not answer at {own_cluster.url(others[0])}" in done.stdout
        os.kill(pids[others[1]], signal.SIGSTOP)
        until(lambda: not _leads(own_cluster, leader), "the leader misses its quorum", 20)
        done = doctor(endpoints, "--fix")
        assert done.returncode == 75, done.stdout
        assert "locks: Uncertain: " in done.stdout
        assert "Start what is down first" in done.stdout.splitlines()[-1]
        assert "making" not in done.stdout, "it acted upon what it cannot see"
    finally:
        for name in others:
            os.kill(pids[name], signal.SIGCONT)
    until(lambda: doctor(endpoints).returncode == 0, "healthy again", 40)
    assert pids == {name: own_cluster.pid(name) for name in pids}


def _leads(cluster: Cluster, name: str) -> bool:
    return any(g["role"] == "leader" for g in cluster.raft_groups(name) if g["group_id"] == 1)


# --- real split votes ------------------------------------------------------------------------


@pytest.fixture
def splitting(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """`dss up` whose lock nodes split every vote."""
    made = Cluster(tmp_path / "data", SMALL, env=request.param)
    try:
        made.start(wait=False)
        until(lambda: split_votes_began(lock_endpoints(made)), "split votes", 60)
        yield made
    finally:
        made.stop()


def start_until_stuck(cluster: Cluster) -> None:
    """Members that were founded before split their votes when they start within one period."""
    for _ in range(10):
        cluster.stop()
        cluster.start(wait=False)
        first = until(lambda: lock_groups(cluster) or None, "elections", 60)
        while not any(group["leader"] for group in lock_groups(cluster)):
            terms = [group["term"] for group in lock_groups(cluster)]
            if terms and min(terms) >= max(group["term"] for group in first) + 3:
                return
            time.sleep(0.2)
    raise AssertionError(f"no split vote in ten starts\n{cluster.report()}")


def lock_groups(cluster: Cluster) -> list[dict[str, Any]]:
    """Groups 0 and 1 as each of the three members sees them; [] until all of them do."""
    found = [g for name in cluster.names("lock") for g in cluster.raft_groups(name)]
    return found if len(found) == 6 else []  # two groups of three members


@pytest.mark.parametrize("splitting", [SPLIT_VOTE], indirect=True)
def test_split_vote__found_then_ended_by_backing_off_and_what_was_held_is_held(
    splitting: Cluster,
) -> None:
    endpoints = lock_endpoints(splitting)
    watching = subprocess.Popen(
        [sys.executable, "-m", "dss.cli.main", "doctor", "--watch", "--window", str(WINDOW_S),
         "--endpoints", endpoints], stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    found = doctor(endpoints)
    assert found.returncode == 1, found.stdout + splitting.report()
    assert "locks: ElectionStuck: split vote: lock-1, lock-2 and lock-3 stood" in found.stdout
    assert "Next: dss doctor --fix asks lock-" in found.stdout.splitlines()[-1]

    fixed = doctor(endpoints, "--fix")
    assert fixed.returncode == 0, fixed.stdout + splitting.report()
    assert "locks: making lock-3 give up its candidacy" in fixed.stdout
    assert "backoff of lock-3: done" in fixed.stdout
    assert "restart" not in fixed.stdout
    assert "locks: recovered: " in fixed.stdout
    splitting.wait_ready()

    watching.send_signal(signal.SIGINT)
    seen = watching.communicate(timeout=20)[0]
    assert watching.returncode == 130
    assert "locks: with --fix lock-3 would now be made to give up its candidacy" in seen or (
        "metadata: with --fix lock-3 would now be made to give up its candidacy" in seen
    ), seen
    assert "making" not in seen

    env = {"DSS_ENDPOINTS": splitting.endpoints()}
    taken = dss("lock", "acquire", "kept", "--ttl", "3600", "--json", env=env)
    assert taken.returncode == 0, taken.stderr + splitting.report()
    start_until_stuck(splitting)
    again = doctor(endpoints, "--fix")
    assert again.returncode == 0, again.stdout + splitting.report()
    assert "backoff of lock-" in again.stdout
    splitting.wait_ready()
    held = request("GET", f"{splitting.url('lock-2')}/v1/locks/kept")
    assert [h["token"] for h in held.body["holders"]] == [json.loads(taken.stdout)["token"]]


@pytest.mark.parametrize("splitting", [NO_BACKOFF], indirect=True)
def test_split_vote_that_backing_off_does_not_end__one_process_restarted_by_dss_up(
    splitting: Cluster,
) -> None:
    before = splitting.pids()
    fixed = doctor(lock_endpoints(splitting), "--fix", "--json")
    assert fixed.returncode == 0, fixed.stdout + splitting.report()
    told = events(fixed.stdout)
    actions = [(e["kind"], e["member"]) for e in told if e["event"] == "action"]
    [restarted] = [member for kind, member in actions if kind == "restart"]
    assert actions[0] == ("backoff", restarted)
    assert [kind for kind, _ in actions].count("recovered") >= 1
    assert {e["message"] for e in told if e["event"] == "outcome"} == {
        f"backoff of {restarted}: done", f"restart of {restarted}: done",
    }  # fmt: skip
    splitting.wait_ready()
    after = splitting.pids()
    assert {name for name in before if before[name] != after[name]} == {restarted}
    assert all(after.values())


class LoneNodes:
    """Three lock nodes that nobody starts again."""

    def __init__(self, data: Path) -> None:
        self.nodes = [
            node
            for node in render_local(
                cluster_of(3, 1, 1), data, base_port=free_base_port(), cluster_secret="s" * 32
            )
            if node.role == "lock"
        ]
        self.processes = {node.id: self.start(node, data) for node in self.nodes}

    def start(self, node: LocalNode, data: Path) -> subprocess.Popen[bytes]:
        with open(data / f"{node.id}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dss.cli.main", "node"],
                stdout=log, stderr=log, env={**environment(), **node.env, **NO_BACKOFF},
            )  # fmt: skip

    @property
    def endpoints(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def pids(self) -> dict[str, int]:
        return {node.id: holder_of(node.ports[0]).pid for node in self.nodes}

    def stop(self) -> None:
        for pid in self.pids().values():
            if pid:
                os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def test_split_vote_of_nodes_without_a_supervisor__the_restarted_one_is_started_again(
    tmp_path: Path,
) -> None:
    lone = LoneNodes(tmp_path)
    try:
        until(lambda: split_votes_began(lone.endpoints), "split votes", 60)
        fixed = doctor(lone.endpoints, "--fix")
        logs = "\n".join(log.read_text()[-2000:] for log in sorted(tmp_path.glob("*.log")))
        assert fixed.returncode == 0, fixed.stdout + logs
        assert "restart of lock-3: done" in fixed.stdout
        assert lone.processes["lock-3"].wait(1) == 0
        pids = lone.pids()
        assert pids["lock-3"] not in (0, lone.processes["lock-3"].pid)
        assert pids["lock-1"] == lone.processes["lock-1"].pid
        assert pids["lock-2"] == lone.processes["lock-2"].pid
        assert (tmp_path / "lock-3.log").stat().st_size > 0
    finally:
        lone.stop()
