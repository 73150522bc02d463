"""Two replicas of the lock machine, one of them restored from a snapshot now and then: they never
differ, in answers, late answers or bytes; and every wait gets exactly one answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from machine_world import sid

from dss.core.locks.commands import (
    KEYED_CODEC,
    LOG_CODEC,
    Acquire,
    AcquireMany,
    Break,
    Cancel,
    Confirm,
    Downgrade,
    Keyed,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
    Withdraw,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING

ENTRIES = 250
NAMES = "abcd"
KINDS = {
    "create": 6, "keepalive": 6, "end": 2, "acquire": 38, "many": 12, "release": 16, "upgrade": 5,
    "downgrade": 3, "confirm": 2, "cancel": 3, "break": 1, "withdraw": 2,
}  # fmt: skip


class Client:
    """Draws commands; some are sequenced, some carry a key, some repeat an older one."""

    def __init__(self, rng: random.Random, machine: LockMachine) -> None:
        self.rng = rng
        self.machine = machine
        self.newest: dict[str, int] = {}
        self.keyed: list[Keyed] = []

    def draw(self) -> Any:
        rng = self.rng
        (kind,) = rng.choices(list(KINDS), KINDS.values())
        command = getattr(self, f"_{kind}")(sid(rng.randrange(5)))
        if type(command) is Withdraw or getattr(command, "seq", 0) or rng.random() >= 0.2:
            return command
        if self.keyed and rng.random() < 0.4:
            return rng.choice(self.keyed[-8:])
        [(_, op, args)] = KEYED_CODEC.split(b"\x91" + KEYED_CODEC.encode_item(1, command))
        digest = bytes([sum(bytes(args)) % 3])
        self.keyed.append(Keyed(f"key {rng.randrange(40)}", digest, op, args))
        return self.keyed[-1]

    def _numbers(self, session: str) -> dict[str, int]:
        rng = self.rng
        if rng.random() >= 0.3:
            return {}
        newest = self.newest.get(session, 0)
        seq = newest + 1 if rng.random() < 0.7 else max(1, newest - rng.randrange(3))
        self.newest[session] = max(newest, seq)
        return {"seq": seq, "ack": max(0, seq - rng.randrange(1, 6)) if rng.random() < 0.5 else 0}

    def _asked(self, session: str) -> dict[str, Any]:
        rng = self.rng
        return {
            "owner": rng.choice(["", "p", "q"]),
            "wait_ms": rng.choice([0, 0, 500, 5_000, 30_000]),
            "priority": rng.choice([0, 0, 0, 1, 9]),
        } | self._numbers(session)

    def _held(self, session: str) -> dict[str, Any]:
        rng = self.rng
        found = self.machine.find_session(session)
        if found is None or not found.holds or rng.random() < 0.1:
            return {"name": rng.choice(NAMES), "token": rng.randrange(1, 50)}
        hold = found.holds[rng.choice(sorted(found.holds))]
        owner = "" if hold.owner == session else hold.owner
        return {"name": hold.name, "token": hold.token, "owner": owner}

    def _create(self, session: str) -> SessionCreate:
        return SessionCreate(self.rng.choice([100, 1_000, 10_000]), "n", session)

    def _keepalive(self, session: str) -> SessionKeepalive:
        return SessionKeepalive(session)

    def _end(self, session: str) -> SessionEnd:
        return SessionEnd(session)

    def _acquire(self, session: str) -> Acquire:
        rng = self.rng
        args = self._asked(session) | {"confirm_ms": rng.choice([0, 0, 200])}
        mode = rng.choice(["exclusive", "shared", "semaphore"])
        if mode == "semaphore":
            args["limit"] = rng.choice([2, 2, 3])
            args["permits"] = rng.randrange(1, args["limit"] + 1)
        return Acquire(session, rng.choice(NAMES), mode, **args)

    def _many(self, session: str) -> AcquireMany:
        names = self.rng.sample(NAMES, self.rng.randrange(1, 4))
        return AcquireMany(session, names, **self._asked(session))

    def _release(self, session: str) -> Release:
        return Release(session, **self._held(session), **self._numbers(session))

    def _upgrade(self, session: str) -> Upgrade:
        wait_ms = self.rng.choice([0, 500, 5_000])
        return Upgrade(session, wait_ms=wait_ms, **self._held(session), **self._numbers(session))

    def _downgrade(self, session: str) -> Downgrade:
        return Downgrade(session, **self._held(session), **self._numbers(session))

    def _confirm(self, session: str) -> Confirm:
        return Confirm(session, **self._held(session))

    def _cancel(self, session: str) -> Cancel:
        rng = self.rng
        return Cancel(session, rng.choice(NAMES), rng.choice(["", "p", "q"]), rng.choice([0, 1]))

    def _break(self, session: str) -> Break:
        return Break(self.rng.choice(NAMES), "admin", "test")

    def _withdraw(self, session: str) -> Withdraw:
        waits = list(self.machine._waiters.values())[: self.rng.randrange(3)]
        return Withdraw([self.rng.choice(each.questions) for each in waits])


def from_the_log(command: Any) -> Any:
    """As a follower sees it."""
    item = LOG_CODEC.encode_item(1, command)
    [(_, op, args)] = LOG_CODEC.split(b"\x91" + item)
    return LOG_CODEC.decode_args(op, args)


@pytest.mark.parametrize("seed", [15, *range(100, 139)])
def test_replica_restored_at_any_point__never_differs_and_every_wait_ends_once(seed):
    rng = random.Random(seed)
    leader, follower = LockMachine(), LockMachine()
    client = Client(rng, leader)
    raised_at = (-1, 1, 120)[seed % 3]
    waiting: set[tuple[int, int]] = set()
    now_ms = 1_000
    for index in range(1, ENTRIES + 1):
        now_ms += rng.choice([0, 1, 20, 200, 1_500])
        if index == raised_at:
            leader.set_level(index, now_ms, 2)
            follower.set_level(index, now_ms, 2)
        elif rng.random() < 0.02:
            leader.leader_changed(index, now_ms)
            follower.leader_changed(index, now_ms)
        else:
            commands = [client.draw() for _ in range(rng.choice([1, 1, 2, 5]))]
            if rng.random() < 0.4:
                commands += leader.due(now_ms)
            answers = leader.apply(index, now_ms, commands)
            assert follower.apply(index, now_ms, list(map(from_the_log, commands))) == answers
            for position, answer in enumerate(answers):
                if answer == PENDING:
                    waiting.add((index, position))
        wakes = leader.take_wakes()
        assert follower.take_wakes() == wakes
        for wake in wakes:
            waiting.remove((wake.index, wake.position))
        assert {at for each in leader._waiters.values() for at in each.questions} == waiting
        leader.check_invariants()
        follower.check_invariants()
        state = leader.snapshot()
        assert follower.snapshot() == state
        if rng.random() < 0.1:
            follower = LockMachine()
            follower.restore(state)
            assert follower.snapshot() == state
    assert leader.grants > 20
