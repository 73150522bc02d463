"""Requests of one role over its stream; where no stream can be had, the caller uses HTTP.

Repeated is what `requests.py` repeats: what cannot have happened, and reads. What must not live
here: what ops mean, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import aiohttp

from dss.base.errors import Indeterminate, Unavailable
from dss.client.errors import REPEATABLE, error_of
from dss.client.nodes import Nodes
from dss.client.requests import PAUSE_S, PAUSE_S_MAX, RETRY_S
from dss.client.stream import Answer, LockStream

HTTP_S: Final = 5.0
"""After a stream could not be had, HTTP is used for so long before the next try."""


class Calls:
    """The stream of `role`, connected on first use.

    Args:
        http: its headers carry the token.
        path: of the stream.
    """

    def __init__(self, http: aiohttp.ClientSession, nodes: Nodes, role: str, path: str) -> None:
        self._nodes = nodes
        self._role = role
        self._stream = LockStream(self._endpoints, http=http, path=path, role=role)
        self._http_until_s = 0.0

    async def _endpoints(self) -> list[str]:
        await self._nodes.refresh()
        return await self._nodes.of_role(self._role)

    async def ask(
        self,
        op: str,
        args: dict[str, Any],
        *,
        accept: tuple[int, ...] = (),
        read: bool = False,
        unwanted: Callable[[Any], None] | None = None,
    ) -> Answer | None:
        """(status, body) of one request; None: no stream can be had, nothing was sent.

        Args:
            accept: statuses from 400 on that are an answer to the caller, not an error.
            read: it may be carried out twice.
            unwanted: called with the body that comes after the caller has been cancelled.

        Raises:
            DssError: of the answer's class and code; Indeterminate when the connection broke.
        """
        until_s = monotonic() + RETRY_S
        pause_s = PAUSE_S
        while monotonic() >= self._http_until_s:
            try:
                status, body = await self._once(op, args, unwanted)
            except Unavailable:
                self._http_until_s = monotonic() + HTTP_S
                return None
            except Indeterminate:
                if not read or monotonic() > until_s:
                    raise
                continue
            if status < 400 or status in accept:
                return status, body
            error = error_of(status, body)
            after_s = (error.retry_after_ms or 0) / 1_000 or pause_s
            if not isinstance(error, REPEATABLE) or monotonic() + after_s > until_s:
                raise error
            await asyncio.sleep(after_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
        return None

    async def _once(
        self, op: str, args: dict[str, Any], unwanted: Callable[[Any], None] | None
    ) -> Answer:
        future = self._stream.request(op, args)
        if unwanted is None:
            return await future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:

            def came(late: asyncio.Future[Answer]) -> None:
                if not late.cancelled() and late.exception() is None and late.result()[0] < 400:
                    unwanted(late.result()[1])

            future.add_done_callback(came)
            raise

    def tell(self, op: str, args: dict[str, Any]) -> None:
        """Send a request whose answer does not matter, unless the client is closed."""
        if not self._stream.closed:
            self._stream.request(op, args).add_done_callback(_retrieved)

    async def close(self) -> None:
        await self._stream.close()


def _retrieved(future: asyncio.Future[Answer]) -> None:
    """Nobody waits for it: its exception is no news."""
    if not future.cancelled():
        future.exception()
