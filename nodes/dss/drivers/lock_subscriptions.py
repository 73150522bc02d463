"""Events of locks on a client's stream: the ops `events` and `events.stop`.

They are answered by the client's own node, out of what it has applied; a subscription is named by
the id of the request that asked for it. What must not live here: what events are, and who else
hears them (lock_events.py), frames (api/lock_stream.py).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any, Final, Protocol

from dss.base.errors import DssError, Invalid, Overloaded
from dss.base.limits import (
    EVENTS_COMMENT_S,
    STREAM_EVENTS_MAX,
    STREAM_EVENTS_UNREAD_BYTES,
)
from dss.core.locks.commands import FollowEvents, Local
from dss.drivers.lock_events import LockEvents
from dss.drivers.ports import Sink
from dss.observe.logs import unexpected

LOOK_S: Final = 0.02
"""Between two looks at a client that is behind with reading."""

_log = logging.getLogger("dss.locks")


class Subscriber(Sink, Protocol):
    """A client's stream."""

    @property
    def unread_bytes(self) -> int:
        """What the client has not taken yet."""
        ...

    def push(self, body: dict[str, Any]) -> None: ...


class Subscriptions:
    """Those of all streams of this node."""

    def __init__(self, events: LockEvents) -> None:
        self._events = events
        self._tasks: dict[Subscriber, dict[int, asyncio.Task[None]]] = {}

    def ask(self, sink: Subscriber, request_id: int, command: Local) -> None:
        """Answer at once; what is pushed comes after the answer. The caller flushes."""
        try:
            if isinstance(command, FollowEvents):
                body = self._begin(sink, request_id, command)
            else:
                body = self._stop(sink, command.subscription)
        except DssError as error:
            sink.answer(request_id, error.status, error.body())
        else:
            sink.answer(request_id, 200, body)

    def end(self, sink: Subscriber) -> None:
        """The stream is over."""
        for task in self._tasks.pop(sink, {}).values():
            task.cancel()

    def _begin(self, sink: Subscriber, number: int, command: FollowEvents) -> dict[str, Any]:
        mine = self._tasks.get(sink, {})
        if number in mine:
            raise Invalid(f"events: subscription {number} is open: use another request id")
        if len(mine) >= STREAM_EVENTS_MAX:
            raise Overloaded(f"{STREAM_EVENTS_MAX} subscriptions are open on this stream: stop one")
        self._events.open_stream()
        index = self._events.newest if command.since is None else command.since
        work = self._tell(sink, number, command.prefix, index)
        task = asyncio.create_task(work, name="dss-lock-subscription")
        task.add_done_callback(lambda _: self._over(sink, number, task))
        self._tasks.setdefault(sink, mine)[number] = task
        return {"subscription": number, "index": index}

    def _stop(self, sink: Subscriber, number: int) -> dict[str, Any]:
        """One that has ended by itself meanwhile is no error."""
        task = self._tasks.get(sink, {}).get(number)
        if task is not None:
            task.cancel()
            self._forget(sink, number, task)
        return {}

    def _over(self, sink: Subscriber, number: int, task: asyncio.Task[None]) -> None:
        self._events.close_stream()
        self._forget(sink, number, task)

    def _forget(self, sink: Subscriber, number: int, task: asyncio.Task[None]) -> None:
        mine = self._tasks.get(sink, {})
        if mine.get(number) is task:
            del mine[number]
            if not mine:
                del self._tasks[sink]

    async def _tell(self, sink: Subscriber, number: int, prefix: str, index: int) -> None:
        try:
            async with aclosing(self._events.follow(index, prefix, EVENTS_COMMENT_S)) as batches:
                async for index, found in batches:
                    _push(sink, number, index, "events", events=found)
                    await asyncio.sleep(0)  # a client far behind must not hold the loop up
                    while sink.unread_bytes > STREAM_EVENTS_UNREAD_BYTES:  # noqa: ASYNC110
                        await asyncio.sleep(LOOK_S)
        except Exception as bug:
            unexpected(_log, "events of a stream", bug)
            error = DssError("internal error; the node's log has the cause")
        else:
            if self._events.stopped:
                return  # the stream's close says so
            error = self._events.not_current()
        _push(sink, number, index, "events_end", **error.body())


def _push(sink: Subscriber, number: int, index: int, event: str, **more: Any) -> None:
    sink.push({"event": event, "subscription": number, "index": index, **more})
    sink.flush()
