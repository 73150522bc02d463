"""Damage to a lock node's disk while it does not run, and letting it in again.

What must not live here: how the log is read (dss.storage).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from cluster_process import dss, request
from fault_cluster import FaultCluster

from dss.storage.durable import DurableMark, Position
from dss.storage.files import OsFiles
from dss.storage.records import Reader, frame

REFUSED = re.compile(r"(\S+\.wal) at byte (\d+): (.+) its peers have the data\.")
"""File, offset, and what to do: docs/troubleshooting.md."""


class Log(NamedTuple):
    """The last segment of a node's log."""

    path: Path
    bound: Position
    """Up to here it was durable."""
    end: int
    """Here its records end."""
    seed: int


def read_log(data: Path) -> Log:
    path = max((data / "wal").glob("*.wal"))
    mark = DurableMark.open(OsFiles(data / "wal"), fresh=False)
    mark.close()
    assert mark.bound is not None
    reader = Reader(path.read_bytes())
    while reader.next() is not None:
        pass
    return Log(path, mark.bound, reader.offset, reader.seed)


def tear_tail(data: Path) -> int:
    """A write that the crash cut off: half a record, where the file ends; how many bytes."""
    log = read_log(data)
    payload = b"x" * 200
    head, _ = frame(log.seed, 5, payload)
    half = (head + payload)[:100]
    with open(log.path, "r+b") as file:
        file.truncate(log.end + len(half))
        file.seek(log.end)
        file.write(half)
    return len(half)


def cut_below_bound(data: Path) -> int:
    """The end of what was acknowledged is gone; where the file ends now."""
    log = read_log(data)
    assert log.bound.offset > 4_000, log
    end = log.bound.offset - 100
    os.truncate(log.path, end)
    return end


def flip_bit(data: Path) -> int:
    """One bit in the middle of what was acknowledged; its offset."""
    log = read_log(data)
    at = log.bound.offset // 2
    with open(log.path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    return at


def refuses_to_start(cluster: FaultCluster, name: str) -> str:
    """It ends with exit code 1 and one line that names file, offset and remedy: that line."""
    said = len(cluster.logs[name])
    cluster.start_node(name)
    code = cluster.ended(name)
    lines = cluster.logs[name][said:]
    assert code == 1, lines
    found = [line for line in lines if REFUSED.search(line)]
    assert len(found) == 1, lines
    assert str(cluster.dir_of(name)) in found[0]
    assert "re-admitted with an empty data directory" in found[0]
    assert not any("Traceback" in line for line in lines), lines
    return found[0]


def start_empty(cluster: FaultCluster, name: str) -> None:
    """With a new disk: it says what to do, and is not ready."""
    for path in cluster.dir_of(name).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cluster.start_node(name)

    def says() -> bool:
        reply = request("GET", f"{cluster.url(name)}/readyz", timeout=5)
        return reply.status == 503 and f"dss members replace {name}" in json.dumps(reply.body)

    cluster.until(says, f"{name} says what to do", 30)


def replace(cluster: FaultCluster, name: str) -> None:
    """`dss members replace`: a learner, then a voter of both groups."""
    words = ("members", "replace", name, "--json", "--endpoints", cluster.endpoints())

    def done() -> str | None:
        run = dss(*words, timeout=60)
        if "does not answer" in run.stderr:  # its links are not up yet: they redial every second
            return None
        assert run.returncode == 0, run.stdout + run.stderr + cluster.report()
        return str(run.stdout)

    groups = json.loads(cluster.until(done, f"{name} is let in again", 10))["groups"]
    roles = {m["node_id"]: m["role"] for group in groups for m in group["members"]}
    assert roles[name] == "voter", groups
    cluster.until(cluster.all_ready, "every node is ready", 30)
