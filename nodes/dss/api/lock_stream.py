"""One client's `locks:stream`: its requests, the waits that end with it, pushes to it.

What must not live here: what an op means (drivers/locks.py), frames (stream.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dss.api.stream import StreamConnection
from dss.drivers.gone_clients import Waiting
from dss.drivers.lock_handles import shown
from dss.drivers.locks import LockService


class LockStream:
    """An api.stream.StreamSession, and the sink that its requests are answered to."""

    __slots__ = ("_connection", "_ended", "_service", "_waits")

    def __init__(self, service: LockService, connection: StreamConnection) -> None:
        self._service = service
        self._connection = connection
        self._waits: dict[int, Waiting] = {}
        self._ended = False

    def submit(self, payload: bytes) -> None:
        """See api.stream.StreamSession."""
        self._service.submit_stream(self, payload)

    def end(self) -> None:
        """The client has gone: its waits end soon, unless it comes back to them."""
        self._ended = True
        self._service.stream_ended(self, self._waits)

    def take(self, request_ids: Sequence[int]) -> int:
        """See drivers.ports.StreamSink."""
        return self._connection.take(request_ids)

    def note_wait(self, request_id: int, command: Waiting) -> None:
        """See drivers.locks.LockSink."""
        self._waits[request_id] = command

    def answer(self, request_id: int, status: int, body: Any) -> None:
        """See drivers.ports.Sink."""
        if self._waits:
            wait = self._waits.pop(request_id, None)
            if self._ended and wait is not None and status == 200:
                self._service.gone.undelivered(wait, body)
        if status == 409:
            status, body = shown((status, body))
        self._connection.answer(request_id, status, body)

    @property
    def unread_bytes(self) -> int:
        """See drivers.lock_subscriptions.Subscriber."""
        return self._connection.unread_bytes

    def push(self, body: Any) -> None:
        """See drivers.lock_events.Watcher."""
        self._connection.push(body)

    def flush(self) -> None:
        """See drivers.ports.Sink."""
        self._connection.flush()
