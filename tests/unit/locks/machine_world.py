"""A lock machine with a clock and short words for its commands, for scenarios."""

from __future__ import annotations

from typing import Any

from dss.core.locks.commands import (
    LOG_CODEC,
    Acquire,
    AcquireMany,
    Downgrade,
    Release,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
    Upgrade,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING, Wake, join_items


def sid(number: int) -> str:
    return f"{number:032x}"


class World:
    """Applies one entry per call, encoded and decoded as the log would, and checks invariants."""

    def __init__(self, sessions: int = 0, ttl_ms: int = 10_000, level: int = 1) -> None:
        self.machine = LockMachine()
        self.index = 0
        self.now_ms = 0
        if level > 1:
            self.raise_level(level)
        for number in range(1, sessions + 1):
            assert self.create(number, ttl_ms)[0] == 201

    def entry(self, *commands: Any) -> list[tuple[int, Any]]:
        self.index += 1
        items = [LOG_CODEC.encode_item(7, command) for command in commands]
        decoded = LOG_CODEC.decode(join_items(len(items), items))
        results = self.machine.apply(self.index, self.now_ms, decoded)
        self.machine.check_invariants()
        return results

    def raise_level(self, level: int = 2) -> None:
        self.index += 1
        self.machine.set_level(self.index, self.now_ms, level)
        self.machine.check_invariants()

    def do(self, command: Any) -> tuple[int, Any]:
        return self.entry(command)[0]

    def create(self, number: int, ttl_ms: int = 10_000, name: str = "") -> tuple[int, Any]:
        return self.do(SessionCreate(ttl_ms, name, sid(number)))

    def keepalive(self, number: int) -> tuple[int, Any]:
        return self.do(SessionKeepalive(sid(number)))

    def end(self, number: int) -> tuple[int, Any]:
        return self.do(SessionEnd(sid(number)))

    def acquire(
        self,
        number: int,
        name: str = "a",
        mode: Any = "exclusive",
        wait_ms: int = 0,
        owner: str = "",
        **more: Any,
    ) -> tuple[int, Any]:
        return self.do(Acquire(sid(number), name, mode, wait_ms, owner, **more))

    def share(
        self, number: int, permits: int = 1, limit: int = 3, name: str = "s", **more: Any
    ) -> tuple[int, Any]:
        """A semaphore's permits."""
        return self.acquire(number, name, "semaphore", permits=permits, limit=limit, **more)

    def acquire_all(self, number: int, names: str, wait_ms: int = 0, **more: Any) -> Any:
        """All locks of `names`, one letter each."""
        return self.do(AcquireMany(sid(number), list(names), wait_ms, **more))

    def upgrade(self, number: int, token: int, wait_ms: int = 0, name: str = "a") -> Any:
        return self.do(Upgrade(sid(number), name, token, wait_ms))

    def downgrade(self, number: int, token: int, name: str = "a") -> Any:
        return self.do(Downgrade(sid(number), name, token))

    def token(self, *args: Any, **kwargs: Any) -> int:
        status, body = self.acquire(*args, **kwargs)
        assert status == 200, body
        token: int = body["token"]
        return token

    def wait(self, *args: Any, wait_ms: int = 5_000, **kwargs: Any) -> int:
        """An acquire that must wait; the index by which its wake is known."""
        assert self.acquire(*args, wait_ms=wait_ms, **kwargs) == PENDING
        return self.index

    def release(self, number: int, token: int, name: str = "a", owner: str = "") -> Any:
        return self.do(Release(sid(number), name, token, owner))

    def wakes(self) -> dict[int, Wake]:
        return {wake.index: wake for wake in self.machine.take_wakes()}

    def expire(self) -> int:
        """Do what the leader does when something is due; how many commands that were."""
        commands = self.machine.due(self.now_ms)
        if commands:
            for status, _ in self.entry(*commands):
                assert status == 200
        return len(commands)

    def later(self, ms: int) -> None:
        self.now_ms += ms
        self.expire()

    def reload(self) -> None:
        """Continue on a machine restored from a snapshot."""
        data = self.machine.snapshot()
        restored = LockMachine()
        restored.restore(data)
        restored.check_invariants()
        assert restored.snapshot() == data
        sizes = [
            (each.answers_bytes, each.keys.bytes, each.waits_bytes)
            for each in (self.machine, restored)
        ]
        assert sizes[0] == sizes[1], "two replicas would refuse at different commands"
        self.machine = restored
