"""Exactly once: sequenced commands of a session, idempotency keys of HTTP."""

import msgspec
import pytest
from machine_world import World, sid

from dss.base import limits
from dss.core.locks.commands import (
    KEYED_CODEC,
    Acquire,
    AcquireMany,
    Keyed,
    Release,
    Upgrade,
)
from dss.core.locks.kept import size_of
from dss.core.machine import PENDING, join_items


def keyed(key, command, digest=None):
    item = KEYED_CODEC.encode_item(0, command)
    [(_, op, args)] = KEYED_CODEC.split(join_items(1, [item]))
    return Keyed(key, digest if digest is not None else item[:32], op, args)


# --- sequences ----------------------------------------------------------------------------


def test_repeated_acquire__same_token_and_one_release_is_enough():
    world = World(sessions=1)
    ask = Acquire(sid(1), "a", seq=1)
    first = world.do(ask)
    assert world.do(ask) == first
    world.reload()
    assert world.do(ask) == first
    assert world.do(Release(sid(1), "a", first[1]["token"], seq=2)) == (200, {})
    assert world.machine.held == 0


def test_repeated_release__is_answered_as_the_first_and_releases_nobody_else():
    world = World(sessions=2)
    token = world.token(1)
    world.token(1)
    give = Release(sid(1), "a", token, seq=1)
    assert [world.do(give), world.do(give)] == [(200, {})] * 2
    assert world.machine.describe("a", 0)["holders"][0]["count"] == 1


def test_repeated_acquire_that_waits__joins_its_own_wait_and_keeps_its_time_limit():
    world = World(sessions=2)
    token = world.token(1)
    ask = Acquire(sid(2), "a", "exclusive", 1_000, seq=1)
    assert world.do(ask) == PENDING
    first = world.index
    world.now_ms = 900
    assert world.do(ask) == PENDING
    again = world.index
    assert world.machine.waiting == 1
    assert world.wakes()[first].body["code"] == "superseded"
    world.release(1, token)
    wake = world.wakes()[again]
    assert world.do(ask) == (wake.status, wake.body)


def test_answer_of_a_wait_that_failed__is_kept_too():
    world = World(sessions=2)
    world.token(1)
    ask = Acquire(sid(2), "a", "exclusive", 1_000, seq=1)
    world.do(ask)
    world.later(1_000)
    world.reload()
    assert world.do(ask)[1]["code"] == "lock_timeout"
    assert world.machine.waiting == 0


def test_acknowledged_answers__are_forgotten_and_their_repeats_refused():
    world = World(sessions=1)
    for seq in range(1, 6):
        world.do(Acquire(sid(1), "a", seq=seq))
    world.do(Acquire(sid(1), "a", seq=6, ack=5))
    session = world.machine.find_session(sid(1))
    assert list(session.answers) == [6]
    assert world.do(Acquire(sid(1), "a", seq=3))[1]["code"] == "sequence_too_old"


def test_window__is_bounded_until_answers_are_acknowledged():
    world = World(sessions=1)
    too_far = limits.SEQUENCE_WINDOW + 1
    assert world.do(Acquire(sid(1), "a", seq=too_far))[1]["code"] == "overloaded"
    assert world.machine.held == 0
    assert world.do(Acquire(sid(1), "a", seq=too_far, ack=1))[0] == 200


def test_refusal_that_says_come_again__is_not_kept(monkeypatch):
    world = World(sessions=1)
    monkeypatch.setattr("dss.core.locks.acquiring.SESSION_HOLDS_MAX", 0)
    ask = Acquire(sid(1), "a", seq=1)
    assert world.do(ask)[0] == 429
    monkeypatch.undo()
    assert world.do(ask)[0] == 200


def test_one_number_for_two_requests__is_noticed_while_the_first_waits():
    world = World(sessions=2)
    world.token(1)
    world.do(Acquire(sid(2), "a", "exclusive", 1_000, seq=1))
    assert world.do(Acquire(sid(2), "b", seq=1))[1]["code"] == "sequence_reused"


def test_several_locks_and_upgrade__are_sequenced_as_well():
    world = World(sessions=2)
    ask = AcquireMany(sid(1), ["a", "b"], seq=1)
    assert world.do(ask) == world.do(ask)
    assert world.machine.held == 2
    token = world.token(2, "r", mode="shared")
    up = Upgrade(sid(2), "r", token, seq=1)
    assert world.do(up) == world.do(up)


