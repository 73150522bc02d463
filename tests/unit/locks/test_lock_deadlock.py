"""Deadlocks: found when they come about, the last who came is told, the others go on."""

from machine_world import World, sid

from dss.core.locks import machine as machine_module
from dss.core.locks import waits as waits_module
from dss.core.locks.commands import Acquire, Release
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


def looked_at(monkeypatch):
    """The waits whose edges are looked at from now on."""
    looks = []
    original = waits_module.blockers
    monkeypatch.setattr(waits_module, "blockers", lambda *a: looks.append(a[1]) or original(*a))
    return looks


def test_readers_release_before_a_waiting_writer__no_look_for_each_of_them(monkeypatch):
    """1,000 of 9,000 releases in one entry took six seconds, on every node."""
    world = World(sessions=3)
    world.entry(*[Acquire(sid(1), "a", "shared", owner=f"o{n}") for n in range(500)])
    writer = world.wait(2)
    world.wait(3)
    looks = looked_at(monkeypatch)
    world.entry(*[Release(sid(1), "a", n + 1, f"o{n}") for n in range(499)])
    assert looks == []
    world.release(1, 500, owner="o499")
    assert codes(world) == {writer: "granted"}


def test_permits_come_back_one_by_one__no_look_for_each_of_them(monkeypatch):
    world = World(sessions=3)
    world.entry(
        *[Acquire(sid(1), "s", "semaphore", 0, f"o{n}", 1, 100) for n in range(100)],
    )
    assert world.share(2, 100, 100, wait_ms=5_000) == PENDING
    assert world.share(3, 1, 100, wait_ms=5_000) == PENDING
    looks = looked_at(monkeypatch)
    world.entry(*[Release(sid(1), "s", n + 1, f"o{n}") for n in range(99)])
    assert looks == []
    assert codes(world) == {}


def test_writer_behind_waiting_readers__a_circle_is_found_wherever_it_stands_in_the_line():
    """The writer is third; the circle closes by what it holds itself."""
    world = World(sessions=4)
    world.token(1, "a")
    world.token(4, "x")
    world.wait(2, "a", mode="shared")
    world.wait(3, "a", mode="shared")
    world.wait(4, "a")
    assert codes(world) == {}
    world.wait(3, "x", owner=sid(3))
    assert codes(world) == {world.index: "deadlock"}, "reader 3 is before the writer that has x"


def test_readers_move_up_and_a_writer_comes_first__the_holders_it_meets_there_are_looked_at():
    world = World(sessions=4)
    token = world.token(1, "a")
    world.token(4, "x")
    reader = world.wait(2, "a", mode="shared")
    world.wait(4, "a")
    world.wait(2, "x", owner="other")
    assert codes(world) == {}, "another owner of the reader's session"
    world.release(1, token)
    assert codes(world) == {reader: "granted"}
    world.wait(2, "x")
    assert codes(world) == {world.index: "deadlock"}


def test_reader_gives_up_between_two_others__who_stands_behind_is_looked_at_again():
    """While it stood there, the reader behind it waited for no agent but the writer's."""
    world = World(sessions=4)
    world.token(1, "a", mode="shared")
    world.token(3, "x")
    world.wait(2, "a")
    middle = world.wait(4, "a", mode="shared", wait_ms=100)
    world.wait(3, "a", mode="shared")
    last = world.index
    world.wait(2, "x", owner=sid(2))
    assert codes(world) == {world.index: "deadlock"}
    world.later(100)
    assert set(codes(world)) == {middle}
    assert world.machine.waiting == 2
    world.end(2)
    assert codes(world)[last] == "granted"


def test_wait_for_several_locks_in_the_middle_of_lines__part_of_a_circle():
    world = World(sessions=4)
    world.token(1, "a")
    world.token(2, "b")
    world.wait(3, "a")
    assert world.acquire_all(4, "abc", 5_000) == PENDING
    several = world.index
    world.token(4, "d", owner=sid(4))
    world.wait(2, "d")
    assert codes(world) == {world.index: "deadlock"}, "2 has b, which 4 waits for"
    world.wait(3, "d")
    assert codes(world) == {world.index: "deadlock"}, "3 stands before 4 in the line of a"
    world.end(1)
    world.end(3)
    world.end(2)
    assert codes(world)[several] == "granted"


def test_one_entry_full_of_costly_waits__looks_at_so_many_edges_and_the_rest_when_asked_again(
    monkeypatch,
):
    monkeypatch.setattr(machine_module, "DEADLOCK_EDGES_ENTRY_MAX", 30)
    world = World(sessions=22, ttl_ms=60_000)
    for number in range(1, 21):
        world.token(number, f"lock/{number}")
    world.token(21, "x")
    world.token(22, "y")
    looks = looked_at(monkeypatch)
    ring = [Acquire(sid(n), f"lock/{n % 20 + 1}", "exclusive", 9_000, seq=1) for n in range(1, 21)]
    pair = [
        Acquire(sid(21), "y", "exclusive", 9_000, seq=1),
        Acquire(sid(22), "x", "exclusive", 9_000, seq=1),
    ]
    world.entry(*ring, *pair)
    assert len(looks) < 40
    assert world.machine.take_wakes() == [], "nobody was looked at any more"
    world.do(pair[0])
    told = {(wake.index, wake.position): wake.body["code"] for wake in world.machine.take_wakes()}
    first = world.index - 1
    assert told == {(first, 20): "superseded", (first, 21): "deadlock"}
    assert world.machine.waiting == 21
