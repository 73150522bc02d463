"""Queues and cache of `dss.client.sync`. What must not live here: anything but blocking."""

from __future__ import annotations

from typing import Any

from dss.client import client as aio
from dss.client import queues
from dss.client.loop_thread import LoopThread
from dss.client.queues import Message


class Queue:
    """See `dss.client.Queue`.

    Example:
        client.queue("mails").send("hello", key="a")
        client.queue("mails").ack(*client.queue("mails").receive(10, wait=1))
    """

    def __init__(self, loop: LoopThread, inner: queues.Queue) -> None:
        self._loop = loop
        self._inner = inner

    def create(self, **settings: Any) -> None:
        """Make the queue, or change its settings."""
        self._loop.run(self._inner.create(**settings))

    def send(self, body: Any, *, key: str | None = None, delay: float = 0.0, **more: Any) -> str:
        """Send one message; its id."""
        return self._loop.run(self._inner.send(body, key=key, delay=delay, **more))

    def receive(
        self, max: int = 1, *, wait: float = 0.0, visibility: float | None = None
    ) -> list[Message]:
        """Up to `max` messages; waits up to `wait` seconds for the first."""
        return self._loop.run(self._inner.receive(max, wait=wait, visibility=visibility))

    def ack(self, *messages: Message | str) -> None:
        """Done with these messages, for good."""
        self._loop.run(self._inner.ack(*messages))

    def nack(self, *messages: Message | str, delay: float = 0.0) -> None:
        """Give these back, to be delivered again after `delay` seconds."""
        self._loop.run(self._inner.nack(*messages, delay=delay))


class Cache:
    """See `dss.client.Client.cache`.

    Example:
        client.cache.put("price/42", {"eur": 7}, ttl=60)
        assert client.cache.get("price/42") == {"eur": 7}
    """

    def __init__(self, loop: LoopThread, client: aio.Client) -> None:
        self._loop = loop
        self._inner = client.cache

    def get(self, key: str, default: Any = None) -> Any:
        """The last committed value of `key`, or `default`."""
        return self._loop.run(self._inner.get(key, default))

    def put(self, key: str, value: Any, *, ttl: float | None = None) -> str:
        """Store `value`; its version."""
        return self._loop.run(self._inner.put(key, value, ttl=ttl))

    def delete(self, key: str) -> bool:
        """Remove `key`; False when there was none."""
        return self._loop.run(self._inner.delete(key))
