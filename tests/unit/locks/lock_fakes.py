"""Stand-ins for the ports of the lock service: consensus that applies at once, calls in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss.base.errors import DssError, NoQuorum, RemoteError, Unavailable
from dss.base.ids import LOCK_GROUP
from dss.core.locks.commands import LOG_CODEC
from dss.core.locks.machine import LockMachine
from dss.core.machine import PENDING, join_items
from dss.drivers.ports import Sink


class FakeConsensus:
    """One node's view of a lock group that commits at once. Time stands until `now_ms` moves."""

    def __init__(self, machine: LockMachine | None = None, leader: str | None = "lock-1") -> None:
        self.lock_machine = machine or LockMachine()
        self.leader = leader
        self.founded = True
        self.index = 0
        self.now_ms = 0
        self.held: list[Callable[[], None]] | None = None
        self.submitted: list[bytes] = []
        self.reads = 0
        self.waits: dict[tuple[int, int], tuple[Sink, int]] = {}
        self.listeners: list[Callable[[], None]] = []

    def submit(
        self,
        group: int,
        request_ids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
    ) -> None:
        assert group == LOCK_GROUP
        self.submitted.append(items)
        payload = join_items(len(request_ids), [items])
        # What the log holds must be what the leader was handed decoded, ids included.
        assert [item[0] for item in LOG_CODEC.split(payload)] == list(request_ids)
        assert LOG_CODEC.decode(payload) == list(commands)

        def run() -> None:
            self._apply(list(request_ids), list(commands), sink)

        if self.held is None:
            run()
        else:
            self.held.append(run)

    def _apply(self, request_ids: list[int], commands: list[Any], sink: Sink) -> None:
        self.index += 1
        results = self.lock_machine.apply(self.index, self.now_ms, commands)
        sinks = {sink: None}
        for position, (rid, result) in enumerate(zip(request_ids, results, strict=True)):
            if result == PENDING:
                self.waits[self.index, position] = (sink, rid)
            else:
                sink.answer(rid, *result)
        for wake in self.lock_machine.take_wakes():
            target, rid = self.waits.pop((wake.index, wake.position))
            target.answer(rid, wake.status, wake.body)
            sinks[target] = None
        for listener in self.listeners:
            listener()
        for each in sinks:
            each.flush()

    def release_held(self) -> None:
        held, self.held = self.held or [], None
        for run in held:
            run()

    def expire(self) -> None:
        for command in self.lock_machine.due(self.now_ms):
            self._apply([0], [command], _Nowhere())

    def call(self, group: int, command: msgspec.Struct) -> asyncio.Future[tuple[int, Any]]:
        future: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        item = LOG_CODEC.encode_item(1, command)
        self.submit(group, [1], item, LOG_CODEC.decode(join_items(1, [item])), _Future(future))
        return future

    async def read(self, group: int) -> None:
        self.reads += 1
        await asyncio.sleep(0)
        if not self.is_leader(group):
            raise NoQuorum("not the leader", leader=self.leader)

    def waits_here(self, group: int) -> list[tuple[int, int]]:
        return list(self.waits)

    def leader_of(self, group: int) -> str | None:
        return self.leader

    def is_leader(self, group: int) -> bool:
        return self.leader == "lock-1"

    def machine(self, group: int) -> LockMachine:
        if not self.founded:
            raise KeyError(group)
        return self.lock_machine

    def on_applied(self, group: int, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def log_ms(self, group: int) -> int:
        return self.now_ms


class _Nowhere:
    def answer(self, request_id: int, status: int, body: Any) -> None: ...

    def flush(self) -> None: ...


class _Future:
    def __init__(self, future: asyncio.Future[tuple[int, Any]]) -> None:
        self._future = future

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._future.set_result((status, body))

    def flush(self) -> None: ...


class FakeTransport:
    """`on_call` here is what `call` of another node's FakeTransport reaches."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.nodes: dict[str, FakeTransport] = {}
        self.calls = 0

    def on_call(self, method: str, handler: Any) -> None:
        self.handlers[method] = handler

    def call(
        self, node_id: str, method: str, body: bytes, timeout_ms: int
    ) -> asyncio.Future[bytes]:
        self.calls += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        node = self.nodes.get(node_id)
        if node is None:
            future.set_exception(Unavailable(f"the link to {node_id} is down"))
            return future

        def reply(status: int, answer: bytes) -> None:
            if status == 200:
                future.set_result(answer)
            else:
                future.set_exception(RemoteError(status, msgspec.msgpack.decode(answer)))

        try:
            node.handlers[method](None, body, reply)
        except DssError as error:
            reply(error.status, msgspec.msgpack.encode(error.body()))
        return future


class ListSink:
    """A stream connection without a socket."""

    def __init__(self, room: int = 4_096) -> None:
        self.room = room
        self.unread_bytes = 0
        self.pending: list[tuple[int, int, Any]] = []
        self.noted: dict[int, Any] = {}
        self.pushed: list[Any] = []
        self.flushed: list[list[tuple[int, int, Any]]] = []

    def take(self, request_ids: Sequence[int]) -> int:
        return min(len(request_ids), self.room)

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self.pending.append((request_id, status, body))

    def note_wait(self, request_id: int, command: Any) -> None:
        self.noted[request_id] = command

    def push(self, body: Any) -> None:
        self.pushed.append(body)

    def flush(self) -> None:
        if self.pending:
            self.flushed.append(self.pending)
            self.pending = []

    @property
    def answers(self) -> dict[int, tuple[int, Any]]:
        assert not self.pending, "answered but never flushed"
        return {rid: (status, body) for batch in self.flushed for rid, status, body in batch}
