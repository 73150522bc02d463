"""`client.cache`: get, put, delete. What must not live here: retries, coherence.

Over the stream where there is one, else over HTTP, with the same results and errors.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.client.calls import Calls
from dss.client.requests import Requests, segment

_BYTES: Final = "application/octet-stream"
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"


class Cache:
    """The cluster's cache. A value comes back as it was put: bytes, str, or a JSON value."""

    def __init__(self, calls: Calls, requests: Requests) -> None:
        self._calls = calls
        self._requests = requests

    async def get(self, key: str, default: Any = None) -> Any:
        """The last committed value of `key`, or `default` when there is none."""
        answer = await self._calls.ask("get", {"key": key}, accept=(404,), read=True)
        if answer is not None:
            status, body = answer
            return default if status == 404 else _value(body["value"], body["content_type"])
        reply = await self._requests.send("cache", "GET", _path(key), accept=(404,))
        if reply.status == 404:
            return default
        return _value(reply.body, reply.headers.get("Content-Type", ""))

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> str:
        """Store `value`; returns its version (the ETag) once main memory has it.

        Args:
            value: bytes and str travel as they are, anything else as JSON.
            ttl: seconds; None keeps it until it is deleted.
        """
        if isinstance(value, bytes | bytearray | memoryview):
            data, kind = bytes(value), _BYTES
        elif isinstance(value, str):
            data, kind = value.encode(), _TEXT
        else:
            data, kind = msgspec.json.encode(value), _JSON
        args: dict[str, Any] = {"key": key, "value": data, "content_type": kind}
        query = ""
        if ttl is not None:
            args["ttl_ms"] = round(ttl * 1_000)
            query = f"?ttl_ms={args['ttl_ms']}"
        answer = await self._calls.ask("set", args)
        if answer is not None:
            return f'"{answer[1]["version"]}"'
        reply = await self._requests.send(
            "cache", "PUT", _path(key) + query, data=data, headers={"Content-Type": kind}
        )
        return reply.headers.get("ETag", "")

    async def delete(self, key: str) -> bool:
        """Remove `key`; False when there was none."""
        answer = await self._calls.ask("delete", {"key": key}, accept=(404,))
        if answer is not None:
            return answer[0] != 404
        reply = await self._requests.send("cache", "DELETE", _path(key), accept=(404,))
        return reply.status != 404


def _path(key: str) -> str:
    return f"/v1/cache/{segment(key)}"


def _value(data: bytes, content_type: str) -> Any:
    kind = content_type.partition(";")[0].strip()
    if kind == _JSON:
        return msgspec.json.decode(data)
    return data.decode() if kind == "text/plain" else data
