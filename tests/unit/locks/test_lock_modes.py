"""Semaphores, upgrades, priorities, several locks at once, confirmation, cancel, break."""

from base64 import b64decode
from zlib import decompress

import pytest
from machine_world import World, sid

from dss.base import limits
from dss.core.locks import lines as lines_module
from dss.core.locks.commands import Break, Cancel, Confirm, ExpireGrants, Release
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING

# --- semaphores ---------------------------------------------------------------------------


def test_semaphore__grants_while_permits_are_left_and_wakes_when_they_come_back():
    world = World(sessions=4)
    two = world.share(1, 2)[1]["token"]
    assert world.share(2, 1)[0] == 200
    assert world.share(3, 2)[1]["code"] == "lock_timeout"
    assert world.share(3, 2, wait_ms=5_000) == PENDING
    waiting = world.index
    assert world.wakes() == {}
    world.release(1, two, "s")
    wake = world.wakes()[waiting]
    assert (wake.status, wake.body["mode"]) == (200, "semaphore")


def test_big_share_first_in_line__small_ones_do_not_pass_it():
    world = World(sessions=4)
    one = world.share(1, 2)[1]["token"]
    assert world.share(2, 3, wait_ms=5_000) == PENDING
    big = world.index
    assert world.share(3, 1, wait_ms=5_000) == PENDING
    small = world.index
    world.release(1, one, "s")
    wakes = world.wakes()
    assert list(wakes) == [big]
    world.release(2, wakes[big].body["token"], "s")
    assert list(world.wakes()) == [small]


def test_semaphore_with_another_limit__is_refused_while_it_is_held():
    world = World(sessions=2)
    token = world.share(1, limit=3)[1]["token"]
    assert world.share(2, limit=5, wait_ms=5_000)[1]["code"] == "limit_mismatch"
    world.release(1, token, "s")
    assert world.share(2, limit=5)[0] == 200


def test_semaphore_again_by_its_holder__same_token_no_further_permits():
    world = World(sessions=2)
    token = world.share(1, 2)[1]["token"]
    assert world.share(1, 2)[1]["token"] == token
    assert world.share(1, 1)[1]["code"] == "already_held"
    assert world.machine.describe("s", 0)["permits_used"] == 2
    world.release(1, token, "s")
    assert world.share(2, 2)[0] == 409
    world.release(1, token, "s")
    assert world.share(2, 2)[0] == 200


def test_semaphore_and_plain_lock_of_one_name__exclude_each_other():
    world = World(sessions=2)
    world.share(1, name="a")
    for mode in ("exclusive", "shared"):
        assert world.acquire(2, mode=mode)[1]["code"] == "lock_timeout"


# --- upgrade and downgrade ----------------------------------------------------------------


def test_upgrade_of_the_only_reader__at_once_under_a_larger_token():
    world = World(sessions=2)
    token = world.token(1, mode="shared")
    status, body = world.upgrade(1, token)
    assert (status, body["mode"]) == (200, "exclusive")
    assert body["token"] > token
    assert world.acquire(2, mode="shared")[0] == 409
    assert world.release(1, token)[1]["code"] == "not_holder"
    assert world.release(1, body["token"]) == (200, {})


def test_upgrade__waits_for_the_other_readers_before_all_who_wait():
    world = World(sessions=4)
    mine = world.token(1, mode="shared")
    other = world.token(2, mode="shared")
    writer = world.wait(3)
    assert world.upgrade(1, mine)[1]["code"] == "lock_timeout"
    assert world.upgrade(1, mine, wait_ms=5_000) == PENDING
    upgrade = world.index
    world.release(2, other)
    wakes = world.wakes()
    assert list(wakes) == [upgrade]
    world.release(1, wakes[upgrade].body["token"])
    assert list(world.wakes()) == [writer]


def test_two_upgrades_of_one_lock__the_later_one_is_told_of_the_deadlock():
    world = World(sessions=2)
    first, second = world.token(1, mode="shared"), world.token(2, mode="shared")
    assert world.upgrade(1, first, wait_ms=5_000) == PENDING
    earlier = world.index
    world.upgrade(2, second, wait_ms=5_000)
    wakes = world.wakes()
    assert wakes[world.index].body["code"] == "deadlock"
    assert earlier not in wakes
    world.release(2, second)
    assert world.wakes()[earlier].status == 200


