"""Whether the nodes that owe this one an answer hear it at all: a link may carry one way only.

TCP finds a dead network within seconds, but not a balancer or firewall between two nodes that
swallows one direction; and Raft minds only silence from the leader, not towards it. So a node that
owes something is asked for an echo. It does not hear this node when it is itself heard all the
while but brings no echo back: a node that is silent altogether is Raft's matter (an election), and
one that is only slow to take what is sent TCP's.

What must not live here: what becomes of the requests (forwarding.py), breaking links (transport).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from dss.base.errors import Indeterminate, Unavailable
from dss.transport.links import Links
from dss.transport.ports import Peer

log = logging.getLogger("dss.transport")

METHOD: Final = "link.echo"
"""A node that does not know it answers so, which is an echo as well."""
LOOKS: Final = 6
"""So often, evenly over the time that is allowed, a peer must have been heard without an echo: one
long pause, of that node or of this one, is one look."""
ECHO_MS_MAX: Final = 10_000
"""An echo is asked for anew after this time."""


class _Watch(msgspec.Struct):
    """One peer that owes something."""

    asked: asyncio.Future[bytes] | None = None
    frames: int = 0
    """What had come from it when it was last looked at."""
    looks: int = 0
    """How often it was heard since it was asked."""


class Echoes:
    """See the module.

    Args:
        allowed_ms: how long a peer may be heard without an echo.
        owes: whether a peer still owes something.
        changed: changed(node_id, hears) when a peer is found not to hear this node, or to again.
    """

    def __init__(
        self,
        links: Links,
        loop: asyncio.AbstractEventLoop,
        *,
        allowed_ms: int,
        owes: Callable[[str], bool],
        changed: Callable[[str, bool], None],
    ) -> None:
        self._links = links
        self._loop = loop
        self._allowed_ms = allowed_ms
        self._owes = owes
        self._changed = changed
        self._watched: dict[str, _Watch] = {}
        self._deaf: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        links.on_call(METHOD, _echo)

    def hears(self, node_id: str) -> bool:
        """Whether nothing says that `node_id` does not hear this node."""
        return node_id not in self._deaf

    def watch(self, node_id: str) -> None:
        """`node_id` owes something from now on."""
        if node_id in self._watched:
            return
        self._watched[node_id] = _Watch()
        if node_id in self._deaf:
            self._ask(node_id)  # the first word that it hears again
        if self._timer is None:
            self._arm()

    def link_changed(self, node_id: str) -> None:
        """A new link carries both ways, as its handshake has shown; a broken one is known."""
        self._watched.pop(node_id, None)
        self._deaf.pop(node_id, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._allowed_ms / LOOKS / 1000, self._look)

    def _look(self) -> None:
        self._timer = None
        for node_id, watch in list(self._watched.items()):
            if watch.asked is None:
                if self._owes(node_id):
                    self._ask(node_id)
                else:
                    del self._watched[node_id]
                continue
            frames = self._links.frames_from(node_id)
            if frames != watch.frames and not self._links.unsent_bytes(node_id):
                watch.looks += 1
            watch.frames = frames
            if watch.looks >= LOOKS and node_id not in self._deaf:
                self._deaf[node_id] = None
                log.warning(
                    "%s is heard, but has not heard this node for %d ms: the link carries one "
                    "way only",
                    node_id,
                    self._allowed_ms,
                )
                self._changed(node_id, False)
        if self._watched and self._timer is None:
            self._arm()

    def _ask(self, node_id: str) -> None:
        watch = self._watched[node_id]
        watch.looks = 0
        watch.frames = self._links.frames_from(node_id)
        watch.asked = asked = self._links.call(node_id, METHOD, b"", ECHO_MS_MAX)
        asked.add_done_callback(lambda _: self._answered(node_id, asked))

    def _answered(self, node_id: str, asked: asyncio.Future[bytes]) -> None:
        error = asked.exception()
        watch = self._watched.get(node_id)
        if watch is None or watch.asked is not asked:
            return  # of a link that is gone
        watch.asked = None
        if isinstance(error, Indeterminate | Unavailable):
            return  # no echo came; whoever still owes something is asked again
        if node_id in self._deaf:
            del self._deaf[node_id]
            log.info("%s hears this node again", node_id)
            self._changed(node_id, True)


def _echo(peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
    reply(200, b"")
