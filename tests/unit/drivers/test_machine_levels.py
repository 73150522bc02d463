"""Every machine's feature level: in its snapshot, and the old bytes as long as nobody raised it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dss.base import levels
from dss.base.errors import CorruptData
from dss.core.locks.commands import SessionCreate
from dss.core.locks.machine import LockMachine
from dss.core.meta.commands import PutQueue
from dss.core.meta.machine import MetaMachine
from dss.core.queueing.commands import Configure, QueueSettings
from dss.core.queueing.machine import QueueMachine
from dss.testing.tally import Add, Tally

MAKERS: dict[str, Callable[[], Any]] = {
    "locks": LockMachine,
    "meta": MetaMachine,
    "queue": lambda: QueueMachine(3),
    "tally": Tally,
}
COMMANDS: dict[str, msgspec.Struct] = {
    "locks": SessionCreate(10_000, session="s" * 32),
    "meta": PutQueue("q"),
    "queue": Configure("q", 1, 1, QueueSettings()),
    "tally": Add(7),
}


@pytest.fixture(params=sorted(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def used(kind: str) -> Any:
    machine = MAKERS[kind]()
    assert machine.apply(1, 5, [COMMANDS[kind]])[0][0] < 400
    return machine


def test_new_machine__is_at_the_base_level(kind: str) -> None:
    assert MAKERS[kind]().level == levels.BASE_LEVEL


def test_snapshot_after_a_raise__restores_the_level(kind: str) -> None:
    machine = used(kind)
    machine.set_level(2, 6, 2)
    copy = MAKERS[kind]()
    copy.restore(machine.snapshot())
    assert copy.level == 2
    assert copy.snapshot() == machine.snapshot()
    copy.check_invariants()


def test_snapshot_of_the_base_level_into_a_raised_machine__falls_back(kind: str) -> None:
    raised = used(kind)
    raised.set_level(2, 6, 2)
    raised.restore(used(kind).snapshot())
    assert raised.level == levels.BASE_LEVEL
    assert raised.snapshot() == used(kind).snapshot()


def test_snapshot_at_the_base_level__is_what_releases_without_levels_read() -> None:
    locks = msgspec.msgpack.decode(used("locks").snapshot())
    assert (locks[0], len(locks)) == (2, 10)
    queue = msgspec.msgpack.decode(used("queue").snapshot())
    assert (queue[0], len(queue)) == (1, 3)
    assert "level" not in msgspec.msgpack.decode(used("meta").snapshot())


def test_lock_snapshot_of_a_newer_version__is_refused_and_says_so() -> None:
    machine = used("locks")
    machine.set_level(2, 6, 2)
    rows = msgspec.msgpack.decode(machine.snapshot())
    rows[0] += 1
    before = machine.snapshot()
    with pytest.raises(CorruptData, match="run the newer release"):
        machine.restore(msgspec.msgpack.encode(rows))
    assert machine.snapshot() == before


def test_levels__each_has_its_line() -> None:
    assert list(levels.LEVELS) == list(range(levels.BASE_LEVEL, levels.FEATURE_LEVEL + 1))
    assert all(levels.LEVELS.values())
    document = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    for level, brings in levels.LEVELS.items():
        assert f"| {level} | {brings} |" in document
