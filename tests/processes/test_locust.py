"""The Locust scenarios against the real cluster: 30 s, 20 users, no failure."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from cluster_process import Cluster, environment

SCENARIOS = Path(__file__).parents[2] / "loadtest/load_test_scenarios.py"


def test_thirty_seconds_headless__zero_failures(cluster: Cluster, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(SCENARIOS), "--headless",
         "-u", "20", "-r", "10", "-t", "30s", "--host", "http://localhost",
         "--csv", str(tmp_path / "load"), "--only-summary"],
        capture_output=True, text=True, timeout=120,
        env={**environment(), "DSS_BASE_PORT": str(cluster.base_port)},
    )  # fmt: skip
    print(done.stdout, done.stderr)  # the table: which of the two depends on Locust
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    with open(tmp_path / "load_stats.csv", newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert int(rows["Aggregated"]["Failure Count"]) == 0
    assert int(rows["Aggregated"]["Request Count"]) > 500
    for name in ("lock: acquire", "lock: contended", "lock: release", "session: keepalive",
                 "queue: send", "queue: receive", "queue: ack",
                 "cache: get", "cache: put", "cache: read own write"):  # fmt: skip
        assert int(rows[name]["Request Count"]) > 0, name
