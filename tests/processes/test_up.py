"""`dss up` with real nodes: ready, table, refusals, clean end, data found again."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from cluster_process import Cluster, alive, dss, free_base_port, request, until


def test_up__ready_with_a_table_and_things_to_try(cluster: Cluster) -> None:
    text = "\n".join(cluster.lines)
    assert "lock-1 lock-2 lock-3   leader lock-" in text
    assert "queue-1 queue-2 queue-3   32 partitions placed" in text
    assert "cache-1 cache-2   main memory: sqlite" in text
    rows = [line.split() for line in cluster.lines if line.startswith("  ")]
    assert rows[0] == ["node", "role", "url", "state"]
    assert [row[0] for row in rows[1:9]] == cluster.all_names()
    assert [row[2] for row in rows[1:9]] == cluster.endpoints().split(",")
    states = [row[3] for row in rows[1:4]]
    assert sorted(states) == ["follower", "follower", "leader"]
    assert sum("Try:" in line for line in cluster.lines) == 1


def test_status__of_a_healthy_cluster(cluster: Cluster) -> None:
    done = dss("status", "--endpoints", cluster.endpoints())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leader lock-" in done.stdout.splitlines()[0]
    for name in cluster.all_names():
        assert name in done.stdout


def test_the_lines_to_try__work_as_printed(cluster: Cluster) -> None:
    env = {"DSS_ENDPOINTS": cluster.endpoints()}
    held = dss("lock", "run", "demo", "--", "sh", "-c", "echo token $DSS_LOCK_TOKEN", env=env)
    assert held.returncode == 0, held.stderr
    assert int(held.stdout.removeprefix("token ")) > 0
    sent = dss("queue", "send", "try", '{"id": 1}', env=env)
    assert sent.returncode == 0, sent.stderr
    got = dss("queue", "receive", "try", "--wait", "5", "--ack", env=env)
    assert got.returncode == 0, got.stderr
    assert '{"id": 1}' in got.stdout
    put = dss("cache", "put", "try", "42", env=env)
    assert put.returncode == 0, put.stderr
    assert dss("cache", "get", "try", env=env).stdout == "42"
    for view in (["ring"], ["partitions"], ["lock", "ls"], ["queue", "stats", "try"],
                 ["queue", "stats"], ["cache", "line", "try"], ["cache", "stats"]):  # fmt: skip
        for extra in ([], ["--json"]):
            shown = dss(*view, *extra, env=env)
            assert shown.returncode == 0, f"{view}: {shown.stderr}"
            assert shown.stdout.strip()


def test_second_up_on_the_same_data__refused(cluster: Cluster) -> None:
    assert cluster.process is not None
    done = dss("up", "--data-dir", str(cluster.data_dir), "--base-port", str(free_base_port()))
    assert done.returncode == 1
    assert f"a dss up (pid {cluster.process.pid}) already runs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_port_in_use__named_with_its_process_and_a_remedy(tmp_path: Path) -> None:
    base = free_base_port()
    with socket.create_server(("127.0.0.1", base + 12)):
        done = dss("up", "--data-dir", str(tmp_path / "data"), "--base-port", str(base))
    assert done.returncode == 1
    assert f"port {base + 12} is taken by " in done.stderr
    assert f"(pid {os.getpid()}). Stop it, or: dss up --base-port " in done.stderr


def test_even_number_of_lock_nodes__refused_78(tmp_path: Path) -> None:
    done = dss("up", "--lock", "2", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 78
    assert "odd" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["", "[{", '{"id": 1}', "lock-1,lock-2"])
def test_bad_peer_list__one_line_and_78(value: str, tmp_path: Path) -> None:
    env = {"NODE_ID": "lock-1", "NODE_ROLE": "lock", "DATA_DIR": str(tmp_path),
           "RAFT_PEERS": value, "QUEUE_NODES": "[]", "CACHE_PEERS": "[]"}  # fmt: skip
    done = dss("node", env=env)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith("RAFT_PEERS")
    assert "Example: RAFT_PEERS=[" in line


def test_node_killed__is_started_again_and_said_so(cluster: Cluster) -> None:
    before = cluster.kill("cache-2")
    until(lambda: cluster.pid("cache-2") not in (0, before), "cache-2 runs again")
    until(cluster.all_ready, "all nodes are ready again", 60)
    expected = "cache-2 was ended by SIGKILL; starting it again in 0.5 s"
    until(lambda: any(expected in line for line in cluster.lines), "dss up says so", 5)


def test_stop_and_start_again__nothing_left_running_and_the_data_found(
    own_cluster: Cluster,
) -> None:
    own_cluster.start()
    lock, queue, cache = (own_cluster.url(f"{role}-1") for role in ("lock", "queue", "cache"))
    session = request("POST", f"{lock}/v1/sessions", {"ttl_ms": 600_000}).body["session"]
    taken = request("POST", f"{lock}/v1/locks/kept/acquire", {"session": session})
    assert taken.status == 200, taken
    assert request("PUT", f"{queue}/v1/queues/kept", {}).status in (200, 201)
    sent = request("POST", f"{queue}/v1/queues/kept/messages", {"body": "kept"})
    assert sent.status == 201, sent
    written = request("PUT", f"{cache}/v1/cache/kept", raw=b"kept")
    assert written.status < 300, written

    pids = own_cluster.pids()
    assert all(pids.values())
    assert own_cluster.stop(signal.SIGINT) == 0, own_cluster.report()
    assert not [name for name, pid in pids.items() if alive(pid)]

    refused = dss("up", "--lock", "5", "--data-dir", str(own_cluster.data_dir))
    assert refused.returncode == 78
    assert "dss up --lock 3 --queue 3 --cache 2" in refused.stderr

    own_cluster.start()
    held = request("GET", f"{lock}/v1/locks/kept").body
    assert held["token"] == taken.body["token"], held
    got = request("POST", f"{queue}/v1/queues/kept/receive", {"wait_ms": 5_000}).body
    assert [message["body"] for message in got["messages"]] == ["kept"]
    other = own_cluster.url("cache-2")
    for reader, states in ((cache, ["E", "I"]), (other, ["S", "S"])):  # a lone read, a second one
        assert request("GET", f"{reader}/v1/cache/kept").body == b"kept"
        lines = [request("GET", f"{url}/v1/cache/kept/line").body for url in (cache, other)]
        assert [line["state"] for line in lines] == states
    assert own_cluster.stop(signal.SIGTERM) == 0


def test_up_killed__no_node_survives(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", counts=(1, 1, 1))
    try:
        cluster.start()
        pids = cluster.pids()
        assert all(pids.values())
        cluster.stop(signal.SIGKILL)
        until(lambda: not [pid for pid in pids.values() if alive(pid)], "all nodes ended", 10)
    finally:
        cluster.stop()
