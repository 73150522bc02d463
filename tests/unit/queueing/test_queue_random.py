"""A seeded random workload against a plain model, with snapshots and restores on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from dss.core.machine import join_items
from dss.core.queueing.commands import (
    Ack,
    Configure,
    Extend,
    Message,
    Nack,
    QueueSettings,
    Receive,
    Send,
)
from dss.core.queueing.machine import QueueMachine

MAX_DELIVERIES = 4
VISIBILITY_MS = 200


@dataclass
class Held:
    """A message in the model: `visible_ms` is when it may be received."""

    body: bytes
    visible_ms: int
    deliveries: int = 0
    leased: bool = False


@dataclass
class Model:
    """What a queue owes its users, written without heaps: a list in order of sending."""

    messages: dict[int, Held] = field(default_factory=dict)
    dead: dict[int, bytes] = field(default_factory=dict)
    acked: dict[int, bytes] = field(default_factory=dict)

    def ripen(self, now_ms: int) -> None:
        for sequence, held in list(self.messages.items()):
            if held.visible_ms <= now_ms and held.leased:
                held.leased = False
                self.maybe_dead(sequence, held)

    def maybe_dead(self, sequence: int, held: Held) -> bool:
        if held.deliveries < MAX_DELIVERIES:
            return False
        self.dead[sequence] = held.body
        del self.messages[sequence]
        return True

    def visible(self, now_ms: int) -> list[int]:
        return [s for s, held in self.messages.items() if held.visible_ms <= now_ms]


class Run:
    """Two machines (one of them restored from snapshots now and then) and the model."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.machines = [QueueMachine(0), QueueMachine(0)]
        self.model = Model()
        self.now_ms = 1
        self.receipts: list[tuple[int, int]] = []
        self.sent: dict[int, bytes] = {}
        settings = QueueSettings(visibility_ms=VISIBILITY_MS, max_deliveries=MAX_DELIVERIES)
        self.do(Configure("q", 1, 1, settings))

    def do(self, command: Any) -> Any:
        codec = self.machines[0].codec
        payload = join_items(1, [codec.encode_item(1, command)])
        results = [m.apply(1, self.now_ms, codec.decode(payload)) for m in self.machines]
        assert results[0] == results[1]
        for machine in self.machines:
            machine.check_invariants()
        if self.rng.random() < 0.1:
            fresh = QueueMachine(0)
            fresh.restore(self.machines[1].snapshot())
            self.machines[1] = fresh
            assert self.machines[0].snapshot() == fresh.snapshot()
            assert self.machines[0].next_due_ms() == fresh.next_due_ms()
        return results[0][0][1]

    def send(self) -> None:
        count = self.rng.randrange(1, 6)
        delays = [self.rng.choice([0, 0, 0, 50, 150]) for _ in range(count)]
        bodies = [str(self.rng.random()).encode() for _ in range(count)]
        messages = tuple(
            Message(body, delay_ms=delay) for body, delay in zip(bodies, delays, strict=True)
        )
        first = self.do(Send("q", 1, messages)).first
        for number in range(count):
            sequence = first + number
            assert sequence not in self.sent
            self.sent[sequence] = bodies[number]
            self.model.messages[sequence] = Held(bodies[number], self.now_ms + delays[number])

    def receive(self) -> None:
        want = self.rng.randrange(1, 5)
        visibility_ms = self.rng.choice([None, 50, 300])
        answer = self.do(Receive("q", want, visibility_ms))
        expected = self.model.visible(self.now_ms)[:want]
        assert [one.sequence for one in answer] == expected
        for one in answer:
            held = self.model.messages[one.sequence]
            held.deliveries += 1
            held.leased = True
            held.visible_ms = self.now_ms + (visibility_ms or VISIBILITY_MS)
            assert (one.body, one.deliveries) == (held.body, held.deliveries)
            self.receipts.append((one.sequence, one.deliveries))

    def some_receipts(self) -> tuple[tuple[int, int], ...]:
        chosen = self.rng.sample(self.receipts, min(len(self.receipts), 3))
        return tuple(dict.fromkeys(chosen)) or ((999_999, 1),)

    def current(self, receipt: tuple[int, int]) -> Held | None:
        held = self.model.messages.get(receipt[0])
        if held and held.leased and held.deliveries == receipt[1]:
            return held
        return None

    def settle(self) -> None:
        receipts = self.some_receipts()
        kind = self.rng.choice(["ack", "ack", "nack", "extend"])
        delay_ms = self.rng.choice([0, 80])
        command: Any = Ack("q", receipts)
        if kind == "nack":
            command = Nack("q", receipts, delay_ms)
        elif kind == "extend":
            command = Extend("q", receipts, 120)
        answer = self.do(command)
        current = [self.current(receipt) for receipt in receipts]
        assert answer.stale == tuple(i for i, held in enumerate(current) if held is None)
        for (sequence, _), held in zip(receipts, current, strict=True):
            if held is None:
                continue
            if kind == "ack":
                self.model.acked[sequence] = held.body
                del self.model.messages[sequence]
            elif kind == "nack":
                held.leased, held.visible_ms = False, self.now_ms + delay_ms
                self.model.maybe_dead(sequence, held)
            else:
                held.visible_ms = self.now_ms + 120

    def step(self) -> None:
        self.now_ms += self.rng.choice([0, 0, 1, 10, 60])
        self.model.ripen(self.now_ms)
        for machine in self.machines:
            for command in machine.due(self.now_ms):
                assert machine.codec.encode_item(1, command)
        self.rng.choice([self.send, self.receive, self.receive, self.settle, self.settle])()

    def drain(self) -> None:
        """Take and acknowledge everything that is left."""
        for _ in range(1_000):
            if not self.model.messages:
                return
            self.now_ms += VISIBILITY_MS
            self.model.ripen(self.now_ms)
            answer = self.do(Receive("q", 100))
            keys = tuple((one.sequence, one.deliveries) for one in answer)
            if keys:
                assert self.do(Ack("q", keys)).stale == ()
            for sequence, _ in keys:
                self.model.acked[sequence] = self.model.messages.pop(sequence).body


@pytest.mark.parametrize("seed", range(20))
def test_random_workload__nothing_lost_nothing_twice_after_ack(seed: int) -> None:
    run = Run(seed)
    for _ in range(300):
        run.step()
    run.drain()
    stats = run.machines[1].stats("q")
    assert stats is not None
    assert {**run.model.acked, **run.model.dead} == run.sent
    assert (stats["acked"], stats["dead"]) == (len(run.model.acked), len(run.model.dead))
    assert stats["ready"] == stats["leased"] == stats["delayed"] == 0
    assert stats["sent"] == len(run.sent) > 50
