"""A rolling upgrade of three lock nodes under load, and a node that is held back too late."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_process import request
from fault_cluster import FaultCluster
from fault_scene import scene

from dss.base.errors import EXIT_CONFIG
from dss.base.levels import FEATURE_LEVEL

pytestmark = pytest.mark.faults

HOLD = "FEATURE_LEVEL_MAX"


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    """Three nodes that are held back at level 1, as those of an older release."""
    made = FaultCluster(tmp_path / "data", 3, env={HOLD: "1"})
    try:
        made.start()
        yield made
    finally:
        made.stop()


def levels(cluster: FaultCluster) -> dict[str, list[int]]:
    """Node -> the level of each of its groups."""
    found = {}
    for name in cluster.running():
        reply = request("GET", f"{cluster.url(name)}/v1/raft/status", timeout=2)
        groups = reply.body["groups"] if reply.status == 200 else []
        found[name] = [group["feature_level"] for group in groups]
    return found


def at(cluster: FaultCluster, level: int) -> bool:
    return levels(cluster) == {name: [level, level] for name in cluster.names("lock")}


def test_rolling_upgrade_under_load__raised_after_the_last_node_and_nothing_fails(
    trio: FaultCluster,
) -> None:
    names = trio.names("lock")
    with scene(trio) as play:
        for name in names:
            time.sleep(1.0)  # twice the time in which a leader would raise it
            assert at(trio, 1), trio.report()
            with play.fault(f"{name} is upgraded", trio.others(name), 0.2):
                trio.send([name], signal.SIGTERM)
                assert trio.ended(name) == 0, trio.report()
            trio.env_of(name)[HOLD] = "newest"
            trio.start_node(name)
            play.whole_again()
        trio.until(lambda: at(trio, FEATURE_LEVEL), "every group is raised")
        granted = play.load.granted
        trio.until(lambda: play.load.granted > granted + 30, "the load goes on")
    assert play.load.failures == []
    assert play.load.refused == []

    last = names[-1]
    trio.send([last], signal.SIGTERM)
    assert trio.ended(last) == 0
    trio.env_of(last)[HOLD] = "1"
    trio.start_node(last)
    assert trio.ended(last) == EXIT_CONFIG, trio.report()
    said = [line for line in trio.logs[last] if "feature level" in line]
    assert f"is at feature level {FEATURE_LEVEL}, this node supports up to 1" in said[-1]
    assert f"set {HOLD} to {FEATURE_LEVEL} or more" in said[-1]
    members = request("GET", f"{trio.url(names[0])}/v1/raft/members").body["groups"]
    assert {group["feature_level"] for group in members} == {FEATURE_LEVEL}
    told = {m["node_id"]: m["supports_level"] for m in members[1]["members"]}
    assert told == {names[0]: FEATURE_LEVEL, names[1]: FEATURE_LEVEL, last: None}

    trio.env_of(last)[HOLD] = "newest"
    trio.start_node(last)
    trio.until(trio.all_ready, "it is let in with its data")
