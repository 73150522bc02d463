"""`client.queue(name)`: send, receive, acknowledge. No retries, nothing about partitions here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from dss.client.errors import error_of
from dss.client.requests import Requests, segment


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A received message; `receipt` names this delivery until its visibility ends."""

    id: str
    receipt: str
    body: Any = None
    body_base64: str | None = None
    headers: dict[str, str] = {}
    key: str | None = None
    deliveries: int = 1
    """1 on the first delivery."""
    token: int | None = None

    @property
    def data(self) -> bytes:
        """The raw bytes of a message that was sent as bytes, else its JSON."""
        if self.body_base64 is not None:
            return base64.b64decode(self.body_base64)
        return msgspec.json.encode(self.body)


class Queue:
    """One queue. Get it from `client.queue(name)`; it holds no connection of its own."""

    def __init__(self, requests: Requests, name: str) -> None:
        self.name = name
        self._requests = requests
        self._path = f"/v1/queues/{segment(name)}"

    async def create(self, **settings: Any) -> None:
        """Make the queue, or change its settings (`visibility_ms`, `max_deliveries`, …)."""
        await self._requests.send("queue", "PUT", self._path, json=settings)

    async def send(
        self, body: Any, *, key: str | None = None, delay: float = 0.0, **more: Any
    ) -> str:
        """Send one message; returns its id once a quorum has it on disk.

        Args:
            body: any JSON-able value, or bytes.
            key: messages of one key keep their order.
            delay: seconds before it can be received.
            more: further members of the API (`headers`, `priority`, `ttl_ms`, `dedup_id`).
        """
        message: dict[str, Any] = dict(more)
        if isinstance(body, bytes):
            message["body_base64"] = base64.b64encode(body).decode()
        else:
            message["body"] = body
        if key is not None:
            message["key"] = key
        if delay:
            message["delay_ms"] = round(delay * 1_000)
        reply = await self._requests.send("queue", "POST", f"{self._path}/messages", json=message)
        return str(reply.json()["id"])

    async def receive(
        self, max: int = 1, *, wait: float = 0.0, visibility: float | None = None
    ) -> list[Message]:
        """Up to `max` messages; waits up to `wait` seconds for the first.

        Args:
            visibility: seconds until an unacknowledged message is delivered again.
        """
        wait_ms = round(wait * 1_000)
        request: dict[str, Any] = {"max": max, "wait_ms": wait_ms}
        if visibility is not None:
            request["visibility_ms"] = round(visibility * 1_000)
        reply = await self._requests.send(
            "queue", "POST", f"{self._path}/receive", json=request, wait_ms=wait_ms
        )
        return msgspec.convert(reply.json()["messages"], list[Message])

    async def ack(self, *messages: Message | str) -> None:
        """Done with these messages (or receipts), for good. Raises the first refusal (409)."""
        await self._settle("ack", messages, {})

    async def nack(self, *messages: Message | str, delay: float = 0.0) -> None:
        """Give these back, to be delivered again after `delay` seconds."""
        await self._settle("nack", messages, {"delay_ms": round(delay * 1_000)} if delay else {})

    async def _settle(
        self, verb: str, messages: Sequence[Message | str], more: dict[str, Any]
    ) -> None:
        receipts = [m.receipt if isinstance(m, Message) else m for m in messages]
        reply = await self._requests.send(
            "queue", "POST", f"{self._path}/{verb}", json={"receipts": receipts, **more}
        )
        for result in reply.json().get("results", ()):
            if not result.get("ok", True):
                raise error_of(int(result.get("status", 409)), result)
