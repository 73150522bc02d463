"""Answers as futures: the sink of HTTP handlers and of the services' own calls.

What must not live here: what is asked, streams (api/stream.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

from dss.base.errors import Indeterminate


class CallSink:
    """See the module."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next = 1
        self._futures: dict[int, asyncio.Future[tuple[int, Any]]] = {}

    def open(self) -> tuple[int, asyncio.Future[tuple[int, Any]]]:
        rid = self._next
        self._next += 1
        future: asyncio.Future[tuple[int, Any]] = self._loop.create_future()
        self._futures[rid] = future
        return rid, future

    def answer(self, request_id: int, status: int, body: Any) -> None:
        future = self._futures.pop(request_id, None)
        if future is not None and not future.done():
            future.set_result((status, body))

    def flush(self) -> None:
        """Nothing is buffered: each future wakes its own handler."""

    def close(self, reason: str) -> None:
        """The node ends: whatever has no answer by now gets this one."""
        for rid in list(self._futures):
            self.answer(rid, Indeterminate.status, Indeterminate(reason).body())
