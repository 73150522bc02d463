import msgspec
import pytest
from machine_world import World, sid

from dss.base import limits
from dss.base.errors import CorruptData
from dss.core.locks import acquiring as acquiring_module
from dss.core.locks import lines as lines_module
from dss.core.locks import machine as machine_module
from dss.core.locks.commands import (
    Acquire,
    ExpireSessions,
    ExpireWaits,
    Release,
    SessionCreate,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING

# --- sessions -----------------------------------------------------------------------------


def test_session_created__answers_its_id_and_ttl():
    world = World()
    assert world.create(1, 5_000) == (201, {"session": sid(1), "ttl_ms": 5_000})


def test_session_created_twice__second_is_refused_and_changes_nothing():
    world = World(sessions=1)
    token = world.token(1)
    status, body = world.create(1)
    assert (status, body["code"]) == (409, "session_exists")
    assert world.release(1, token) == (200, {})


def test_session_without_keepalive__ends_after_its_ttl_and_releases_its_locks():
    world = World(sessions=1, ttl_ms=1_000)
    world.create(2, 60_000)
    world.token(1)
    waiting = world.wait(2)
    world.later(999)
    assert world.wakes() == {}
    world.later(1)
    assert world.wakes()[waiting].status == 200
    assert world.machine.expirations == 1
    assert world.keepalive(1)[1]["code"] == "session_expired"


def test_keepalive__moves_the_end_by_a_full_ttl():
    world = World(sessions=1, ttl_ms=1_000)
    world.later(900)
    assert world.keepalive(1) == (200, {"session": sid(1), "ttl_ms": 1_000})
    world.later(999)
    assert world.keepalive(1)[0] == 200
    world.later(1_000)
    assert world.keepalive(1)[0] == 409


def test_expiry_proposed_before_a_keepalive__does_nothing_after_it():
    world = World(sessions=1, ttl_ms=1_000)
    world.now_ms = 1_000
    [late] = world.machine.due(world.now_ms)
    world.keepalive(1)
    world.now_ms = 5_000  # even when it is applied after the new deadline
    assert world.do(late) == (200, {})
    assert world.keepalive(1)[0] == 200


def test_expiry_of_an_old_leader__does_nothing_when_the_new_one_gave_the_full_ttl():
    world = World(sessions=1, ttl_ms=1_000)
    world.now_ms = 1_000
    [late] = world.machine.due(world.now_ms)
    world.machine.leader_changed(world.index + 1, world.now_ms)
    world.now_ms = 1_999
    world.do(late)
    assert world.acquire(1)[1]["expires_in_ms"] == 1
    world.later(1)
    assert world.keepalive(1)[0] == 409


def test_leader_changed__every_session_has_its_own_full_ttl_again():
    world = World()
    world.create(1, 1_000)
    world.create(2, 3_000)
    world.now_ms = 900
    world.machine.leader_changed(world.index + 1, 900)
    world.later(999)
    assert world.machine.sessions == 2
    world.later(1)
    assert world.machine.sessions == 1
    world.later(2_000)
    assert world.machine.sessions == 0


def test_expiry_lost_on_its_way__is_proposed_again_but_not_at_once():
    world = World(sessions=1, ttl_ms=1_000)
    assert len(world.machine.due(1_000)) == 1  # and never applied
    assert world.machine.due(1_001) == []
    assert world.machine.due(1_000 + limits.EXPIRY_RETRY_MS) == [ExpireSessions([(sid(1), 0)])]


def test_expiry_lost_with_a_leader_whose_time_ran_ahead__is_due_again_in_time():
    world = World(sessions=1, ttl_ms=1_000)
    assert len(world.machine.due(60_000)) == 1  # lost with that leader
    world.machine.leader_changed(world.index + 1, 2_000)
    world.machine.check_invariants()
    assert world.machine.next_due_ms() <= 3_000
    assert world.machine.due(3_000) == [ExpireSessions([(sid(1), 0)])]


def test_many_sessions_due_at_once__end_in_bounded_batches():
    count = limits.EXPIRY_BATCH_MAX + 1
    machine = LockMachine()
    machine.apply(1, 0, [SessionCreate(1_000, "", sid(n)) for n in range(count)])
    [first] = machine.due(1_000)
    assert len(first.sessions) == limits.EXPIRY_BATCH_MAX
    machine.apply(2, 1_000, [first])
    assert machine.next_due_ms() == 1_000
    [second] = machine.due(1_000)
    machine.apply(3, 1_000, [second])
    assert machine.sessions == 0
    assert machine.next_due_ms() is None


def test_session_ended__waits_answer_and_locks_pass_on():
    world = World(sessions=3)
    world.token(1, "a")
    world.token(2, "b")
    own_wait = world.wait(1, "b")
    others = world.wait(3, "a")
    assert world.end(1) == (200, {})
    wakes = world.wakes()
    assert (wakes[own_wait].status, wakes[own_wait].body["code"]) == (409, "session_expired")
    assert wakes[others].status == 200
    assert world.machine.waiting == 0


def test_session_ended__is_not_granted_a_lock_by_its_own_release():
    world = World(sessions=1)
    world.token(1, owner="x")
    waiting = world.wait(1, owner="y")
    world.end(1)
    assert world.wakes()[waiting].body["code"] == "session_expired"
    assert world.machine.locks == 0


@pytest.mark.parametrize("op", ["acquire", "release", "keepalive", "end"])
def test_unknown_session__every_op_answers_session_expired(op):
    world = World()
    args = (1, 1) if op == "release" else (1,)
    status, body = getattr(world, op)(*args)
    assert (status, body["code"]) == (409, "session_expired")


def test_session_created_without_an_id_in_the_log__is_refused_not_guessed():
    assert World().do(SessionCreate(1_000))[0] == 422


# --- grants and releases ------------------------------------------------------------------


def test_free_lock__granted_at_once_with_what_is_left_of_the_session():
    world = World(sessions=1, ttl_ms=10_000)
    world.now_ms = 4_000
    assert world.acquire(1) == (200, {"token": 1, "mode": "exclusive", "expires_in_ms": 6_000})


def test_busy_lock_without_wait__lock_timeout_that_names_the_holder():
    world = World(sessions=1)
    world.create(2, name="worker-7")
    world.token(2)
    world.now_ms = 12_000
    status, body = world.acquire(1)
    assert (status, body["code"]) == (409, "lock_timeout")
    assert body["message"] == 'lock "a": busy. Held by worker-7 for 12 s (token 1).'


def test_wait_runs_out__message_says_who_holds_it_and_the_place_in_the_line():
    world = World(sessions=5, ttl_ms=60_000)
    world.create(9, 60_000, name="worker-7")
    world.token(9)
    world.now_ms = 7_000
    world.wait(1, wait_ms=30_000)
    second = world.wait(2, wait_ms=5_000)
    world.wait(3, wait_ms=30_000)
    world.wait(4, wait_ms=30_000)
    world.later(5_000)
    wake = world.wakes()[second]
    assert wake.status == 409
    assert wake.body["code"] == "lock_timeout"
    assert wake.body["message"] == (
        'lock "a": not granted within 5 s. Held by worker-7 for 12 s (token 1); you were 2nd of 4.'
    )


def test_messages__never_show_a_whole_session_id():
    world = World(sessions=2)
    world.token(1)
    _, body = world.acquire(2)
    assert sid(1) not in str(body)


def test_release__not_holder_for_a_wrong_token_owner_or_name():
    world = World(sessions=2)
    token = world.token(1, "a", owner="x")
    for number, name, owner, wrong in (
        (1, "a", "x", token + 1),
        (1, "a", "y", token),
        (1, "b", "x", token),
        (2, "a", "x", token),
    ):
        status, body = world.release(number, wrong, name, owner)
        assert (status, body["code"]) == (409, "not_holder")
    assert world.release(1, token, "a", "x") == (200, {})
    assert world.release(1, token, "a", "x")[1]["code"] == "not_holder"


def test_reentrant_acquire__same_token_and_as_many_releases():
    world = World(sessions=2)
    token = world.token(1)
    assert world.token(1) == token
    world.release(1, token)
    assert world.acquire(2)[0] == 409
    world.release(1, token)
    assert world.token(2) > token


def test_other_mode_while_holding__deadlock_with_the_cycle_instead_of_a_wait_for_oneself():
    world = World(sessions=1)
    world.token(1, mode="shared")
    status, body = world.acquire(1, wait_ms=5_000)
    assert (status, body["code"]) == (409, "deadlock")
    assert body["cycle"] == [{"session": sid(1), "owner": sid(1), "name": "a"}]


def test_two_owners_of_one_session__exclude_each_other():
    world = World(sessions=1)
    token = world.token(1, owner="x")
    assert world.acquire(1, owner="y")[0] == 409
    world.release(1, token, owner="x")
    assert world.token(1, owner="y") > token


def test_release_and_grant__are_one_log_entry():
    world = World(sessions=2)
    token = world.token(1)
    waiting = world.wait(2)
    world.release(1, token)
    [wake] = world.machine.take_wakes()
    assert (wake.index, wake.position, wake.status) == (waiting, 0, 200)
    assert wake.body["token"] == token + 1


def test_wait_and_release_in_the_same_entry__wakes_with_that_entrys_position():
    world = World(sessions=2)
    token = world.token(1)
    results = world.entry(
        Acquire(sid(2), "b"), Acquire(sid(2), "a", "exclusive", 100), Release(sid(1), "a", token)
    )
    assert results[1] == PENDING
    wake = world.wakes()[world.index]
    assert (wake.position, wake.status) == (1, 200)


def test_empty_locks__leave_no_memory_behind():
    world = World(sessions=1)
    for number in range(100):
        name = f"lock/{number}"
        world.release(1, world.token(1, name), name)
    assert world.machine.locks == 0
    assert world.machine.held == 0


def test_tokens__never_go_back_through_deletion_session_end_and_restore():
    world = World(sessions=1)
    last = 0
    for turn in range(30):
        token = world.token(1)
        assert token > last
        last = token
        if turn % 3 == 0:
            world.release(1, token)
        elif turn % 3 == 1:
            world.end(1)
            world.create(1)
        else:
            world.release(1, token)
            world.reload()


# --- shared locks and fairness ------------------------------------------------------------


def test_shared_holders__hold_together_with_different_tokens():
    world = World(sessions=3)
    first = world.token(1, mode="shared")
    second = world.token(2, mode="shared")
    assert first != second
    assert world.acquire(3)[0] == 409


def test_shared_after_a_waiting_exclusive__waits_behind_it():
    world = World(sessions=3)
    reader = world.token(1, mode="shared")
    writer = world.wait(2)
    late_reader = world.wait(3, mode="shared")
    world.release(1, reader)
    wakes = world.wakes()
    assert list(wakes) == [writer]
    world.release(2, wakes[writer].body["token"])
    assert list(world.wakes()) == [late_reader]


def test_reentrant_shared__is_granted_while_a_writer_waits():
    world = World(sessions=2)
    token = world.token(1, mode="shared")
    world.wait(2)
    assert world.token(1, mode="shared") == token


def test_release_of_exclusive__grants_all_readers_in_front_of_the_next_writer():
    world = World(sessions=6)
    token = world.token(1)
    readers = [world.wait(2, mode="shared"), world.wait(3, mode="shared")]
    writer = world.wait(4)
    behind = world.wait(5, mode="shared")
    world.release(1, token)
    wakes = world.wakes()
    assert list(wakes) == readers
    assert writer not in wakes
    assert behind not in wakes


def test_waiting_writer_gives_up__readers_behind_it_are_granted():
    world = World(sessions=3)
    world.token(1, mode="shared")
    writer = world.wait(2, wait_ms=1_000)
    reader = world.wait(3, mode="shared", wait_ms=5_000)
    world.later(1_000)
    wakes = world.wakes()
    assert wakes[writer].body["code"] == "lock_timeout"
    assert wakes[reader].status == 200


def test_exclusive_waiters__are_served_in_the_order_they_came():
    world = World(sessions=20)
    token = world.token(1)
    line = [world.wait(number) for number in range(2, 21)]
    served = []
    holder = 1
    while line[len(served) :]:
        world.release(holder, token)
        [wake] = world.machine.take_wakes()
        served.append(wake.index)
        holder, token = len(served) + 1, wake.body["token"]
    assert served == line


# --- waits: time, joining, bounds ---------------------------------------------------------


def test_wait_expiry_of_an_extended_wait__does_nothing():
    world = World(sessions=2)
    world.token(1)
    world.wait(2, wait_ms=1_000)
    world.now_ms = 900
    joined = world.wait(2, wait_ms=1_000)
    world.machine.take_wakes()
    world.now_ms = 1_000
    assert world.do(ExpireWaits([1])) == (200, {})
    assert world.machine.waiting == 1
    world.later(899)
    assert world.wakes() == {}
    world.later(1)
    assert world.wakes()[joined].body["code"] == "lock_timeout"


def test_repeated_acquire_that_still_waits__joins_its_own_waiter_and_keeps_its_place():
    world = World(sessions=3)
    token = world.token(1)
    first = world.wait(2)
    world.wait(3)
    again = world.wait(2)
    wakes = world.wakes()
    assert (wakes[first].status, wakes[first].body["code"]) == (409, "superseded")
    assert world.machine.waiting == 2
    world.release(1, token)
    assert list(world.wakes()) == [again]


def test_repeated_acquire_without_wait__ends_the_older_wait_and_its_own():
    world = World(sessions=2)
    world.token(1)
    first = world.wait(2)
    assert world.acquire(2)[1]["code"] == "lock_timeout"
    assert world.wakes()[first].body["code"] == "superseded"
    assert world.machine.waiting == 0


def test_repeated_acquire_in_another_mode__goes_to_the_end_of_the_line():
    world = World(sessions=4)
    token = world.token(1)
    world.wait(2)
    other = world.wait(3)
    world.wait(2, mode="shared")
    world.machine.take_wakes()
    world.release(1, token)
    assert list(world.wakes()) == [other]


def test_acquire_in_shared_mode_instead_of_its_wait__may_be_granted_at_once():
    world = World(sessions=2)
    world.token(1, mode="shared")
    writer = world.wait(2)
    assert world.acquire(2, mode="shared", wait_ms=100)[0] == 200
    assert world.wakes()[writer].body["code"] == "superseded"


def test_stale_ticket__expires_nothing():
    world = World(sessions=3)
    token = world.token(1)
    world.wait(2, wait_ms=1_000)
    world.release(1, token)
    world.now_ms = 5_000
    world.do(ExpireWaits([1]))
    assert world.machine.held == 1
    assert world.machine.timeouts == 0


def test_due_heap__stays_small_when_waits_and_sessions_come_and_go():
    world = World(sessions=1, ttl_ms=limits.SESSION_TTL_MS_MAX)
    machine = world.machine
    for number in range(2, 4_000):
        machine.apply(number, 0, [SessionCreate(limits.SESSION_TTL_MS_MAX, "", sid(2))])
        machine.apply(number, 0, [msgspec.convert({"session": sid(2)}, type=_SessionEnd)])
    assert len(machine._due) < 1_100
    machine.check_invariants()


_SessionEnd = machine_module.SessionEnd


def test_keepalives_of_many_sessions__never_touch_the_heap():
    world = World(sessions=50, ttl_ms=1_000)
    before = list(world.machine._due)
    for number in range(1, 51):
        world.keepalive(number)
    assert world.machine._due == before


@pytest.mark.parametrize(
    ("bound", "value", "act"),
    [
        ("SESSIONS_MAX", 3, lambda world: world.create(99)),
        ("LOCKS_MAX", 1, lambda world: world.acquire(1, "b")),
        ("WAITERS_PER_LOCK_MAX", 1, lambda world: world.acquire(3, wait_ms=10)),
        ("WAITERS_MAX", 1, lambda world: world.acquire(3, wait_ms=10)),
        ("SESSION_HOLDS_MAX", 1, lambda world: world.acquire(1, "b")),
        ("SESSION_HOLDS_MAX", 1, lambda world: world.acquire(2, "b")),
    ],
)
def test_a_bound_is_reached__429_and_nothing_changes(monkeypatch, bound, value, act):
    world = World(sessions=3)
    world.token(1)
    world.wait(2)
    for module in (machine_module, acquiring_module, lines_module):
        if hasattr(module, bound):
            monkeypatch.setattr(module, bound, value)
    before = world.machine.snapshot()
    status, body = act(world)
    assert (status, body["code"]) == (429, "overloaded")
    assert world.machine.snapshot() == before


# --- reads and snapshots ------------------------------------------------------------------


def test_describe__holders_waiters_and_ages():
    world = World(sessions=2, ttl_ms=60_000)
    world.create(3, 60_000, name="worker-3")
    world.token(3)
    world.now_ms = 1_000
    world.wait(1, mode="shared", wait_ms=5_000)
    found = world.machine.describe("a", 3_000)
    assert found["state"] == "held"
    assert found["mode"] == "exclusive"
    assert found["token"] == 1
    [holder] = found["holders"]
    assert (holder["label"], holder["held_ms"], holder["count"]) == ("worker-3", 3_000, 1)
    [waiter] = found["waiters"]
    assert (waiter["mode"], waiter["position"]) == ("shared", 1)
    assert (waiter["waiting_ms"], waiter["gives_up_in_ms"]) == (2_000, 3_000)
    assert world.machine.describe("free", 0)["state"] == "free"


def test_list__pages_by_name_and_prefix():
    world = World(sessions=1)
    for name in ("b/2", "a/1", "b/1", "b/3", "c"):
        world.token(1, name)
    first = world.machine.list("b/", 2, "", 0)
    assert [item["name"] for item in first["items"]] == ["b/1", "b/2"]
    second = world.machine.list("b/", 2, first["next"], 0)
    assert [item["name"] for item in second["items"]] == ["b/3"]
    assert second["next"] is None


def test_describe_session__what_is_left_and_what_it_holds():
    world = World(sessions=1, ttl_ms=10_000)
    world.token(1, "x")
    found = world.machine.describe_session(sid(1), 4_000)
    assert found["expires_in_ms"] == 6_000
    assert found["locks"] == [{"name": "x", "owner": sid(1), "token": 1, "count": 1}]
    assert world.machine.describe_session(sid(2), 0) is None


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x96\x02\x00\x00\x00\x90\x90", b"\xff" * 10])
def test_restore_of_foreign_bytes__corrupt_data_and_nothing_changes(data):
    world = World(sessions=1)
    before = world.machine.snapshot()
    with pytest.raises(CorruptData):
        world.machine.restore(data)
    assert world.machine.snapshot() == before


def test_check_invariants__notices_a_planted_second_holder():
    world = World(sessions=2)
    world.token(1, "a")
    world.token(2, "b")
    locks = world.machine._locks
    locks["a"].holders.update(locks["b"].holders)
    with pytest.raises(AssertionError):
        world.machine.check_invariants()


def test_sessions_with_many_locks_end__few_of_them_in_one_entry():
    world = World(sessions=10, ttl_ms=1_000)
    for number in range(1, 11):
        world.entry(*[Acquire(sid(number), f"{number}/{n}") for n in range(1_000)])
    world.now_ms = 1_000
    sizes = []
    while world.machine.sessions:
        before = world.machine.held
        assert world.expire() == 1
        sizes.append(before - world.machine.held)
    assert sum(sizes) == 10_000
    assert max(sizes) <= 3_000
