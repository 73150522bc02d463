"""Deadlocks: found when they come about, the last who came is told, the others go on."""

from machine_world import World, sid

from dss.core.locks import waits as waits_module
from dss.core.locks.commands import Acquire
from dss.core.machine import PENDING


def codes(world):
    return {index: wake.body.get("code", "granted") for index, wake in world.wakes().items()}


def test_two_in_a_circle__the_later_waiter_is_the_victim_and_keeps_what_it_holds():
    world = World(sessions=2)
    a, b = world.token(1, "a"), world.token(2, "b")
    first = world.wait(1, "b")
    world.wait(2, "a")
    wake = world.wakes()[world.index]
    assert (wake.status, wake.body["code"]) == (409, "deadlock")
    assert [(each["session"], each["name"]) for each in wake.body["cycle"]] == [
        (sid(2), "a"),
        (sid(1), "b"),
    ]
    assert world.machine.held == 2
    world.release(2, b, "b")
    assert codes(world) == {first: "granted"}
    assert world.release(1, a, "a") == (200, {})
    assert world.machine.deadlocks == 1


def test_ring_of_twenty__found_with_the_whole_cycle():
    world = World(sessions=20)
    for number in range(1, 21):
        world.token(number, f"lock/{number}")
    for number in range(1, 20):
        world.wait(number, f"lock/{number + 1}")
        assert codes(world) == {}
    world.wait(20, "lock/1")
    [wake] = world.machine.take_wakes()
    assert len(wake.body["cycle"]) == 20
    assert wake.body["message"].startswith("deadlock of 20: ")


def test_waits_that_are_no_cycle__are_left_alone():
    world = World(sessions=4)
    world.token(1, "a")
    world.token(2, "b")
    world.wait(2, "a")
    world.wait(3, "b")
    world.wait(4, "a")
    assert codes(world) == {}
    assert world.machine.waiting == 3


def test_reader_and_writer_in_a_circle_over_the_line__found():
    """A reader stands behind a writer that waits for a holder that waits for the reader."""
    world = World(sessions=3)
    world.token(1, "a", mode="shared")
    world.token(3, "c")
    world.wait(2, "a")  # the writer
    world.wait(1, "c")
    assert codes(world) == {}
    world.wait(3, "a", mode="shared")
    assert codes(world) == {world.index: "deadlock"}


def test_several_locks_and_a_single_one_in_a_circle__found():
    world = World(sessions=2)
    world.token(1, "x")
    world.token(2, "b")
    assert world.acquire_all(1, "ab", 5_000) == PENDING
    several = world.index
    world.wait(2, "x")
    assert codes(world) == {world.index: "deadlock"}
    world.end(2)
    assert codes(world) == {several: "granted"}


def test_semaphore_with_one_holder_that_can_go_on__is_no_deadlock_until_that_one_waits_too():
    world = World(sessions=3)
    for number in (1, 2):
        assert world.share(number, 1, 2)[0] == 200
    world.token(3, "x")
    assert world.share(3, 1, 2, wait_ms=5_000) == PENDING
    world.wait(1, "x")
    assert codes(world) == {}, "holder 2 can give its permit back"
    world.wait(2, "x", owner=sid(2))
    assert codes(world) == {world.index: "deadlock"}


def test_free_holder_of_a_semaphore_releases_too_little__the_rest_is_a_deadlock():
    world = World(sessions=3)
    assert world.share(1, 2, 3)[0] == 200
    free = world.share(2, 1, 3)[1]["token"]
    world.token(3, "x")
    assert world.share(3, 3, 3, wait_ms=5_000) == PENDING
    world.wait(1, "x")
    blocked = world.index
    assert codes(world) == {blocked: "deadlock"}, "it needs all three, holder 1 cannot move"
    world.release(2, free, "s")
    assert codes(world) == {}


def test_victim_that_tries_again__has_its_old_place():
    world = World(sessions=3, ttl_ms=60_000)
    world.token(1, "a")
    b = world.token(2, "b")
    earlier = world.wait(1, "b")
    world.wait(2, "a")
    assert codes(world) == {world.index: "deadlock"}
    world.now_ms = 500
    late = world.wait(3, "a")
    world.release(2, b, "b")
    world.wakes()
    again = world.wait(2, "a")
    world.reload()
    world.end(1)
    wakes = codes(world)
    assert again in wakes
    assert late not in wakes
    assert earlier not in wakes


def test_more_than_one_cycle_through_one_wait__all_are_broken():
    world = World(sessions=3)
    shared = [world.token(number, "s", mode="shared") for number in (1, 2)]
    assert len(shared) == 2
    world.token(3, "x")
    world.wait(1, "x")
    world.wait(2, "x")
    assert codes(world) == {}
    world.wait(3, "s")
    assert codes(world) == {world.index: "deadlock"}
    assert world.machine.waiting == 2


def test_graph_too_large_to_look_at__the_time_limit_decides(monkeypatch):
    monkeypatch.setattr(waits_module, "DEADLOCK_EDGES_MAX", 10)
    world = World(sessions=20, ttl_ms=60_000)
    for number in range(1, 21):
        world.token(number, f"lock/{number}")
    for number in range(1, 21):
        world.wait(number, f"lock/{number % 20 + 1}", wait_ms=1_000)
    assert codes(world) == {}
    world.later(1_000)
    assert set(codes(world).values()) >= {"lock_timeout"}


def test_long_line_of_one_lock__costs_no_look_at_all(monkeypatch):
    looks = []
    original = waits_module.blockers
    monkeypatch.setattr(waits_module, "blockers", lambda *a: looks.append(a) or original(*a))
    world = World(sessions=1)
    world.token(1, owner="holder")
    world.entry(*[Acquire(sid(1), "a", "exclusive", 9_000, f"o{n}") for n in range(200)])
    assert world.machine.waiting == 200
    assert looks == []
