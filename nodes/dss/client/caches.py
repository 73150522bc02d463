"""`client.cache`: get, put, delete. What must not live here: retries, coherence."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.client.requests import Reply, Requests, segment

_BYTES: Final = "application/octet-stream"
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"


class Cache:
    """The cluster's cache. A value comes back as it was put: bytes, str, or a JSON value."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def get(self, key: str, default: Any = None) -> Any:
        """The last committed value of `key`, or `default` when there is none."""
        reply = await self._requests.send("cache", "GET", _path(key), accept=(404,))
        return default if reply.status == 404 else _value(reply)

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
        query = "" if ttl is None else f"?ttl_ms={round(ttl * 1_000)}"
        reply = await self._requests.send(
            "cache", "PUT", _path(key) + query, data=data, headers={"Content-Type": kind}
        )
        return reply.headers.get("ETag", "")

    async def delete(self, key: str) -> bool:
        """Remove `key`; False when there was none."""
        reply = await self._requests.send("cache", "DELETE", _path(key), accept=(404,))
        return reply.status != 404


def _path(key: str) -> str:
    return f"/v1/cache/{segment(key)}"


def _value(reply: Reply) -> Any:
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip()
    if kind == _JSON:
        return reply.json()
    return reply.body.decode() if kind == "text/plain" else reply.body
