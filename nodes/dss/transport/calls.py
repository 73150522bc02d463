"""Calls to other nodes that are not answered yet.

What must not live here: links, what a method does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from dss.base import limits
from dss.base.errors import Indeterminate, RemoteError, Unavailable
from dss.core.machine import UNREADABLE
from dss.transport.wire import Return


class _Open(msgspec.Struct, frozen=True):
    future: asyncio.Future[bytes]
    node_id: str
    timer: asyncio.TimerHandle
    method: str


class Calls:
    """Of one node; each future ends once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[int, _Open] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._open)

    def refused(self, why: str, retry_after_ms: int | None = None) -> asyncio.Future[bytes]:
        """The future of a call that is not made."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        future.set_exception(Unavailable(why, retry_after_ms=retry_after_ms))
        return future

    def open(self, node_id: str, method: str, timeout_ms: int) -> tuple[int, asyncio.Future[bytes]]:
        """The id to send it under, and its future; 0: there are too many, nothing is to be sent."""
        if len(self._open) >= limits.PEER_CALLS_MAX:
            return 0, self.refused("too many unanswered calls", retry_after_ms=100)
        call_id = self._next_id
        self._next_id += 1
        timer = self._loop.call_later(timeout_ms / 1000, self._timed_out, call_id)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._open[call_id] = _Open(future, node_id, timer, method)
        return call_id, future

    def returned(self, node_id: str, message: Return) -> None:
        call = self._open.get(message.call_id)
        if call is None or call.node_id != node_id:
            return
        del self._open[message.call_id]
        call.timer.cancel()
        future = call.future
        if future.done():
            return
        if message.status == 200:
            future.set_result(message.body)
            return
        with contextlib.suppress(*UNREADABLE):
            body = msgspec.msgpack.decode(message.body, type=dict[str, Any])
            future.set_exception(RemoteError(message.status, body))
            return
        future.set_exception(Indeterminate(f"{node_id} sent an unreadable answer"))

    def lost(self, node_id: str, reason: str) -> None:
        """The link to `node_id` broke."""
        for call_id in [at for at, call in self._open.items() if call.node_id == node_id]:
            call = self._open.pop(call_id)
            _fail(call, f"the link to {node_id} broke during {call.method}: {reason}")

    def stop(self) -> None:
        calls, self._open = self._open, {}
        for call in calls.values():
            _fail(call, f"this node stops; asked {call.node_id}")

    def _timed_out(self, call_id: int) -> None:
        call = self._open.pop(call_id, None)
        if call is not None and not call.future.done():
            error = Indeterminate(f"{call.node_id} did not answer {call.method} in time")
            call.future.set_exception(error)


def _fail(call: _Open, why: str) -> None:
    call.timer.cancel()
    if not call.future.done():
        call.future.set_exception(Indeterminate(why))
        call.future.exception()  # nobody may have waited
