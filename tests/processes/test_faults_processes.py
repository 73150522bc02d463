"""Lock nodes that die or stop: a minority, the majority, all at once, one after the other."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import FaultCluster
from fault_disk import tear_tail
from fault_scene import scene, started

pytestmark = pytest.mark.faults


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 3)


@pytest.fixture
def five(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 5)


def test_leaders_killed_one_after_the_other__nothing_lost(five: FaultCluster) -> None:
    with scene(five) as play:
        for _ in range(3):
            leader = five.lock_leader()
            with play.fault("kill -9 of the leader", five.others(leader), 0.3):
                five.kill(leader)
            five.start_node(leader)
            play.whole_again()


def test_two_of_five_killed__the_others_go_on(five: FaultCluster) -> None:
    with scene(five) as play:
        leader = five.lock_leader()
        dead = [leader, five.others(leader)[-1]]
        with play.fault("kill -9 of the leader and one more", five.others(*dead)):
            for name in dead:
                five.kill(name)
        for name in dead:
            five.start_node(name)
        play.whole_again("two of five started again")


def test_two_of_five_stopped__the_others_go_on(five: FaultCluster) -> None:
    with scene(five) as play:
        leader = five.lock_leader()
        still = [leader, five.others(leader)[0]]
        with play.fault("SIGSTOP of the leader and one more", five.others(*still)):
            five.send(still, signal.SIGSTOP)
        five.send(still, signal.SIGCONT)
        play.whole_again("SIGCONT of two of five")


def test_three_of_five_killed__nothing_is_acknowledged_until_one_is_back(
    five: FaultCluster,
) -> None:
    with scene(five) as play:
        leader = five.lock_leader()
        dead = [leader, *five.others(leader)[:2]]
        left = five.others(*dead)
        for name in dead:
            five.kill(name)
        gone_at = time.monotonic()
        time.sleep(2)
        assert play.watch.asked_since(left, gone_at) == 0
        with play.fault("three of five killed, one started again", left, 0.5):
            five.start_node(dead[0])
        for name in dead[1:]:
            five.start_node(name)
        play.whole_again("three of five killed")


def test_rolling_restart_of_five__no_request_fails(five: FaultCluster) -> None:
    with scene(five) as play:
        play.rolling_restart()
    assert play.load.failures == []
    assert play.load.refused == []


@pytest.mark.parametrize("torn", [False, True])
def test_all_killed_at_once__nothing_lost(trio: FaultCluster, torn: bool) -> None:
    title = f"kill -9 of all at once{', every log with a torn tail' if torn else ''}"
    with scene(trio) as play:
        with play.fault(title, trio.names("lock"), 0.5):
            trio.send(trio.names("lock"), signal.SIGKILL)
            for name in trio.names("lock"):
                trio.nodes[name].wait()
                bytes_torn = tear_tail(trio.dir_of(name)) if torn else 0
                trio.start_node(name)
        if torn:
            for name in trio.names("lock"):
                said = f"cut {bytes_torn} unfinished bytes off the end of the log"
                assert any(said in line for line in trio.logs[name]), trio.report()
        play.whole_again()
