"""Level 2: kept places lapse, repeats of a wait share its answer, waits are bounded in all."""

import pytest
from machine_world import World, sid
from test_lock_once import NAMES, keyed

from dss.base import limits
from dss.core.locks.commands import Acquire, AcquireMany, Cancel, Withdraw
from dss.core.machine import PENDING
from dss.drivers.lock_events import rendered


def told(world):
    """Kinds of the events that are remembered."""
    journal = world.machine.journal
    events = journal.since(journal.oldest - 1, journal.newest)
    return [rendered(at, each, world.now_ms)["event"] for at, each in enumerate(events)]


# --- kept places --------------------------------------------------------------------------


def withdrawn(world):
    """Session 1 holds `a`; session 2 stood first in its line, and its place is kept."""
    token = world.token(1)
    mine = world.wait(2, wait_ms=30_000)
    assert world.do(Withdraw([(mine, 0)])) == (200, {})
    assert world.wakes()[mine].status == 503
    return token


def test_place_of_a_wait_that_was_withdrawn__lapses_and_an_event_says_so():
    world = World(sessions=3, ttl_ms=limits.SESSION_TTL_MS_MAX, level=2)
    token = withdrawn(world)
    world.later(1)
    other = world.wait(3, wait_ms=30_000)
    world.reload()
    [kept] = world.machine.describe_session(sid(2), world.now_ms)["kept"]
    assert (kept["names"], kept["lapses_in_ms"]) == (["a"], limits.PLACE_KEPT_MS - 1)
    world.later(limits.PLACE_KEPT_MS - 2)
    assert (world.machine.lapses, "lapsed" in told(world)) == (0, False)
    world.later(1)
    assert (world.machine.lapses, told(world)[-1]) == (1, "lapsed")
    assert world.machine.describe_session(sid(2), world.now_ms)["kept"] == []
    mine = world.wait(2)
    world.release(1, token)
    assert set(world.wakes()) == {other}, "it came later now"
    assert mine


def test_place_within_its_time__is_had_again_and_never_lapses():
    world = World(sessions=3, ttl_ms=limits.SESSION_TTL_MS_MAX, level=2)
    token = withdrawn(world)
    world.later(1)
    world.wait(3, wait_ms=30_000)
    world.later(limits.PLACE_KEPT_MS - 2)
    mine = world.wait(2, wait_ms=30_000)
    world.later(1)
    world.release(1, token)
    assert set(world.wakes()) == {mine}
    assert world.machine.lapses == 0


def test_place_of_a_deadlocks_victim__lapses_too():
    world = World(sessions=2, ttl_ms=limits.SESSION_TTL_MS_MAX, level=2)
    world.token(1, "a")
    world.token(2, "b")
    world.wait(1, "b", wait_ms=30_000)
    assert world.acquire(2, "a", wait_ms=30_000) == PENDING
    assert world.wakes()[world.index].body["code"] == "deadlock"
    assert len(world.machine.find_session(sid(2)).places) == 1
    world.reload()
    world.later(limits.PLACE_KEPT_MS)
    assert not world.machine.find_session(sid(2)).places
    assert world.machine.lapses == 1


def test_session_ends_first__nothing_is_left_to_lapse():
    world = World(sessions=2, ttl_ms=limits.SESSION_TTL_MS_MAX, level=2)
    withdrawn(world)
    world.end(1)
    world.end(2)
    assert world.machine.next_due_ms() is None
    assert world.machine.waits_bytes == 0


def test_place_kept_below_level_2__stays_until_the_level_is_raised_then_lapses():
    world = World(sessions=2, ttl_ms=limits.SESSION_TTL_MS_MAX)
    withdrawn(world)
    world.later(10 * limits.PLACE_KEPT_MS)
    [kept] = world.machine.describe_session(sid(2), world.now_ms)["kept"]
    assert kept["lapses_in_ms"] is None
    world.reload()
    world.raise_level()
    world.reload()
    world.later(limits.PLACE_KEPT_MS - 1)
    assert world.machine.lapses == 0
    world.later(1)
    assert world.machine.lapses == 1


def test_more_places_than_are_kept__the_oldest_goes():
    world = World(sessions=1, level=2)
    for at in range(limits.PLACES_KEPT_MAX + 2):
        world.token(1, f"{at}", owner="holder")
        waiting = world.wait(1, f"{at}")
        world.do(Withdraw([(waiting, 0)]))
    places = world.machine.find_session(sid(1)).places
    assert len(places) == limits.PLACES_KEPT_MAX
    assert next(iter(places))[1] == ("2",)


# --- repeats of a wait --------------------------------------------------------------------

ASKS = [
    pytest.param(lambda: keyed("k", Acquire(sid(2), "a", "exclusive", 5_000)), id="key"),
    pytest.param(lambda: Acquire(sid(2), "a", "exclusive", 5_000, seq=1), id="seq"),
]


@pytest.mark.parametrize("ask", ASKS)
def test_repeat_of_a_wait__both_questions_get_the_one_answer(ask):
    world = World(sessions=2, level=2)
    token = world.token(1)
    assert [world.do(ask()), world.do(ask())] == [PENDING] * 2
    first, second = world.index - 1, world.index
    assert world.wakes() == {}
    world.reload()
    assert world.machine.waiting == 1
    world.release(1, token)
    wakes = world.wakes()
    assert set(wakes) == {first, second}
    assert wakes[first].status == 200
    assert wakes[first].body == wakes[second].body
    assert world.do(ask()) == (200, wakes[first].body)
    assert world.machine.describe("a", 0)["holders"][0]["count"] == 1


