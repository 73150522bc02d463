"""Requests to lock nodes: over the stream, over HTTP where no WebSocket gets through.

`settle` repeats a sequenced command with its own number until its one true answer is known. A node
of an older release takes no numbers over HTTP, but keys: it remembers answers by the one or by the
other, so what may have happened is asked for by what it was sent with. What must not live here:
what ops mean, sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from dss.base.errors import DssError, Indeterminate, Invalid, Unavailable
from dss.client.calls import HTTP_S
from dss.client.errors import REPEATABLE, error_of
from dss.client.requests import Requests, segment
from dss.client.stream import LockStream

PAUSE_S: Final = 0.1
"""Between repeated requests when the node does not say how long."""

OLDER_S: Final = 60.0
"""After a node took no numbers over HTTP, keys are used for so long before the next try."""

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_GET: Final = {
    "get": "/v1/locks/{name}",
    "explain": "/v1/locks/{name}/explain",
    "history": "/v1/locks/{name}/history",
}
_WRITES: Final = {
    "session.create": ("POST", "/v1/sessions"),
    "session.keepalive": ("POST", "/v1/sessions/{session}/keepalive"),
    "session.end": ("DELETE", "/v1/sessions/{session}"),
    "acquire_many": ("POST", "/v1/locks:acquire"),
    **{
        op: ("POST", f"/v1/locks/{{name}}/{op}")
        for op in ("acquire", "release", "upgrade", "downgrade", "confirm", "cancel", "verify")
    },
}


class _Way(Enum):
    """How a request travels."""

    STREAM = 1
    HTTP = 2
    HTTP_BY_KEY = 3


class _OtherWay(Exception):
    """It cannot travel this way, and was not carried out."""


def clock_s() -> float:
    """Seconds that go on while the machine is suspended: leases elsewhere do, too.

    Example:
        async with client.lock("orders/42") as held:
            assert held.safe_until > clock_s()
    """
    return time.clock_gettime(_CLOCK)


class LockCalls:
    """The lock nodes' ops. `ask` sends once; `settle` finds the answer of a sequenced command."""

    def __init__(self, stream: LockStream, requests: Requests | None = None) -> None:
        self._stream = stream
        self._requests = requests
        self._http_until_s = 0.0
        self._keys_until_s = 0.0
        self._keyed: dict[str, set[int]] = {}
        """By session: commands sent by key whose outcome nobody could say."""

    @property
    def connection(self) -> object | None:
        """The stream's; None: there is none now."""
        return self._stream.mark()[1]

    def forget(self, session: str, seq: int) -> None:
        """This command has its answer, or nobody will ask for it."""
        if self._keyed and session in self._keyed:
            self._keyed[session].discard(seq)
            if not self._keyed[session]:
                del self._keyed[session]

    def forget_session(self, session: str) -> None:
        """It has ended."""
        self._keyed.pop(session, None)

    def _way(self, unknown: _Way | None = None) -> _Way:
        """How to send now.

        Args:
            unknown: how it was sent when nobody could say what came of it.
        """
        if unknown is _Way.HTTP_BY_KEY:
            return unknown
        if not self._http_until_s or clock_s() >= self._http_until_s:
            return _Way.STREAM
        if unknown is None and clock_s() < self._keys_until_s:
            return _Way.HTTP_BY_KEY
        return _Way.HTTP

    def _turn_to_http(self, way: _Way, error: DssError) -> bool:
        """Whether it was not sent because no stream can be had, and HTTP can."""
        if way is not _Way.STREAM or not isinstance(error, Unavailable):
            return False
        if not self._stream.no_websockets or self._requests is None:
            return False
        self._http_until_s = clock_s() + HTTP_S
        return True

    async def ask(self, op: str, args: dict[str, Any]) -> Any:
        """One request's body; statuses from 400 on raise their error."""
        while True:
            way = self._way()
            try:
                if way is not _Way.STREAM:
                    return await self._over_http(op, args, way)
                status, body = await self._stream.request(op, args)
            except _OtherWay:
                continue
            except Unavailable as error:
                if not self._turn_to_http(way, error):
                    raise
                continue
            if status >= 400:
                raise error_of(status, body)
            return body

    async def keep_alive(self, session: str, silent_s: float) -> None:
        """`session.keepalive`. A node that says nothing at all for so long is left for another."""
        loop = asyncio.get_running_loop()
        loop.call_later(silent_s, self._stream.drop_if_silent, self._stream.mark())
        await self.ask("session.keepalive", {"session": session})

    async def settle(self, op: str, args: dict[str, Any], until_s: Callable[[bool], float]) -> Any:
        """The answer of a command with `seq`: what may have happened is asked again.

        Args:
            until_s: until when to repeat, on `clock_s()`, given whether it may have happened.

        Raises:
            Indeterminate: sent, and no answer in time.
        """
        unknown: Indeterminate | None = None
        sent: _Way | None = None
        if self._keyed and args.get("seq") in self._keyed.get(args["session"], ()):
            sent = _Way.HTTP_BY_KEY
        while True:
            way = self._way(sent)
            try:
                if way is not _Way.STREAM:
                    return await self._over_http(op, args, way)
                status, body = await self._stream.request(op, args)
                if status < 400:
                    return body
                raise error_of(status, body)
            except _OtherWay:
                if unknown is None:
                    continue
                pause_s = PAUSE_S
            except Indeterminate as error:
                unknown, sent = error, way
                if way is _Way.HTTP_BY_KEY and "seq" in args:
                    self._keyed.setdefault(args["session"], set()).add(args["seq"])
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S / 10
            except REPEATABLE as error:
                if self._turn_to_http(way, error):
                    continue
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S
                if unknown is None and clock_s() + pause_s > until_s(False):
                    raise
            if unknown is not None and clock_s() + pause_s > until_s(True):
                raise unknown
            await asyncio.sleep(pause_s)

    async def _over_http(self, op: str, args: dict[str, Any], way: _Way) -> Any:
        requests = self._requests
        assert requests is not None, "HTTP is never chosen without"
        if op in _GET:
            path = _GET[op].format(name=segment(args["name"]))
            return (await requests.send("lock", "GET", path)).json()
        body = dict(args)
        headers = {}
        numbered = "seq" in body
        if numbered and way is _Way.HTTP_BY_KEY:
            headers["Idempotency-Key"] = f"{args['session']}-{body.pop('seq')}"
            del body["ack"]
        method, template = _WRITES[op]
        inside = {key: body.pop(key) for key in ("name", "session") if f"{{{key}}}" in template}
        path = template.format(**{key: segment(value) for key, value in inside.items()})
        try:
            reply = await requests.send(
                "lock", method, path,
                json=body if method == "POST" else None,
                headers=headers, wait_ms=body.get("wait_ms", 0),
            )  # fmt: skip
        except Invalid as error:
            if not numbered or way is _Way.HTTP_BY_KEY or error.extra.get("field") != "seq":
                raise
            self._keys_until_s = clock_s() + OLDER_S
            raise _OtherWay from error
        return reply.json()
