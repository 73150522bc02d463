"""A stream client for tests: sends what it is told, keeps every frame as it came.

What must not live here: reconnecting, retries (dss.client.stream has those).
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import msgspec

Answer = tuple[int, Any]
ANSWER_S: Final = 5.0


class RawStream:
    """One connection. Every answer is to be taken once; a second one to an id is an error."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[list[int]] = []
        """The ids of each message that came."""
        self.answers: dict[int, Answer] = {}
        self.next_id = 1

    async def send(self, *requests: tuple[str, Any]) -> list[int]:
        """Send all in one message; their ids."""
        ids = list(range(self.next_id, self.next_id + len(requests)))
        self.next_id += len(requests)
        items = [[number, op, args] for number, (op, args) in zip(ids, requests, strict=True)]
        await self.ws.send_bytes(msgspec.msgpack.encode(items))
        return ids

    async def take(self, ids: list[int]) -> list[Answer]:
        """The answers to `ids`, once all are here."""
        while not set(ids) <= self.answers.keys():
            message = await self.ws.receive(ANSWER_S)
            assert message.type is aiohttp.WSMsgType.BINARY, message
            frame = msgspec.msgpack.decode(message.data)
            self.frames.append([number for number, _, _ in frame])
            for number, status, body in frame:
                assert number not in self.answers, "answered twice"
                self.answers[number] = (status, body)
        return [self.answers.pop(number) for number in ids]

    async def ask(self, *requests: tuple[str, Any]) -> list[Answer]:
        return await self.take(await self.send(*requests))

    async def one(self, op: str, **args: Any) -> Answer:
        return (await self.ask((op, args)))[0]
