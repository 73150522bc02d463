"""What `dss up` hands on to its nodes."""

from __future__ import annotations

from pathlib import Path

from dss.local.up import _environment
from dss.topology.model import cluster_of
from dss.topology.render_local import render_local


def test_test_mode__reaches_lock_nodes_alone(tmp_path: Path) -> None:
    environ = {"TEST_MODE": "split-vote", "ALLOW_TEST_MODE": "1", "LOG_LEVEL": "debug"}
    for node in render_local(cluster_of(3, 1, 1), tmp_path):
        env = _environment(environ, node)
        assert env["LOG_LEVEL"] == "debug"
        assert env["NODE_ID"] == node.id
        assert ("TEST_MODE" in env, "ALLOW_TEST_MODE" in env) == (
            (True, True) if node.role == "lock" else (False, False)
        )
