"""Lock nodes that cannot talk to each other: full and one-way cuts, slow links, two sides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_process import request
from fault_cluster import FaultCluster
from fault_proxy import DROP, HOLD, PASS
from fault_scene import scene, started

pytestmark = pytest.mark.faults


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 3)


@pytest.fixture
def five(tmp_path: Path) -> Iterator[FaultCluster]:
    yield from started(tmp_path, 5)


def refused_everywhere(cluster: FaultCluster, names: list[str]) -> None:
    """A part without a majority: writes and reads are 503, soon."""
    for name in names:
        url = cluster.url(name)
        for method, path, body in (
            ("POST", "/v1/sessions", {"ttl_ms": 60_000}),
            ("GET", "/v1/locks/x", None),
        ):
            began = time.monotonic()
            reply = request(method, url + path, body, timeout=10)
            took_s = time.monotonic() - began
            assert (reply.status, reply.body["code"]) == (503, "no_quorum"), (name, reply)
            assert took_s < 3, f"{name} let {path} wait {took_s:.1f} s"


@pytest.mark.parametrize("what", [DROP, HOLD])
def test_leader_cut_off__the_others_go_on_and_it_refuses(trio: FaultCluster, what: str) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        cut_at = time.monotonic()
        with play.fault(f"leader cut off ({what})", trio.others(leader)):
            trio.isolate([leader], what)
        refused_everywhere(trio, [leader])
        assert play.watch.asked_since([leader], cut_at) == 0
        play.whole_again(f"leader cut off ({what})")


def test_leader_is_not_heard__another_one_leads(trio: FaultCluster) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        rest = trio.others(leader)
        with play.fault("one-way cut: nobody hears the leader", rest):
            trio.proxy.change(trio.between([leader], rest), HOLD)
        play.whole_again("one-way cut of the leader")


def test_links_of_the_leader_reset__another_one_leads(trio: FaultCluster) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        pairs = trio.between([leader], trio.others(leader))
        with play.fault("leader's links reset and refused", trio.others(leader)):
            trio.proxy.reset(pairs, refuse=True)
        trio.proxy.reset(pairs, refuse=False)
        play.whole_again("leader's links reset")


def test_follower_cut_off__the_others_do_not_notice(trio: FaultCluster) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        follower = trio.others(leader)[0]
        with play.fault("follower cut off", trio.others(follower)):
            trio.isolate([follower])
        refused_everywhere(trio, [follower])
        assert trio.leader_of(trio.others(follower)) == leader
        play.whole_again("follower cut off")
        assert trio.lock_leader() == leader, "its return has deposed the leader"


@pytest.mark.parametrize("deaf", [True, False])
def test_follower_cut_one_way__the_others_do_not_notice(trio: FaultCluster, deaf: bool) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        follower = trio.others(leader)[0]
        rest = trio.others(follower)
        cut = trio.between(rest, [follower]) if deaf else trio.between([follower], rest)
        title = f"one-way cut: a follower {'hears nobody' if deaf else 'is not heard'}"
        with play.fault(title, rest):
            trio.proxy.change(cut, HOLD)
        assert trio.leader_of(rest) == leader
        play.whole_again(title)


def test_two_of_three_cut_from_each_other__the_third_keeps_them_together(
    trio: FaultCluster,
) -> None:
    with scene(trio) as play:
        leader = trio.lock_leader()
        other, bridge = trio.others(leader)
        pair = [(leader, other), (other, leader)]
        with play.fault("leader and one follower cut from each other", [bridge]):
            trio.proxy.change(pair, DROP)
        terms = [seen["term"] for n in (leader, bridge) if (seen := trio.status(n)) is not None]
        time.sleep(2)
        after = [seen["term"] for n in (leader, bridge) if (seen := trio.status(n)) is not None]
        assert max(after) <= max(terms) + 1, "they elect leaders for ever"
        play.whole_again("two cut from each other")


def test_slow_links__all_is_served_slowly(trio: FaultCluster) -> None:
    with scene(trio) as play:
        names = trio.names("lock")
        pairs = trio.between(names, names)
        with play.fault("every link 40 ms slower each way", names):
            trio.proxy.change(pairs, PASS, 40)
        leader = trio.lock_leader()
        time.sleep(2)
        assert trio.lock_leader() == leader
        play.whole_again()


def test_five_split_into_two_and_three__the_two_acknowledge_nothing(five: FaultCluster) -> None:
    with scene(five) as play:
        leader = five.lock_leader()
        minority = [leader, five.others(leader)[0]]
        majority = five.others(*minority)
        cut_at = time.monotonic()
        with play.fault("leader and one more cut off", majority):
            five.isolate(minority)
        refused_everywhere(five, minority)
        assert play.watch.asked_since(minority, cut_at) == 0
        play.whole_again("two of five cut off")


def test_five_in_three_parts__nothing_is_acknowledged_until_two_parts_meet(
    five: FaultCluster,
) -> None:
    with scene(five) as play:
        one, two, rest = (five.names("lock")[at] for at in (slice(0, 2), slice(2, 4), slice(4, 5)))
        cut_at = time.monotonic()
        five.isolate(one)
        five.isolate(two)
        time.sleep(2.5)
        refused_everywhere(five, five.names("lock"))
        assert play.watch.asked_since(five.names("lock"), cut_at) == 0
        with play.fault("three parts, two of which meet again", [*two, *rest], 0.5):
            five.proxy.change(five.between(two, rest) + five.between(rest, two), PASS)
        play.whole_again("three parts")
