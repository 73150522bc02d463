"""A node that stops withdraws its clients' waits: nothing was done, and their places are kept."""

import pytest
from machine_world import World, sid
from test_lock_once import keyed

from dss.core.locks.commands import Acquire, AcquireMany, Cancel, Upgrade, Withdraw
from dss.core.machine import PENDING


def withdraw(world, *indexes):
    assert world.do(Withdraw([(index, 0) for index in indexes])) == (200, {})
    return world.wakes()


def test_withdrawn__told_to_ask_again_and_stands_before_those_who_came_later():
    world = World(sessions=4)
    token = world.token(1)
    mine = world.wait(2)
    world.now_ms = 10
    later = world.wait(3)
    wake = withdraw(world, mine)[mine]
    assert (wake.status, wake.body["code"], wake.body["waiting"]) == (503, "stopping", True)
    assert wake.body["retry_after_ms"] == 100
    assert world.machine.waiting == 1
    world.reload()
    world.now_ms = 300
    again = world.wait(2)
    world.release(1, token)
    assert set(world.wakes()) == {again}
    assert world.machine.waiting == 1
    [hold] = world.machine.describe("a", world.now_ms)["holders"]
    assert hold["session"] == sid(2)
    world.release(2, hold["token"])
    assert set(world.wakes()) == {later}


def test_wait_that_another_node_took_over__is_left_alone():
    world = World(sessions=2)
    world.token(1)
    first = world.wait(2)
    second = world.wait(2)
    assert world.wakes()[first].body["code"] == "superseded"
    assert withdraw(world, first) == {}
    assert world.machine.waiting == 1
    assert set(withdraw(world, second)) == {second}
    assert world.machine.waiting == 0


def test_first_leaves_and_lets_the_second_in__the_second_is_granted_not_withdrawn():
    world = World(sessions=3)
    world.token(1, mode="shared")
    writer = world.wait(2)
    reader = world.wait(3, mode="shared")
    wakes = withdraw(world, reader, writer)
    assert {index: wake.status for index, wake in wakes.items()} == {writer: 503, reader: 200}


@pytest.mark.parametrize(
    "ask",
    [
        lambda **more: Acquire(sid(2), "a", "exclusive", 5_000, **more),
        lambda **more: AcquireMany(sid(2), ["a", "b"], 5_000, **more),
    ],
)
@pytest.mark.parametrize("how", ["seq", "key"])
def test_same_number_or_key_again__is_carried_out_anew(ask, how):
    world = World(sessions=2)
    token = world.token(1)
    again = ask(seq=1) if how == "seq" else keyed("k", ask())
    assert world.do(again) == PENDING
    mine = world.index
    assert withdraw(world, mine)[mine].status == 503
    assert world.do(again) == PENDING, "the answer 503 was not kept"
    second = world.index
    world.release(1, token)
    assert world.wakes()[second].status == 200
    assert world.do(again)[0] == 200
    assert world.machine.describe("a", 0)["holders"][0]["count"] == 1


def test_client_cancels_instead__its_place_is_given_up():
    world = World(sessions=3)
    token = world.token(1)
    mine = world.wait(2)
    withdraw(world, mine)
    world.now_ms = 10
    other = world.wait(3)
    assert world.do(Cancel(sid(2), "a")) == (200, {"cancelled": False})
    world.wait(2)
    world.release(1, token)
    assert set(world.wakes()) == {other}


def test_upgrade_is_withdrawn__the_shared_hold_stays():
    world = World(sessions=2)
    token = world.token(1, mode="shared")
    other = world.token(2, mode="shared")
    assert world.do(Upgrade(sid(1), "a", token, 5_000)) == PENDING
    mine = world.index
    assert withdraw(world, mine)[mine].status == 503
    assert world.machine.held == 2
    assert world.do(Upgrade(sid(1), "a", token, 5_000)) == PENDING
    again = world.index
    world.release(2, other)
    assert world.wakes()[again].status == 200


def test_unknown_places__nothing_happens():
    world = World(sessions=1)
    assert withdraw(world, 77) == {}