NAMES = [f"{at:03d}/" + "x" * 250 for at in range(100)]


def test_large_answers__a_session_keeps_no_more_than_its_budget_until_it_acknowledges():
    world = World(sessions=2, ttl_ms=limits.SESSION_TTL_MS_MAX)
    empty = len(world.machine.snapshot())
    first = world.do(AcquireMany(sid(1), NAMES, seq=1))
    seq = 1
    while (got := world.do(AcquireMany(sid(1), NAMES, seq=seq + 1)))[0] == 200:
        seq += 1
    assert (got[0], got[1]["code"]) == (429, "overloaded")
    assert "1024 KiB" in got[1]["message"]
    assert "ack" in got[1]["message"]
    assert 30 <= seq < limits.SEQUENCE_WINDOW
    holds = 100 * 600
    assert len(world.machine.snapshot()) - empty < limits.SESSION_ANSWERS_BYTES_MAX + holds
    count = world.machine.describe(NAMES[0], 0)["holders"][0]["count"]
    assert count == seq, "the refused one did nothing"
    world.reload()
    assert world.do(AcquireMany(sid(1), NAMES, seq=seq + 1)) == got, "a restored one as well"
    assert world.do(AcquireMany(sid(1), NAMES, seq=1)) == first, "none is dropped early"
    assert world.acquire(2, "a", seq=1)[0] == 200, "another session has its own"
    assert world.do(AcquireMany(sid(1), NAMES, seq=seq + 1, ack=1))[0] == 200


def test_answers_of_all_sessions__are_bounded_and_one_that_ends_makes_room(monkeypatch):
    monkeypatch.setattr("dss.core.locks.once.ANSWERS_BYTES_MAX", 50_000)
    world = World(sessions=3)
    assert world.do(AcquireMany(sid(1), NAMES, seq=1))[0] == 200
    assert world.do(AcquireMany(sid(2), ["b" + name[1:] for name in NAMES], seq=1))[0] == 200
    full = world.acquire(3, "c", seq=1)
    assert (full[0], full[1]["code"]) == (429, "overloaded")
    world.reload()
    assert world.acquire(3, "c", seq=1) == full
    world.end(1)
    assert world.acquire(3, "c", seq=1)[0] == 200
    world.end(2)
    world.end(3)
    assert world.machine.answers_bytes == 0


def test_answer_of_a_wait__has_its_room_set_aside_and_given_back_in_every_way():
    world = World(sessions=3)
    token = world.token(1, NAMES[0])
    ask = AcquireMany(sid(2), NAMES, 1_000, seq=1)
    assert world.do(ask) == PENDING
    aside = world.machine.answers_bytes
    assert aside > 25_000
    world.reload()
    world.release(1, token, NAMES[0])
    assert world.machine.answers_bytes == aside, "the grant takes what was set aside"
    world.reload()
    assert world.do(AcquireMany(sid(3), NAMES, 1_000, seq=1)) == PENDING
    world.later(1_000)
    assert aside < world.machine.answers_bytes < aside + 2_000, "a refusal is short"
    world.reload()
    assert world.do(AcquireMany(sid(3), NAMES, 1_000, seq=2, ack=1)) == PENDING
    world.acquire(3, "z", seq=3, ack=2)  # it says that it had an answer that never was
    assert world.machine.answers_bytes == aside + limits.ANSWER_BYTES
    world.reload()
    world.later(2_000)
    assert world.machine.answers_bytes == aside + limits.ANSWER_BYTES


def test_count_of_an_answer__is_never_below_what_a_snapshot_holds():
    world = World(sessions=3)
    names = ["é" * 128, "a", NAMES[0]]
    found = [
        world.do(AcquireMany(sid(1), names, seq=1)),
        world.acquire(1, "r", seq=2),
        world.acquire(2, names[0], seq=1),
        world.acquire(3, "s", "semaphore", permits=1, limit=9_999, confirm_ms=30_000, seq=1),
        world.do(Release(sid(3), "nothing", 1, seq=2)),
    ]
    assert [status for status, _ in found] == [200, 200, 409, 200, 409]
    for answer in found:
        assert len(msgspec.msgpack.encode((2**53, *answer))) <= size_of(answer)


# --- keys ---------------------------------------------------------------------------------


