"""Members of the lock nodes' groups, over real processes: a lost disk, removal, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_process import Cluster, dss, request, until


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("members") / "data", counts=(3, 1, 1))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def members(cluster: Cluster, *words: str, expect: int = 0) -> Any:
    done = dss("members", *words, "--json", "--endpoints", cluster.endpoints(), timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr + cluster.report()
    return json.loads(done.stdout if expect == 0 else done.stderr)


def listed(view: Any) -> list[dict[str, tuple[str, str]]]:
    """Per group: node -> (role, incarnation)."""
    return [
        {m["node_id"]: (m["role"], m["incarnation"]) for m in group["members"]}
        for group in view["groups"]
    ]


def lose_disk(cluster: Cluster, name: str) -> None:
    """Its directory is gone, and the process too: dss up starts it again, empty."""
    shutil.rmtree(cluster.data_dir / name)
    pid = cluster.kill(name)
    until(lambda: cluster.pid(name) not in (0, pid), f"{name} is started again", 60)


def write(url: str, name: str) -> int:
    session = request("POST", f"{url}/v1/sessions", {"ttl_ms": 30_000})
    if session.status != 201:
        return session.status
    body = {"session": session.body["session"]}
    return request("POST", f"{url}/v1/locks/{name}/acquire", body).status


def test_lost_disk__is_replaced_and_counts_again(trio: Cluster) -> None:
    leader = trio.lock_leader()
    victim = next(name for name in trio.names("lock") if name != leader)
    before = listed(members(trio, "ls"))
    assert [set(group) for group in before] == [{"lock-1", "lock-2", "lock-3"}] * 2
    assert write(trio.url(leader), "before") == 200
    lose_disk(trio, victim)
    until(
        lambda: (
            f"dss members replace {victim}"
            in json.dumps(request("GET", f"{trio.url(victim)}/readyz").body)
        ),
        f"{victim} says what to do",
        60,
    )
    assert members(trio, "add", victim, expect=1)["code"] == "other_incarnation"
    view = until(lambda: _lost(trio, victim), "the leaders see its new incarnation")
    assert [m["up"] for g in view["groups"] for m in g["members"] if m["lost_disk"]] == [False] * 2
    after = listed(members(trio, "replace", victim))
    for old, new in zip(before, after, strict=True):
        assert new[victim][0] == "voter"
        assert new[victim][1] != old[victim][1]
        assert {n: new[n] for n in new if n != victim} == {n: old[n] for n in old if n != victim}
    until(trio.all_ready, "every node is ready", 60)
    # It is one of the quorum now: the third node may go.
    third = next(n for n in trio.names("lock") if n not in (victim, leader))
    pid = trio.pid(third)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: write(trio.url(victim), "after") == 200, "a write without the third", 20)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert members(trio, "replace", victim, expect=1)["message"].endswith("nothing to replace")


def _lost(cluster: Cluster, name: str) -> Any:
    view = members(cluster, "ls")
    seen = [m for g in view["groups"] for m in g["members"] if m["node_id"] == name]
    return view if len(seen) == 2 and all(m["lost_disk"] for m in seen) else None


def test_leader_is_removed_and_added_again__it_hands_over_first(trio: Cluster) -> None:
    until(trio.all_ready, "every node is ready", 60)
    leader = trio.lock_leader()
    # Asked of the leader itself: it passes the order on to who leads after it.
    reply = request("DELETE", f"{trio.url(leader)}/v1/raft/members/{leader}")
    assert reply.status == 200, reply.body
    assert all(leader not in group for group in listed(reply.body))
    assert all(len(group) == 2 for group in listed(reply.body))
    ready = until(lambda: request("GET", f"{trio.url(leader)}/readyz"), "it answers")
    assert ready.status == 503
    assert "no member of group" in json.dumps(ready.body)
    other = trio.lock_leader()
    assert other != leader
    assert write(trio.url(other), "two-are-left") == 200
    again = listed(members(trio, "add", leader))
    assert [group[leader][0] for group in again] == ["voter", "voter"]
    until(trio.all_ready, "every node is ready", 60)
    assert write(trio.url(leader), "three-again") == 200


def test_refusals__say_what_to_do(trio: Cluster) -> None:
    until(trio.all_ready, "every node is ready", 60)
    unlisted = members(trio, "add", "lock-9", expect=2)
    assert unlisted["code"] == "invalid"
    assert "RAFT_PEERS" in unlisted["message"]
    assert members(trio, "remove", "lock-9", expect=1)["code"] == "not_found"
    queue = request("GET", f"{trio.url('queue-1')}/v1/raft/members")
    assert (queue.status, queue.body["code"]) == (421, "wrong_role")
    leader = trio.lock_leader()
    stopped, other = (name for name in trio.names("lock") if name != leader)
    pid = trio.pid(stopped)
    os.kill(pid, signal.SIGSTOP)
    try:
        # A stopped node keeps its links; the leader hears that it does not answer.
        _until_silent(trio, leader, stopped)
        refused = request("DELETE", f"{trio.url(leader)}/v1/raft/members/{other}")
        assert (refused.status, refused.body["code"]) == (409, "breaks_quorum")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [len(group) for group in listed(members(trio, "ls"))] == [3, 3]


def _until_silent(cluster: Cluster, leader: str, name: str) -> None:
    def look() -> bool:
        body = request("GET", f"{cluster.url(leader)}/v1/raft/members").body
        seen = [m for g in body.get("groups", ()) for m in g["members"] if m["node_id"] == name]
        return bool(seen) and all(m["last_contact_ms"] > 1_500 for m in seen)

    until(look, f"{name} is silent", 20)


def test_table__for_people(trio: Cluster) -> None:
    done = dss("members", "ls", "--endpoints", trio.endpoints())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["group", "node", "role", "state"]
    assert len(lines) == 7
    assert sum("leader" in line for line in lines) == 2


def test_data_dir_layout__is_what_these_tests_wipe(trio: Cluster) -> None:
    assert (Path(trio.data_dir) / "lock-1" / "identity.json").exists()
