"""One partition's machine: what each op does, leases in log time, bounds, snapshots."""

from __future__ import annotations

from typing import Any

import pytest

from dss.base.errors import Invalid
from dss.base.limits import DUE_ITEMS_MAX, EXPIRY_RETRY_MS, MIB, RECEIVE_BYTES_MAX
from dss.core.machine import join_items
from dss.core.queueing.commands import (
    Ack,
    Configure,
    Delivered,
    Drop,
    Expire,
    Extend,
    Message,
    Nack,
    QueueSettings,
    Receive,
    Send,
    Settled,
    message_id,
    parse_receipt,
    receipt,
)
from dss.core.queueing.machine import QueueMachine

STALE = (200, Settled((0,)))
DONE = (200, Settled())


class Bench:
    """A machine behind its codec, with a log time of its own; every step checks invariants."""

    def __init__(self, **settings: Any) -> None:
        self.machine = QueueMachine(3)
        self.now_ms = 1_000
        self.do(Configure("jobs", 1, 1, QueueSettings(**settings)))

    def do(self, *commands: Any) -> Any:
        codec = self.machine.codec
        payload = join_items(len(commands), [codec.encode_item(1, c) for c in commands])
        results = self.machine.apply(1, self.now_ms, codec.decode(payload))
        self.machine.check_invariants()
        return results[0] if len(results) == 1 else results

    def send(self, *bodies: bytes, **fields: Any) -> Any:
        return self.do(Send("jobs", 1, tuple(Message(body, **fields) for body in bodies)))

    def receive(self, count: int = 1, visibility_ms: int | None = None) -> list[Delivered]:
        status, answer = self.do(Receive("jobs", count, visibility_ms))
        assert status == 200
        return list(answer)

    def bodies(self, count: int = 1) -> list[bytes]:
        return [delivered.body for delivered in self.receive(count)]

    def ready(self) -> int:
        return self.machine.ready("jobs")

    def stats(self) -> dict[str, int]:
        stats = self.machine.stats("jobs")
        assert stats is not None
        return stats


def key(delivered: Delivered) -> tuple[int, int]:
    return (delivered.sequence, delivered.deliveries)


def test_sent_messages__received_in_order_and_once() -> None:
    bench = Bench()
    assert bench.send(b"1", b"2", headers={"a": "b"}, key="k")[1].first == 1
    assert bench.send(b"3")[1].first == 3
    first, second = bench.receive(2)
    assert (first.body, first.deliveries, first.headers, first.key) == (b"1", 1, {"a": "b"}, "k")
    assert second.body == b"2"
    assert bench.bodies(5) == [b"3"]
    assert bench.bodies(5) == []


def test_acked__gone_for_ever_and_second_ack_is_stale() -> None:
    bench = Bench()
    bench.send(b"1", b"2")
    one, two = bench.receive(2)
    assert bench.do(Ack("jobs", (key(one),))) == DONE
    assert bench.do(Ack("jobs", (key(one), key(two), key(two)))) == (200, Settled((0, 2)))
    bench.now_ms += 1_000_000
    assert bench.receive(5) == []
    assert bench.stats()["acked"] == 2
    assert bench.machine.length("jobs") == 0


def test_lease_ended__redelivered_flagged_and_the_old_receipt_is_stale() -> None:
    bench = Bench(visibility_ms=500)
    bench.send(b"1")
    [first] = bench.receive()
    bench.now_ms += 499
    assert bench.receive() == []
    bench.now_ms += 1
    [again] = bench.receive()
    assert (again.sequence, again.deliveries) == (first.sequence, 2)
    for stale in (Ack("jobs", (key(first),)), Nack("jobs", (key(first),))):
        assert bench.do(stale) == STALE
    assert bench.do(Extend("jobs", (key(first),), 9_000)) == STALE
    assert bench.do(Ack("jobs", (key(again),))) == DONE
    assert bench.stats()["redelivered"] == bench.stats()["expired"] == 1


