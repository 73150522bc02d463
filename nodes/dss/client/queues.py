"""`client.queue(name)`: send, receive, acknowledge. No retries, nothing about partitions here.

Over the stream where there is one, else over HTTP, with the same results and errors. What many
tasks ask for in one loop iteration leaves as one message, which the node carries out as one batch.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from time import monotonic
from typing import Any

import msgspec

from dss.base.errors import Indeterminate
from dss.client.calls import Calls
from dss.client.errors import error_of
from dss.client.requests import Requests, segment


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A received message; `receipt` names this delivery until its visibility ends.

    Example:
        await client.queue("mails").send({"to": "a@example.org"})
        for message in await client.queue("mails").receive(10, wait=1):
            print(message.id, message.body, message.deliveries)
            await client.queue("mails").ack(message)
    """

    id: str
    receipt: str
    body: Any = None
    """The JSON value that was sent; None for bytes."""
    body_bytes: bytes | None = None
    """The bytes that were sent; None for a JSON value. Also the text of a JSON value that Python
    cannot hold, such as 1e400."""
    headers: dict[str, str] = {}
    key: str | None = None
    deliveries: int = 1
    """1 on the first delivery."""
    token: int | None = None

    @property
    def data(self) -> bytes:
        """The raw bytes of a message that was sent as bytes, else its JSON."""
        return msgspec.json.encode(self.body) if self.body_bytes is None else self.body_bytes


class Queue:
    """One queue. Get it from `client.queue(name)`; it holds no connection of its own.

    Example:
        queue = client.queue("mails")
        print(await queue.send({"to": "a@example.org"}, key="a"))
        await queue.ack(*await queue.receive(10, wait=1))
    """

    def __init__(self, calls: Calls, requests: Requests, name: str) -> None:
        self.name = name
        self._calls = calls
        self._requests = requests
        self._path = f"/v1/queues/{segment(name)}"

    async def create(self, **settings: Any) -> None:
        """Make the queue, or change its settings (`visibility_ms`, `max_deliveries`, …)."""
        args = {"queue": self.name, "settings": settings}
        if await self._calls.ask("queue.put", args) is None:
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
        if key is not None:
            message["key"] = key
        if delay:
            message["delay_ms"] = round(delay * 1_000)
        if isinstance(body, bytes):
            carried = {"body_bytes": body}
        else:
            carried = {"body_json": msgspec.json.encode(body)}
        answer = await self._calls.ask("send", {"queue": self.name, **message, **carried})
        if answer is not None:
            return str(answer[1]["id"])
        if isinstance(body, bytes):
            message["body_base64"] = base64.b64encode(body).decode()
        else:
            message["body"] = body
        reply = await self._requests.send("queue", "POST", f"{self._path}/messages", json=message)
        return str(reply.json()["id"])

    async def receive(
        self, max: int = 1, *, wait: float = 0.0, visibility: float | None = None
    ) -> list[Message]:
        """Up to `max` messages; waits up to `wait` seconds for the first.

        Args:
            visibility: seconds until an unacknowledged message is delivered again.
        """
        request: dict[str, Any] = {"max": max, "wait_ms": round(wait * 1_000)}
        if visibility is not None:
            request["visibility_ms"] = round(visibility * 1_000)
        args = {"queue": self.name, **request}
        until_s = monotonic() + wait
        try:
            answer = await self._calls.ask("receive", args, unwanted=self._give_back)
        except Indeterminate:
            # Its node is gone. Nothing is lost by asking another: what may have been on its way
            # comes again.
            request["wait_ms"] = args["wait_ms"] = _left_ms(until_s)
            answer = await self._calls.ask("receive", args, unwanted=self._give_back)
        if answer is not None:
            return [_message(one) for one in answer[1]["messages"]]
        reply = await self._requests.send(
            "queue", "POST", f"{self._path}/receive", json=request, wait_ms=request["wait_ms"]
        )
        return [_message(one) for one in reply.json()["messages"]]

    def _give_back(self, body: Any) -> None:
        """Messages for a caller who was cancelled: others need not wait for their visibility."""
        receipts = [message["receipt"] for message in body["messages"]]
        if receipts:
            self._calls.tell("nack", {"queue": self.name, "receipts": receipts})

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
        request = {"receipts": receipts, **more}
        answer = await self._calls.ask(verb, {"queue": self.name, **request})
        if answer is not None:
            body = answer[1]
        else:
            path = f"{self._path}/{verb}"
            body = (await self._requests.send("queue", "POST", path, json=request)).json()
        for result in body.get("results", ()):
            if not result.get("ok", True):
                raise error_of(int(result.get("status", 409)), result)


def _left_ms(until_s: float) -> int:
    return max(0, round(1_000 * (until_s - monotonic())))


def _message(found: dict[str, Any]) -> Message:
    """A message as the stream or HTTP carries it."""
    text, encoded = found.pop("body_json", None), found.pop("body_base64", None)
    if text is not None:
        try:
            found["body"] = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found["body_bytes"] = text
    elif encoded is not None:
        found["body_bytes"] = base64.b64decode(encoded)
    return msgspec.convert(found, Message)
