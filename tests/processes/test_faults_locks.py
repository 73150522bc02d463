"""Lock nodes under faults, with a load whose whole history must be linearizable."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster_process import Cluster, request, until

from dss.testing.linearize import Operation, is_linearizable
from dss.testing.lockspec import (
    BUSY,
    GRANTED,
    NOT_HOLDER,
    RELEASED,
    AcquireOp,
    EndOp,
    LockSpecification,
    ReleaseOp,
    What,
)

LOCKS = ("faults/a", "faults/b", "faults/c")
CLIENTS = 4
STEP_S = 3.0
REFUSALS = {BUSY, NOT_HOLDER}


class Load:
    """Clients that take and give back a few locks on any node; notes what was asked and told."""

    def __init__(self, cluster: Cluster) -> None:
        self.urls = cluster.urls("lock")
        self.history: dict[str, list[Operation]] = {name: [] for name in LOCKS}
        self.granted = 0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        try:
            while not self._stop.is_set():
                self._session(chance)
        except AssertionError as error:
            self.errors.append(str(error))

    def _session(self, chance: random.Random) -> None:
        """One session, until an outcome is unknown or the load ends; then it is ended."""
        made = request("POST", f"{chance.choice(self.urls)}/v1/sessions", {"ttl_ms": 120_000})
        if made.status != 201:
            time.sleep(0.05)
            return
        mine = str(made.body["session"])
        while not self._stop.is_set() and self._cycle(mine, chance):
            time.sleep(0.01)
        began = time.monotonic()
        for url in itertools.cycle(self.urls):
            reply = request("DELETE", f"{url}/v1/sessions/{mine}", timeout=3)
            if reply.status in (200, 404, 409):  # ended now, or by a try whose answer was lost
                break
            assert time.monotonic() - began < 60, f"a session cannot be ended: {reply}"
            time.sleep(0.05)
        for name in LOCKS:
            self.history[name].append(Operation(began, time.monotonic(), EndOp(mine)))

    def _cycle(self, mine: str, chance: random.Random) -> bool:
        """False: an outcome is unknown."""
        name = chance.choice(LOCKS)
        base = f"{chance.choice(self.urls)}/v1/locks/{name.replace('/', '%2F')}"
        answer, token = self._ask(name, f"{base}/acquire", mine, 0)
        if answer != GRANTED:
            return answer == BUSY
        return self._ask(name, f"{base}/release", mine, token)[0] == RELEASED

    def _ask(self, name: str, url: str, mine: str, token: int) -> tuple[str, int]:
        """Acquire without a token, release with it; (answer, token), answer "" if unknown."""
        began = time.monotonic()
        body = {"session": mine, "token": token} if token else {"session": mine}
        reply = request("POST", url, body, timeout=3)
        ended = time.monotonic()
        done = RELEASED if token else GRANTED
        answer = done if reply.status == 200 else ""
        if reply.status == 409:
            answer = reply.body["code"]
            assert answer in REFUSALS, reply
        if not token and answer == GRANTED:
            self.granted += 1
        told = int(reply.body["token"]) if not token and answer == GRANTED else token
        what: What = (
            ReleaseOp(mine, "", token, answer or done)
            if token
            else AcquireOp(mine, "", False, answer or done, told)
        )
        self.history[name].append(Operation(began, ended if answer else math.inf, what))
        return answer, told


def started(path: Path, nodes: int) -> Iterator[Cluster]:
    made = Cluster(path / "data", counts=(nodes, 1, 1))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Cluster]:
    yield from started(tmp_path, 3)


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Cluster]:
    yield from started(tmp_path, 5)


class Probe:
    """A client of its own, which held a lock before the first fault and asks only sound nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        url = cluster.url("lock-1")
        made = request("POST", f"{url}/v1/sessions", {"ttl_ms": 300_000})
        self.mine = made.body["session"]
        kept = request("POST", f"{url}/v1/locks/kept/acquire", {"session": self.mine})
        assert kept.status == 200, kept
        self.token = kept.body["token"]

    def served(self, faulty: Sequence[str], fault: str) -> None:
        """Ask the others from now on until each has granted a lock; prints how long it took."""
        began = time.monotonic()
        for name in self.cluster.names("lock"):
            if name in faulty:
                continue
            url = f"{self.cluster.url(name)}/v1/locks/probe-{name}/acquire"
            until(
                lambda url=url: (
                    request("POST", url, {"session": self.mine}, timeout=5).status == 200
                ),
                f"{name} serves after {fault}",
            )
        print(f"\n{fault}: served again after {(time.monotonic() - began) * 1_000:.0f} ms")

    def nothing_lost(self) -> None:
        for url in self.cluster.urls("lock"):
            seen = request("POST", f"{url}/v1/locks/kept/verify", {"token": self.token})
            assert seen.body["valid"], seen


def killed_leader(cluster: Cluster, probe: Probe) -> None:
    leader = cluster.lock_leader()
    cluster.kill(leader)
    probe.served([leader], "kill -9 of the leader")
    until(cluster.all_ready, "every node is ready", 60)


def stopped(cluster: Cluster, probe: Probe, names: Sequence[str]) -> None:
    pids = [cluster.pid(name) for name in names]
    assert all(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        probe.served(names, f"SIGSTOP of {len(names)} with the leader")
        time.sleep(STEP_S)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    until(cluster.all_ready, "every node is ready", 60)


def judge(cluster: Cluster, load: Load) -> None:
    assert not load.errors, load.errors
    total = sum(map(len, load.history.values()))
    unknown = sum(math.isinf(op.returned) for ops in load.history.values() for op in ops)
    print(f"{total} operations, {load.granted} grants, {unknown} of unknown outcome")
    for name, operations in load.history.items():
        assert is_linearizable(LockSpecification(), operations), f"{name}\n{cluster.report()}"
        # The checker must be able to fail: a holder that never gave the lock back.
        first = min(operation.called for operation in operations)
        stranger = Operation(first - 2, first - 1, AcquireOp("stranger", "", False, GRANTED, 1))
        assert not is_linearizable(LockSpecification(), [stranger, *operations])


def test_leader_killed_and_leader_stopped__history_is_linearizable_and_nothing_lost(
    trio: Cluster,
) -> None:
    probe, load = Probe(trio), Load(trio)
    try:
        until(lambda: load.granted > 20, "the load runs")
        killed_leader(trio, probe)
        killed_leader(trio, probe)
        stopped(trio, probe, [trio.lock_leader()])
    finally:
        load.end()
    judge(trio, load)
    probe.nothing_lost()


@pytest.mark.faults
def test_two_of_five_stopped_and_leaders_killed__history_is_linearizable_and_nothing_lost(
    five: Cluster,
) -> None:
    probe, load = Probe(five), Load(five)
    try:
        until(lambda: load.granted > 20, "the load runs")
        for _ in range(3):
            killed_leader(five, probe)
        leader = five.lock_leader()
        other = next(name for name in five.names("lock") if name != leader)
        stopped(five, probe, [leader, other])
    finally:
        load.end()
    judge(five, load)
    probe.nothing_lost()