def test_lease_ended_before_any_redelivery__receipt_is_stale_too() -> None:
    bench = Bench(visibility_ms=500)
    bench.send(b"1")
    [first] = bench.receive()
    bench.now_ms += 500
    assert bench.do(Ack("jobs", (key(first),))) == STALE
    assert bench.ready() == 1


def test_redelivered_message__before_younger_ones_of_its_key() -> None:
    bench = Bench()
    bench.send(b"1", b"2", b"3", key="k")
    [first] = bench.receive()
    bench.do(Nack("jobs", (key(first),)))
    assert bench.bodies(3) == [b"1", b"2", b"3"]


def test_extended__stays_hidden_from_now_on() -> None:
    bench = Bench(visibility_ms=500)
    bench.send(b"1")
    [first] = bench.receive()
    bench.now_ms += 400
    assert bench.do(Extend("jobs", (key(first),), 1_000)) == DONE
    bench.now_ms += 999
    assert bench.receive() == []
    assert bench.do(Extend("jobs", (key(first), key(first)), 100)) == (200, Settled((1,)))
    bench.now_ms += 100
    assert bench.bodies() == [b"1"]


def test_nack_with_delay__visible_after_it() -> None:
    bench = Bench()
    bench.send(b"1")
    bench.do(Nack("jobs", (key(bench.receive()[0]),), delay_ms=300))
    assert bench.stats()["delayed"] == 1
    bench.now_ms += 299
    assert bench.receive() == []
    bench.now_ms += 1
    assert bench.receive()[0].deliveries == 2


def test_delayed_send__visible_after_it_in_its_old_place() -> None:
    bench = Bench()
    bench.send(b"late", delay_ms=100)
    bench.send(b"a", b"b")
    assert bench.bodies() == [b"a"]
    bench.now_ms += 100
    assert bench.bodies(2) == [b"late", b"b"]


def test_too_many_deliveries__dead_in_the_same_entry() -> None:
    bench = Bench(max_deliveries=2, visibility_ms=100)
    bench.send(b"by expiry", b"by nack")
    bench.receive(2)
    bench.now_ms += 100
    _, nacked = bench.receive(2)
    assert bench.do(Nack("jobs", (key(nacked),), delay_ms=50)) == DONE
    assert bench.stats()["dead"] == 1
    bench.now_ms += 100
    bench.do(Expire())
    assert (bench.stats()["dead"], bench.stats()["dead_lettered"], bench.ready()) == (2, 2, 0)
    assert bench.machine.length("jobs") == 2
    assert bench.do(Ack("jobs", (key(nacked),))) == STALE


def test_due__asks_once_until_an_entry_comes() -> None:
    bench = Bench(visibility_ms=500)
    machine = bench.machine
    assert machine.next_due_ms() is None
    bench.send(b"1")
    bench.receive()
    due_ms = bench.now_ms + 500
    assert machine.next_due_ms() == due_ms
    assert machine.due(due_ms - 1) == []
    assert machine.due(due_ms) == [Expire()]
    assert machine.due(due_ms) == []
    assert machine.next_due_ms() == due_ms + EXPIRY_RETRY_MS
    assert machine.due(due_ms + EXPIRY_RETRY_MS) == [Expire()]
    machine.take_ready()
    bench.now_ms = due_ms
    bench.do(Expire())
    assert machine.take_ready() == ["jobs"]
    assert (machine.next_due_ms(), bench.ready()) == (None, 1)


def test_expire_that_comes_after_an_extend__does_nothing() -> None:
    bench = Bench(visibility_ms=500)
    bench.send(b"1")
    [first] = bench.receive()
    bench.now_ms += 499
    bench.do(Extend("jobs", (key(first),), 1_000))
    bench.now_ms += 1
    bench.do(Expire())
    assert bench.ready() == 0
    assert bench.machine.next_due_ms() == bench.now_ms + 999


