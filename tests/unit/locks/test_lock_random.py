"""Random work on the machine and on a naive model: equal answers, also across snapshots."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import lock_model
import msgspec
import pytest
from lock_model import Model
from machine_world import sid

from dss.core.locks import keys as keys_module
from dss.core.locks import lines as lines_module
from dss.core.locks import machine as machine_module
from dss.core.locks import once as once_module
from dss.core.locks.commands import (
    KEYED_CODEC,
    LOG_CODEC,
    Acquire,
    AcquireMany,
    Break,
    Cancel,
    Confirm,
    Downgrade,
    ExpireGrants,
    ExpireSessions,
    ExpireWaits,
    Keyed,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING, join_items

ENTRIES = 400
NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def small_memories(monkeypatch):
    monkeypatch.setattr(keys_module, "IDEMPOTENCY_KEEP_MS", lock_model.KEY_MS)
    monkeypatch.setattr(once_module, "SEQUENCE_WINDOW", lock_model.WINDOW)
    monkeypatch.setattr(once_module, "REPEATS_ANSWERED_MAX", lock_model.TOGETHER)
    monkeypatch.setattr(lines_module, "PLACE_KEPT_MS", lock_model.PLACE_MS)
    monkeypatch.setattr(machine_module, "PLACE_KEPT_MS", lock_model.PLACE_MS)


class Run:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = LockMachine()
        self.follower = LockMachine()
        self.model = Model()
        self.index = 0
        self.now_ms = 0
        self.answered: dict[tuple[int, int], Any] = {}
        self.tokens: list[tuple[str, str, str, int]] = []
        self.newest: dict[str, int] = {}
        self.fresh: list[tuple[str, int]] = []
        self.last_seq: dict[str, int] = {}
        self.sent: dict[tuple[str, int], Any] = {}
        self.repeatable: list[Any] = []
        # A run likes some kinds of locks more than others, so that each gets crowded.
        self.modes = self.random.choice(
            [["exclusive"], ["exclusive", "shared"], ["exclusive", "shared", "semaphore"]]
        )
        self.owners = self.random.choice([[""], ["", "", "x", "y"]])

    def command(self) -> Any:
        rand = self.random
        if self.repeatable and rand.random() < 0.06:
            again = rand.choice(self.repeatable[-8:])
            if isinstance(again, Keyed) or self.sent[again.session, again.seq] is again:
                return again
        command = self.plain_command()
        roll = rand.random()
        client = self.model.sessions.get(getattr(command, "session", ""))
        if roll < 0.12 and hasattr(command, "seq") and client is not None:
            seq = max(client.floor, self.last_seq.get(command.session, 0), *client.answers, 0) + 1
            ack = max(0, seq - rand.randrange(1, 9))
            command = msgspec.structs.replace(command, seq=seq, ack=ack)
            self.last_seq[command.session] = seq
            self.sent[command.session, seq] = command
            self.repeatable.append(command)
        elif roll < 0.2 and type(command) in KEYED_CODEC._names:
            _, op, args = LOG_CODEC.split(join_items(1, [LOG_CODEC.encode_item(1, command)]))[0]
            key = f"k{rand.randrange(30)}"
            command = Keyed(key, blake2b(op.encode() + bytes(args)).digest()[:16], op, args)
            self.repeatable.append(command)
        return command

    def plain_command(self) -> Any:
        rand = self.random
        session = sid(rand.randrange(1, 6))
        name = rand.choice(NAMES)
        owner = rand.choice(self.owners)
        wait_ms = rand.choice([0, 50, 400, 3_000])
        priority = rand.choice([0, 0, 0, 0, 1, 9])
        roll = rand.random()
        if roll < 0.12:
            return SessionCreate(rand.choice([300, 1_000, 5_000]), "", session)
        if roll < 0.25:
            return SessionKeepalive(session)
        if roll < 0.28:
            return SessionEnd(session)
        if roll < 0.29:
            return Break(name)
        if roll < 0.31:
            return Cancel(session, name, owner, rand.choice([0, self.now_ms, self.now_ms + 1]))
        if roll < 0.55 or not self.tokens:
            mode: Any = rand.choice(self.modes)
            confirm_ms = rand.choice([0, 0, 0, 0, 0, 100])
            if mode == "semaphore":
                permits, limit = rand.choice([(1, 3), (1, 3), (2, 3), (3, 3), (1, 2)])
                return Acquire(
                    session, name, mode, wait_ms, owner, permits, limit, priority, confirm_ms
                )
            return Acquire(session, name, mode, wait_ms, owner, 1, 0, priority, confirm_ms)
        if roll < 0.62:
            names = rand.sample(NAMES, rand.randrange(1, 4))
            return AcquireMany(session, names, wait_ms, owner, priority)
        if roll < 0.65:
            return Release(session, name, rand.randrange(1, 20), owner)
        session, owner, name, token = rand.choice(self.tokens[-12:])
        if roll < 0.72:
            return Upgrade(session, name, token, wait_ms, owner)
        if roll < 0.75:
            return Downgrade(session, name, token, owner)
        if roll < 0.79:
            return Confirm(session, name, token, owner)
        return Release(session, name, token, owner)

    def step(self) -> None:
        self.index += 1
        self.now_ms += self.random.choice([0, 1, 20, 100])
        self.last_seq.clear()
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
        if isinstance(command, Keyed):
            command = KEYED_CODEC.decode_args(command.op, command.args)
        assert status == expected[0], (command, expected, body)
        if status >= 400:
            assert body["code"] == expected[1], (command, expected, body)
        elif isinstance(command, Cancel):
            assert body["cancelled"] == expected[1]
        elif isinstance(command, Acquire | Upgrade | Downgrade | Confirm):
            assert body["token"] == expected[1], (command, expected, body)
            if isinstance(command, Acquire):
                assert body["mode"] == command.mode
            self.granted(command, command.name, body["token"])
        elif isinstance(command, AcquireMany):
            assert [each["token"] for each in body["locks"]] == expected[1]
            for each in body["locks"]:
                self.granted(command, each["name"], each["token"])

    def granted(self, command: Any, name: str, token: int) -> None:
        holder = (command.session, command.owner, name, token)
        if holder not in self.tokens:  # else re-entrant, or a repeat
            assert (name, token) not in self.fresh, "one token, two holders"
            self.fresh.append((name, token))
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
            if request in self.model.cycles:
                stuck = self.model.cycles.pop(request)
                for step in wake.body["cycle"]:
                    assert (step["session"], step["owner"], tuple(step["names"])) in stuck
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
        assert self.apply(commands) == [(200, {})] * len(commands)
        for command in commands:
            if isinstance(command, ExpireSessions):
                self.model.expire_sessions(self.now_ms, [s for s, _ in command.sessions])
            elif isinstance(command, ExpireWaits):
                self.model.expire_waits(self.now_ms, command.tickets)
            else:
                assert isinstance(command, ExpireGrants)
                self.model.expire_grants(self.now_ms, command.tokens)
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

    def raise_level(self) -> None:
        self.index += 1
        for machine in (self.machine, self.follower):
            machine.set_level(self.index, self.now_ms, 2)
            machine.check_invariants()
        self.model.set_level(self.now_ms, 2)


@pytest.mark.parametrize("seed", range(60))
def test_random_work_with_restores_and_leader_changes__answers_as_the_model(seed):
    """A third at the base level, a third at level 2, a third raised on the way."""
    run = Run(seed)
    raised_at = (-1, 0, ENTRIES // 2)[seed % 3]
    for entry in range(ENTRIES):
        if entry == raised_at:
            run.raise_level()
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
