"""Random work on the machine and on a naive model: equal answers, also across snapshots."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lock_model import Model
from lock_world import sid

from dss.core.locks.commands import (
    LOG_CODEC,
    Acquire,
    ExpireSessions,
    ExpireWaits,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING, join_items

ENTRIES = 400


class Run:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = LockMachine()
        self.follower = LockMachine()
        self.model = Model()
        self.index = 0
        self.now_ms = 0
        self.answered: dict[tuple[int, int], tuple[int, Any]] = {}
        self.tokens: list[tuple[str, str, str, int]] = []
        self.newest: dict[str, int] = {}
        self.fresh: list[tuple[str, int]] = []

    def command(self) -> Any:
        rand = self.random
        session = sid(rand.randrange(1, 6))
        name = rand.choice(["a", "b", "c"])
        owner = rand.choice(["", "", "x", "y"])
        roll = rand.random()
        if roll < 0.12:
            return SessionCreate(rand.choice([300, 1_000, 5_000]), "", session)
        if roll < 0.25:
            return SessionKeepalive(session)
        if roll < 0.28:
            return SessionEnd(session)
        if roll < 0.62 or not self.tokens:
            mode: Any = rand.choice(["exclusive", "shared"])
            return Acquire(session, name, mode, rand.choice([0, 50, 400, 3_000]), owner)
        if roll < 0.65:
            return Release(session, name, rand.randrange(1, 20), owner)
        session, owner, name, token = rand.choice(self.tokens[-12:])
        return Release(session, name, token, owner)

    def step(self) -> None:
        self.index += 1
        self.now_ms += self.random.choice([0, 1, 20, 100])
        commands = [self.command() for _ in range(self.random.randrange(1, 5))]
        results = self.apply(commands)
        for position, (command, result) in enumerate(zip(commands, results, strict=True)):
            request = (self.index, position)
            expected = self.model.apply(request, self.now_ms, command)
            assert (expected is None) == (result == PENDING), (command, expected, result)
            if expected is None:
                self.answered[request] = command
            else:
                self.compare(command, expected, *result)
        self.compare_wakes()

    def apply(self, commands: list[Any]) -> list[Any]:
        payload = join_items(len(commands), [LOG_CODEC.encode_item(1, c) for c in commands])
        results = self.machine.apply(self.index, self.now_ms, LOG_CODEC.decode(payload))
        assert self.follower.apply(self.index, self.now_ms, LOG_CODEC.decode(payload)) == results
        self.machine.check_invariants()
        return results

    def compare(self, command: Any, expected: Any, status: int, body: Any) -> None:
        assert status == expected[0], (command, expected, body)
        if status >= 400:
            assert body["code"] == expected[1], (command, expected, body)
        elif isinstance(command, Acquire):
            assert body["token"] == expected[1], (command, expected, body)
            assert body["mode"] == command.mode
            self.granted(command, body["token"])

    def granted(self, command: Acquire, token: int) -> None:
        holder = (command.session, command.owner, command.name, token)
        if holder not in self.tokens:  # else re-entrant
            assert (command.name, token) not in self.fresh, "one token, two holders"
            self.fresh.append((command.name, token))
        self.tokens.append(holder)

    def compare_wakes(self) -> None:
        wakes = self.machine.take_wakes()
        assert self.follower.take_wakes() == wakes
        late, self.model.late = self.model.late, {}
        assert {(wake.index, wake.position) for wake in wakes} == set(late)
        assert len(wakes) == len(late), "answered twice"
        for wake in wakes:
            request = (wake.index, wake.position)
            self.compare(self.answered.pop(request), late[request], wake.status, wake.body)
        # Late grants of an entry may precede direct ones: per entry, all are newer than before.
        for name, token in self.fresh:
            assert token > self.newest.get(name, 0), "a token went back"
        for name, token in self.fresh:
            self.newest[name] = max(token, self.newest.get(name, 0))
        self.fresh.clear()

    def expire(self) -> None:
        """The leader proposes what is due; the model is told the order, not whether."""
        commands = self.machine.due(self.now_ms)
        if not commands:
            return
        self.index += 1
        tickets = {t: (w.index, w.position) for t, w in self.machine._waiters.items()}
        assert self.apply(commands) == [(200, {})] * len(commands)
        for command in commands:
            if isinstance(command, ExpireSessions):
                self.model.expire_sessions(self.now_ms, [s for s, _ in command.sessions])
            else:
                assert isinstance(command, ExpireWaits)
                requests = [tickets[ticket] for ticket in command.tickets]
                waiting = [wait.request for wait in self.model.waits]
                self.model.expire_waits(self.now_ms, [r for r in requests if r in waiting])
        self.compare_wakes()

    def maybe_disturb(self) -> None:
        roll = self.random.random()
        if roll < 0.05:
            data = self.machine.snapshot()
            self.follower = LockMachine()
            self.follower.restore(data)
            assert self.follower.snapshot() == data
        elif roll < 0.08:
            self.machine, self.follower = self.follower, self.machine
            self.machine.leader_changed(self.index, self.now_ms)
            self.follower.leader_changed(self.index, self.now_ms)
            self.model.leader_changed(self.now_ms)


@pytest.mark.parametrize("seed", range(40))
def test_random_work_with_restores_and_leader_changes__answers_as_the_model(seed):
    run = Run(seed)
    for _ in range(ENTRIES):
        run.step()
        if run.random.random() < 0.7:
            run.expire()
        run.maybe_disturb()
    assert run.machine.snapshot() == run.follower.snapshot()
    # In the end everything runs out by itself: nobody is forgotten.
    for _ in range(50):
        run.now_ms += 1_000
        run.expire()
    assert not run.model.overdue(run.now_ms)
    assert (run.machine.sessions, run.machine.locks, run.machine.waiting) == (0, 0, 0)
    assert not run.answered
    assert run.machine.next_due_ms() is None