def test_waiting_upgrade_whose_hold_is_released__ends_as_not_holder():
    world = World(sessions=2)
    mine = world.token(1, mode="shared")
    world.token(2, mode="shared")
    world.upgrade(1, mine, wait_ms=5_000)
    upgrade = world.index
    world.release(1, mine)
    assert world.wakes()[upgrade].body["code"] == "not_holder"


def test_reentrant_hold__stays_reentrant_through_upgrade_and_downgrade():
    world = World(sessions=2)
    token = world.token(1, mode="shared")
    world.token(1, mode="shared")
    token = world.upgrade(1, token)[1]["token"]
    assert world.downgrade(1, token)[1]["token"] == token
    world.release(1, token)
    assert world.machine.held == 1
    world.release(1, token)
    assert world.machine.held == 0


def test_downgrade__lets_the_readers_at_the_front_in():
    world = World(sessions=4)
    token = world.token(1)
    reader = world.wait(2, mode="shared")
    writer = world.wait(3)
    assert world.downgrade(1, token)[1] == {
        "token": token, "mode": "shared", "expires_in_ms": 10_000,
    }  # fmt: skip
    assert list(world.wakes()) == [reader]
    assert writer not in world.wakes()


def test_upgrade_and_downgrade_of_a_semaphore__wrong_mode():
    world = World(sessions=1)
    token = world.share(1)[1]["token"]
    assert world.upgrade(1, token, name="s")[1]["code"] == "wrong_mode"
    assert world.downgrade(1, token, name="s")[1]["code"] == "wrong_mode"


# --- priority -----------------------------------------------------------------------------


def test_higher_priority__goes_first_among_those_who_came_about_then():
    world = World(sessions=5)
    token = world.token(1)
    low, low_too = world.wait(2), world.wait(3)
    high = world.wait(4, priority=1)
    order = []
    holder = 1
    while world.machine.waiting:
        world.release(holder, token)
        [wake] = world.machine.take_wakes()
        order.append(wake.index)
        holder, token = {low: 2, low_too: 3, high: 4}[wake.index], wake.body["token"]
    assert order == [high, low, low_too]


def test_low_priority__waits_at_most_a_step_per_level_longer():
    world = World(sessions=4, ttl_ms=100_000)
    token = world.token(1)
    low = world.wait(2, wait_ms=30_000)
    world.now_ms += limits.PRIORITY_STEP_MS * 9
    high = world.wait(3, wait_ms=30_000, priority=9)
    world.release(1, token)
    wakes = world.wakes()
    assert low in wakes
    assert high not in wakes


def test_high_priority_reader__passes_a_waiting_writer():
    world = World(sessions=3)
    world.token(1, mode="shared")
    world.wait(2)
    assert world.acquire(3, mode="shared")[0] == 409
    assert world.acquire(3, mode="shared", priority=1)[0] == 200


# --- several locks ------------------------------------------------------------------------


def test_several_free_locks__granted_together_with_a_token_each():
    world = World(sessions=1)
    status, body = world.acquire_all(1, "abc")
    assert status == 200
    assert body["locks"] == [
        {"name": name, "token": token} for name, token in zip("abc", (1, 2, 3), strict=True)
    ]
    for each in body["locks"]:
        assert world.release(1, each["token"], each["name"]) == (200, {})
    assert world.machine.locks == 0


def test_one_busy_lock__none_is_taken_until_all_are_free():
    world = World(sessions=3)
    token = world.token(1, "b")
    assert world.acquire_all(2, "abc")[1]["name"] == "b"
    assert world.machine.locks == 1
    assert world.acquire_all(2, "abc", 5_000) == PENDING
    waiting = world.index
    assert world.machine.held == 1
    world.release(1, token, "b")
    assert [each["name"] for each in world.wakes()[waiting].body["locks"]] == ["a", "b", "c"]


def test_later_request_for_one_of_them__stands_behind_even_while_it_is_free():
    world = World(sessions=4)
    token = world.token(1, "b")
    world.acquire_all(2, "ab", 5_000)
    several = world.index
    assert "waits for other locks" in world.acquire(3, "a")[1]["message"]
    single = world.wait(3, "a")
    world.release(1, token, "b")
    wakes = world.wakes()
    assert list(wakes) == [several]
    world.end(2)
    assert list(world.wakes()) == [single]


