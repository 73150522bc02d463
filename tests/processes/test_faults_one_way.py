"""A follower that hears the leader and is not heard by it: its own clients are told so, soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_process import Reply, request
from fault_cluster import FaultCluster
from fault_proxy import DROP, HOLD
from fault_report import Row, report
from fault_scene import started

pytestmark = pytest.mark.faults
SOON_S = 2.0
"""The longest election time-out (0.9 s) is what it is given; the rest is for a busy machine."""


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 3)


def session_at(url: str) -> str:
    made = request("POST", f"{url}/v1/sessions", {"ttl_ms": 60_000})
    assert made.status == 201, made
    return str(made.body["session"])


def timed_write(url: str) -> tuple[Reply, float]:
    began = time.monotonic()
    reply = request("POST", f"{url}/v1/sessions", {"ttl_ms": 1_000}, timeout=50)
    return reply, time.monotonic() - began


@pytest.mark.parametrize("what", [DROP, HOLD])
def test_follower_is_not_heard__its_writes_end_soon_and_its_waits_go_on(
    trio: FaultCluster, what: str
) -> None:
    leader = trio.lock_leader()
    follower, third = trio.others(leader)
    near, far = trio.url(follower), trio.url(third)
    holder, waiter = session_at(far), session_at(near)
    taken = request("POST", f"{far}/v1/locks/x/acquire", {"session": holder})
    assert taken.status == 200, taken
    waited: list[Reply] = []
    body = {"session": waiter, "wait_ms": 20_000}
    wait = threading.Thread(
        target=lambda: waited.append(request("POST", f"{near}/v1/locks/x/acquire", body))
    )
    wait.start()
    trio.until(lambda: request("GET", f"{far}/v1/locks/x").body.get("waiting"), "the acquire waits")
    time.sleep(0.3)  # the leader's word of it goes to the follower through the proxy, as all does
    assert not waited, f"before any cut: {waited[0].body}"
    trio.proxy.change(trio.between([follower], [leader, third]), what)

    sent, sent_s = timed_write(near)  # it may be on its way
    assert (sent.status, sent.body["code"]) == (504, "indeterminate"), sent
    assert sent_s < SOON_S
    later, later_s = timed_write(near)
    assert (later.status, later.body["code"]) == (503, "no_quorum"), later
    assert "does not hear" in later.body["detail"]
    assert later_s < SOON_S

    assert not waited, f"the leader has this one, and the follower hears its end: {waited[0].body}"
    freed = request(
        "POST", f"{far}/v1/locks/x/release", {"session": holder, "token": taken.body["token"]}
    )
    assert freed.status == 200, freed
    wait.join(SOON_S)
    assert waited, "granted, and nobody told"
    assert waited[0].status == 200, waited

    healed = time.monotonic()
    trio.heal()
    trio.until(lambda: timed_write(near)[0].status == 201, "the follower's writes are served")
    assert trio.lock_leader() == leader
    slowest_ms = round(1_000 * max(sent_s, later_s))
    title = f"a follower is not heard ({what}): its own writes"
    report.append(Row(title, 3, slowest_ms, slowest_ms, slowest_ms))
    served_ms = round(1_000 * (time.monotonic() - healed))
    report.append(Row(f"{title}: healed, served", 3, served_ms, served_ms, None))