def test_many_leases_end_at_once__in_bounded_steps() -> None:
    bench = Bench()
    for _ in range(3):
        bench.send(*[b"x"] * 1_000)
        bench.receive(1_000, visibility_ms=100)
        bench.now_ms += 1
    bench.now_ms += 1_000
    bench.do(Expire())
    assert bench.ready() == DUE_ITEMS_MAX
    assert bench.machine.due(bench.now_ms) == [Expire()]
    bench.do(Expire())
    bench.do(Expire())
    assert bench.ready() == 3 * DUE_ITEMS_MAX
    assert bench.machine.due(bench.now_ms) == []


def test_settled_leases__do_not_pile_up_in_the_heap() -> None:
    bench = Bench()
    for _ in range(20):
        bench.send(*[b"x"] * 500)
        bench.do(Ack("jobs", tuple(key(one) for one in bench.receive(500))))
    assert bench.machine._due_records <= 1_024 + 500


def test_large_bodies__receive_stops_at_its_byte_limit_but_gives_one() -> None:
    bench = Bench()
    count = RECEIVE_BYTES_MAX // MIB + 2
    for _ in range(count):
        bench.send(b"x" * MIB)
    assert len(bench.receive(100)) == RECEIVE_BYTES_MAX // MIB
    assert len(bench.receive(100)) == 2


def test_partition_full__send_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dss.core.queueing.machine.PARTITION_MESSAGES_MAX", 3)
    bench = Bench()
    bench.send(b"1", b"2")
    status, body = bench.send(b"3", b"4")
    assert (status, body["code"], bench.ready()) == (429, "queue_full", 2)
    assert bench.send(b"3")[0] == 200


def test_queue_not_configured_here__send_says_so_and_receive_404() -> None:
    bench = Bench()
    assert bench.do(Send("other", 7, (Message(b""),)))[1]["code"] == "not_configured"
    assert bench.do(Send("jobs", 2, (Message(b""),)))[1]["code"] == "not_configured"
    for command in (
        Receive("other"),
        Ack("other", ((1, 1),)),
        Nack("other", ((1, 1),)),
        Extend("other", ((1, 1),), 5),
    ):
        status, body = bench.do(command)
        assert (status, body["code"]) == (404, "unknown_queue")


def test_remade_queue__empty_and_old_producers_refused() -> None:
    bench = Bench()
    bench.send(b"old")
    [leased] = bench.receive()
    bench.do(Configure("jobs", 5, 5, QueueSettings()))
    assert bench.send(b"for the old one")[0] == 404
    assert bench.do(Ack("jobs", (key(leased),))) == STALE
    bench.do(Configure("jobs", 1, 9, QueueSettings()), Drop("jobs", 1))
    assert bench.machine.configured("jobs") == (5, 5)
    assert bench.do(Send("jobs", 5, (Message(b"new"),)))[1].first == 2
    bench.now_ms += 100_000
    assert bench.bodies(5) == [b"new"]
    bench.do(Drop("jobs", 5))
    assert bench.machine.queues() == {}
    assert bench.machine.next_due_ms() is None


def test_new_version__new_settings_and_the_messages_stay() -> None:
    bench = Bench(visibility_ms=500)
    bench.send(b"1")
    bench.do(Configure("jobs", 1, 2, QueueSettings(visibility_ms=50)))
    bench.do(Configure("jobs", 1, 1, QueueSettings(visibility_ms=7)))
    assert bench.bodies() == [b"1"]
    bench.now_ms += 50
    assert bench.bodies() == [b"1"]


def test_receipt__round_trip_and_refusal_of_others() -> None:
    assert parse_receipt(receipt(3, 17, 2)) == (3, 17, 2)
    assert message_id(3, 17) == "3-17"
    for text in ("", "1-2", "1-2-x", "-1-2-3", "1-2-3-4", "1-2-" + "9" * 70, f"1-2-{2**63}"):
        with pytest.raises(Invalid, match="is not a receipt"):
            parse_receipt(text)
