"""The transport as services see it: a protocol, so that tests and simulators can stand in.

The implementation over TCP is `links.py`.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.transport.wire import Message


class Peer(msgspec.Struct, frozen=True):
    """The other end of an established, authenticated link."""

    node_id: str
    incarnation: str
    boot_id: str
    feature_level: int = BASE_LEVEL
    """What it supports."""


CallHandler = Callable[[Peer, bytes, Callable[[int, bytes], None]], None]
"""handler(peer, body, reply): call `reply(200, body)` once, now or later; or
`reply(status, msgpack({"code", "message", …}))` for an error. Raising DssError replies with it."""


class Transport(Protocol):
    """Links to all nodes of the cluster. All methods are for the loop's thread."""

    def send(self, node_id: str, message: Message) -> None:
        """Queue for `node_id`, flushed at the end of this loop iteration or by `flush`.

        Dropped when the link is down (Raft repeats; calls fail through their future).
        """

    def flush(self) -> None:
        """Write everything queued now: the engine calls this before its fsync."""

    def call(self, node_id: str, method: str, body: bytes, timeout_ms: int) -> Future[bytes]:
        """Ask `node_id`. The future fails with:

        * Unavailable("… link is down"): not sent, nothing happened there;
        * Indeterminate: the link broke or the time ran out after it was sent;
        * the DssError that the handler replied with (same code, status, message, extra).
        """
        ...

    def cast(self, node_id: str, method: str, body: bytes) -> None: ...

    def on_call(self, method: str, handler: CallHandler) -> None: ...

    def on_cast(self, method: str, handler: Callable[[Peer, bytes], None]) -> None: ...

    def on_link(self, listener: Callable[[str, bool, str], None]) -> None:
        """listener(node_id, up, reason) on every change."""

    def peer(self, node_id: str) -> Peer | None:
        """The established link's peer, or None when there is no link."""

    def links(self) -> dict[str, dict[str, Any]]:
        """Per known node: `{"up": bool, "since_ms": int, "reason": str}` for status pages."""
        ...