def test_several_locks_by_many_in_any_order__all_get_theirs_without_a_deadlock():
    world = World(sessions=6, ttl_ms=100_000)
    first = world.acquire_all(1, "abc")[1]["locks"]
    waits = {}
    for number, names in ((2, "ab"), (3, "ba"), (4, "cb"), (5, "bca"), (6, "ac")):
        assert world.acquire_all(number, names, 30_000) == PENDING
        waits[world.index] = number
    todo = [(1, first)]
    served = []
    while todo:
        number, locks = todo.pop(0)
        served.append(number)
        for each in locks:
            world.release(number, each["token"], each["name"])
            todo += [
                (waits.pop(index), wake.body["locks"]) for index, wake in world.wakes().items()
            ]
    assert served == [1, 2, 3, 4, 5, 6]
    assert (world.machine.deadlocks, world.machine.locks) == (0, 0)


def test_several_locks_with_one_that_it_holds__reentrant_there():
    world = World(sessions=1)
    token = world.token(1, "b")
    body = world.acquire_all(1, "ab")[1]
    assert body["locks"][1] == {"name": "b", "token": token}
    world.release(1, token, "b")
    assert world.machine.held == 2
    world.token(1, "c", mode="shared")
    assert world.acquire_all(1, "ac")[1]["code"] == "deadlock"


def test_several_locks_give_up__those_behind_move_up_everywhere():
    world = World(sessions=4)
    world.token(1, "b")
    world.acquire_all(2, "ab", 1_000)
    several = world.index
    single = world.wait(3, "a")
    world.later(1_000)
    wakes = world.wakes()
    assert wakes[several].body["code"] == "lock_timeout"
    assert wakes[several].body["name"] == "b"
    assert wakes[single].status == 200


def test_bounds_of_several_locks__429_and_nothing_changes(monkeypatch):
    world = World(sessions=2)
    monkeypatch.setattr(lines_module, "SESSION_HOLDS_MAX", 2)
    before = world.machine.snapshot()
    assert world.acquire_all(1, "abc")[0] == 429
    assert world.machine.snapshot() == before


# --- confirmation, cancel, break ----------------------------------------------------------


def test_grant_without_confirmation__passes_on_and_the_client_is_told_when_it_confirms():
    world = World(sessions=2)
    _, body = world.acquire(1, confirm_ms=300)
    assert body["confirm_in_ms"] == 300
    waiting = world.wait(2)
    world.later(299)
    assert world.wakes() == {}
    world.later(1)
    assert world.wakes()[waiting].body["token"] == body["token"] + 1
    assert world.do(Confirm(sid(1), "a", body["token"]))[1]["code"] == "not_holder"
    [loss] = world.machine.journal.take_losses()
    assert loss == (sid(1), "a", body["token"], sid(1), "unconfirmed")


def test_confirmed_grant__stays_and_a_late_expiry_does_nothing():
    world = World(sessions=1)
    token = world.acquire(1, confirm_ms=300)[1]["token"]
    world.now_ms = 300
    assert world.do(Confirm(sid(1), "a", token))[0] == 200
    assert world.do(ExpireGrants([token])) == (200, {})
    assert world.machine.held == 1


def test_waiter_with_confirmation__its_time_begins_with_the_grant():
    world = World(sessions=2, ttl_ms=60_000)
    token = world.token(1)
    waiting = world.wait(2, confirm_ms=300)
    world.later(2_000)
    world.release(1, token)
    assert world.wakes()[waiting].body["confirm_in_ms"] == 300
    world.reload()
    world.later(300)
    assert world.machine.held == 0


def test_cancel__ends_the_wait_unless_its_client_came_back_since():
    world = World(sessions=3)
    world.token(1)
    waiting = world.wait(2)
    world.now_ms = 50
    again = world.wait(2)
    assert world.do(Cancel(sid(2), "a", before_ms=10)) == (200, {"cancelled": False})
    assert world.do(Cancel(sid(2), "a", before_ms=50)) == (200, {"cancelled": True})
    wakes = world.wakes()
    assert wakes[waiting].body["code"] == "superseded"
    assert wakes[again].body["code"] == "cancelled"
    assert world.do(Cancel(sid(3), "a")) == (200, {"cancelled": False})


def test_break__takes_it_from_all_holders_and_stands_in_the_history():
    world = World(sessions=3)
    for number in (1, 2):
        world.token(number, mode="shared")
    waiting = world.wait(3)
    status, body = world.do(Break("a", "ops", "stuck"))
    assert (status, [each["token"] for each in body["broken"]]) == (200, [1, 2])
    assert world.wakes()[waiting].status == 200
    past = world.machine.history("a", 0)["items"]
    assert [each["ended"] for each in past] == [None, *["broken by ops: stuck"] * 2]
    assert world.do(Break("b"))[0] == 404
    assert world.do(Release(sid(1), "a", 1))[1]["code"] == "not_holder"


