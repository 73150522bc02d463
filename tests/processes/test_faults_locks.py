"""Lock nodes under faults, with a load whose whole history must be linearizable: the short choice.

The others (`make faults`): test_faults_partitions, test_faults_processes, test_faults_disks.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import FaultCluster
from fault_disk import flip_bit, refuses_to_start, replace, start_empty
from fault_proxy import HOLD
from fault_scene import scene, started


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 3)


def test_leader_killed_and_leader_stopped__history_is_linearizable_and_nothing_lost(
    trio: FaultCluster,
) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        with play.fault("kill -9 of the leader", trio.others(leader), 0.5):
            trio.kill(leader)
        trio.start_node(leader)
        play.whole_again()
        leader = trio.lock_leader()
        with play.fault("SIGSTOP of the leader", trio.others(leader)):
            trio.send([leader], signal.SIGSTOP)
        trio.send([leader], signal.SIGCONT)
        play.whole_again("SIGCONT of the old leader")


def test_leader_hears_nobody__another_one_leads_and_history_is_linearizable(
    trio: FaultCluster,
) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        rest = trio.others(leader)
        with play.fault("one-way cut: the leader hears nobody", rest):
            trio.proxy.change(trio.between(rest, [leader]), HOLD)
        assert trio.leader_of(rest) is not None
        play.whole_again("one-way cut of the leader")


def test_rolling_restart_under_load__no_request_fails(trio: FaultCluster) -> None:
    with scene(trio) as play:
        play.rolling_restart()
    assert play.load.failures == []
    assert play.load.refused == []


def test_flipped_bit__node_refuses_to_start_and_is_let_in_again(trio: FaultCluster) -> None:
    with scene(trio) as play:
        victim = trio.lock_leader()
        with play.fault("flipped bit in the log of the killed leader", trio.others(victim), 0.2):
            trio.kill(victim)
            flip_bit(trio.dir_of(victim))
            line = refuses_to_start(trio, victim)
        assert "checksum mismatch" in line or "does not fit" in line, line
        start_empty(trio, victim)
        replace(trio, victim)
        play.whole_again()
        # It is one of the quorum now: another one may go.
        other = next(n for n in trio.others(victim) if n != trio.lock_leader())
        with play.fault("SIGKILL of another one after its return", trio.others(other), 0.2):
            trio.kill(other)
        trio.start_node(other)
        trio.until(trio.all_ready, "every node is ready", 30)