def test_key__same_answer_for_ten_minutes_of_log_time_then_forgotten():
    world = World(sessions=1, ttl_ms=limits.SESSION_TTL_MS_MAX)
    ask = keyed("k", Acquire(sid(1), "a"))
    first = world.do(ask)
    world.reload()
    world.now_ms = limits.IDEMPOTENCY_KEEP_MS - 1
    assert world.do(ask) == first
    assert world.machine.describe("a", 0)["holders"][0]["count"] == 1
    world.now_ms += 1
    assert world.do(ask)[0] == 200
    assert world.machine.describe("a", 0)["holders"][0]["count"] == 2


def test_key_with_another_body__422():
    world = World(sessions=1)
    world.do(keyed("k", Acquire(sid(1), "a"), b"one"))
    status, body = world.do(keyed("k", Acquire(sid(1), "b"), b"two"))
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    assert world.machine.held == 1


def test_keys_full__429_and_none_is_dropped_early(monkeypatch):
    monkeypatch.setattr("dss.core.locks.keys.IDEMPOTENCY_KEYS_MAX", 2)
    world = World(sessions=1, ttl_ms=limits.SESSION_TTL_MS_MAX)
    first = world.do(keyed("k1", Acquire(sid(1), "a")))
    world.do(keyed("k2", Acquire(sid(1), "b")))
    status, body = world.do(keyed("k3", Acquire(sid(1), "c")))
    assert (status, body["code"]) == (429, "overloaded")
    assert world.machine.held == 2
    assert world.do(keyed("k1", Acquire(sid(1), "a"))) == first
    world.now_ms = limits.IDEMPOTENCY_KEEP_MS
    assert world.do(keyed("k3", Acquire(sid(1), "c")))[0] == 200


def test_large_answers_of_keys__are_bounded_and_time_makes_room(monkeypatch):
    monkeypatch.setattr("dss.core.locks.keys.IDEMPOTENCY_KEYS_BYTES_MAX", 50_000)
    world = World(sessions=1, ttl_ms=limits.SESSION_TTL_MS_MAX)
    asks = [keyed(f"k{at}", AcquireMany(sid(1), NAMES), b"same") for at in range(3)]
    first = world.do(asks[0])
    assert world.do(asks[1])[0] == 200
    full = world.do(asks[2])
    assert (full[0], full[1]["code"]) == (429, "overloaded")
    world.reload()
    assert world.do(asks[2]) == full
    assert world.do(asks[0]) == first
    world.now_ms = limits.IDEMPOTENCY_KEEP_MS
    assert world.do(asks[2])[0] == 200
    assert world.machine.keys.bytes < 50_000


def test_key_of_a_wait__the_repeat_joins_and_both_ways_of_ending_are_kept():
    world = World(sessions=2)
    token = world.token(1)
    ask = keyed("k", Acquire(sid(2), "a", "exclusive", 1_000))
    assert world.do(ask) == PENDING
    first = world.index
    world.reload()
    assert world.do(ask) == PENDING
    again = world.index
    wakes = world.wakes()
    assert wakes[first].body["code"] == "superseded"
    world.release(1, token)
    wake = world.wakes()[again]
    assert world.do(ask) == (wake.status, wake.body)
    assert world.machine.held == 1


def test_wait_that_outlives_its_key__ends_as_it_should(monkeypatch):
    monkeypatch.setattr("dss.core.locks.keys.IDEMPOTENCY_KEEP_MS", 100)
    world = World(sessions=2)
    token = world.token(1)
    world.do(keyed("k", Acquire(sid(2), "a", "exclusive", 1_000)))
    waiting = world.index
    world.now_ms = 500
    world.do(keyed("other", Acquire(sid(1), "b")))
    world.release(1, token)
    assert world.wakes()[waiting].status == 200


def test_key_with_args_that_no_node_can_decode__422_and_kept_from_the_state():
    world = World(sessions=1)
    bad = Keyed("k", b"", "acquire", msgspec.Raw(msgspec.msgpack.encode({"session": 1})))
    status, body = world.do(bad)
    assert (status, body["code"]) == (422, "invalid")
    assert len(world.machine.keys) == 0


@pytest.mark.parametrize("op", ["expire_waits", "keyed", "nonsense"])
def test_key__carries_only_what_a_client_may_ask_for(op):
    world = World()
    bad = Keyed("k", b"", op, msgspec.Raw(b"\x80"))
    assert world.do(bad)[0] == 422