# --- history, verify ----------------------------------------------------------------------


def test_history__is_bounded_per_lock_and_in_all_and_survives_a_snapshot(monkeypatch):
    monkeypatch.setattr("dss.core.locks.history.HISTORY_PER_LOCK_MAX", 3)
    monkeypatch.setattr("dss.core.locks.history.HISTORY_MAX", 5)
    world = World(sessions=1)
    for name in ("old", "rare", "a", "a", "a", "a", "a", "a", "a", "b"):
        world.release(1, world.token(1, name), name)

    def tokens(name):
        return [each["token"] for each in world.machine.history(name, 0)["items"]]

    # Thinned at ten: the busy lock keeps three, so that the rare one is still known.
    assert [tokens(name) for name in ("a", "b", "rare", "old")] == [[9, 8, 7], [10], [2], []]
    before = world.machine.history("b", 9)
    world.reload()
    assert world.machine.history("b", 9) == before
    for _ in range(9):
        world.release(1, world.token(1, "c"), "c")
    assert tokens("c") == [19, 18, 17]


def test_verify__good_while_held_and_the_newest_that_is_remembered():
    world = World(sessions=2)
    assert world.machine.verify("a", 1) == {"valid": False, "newest": None}
    token = world.token(1)
    assert world.machine.verify("a", token) == {"valid": True, "newest": token}
    world.release(1, token)
    assert world.machine.verify("a", token) == {"valid": False, "newest": token}
    assert world.token(2) == token + 1
    assert world.machine.verify("a", token) == {"valid": False, "newest": token + 1}


def test_explain__who_holds_it_what_they_wait_for_and_who_blocks_whom():
    world = World(ttl_ms=60_000)
    for number, name in enumerate(("ann", "bob", "cy", "dee"), start=1):
        world.create(number, 60_000, name)
    world.token(1)
    world.token(2, "b")
    world.wait(1, "b")
    world.now_ms = 3_000
    world.wait(3)
    world.wait(4, mode="shared")
    found = world.machine.explain("a", 5_000)
    assert found["holders"][0]["waits_for"] == ["b"]
    assert [each["blocked_by"] for each in found["waiters"]] == [["ann"], ["cy"]]
    assert found["summary"] == [
        'held exclusive by ann for 5 s (token 1), who waits for lock "b" in turn.',
        "1st in line: cy, exclusive, for 2 s, blocked by ann.",
        "2nd in line: dee, shared, for 2 s, blocked by cy.",
    ]
    assert world.machine.explain("free", 0)["summary"] == [
        'lock "free" is free and nobody waits for it.'
    ]


# --- the snapshot of the release before ---------------------------------------------------

VERSION_1 = (
    b"eNqbxsjMxDBl6k0FA/zAcFG54Vl1ASBiIKzYaFG5EdGKjReVG4MV6zESVmyyqNwEavKkKQsTD08iwuWEVTByMRHh"
    b"KcIqmLgYJ81gJOxjwioOiZwVnsPMMIOJcIgszD8scla8hZlxysKkQxOnUsN2ZjnGCQDH9XwW"
)
"""zlib, base64: `a` held shared by sessions 1 (twice) and 2, waited for by 3 (exclusive) and 4
(shared, owner `o`); `b` held by 3. Written by the code before this version."""


def test_snapshot_of_version_1__goes_on_where_it_stopped():
    world = World()
    world.machine.restore(decompress(b64decode(VERSION_1)))
    world.machine.check_invariants()
    world.index, world.now_ms = 10, 100
    held = world.machine.describe("a", 100)
    assert [(each["label"], each["count"]) for each in held["holders"]] == [("w1", 2), ("w2", 1)]
    assert [(each["label"], each["mode"]) for each in held["waiters"]] == [
        ("w3", "exclusive"),
        ("w4/o", "shared"),
    ]
    world.end(1)
    assert world.wakes() == {}
    world.end(2)
    [wake] = world.machine.take_wakes()
    assert (wake.index, wake.position, wake.body["token"]) == (3, 0, 4)
    world.reload()
    world.later(7_000)
    assert world.machine.waiting == 0


@pytest.mark.parametrize("version", [0, 4, 77])
def test_snapshot_of_another_version__is_refused_by_its_number(version):
    data = bytearray(World(sessions=1).machine.snapshot())
    assert data[1] == 2
    data[1] = version
    with pytest.raises(Exception, match=f"version {version}") as caught:
        LockMachine().restore(bytes(data))
    assert caught.value.code == "corrupt_data"
