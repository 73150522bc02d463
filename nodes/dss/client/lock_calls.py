"""Requests to lock nodes: over the stream, over HTTP where no WebSocket gets through.

`settle` repeats a sequenced command with its own number until its one true answer is known. What
must not live here: what ops mean, sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from dss.base.errors import Indeterminate, Unavailable
from dss.client.calls import HTTP_S
from dss.client.errors import REPEATABLE, error_of
from dss.client.requests import Requests, segment
from dss.client.stream import LockStream

PAUSE_S: Final = 0.1
"""Between repeated requests when the node does not say how long."""

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

    @property
    def connection(self) -> object | None:
        """The stream's; None: there is none now."""
        return self._stream.mark()[1]

    async def ask(self, op: str, args: dict[str, Any], *, via: str = "") -> Any:
        """One request's body; statuses from 400 on raise their error.

        Args:
            via: `stream` or `http`: this way only.
        """
        by_http = via == "http" or (not via and clock_s() < self._http_until_s)
        if by_http and self._requests is not None:
            return await self._over_http(self._requests, op, args)
        try:
            status, body = await self._stream.request(op, args)
        except Unavailable:
            if via or not self._stream.no_websockets or self._requests is None:
                raise
            self._http_until_s = clock_s() + HTTP_S
            return await self._over_http(self._requests, op, args)
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
        via = ""
        while True:
            try:
                return await self.ask(op, args, via=via)
            except Indeterminate as error:
                unknown = error
                # Answers are remembered by sequence number there and by key here: not by both.
                via = via or ("http" if self._stream.no_websockets else "stream")
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S / 10
            except REPEATABLE as error:
                pause_s = (error.retry_after_ms or 0) / 1_000 or PAUSE_S
                if unknown is None and clock_s() + pause_s > until_s(False):
                    raise
            if unknown is not None and clock_s() + pause_s > until_s(True):
                raise unknown
            await asyncio.sleep(pause_s)

    async def _over_http(self, requests: Requests, op: str, args: dict[str, Any]) -> Any:
        if op in _GET:
            path = _GET[op].format(name=segment(args["name"]))
            return (await requests.send("lock", "GET", path)).json()
        body = dict(args)
        seq = body.pop("seq", 0)
        body.pop("ack", None)
        headers = {"Idempotency-Key": f"{args['session']}-{seq}"} if seq else {}
        method, template = _WRITES[op]
        inside = {key: body.pop(key) for key in ("name", "session") if f"{{{key}}}" in template}
        path = template.format(**{key: segment(value) for key, value in inside.items()})
        reply = await requests.send(
            "lock", method, path,
            json=body if method == "POST" else None,
            headers=headers, wait_ms=body.get("wait_ms", 0),
        )  # fmt: skip
        return reply.json()
