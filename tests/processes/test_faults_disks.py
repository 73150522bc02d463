"""Disks of lock nodes: full, cut short, wiped. The node stops or refuses, the others go on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import FaultCluster
from fault_disk import cut_below_bound, refuses_to_start, replace, start_empty, tear_tail
from fault_proxy import DROP
from fault_scene import scene, started

pytestmark = pytest.mark.faults

SMALL_DISK_MIB = 64
"""Two log segments of 16 MiB, snapshots, and some."""


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, by root alone."""
    place = tmp_path / "small"
    place.mkdir()
    size = f"size={SMALL_DISK_MIB}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "dss-faults", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NO SMALL FILE SYSTEM, so no full disk: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all room there is; the file that has it."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(place).free < 4096
    return filler


def test_full_disk__node_stops_and_says_so_and_comes_back(small_disk: Path, tmp_path: Path) -> None:
    victim = "lock-3"
    cluster = FaultCluster(
        tmp_path / "data",
        3,
        dirs={victim: small_disk / "node"},
        env={"SNAPSHOT_EVERY_ENTRIES": "300"},
    )
    try:
        cluster.start()
        with scene(cluster) as play:
            with play.fault("full disk", cluster.others(victim)):
                filler = fill(small_disk)
                assert cluster.ended(victim, 60) == 1
            lines = cluster.logs[victim]
            assert any(os.strerror(errno.ENOSPC) in line for line in lines), cluster.report()
            assert not any("Traceback" in line for line in lines), cluster.report()
            filler.unlink()
            cluster.start_node(victim)
            play.whole_again("room on the disk again")
    finally:
        cluster.stop()


@pytest.mark.parametrize("leads", [True, False])
def test_write_to_the_log_fails__node_stops_and_says_so_and_comes_back(
    trio: FaultCluster, leads: bool
) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        victim = leader if leads else trio.others(leader)[0]
        said = len(trio.logs[victim])
        title = f"no write of the {'leader' if leads else 'follower'} succeeds (RLIMIT_FSIZE 0)"
        with play.fault(title, trio.others(victim)):
            hard = resource.prlimit(trio.pid(victim), resource.RLIMIT_FSIZE)[1]
            resource.prlimit(trio.pid(victim), resource.RLIMIT_FSIZE, (0, hard))
            assert trio.ended(victim) == 1
        lines = trio.logs[victim][said:]
        assert any("the log cannot be written" in line for line in lines), lines
        assert any(os.strerror(errno.EFBIG) in line for line in lines), lines
        assert not any("Traceback" in line for line in lines), lines
        trio.start_node(victim)
        play.whole_again("room for the log again")


def test_torn_tail__is_cut_off_and_the_node_goes_on(trio: FaultCluster) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        said = len(trio.logs[leader])
        with play.fault("torn tail of the killed leader's log", trio.others(leader), 0.2):
            trio.kill(leader)
            torn_bytes = tear_tail(trio.dir_of(leader))
        trio.start_node(leader)
        play.whole_again()
        line = f"cut {torn_bytes} unfinished bytes off the end of the log"
        assert any(line in text for text in trio.logs[leader][said:]), trio.report()


def test_log_cut_short__node_refuses_to_start_and_is_let_in_again(trio: FaultCluster) -> None:
    with scene(trio) as play:
        victim = trio.others(trio.lock_leader())[0]
        with play.fault("log cut short below the durable mark", trio.others(victim), 0.2):
            trio.kill(victim)
            cut_below_bound(trio.dir_of(victim))
            line = refuses_to_start(trio, victim)
        assert "it was durable up to" in line
        start_empty(trio, victim)
        replace(trio, victim)
        play.whole_again("let in again")


def test_wiped_disk__node_does_not_count_before_it_is_let_in_again(trio: FaultCluster) -> None:
    with scene(trio) as play:
        victim = trio.lock_leader()
        with play.fault("disk of the killed leader wiped", trio.others(victim), 0.2):
            trio.kill(victim)
            start_empty(trio, victim)
        leader = trio.lock_leader()
        third = next(name for name in trio.others(victim) if name != leader)
        # The leader and the empty one are two of three, and no quorum.
        trio.isolate([third], DROP)
        alone_at = time.monotonic()
        time.sleep(2.5)
        assert play.watch.asked_since(trio.names("lock"), alone_at) == 0
        assert trio.leader_of(trio.names("lock")) is None
        trio.heal()
        play.watch.served([leader, third], time.monotonic())
        with play.fault("the wiped one is let in again", [leader, third], 0.2):
            replace(trio, victim)
        play.whole_again()
        # Now they are.
        with play.fault("the third one cut off after its return", [leader, victim]):
            trio.isolate([third], DROP)
        play.whole_again("wiped disk")
        trio.until(trio.all_ready, "every node is ready", 30)