@pytest.mark.parametrize("ask", ASKS)
def test_another_request_of_the_same_owner__both_questions_are_superseded(ask):
    world = World(sessions=2, level=2)
    world.token(1)
    world.do(ask())
    world.do(ask())
    older = {world.index - 1, world.index}
    newer = world.wait(2)
    assert {at: wake.body["code"] for at, wake in world.wakes().items()} == dict.fromkeys(
        older, "superseded"
    )
    world.later(5_000)
    assert set(world.wakes()) == {newer}


@pytest.mark.parametrize("ask", ASKS)
def test_too_many_repeats__the_oldest_is_told_that_it_was_superseded(ask):
    world = World(sessions=2, level=2)
    world.token(1)
    for _ in range(limits.REPEATS_ANSWERED_MAX):
        assert world.do(ask()) == PENDING
    oldest = world.index - limits.REPEATS_ANSWERED_MAX + 1
    assert world.wakes() == {}
    world.do(ask())
    [wake] = world.wakes().values()
    assert (wake.index, wake.body["code"]) == (oldest, "superseded")


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("which", [0, 1])
def test_node_of_one_question_stops__the_other_goes_on_in_its_place(ask, which):
    world = World(sessions=3, level=2)
    token = world.token(1)
    world.do(ask())
    world.do(ask())
    questions = [world.index - 1, world.index]
    world.wait(3)
    world.do(Withdraw([(questions[which], 0)]))
    [stopped] = world.wakes().values()
    assert (stopped.index, stopped.status) == (questions[which], 503)
    world.reload()
    world.release(1, token)
    assert set(world.wakes()) == {questions[1 - which]}


@pytest.mark.parametrize("ask", ASKS)
def test_nodes_of_both_questions_stop__the_place_is_kept_and_the_request_is_carried_out_anew(ask):
    world = World(sessions=2, level=2)
    token = world.token(1)
    world.do(ask())
    world.do(ask())
    both = [world.index - 1, world.index]
    world.do(Withdraw([(at, 0) for at in both]))
    assert [wake.status for wake in world.wakes().values()] == [503, 503]
    assert world.machine.waiting == 0
    assert world.do(ask()) == PENDING
    again = world.index
    world.release(1, token)
    assert world.wakes()[again].status == 200


@pytest.mark.parametrize("ask", ASKS)
def test_client_gone_from_one_node__its_repeat_at_another_waits_on(ask):
    world = World(sessions=2, level=2)
    token = world.token(1)
    world.do(ask())
    world.do(ask())
    second = world.index
    assert world.do(Cancel(sid(2), "a", before_ms=1_000)) == (200, {"cancelled": False})
    world.release(1, token)
    assert world.wakes()[second].status == 200


@pytest.mark.parametrize("ask", ASKS)
def test_client_gone_for_good__its_wait_ends_and_a_later_repeat_is_carried_out_anew(ask):
    world = World(sessions=2, level=2)
    token = world.token(1)
    world.do(ask())
    assert world.do(Cancel(sid(2), "a", before_ms=1_000)) == (200, {"cancelled": True})
    [wake] = world.wakes().values()
    assert (wake.status, wake.body["code"]) == (503, "client_gone")
    assert world.do(ask()) == PENDING
    again = world.index
    world.release(1, token)
    assert world.wakes()[again].status == 200


# --- bounds -------------------------------------------------------------------------------


def test_waits_of_all__are_bounded_in_bytes_and_one_that_ends_makes_room(monkeypatch):
    monkeypatch.setattr("dss.core.locks.lines.WAITS_BYTES_MAX", 60_000)
    world = World(sessions=4, level=2)
    world.token(1, NAMES[0])
    assert world.do(AcquireMany(sid(2), NAMES, 1_000)) == PENDING
    assert 35_000 < world.machine.waits_bytes < 50_000
    assert world.do(AcquireMany(sid(3), NAMES, 1_000)) == PENDING
    full = world.acquire(4, NAMES[0], wait_ms=1_000)
    assert (full[0], full[1]["code"]) == (429, "overloaded")
    world.reload()
    assert world.acquire(4, NAMES[0], wait_ms=1_000) == full, "a restored one as well"
    assert world.acquire(4, "free")[0] == 200, "what need not wait is served"
    world.later(1_000)
    assert world.machine.waits_bytes == 0
    assert world.acquire(4, NAMES[0], wait_ms=1_000) == PENDING


def test_holders_of_all__are_bounded(monkeypatch):
    monkeypatch.setattr("dss.core.locks.lines.HOLDS_MAX", 2)
    world = World(sessions=3, level=2)
    world.token(1, mode="shared")
    world.token(2, mode="shared")
    assert world.acquire(3, mode="shared")[0] == 429
    assert world.acquire(1, mode="shared")[0] == 200, "once more for the same holder"


def test_below_level_2__nothing_of_this_is_so(monkeypatch):
    monkeypatch.setattr("dss.core.locks.lines.WAITS_BYTES_MAX", 0)
    monkeypatch.setattr("dss.core.locks.lines.HOLDS_MAX", 0)
    world = World(sessions=2)
    token = world.token(1)
    ask = Acquire(sid(2), "a", "exclusive", 5_000, seq=1)
    world.do(ask)
    world.do(ask)
    [wake] = world.wakes().values()
    assert (wake.index, wake.body["code"]) == (world.index - 1, "superseded")
    assert world.do(Cancel(sid(2), "a", before_ms=1_000)) == (200, {"cancelled": True})
    assert world.wakes()[world.index - 1].body["code"] == "cancelled"
    assert world.release(1, token)[0] == 200
