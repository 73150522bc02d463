"""Peer links over TCP: one per pair of nodes, all groups and calls on it.

The node with the greater id dials. A stopped but reachable peer is Raft's and the callers'
time-outs' matter. What must not live here: one connection (link.py), what messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Unavailable
from dss.core.machine import UNREADABLE
from dss.core.raft.messages import RaftMessage
from dss.observe.logs import unexpected
from dss.topology.nodes import NodeSpec
from dss.transport.calls import Calls
from dss.transport.dialing import dial
from dss.transport.handshake import Identity
from dss.transport.link import Link, in_words
from dss.transport.ports import CallHandler, Peer
from dss.transport.wire import Call, Cast, Message, Return

log = logging.getLogger("dss.transport")

REDIAL_MIN_S: Final = 0.05
REDIAL_MAX_S: Final = 0.4
"""With its jitter below an election timeout: a node that has come back is reached before the
requests that it holds meanwhile are refused."""
REFUSALS_REMEMBERED_MAX: Final = 64
"""Refused handshakes that are logged once only: peers dial again and again."""
RaftListener = Callable[[Peer, list[RaftMessage]], None]

_encode = msgspec.msgpack.Encoder().encode


class Links:
    """The transport of one node (implements transport.ports.Transport).

    Args:
        identity: who this node is; `identity.secret` never leaves the process.
        me: where to listen (`peer_port`) .
        bind_host: address to listen on.
        peers: all other nodes of the cluster.
    """

    def __init__(
        self,
        identity: Identity,
        me: NodeSpec,
        bind_host: str,
        peers: Sequence[NodeSpec],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.identity = identity
        self.dropped = 0
        self.frames_received = 0
        self.connections: dict[Link, None] = {}
        self._me = me
        self._bind_host = bind_host
        self._peers = {peer.id: peer for peer in peers if peer.id != me.id}
        self.known = frozenset(self._peers)
        self._up: dict[str, Link] = {}
        self._state: dict[str, tuple[bool, float, str]] = {
            node_id: (False, time.monotonic(), "not connected yet") for node_id in self._peers
        }
        self._dirty: dict[Link, None] = {}
        self._flush_due = False
        self._raft: RaftListener | None = None
        self._on_link: list[Callable[[str, bool, str], None]] = []
        self._call_handlers: dict[str, CallHandler] = {}
        self._cast_handlers: dict[str, Callable[[Peer, bytes], None]] = {}
        self._calls = Calls(self.loop)
        self._server: asyncio.Server | None = None
        self._dialers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._refusals: dict[str, None] = {}

    # --- life cycle ---

    async def start(self) -> None:
        """Listen, and dial every peer with a smaller id until it answers, for ever."""
        self._server = await self.loop.create_server(
            lambda: Link(self, None), self._bind_host, self._me.peer_port
        )
        for node_id in sorted(self._peers):
            if node_id < self._me.id:
                self._dialers.append(self.loop.create_task(self._keep_dialing(node_id)))

    async def stop(self) -> None:
        self._stopping = True
        for task in self._dialers:
            task.cancel()
        await asyncio.gather(*self._dialers, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self.flush()
        for link in list(self.connections):
            if link.transport is not None:
                link.transport.close()  # lets what was flushed leave first
        self._calls.stop()

    async def _keep_dialing(self, node_id: str) -> None:
        peer = self._peers[node_id]
        delay_s = REDIAL_MIN_S
        while not self._stopping:
            link: Link | None = None
            try:
                link = await dial(peer, partial(Link, self, node_id))
                await link.established
                delay_s = REDIAL_MIN_S
                await link.closed
            except (OSError, ValueError) as error:  # ValueError: a name that is no host name
                reason = link.reason if link else in_words(error)
                self._note(node_id, False, reason)
            if link is not None and not link.closed.done():
                link.close("dial abandoned")
            # Jitter, so that nodes started together do not dial in step.
            await asyncio.sleep(delay_s * (0.5 + random.random()))  # noqa: S311
            delay_s = min(delay_s * 2, REDIAL_MAX_S)

    def use_secret(self, secret: bytes) -> bool:
        """Prove this secret in new handshakes; established links and the old secret stay good.

        Returns:
            Whether it is another one than before.
        """
        if secret == self.identity.secret:
            return False
        self.identity = self.identity.with_secret(secret)
        return True

    # --- the port ---

    def send(self, node_id: str, message: Message) -> None:
        link = self._up.get(node_id)
        if link is None:
            return
        if not link.outbox:
            self._dirty[link] = None
            if not self._flush_due:
                self._flush_due = True
                self.loop.call_soon(self.flush)
        link.outbox.append(message)

    def flush(self) -> None:
        self._flush_due = False
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for link in dirty:
                link.flush()

    def call(
        self, node_id: str, method: str, body: bytes, timeout_ms: int
    ) -> asyncio.Future[bytes]:
        if node_id not in self._up:
            return self._calls.refused(f"{node_id} cannot be reached: {self._reason(node_id)}")
        call_id, future = self._calls.open(node_id, method, timeout_ms)
        if call_id:
            self.send(node_id, Call(call_id, method, body))
        return future

    def cast(self, node_id: str, method: str, body: bytes) -> None:
        self.send(node_id, Cast(method, body))

    def on_call(self, method: str, handler: CallHandler) -> None:
        assert method not in self._call_handlers, method
        self._call_handlers[method] = handler

    def on_cast(self, method: str, handler: Callable[[Peer, bytes], None]) -> None:
        assert method not in self._cast_handlers, method
        self._cast_handlers[method] = handler

    def on_raft(self, listener: RaftListener) -> None:
        self._raft = listener

    def on_link(self, listener: Callable[[str, bool, str], None]) -> None:
        self._on_link.append(listener)

    def peer(self, node_id: str) -> Peer | None:
        link = self._up.get(node_id)
        return link.peer if link is not None else None

    def frames_from(self, node_id: str) -> int:
        """How many have come over the present link; 0 without one."""
        link = self._up.get(node_id)
        return link.frames if link is not None else 0

    def unsent_bytes(self, node_id: str) -> int:
        """What waits here for the kernel to take it."""
        link = self._up.get(node_id)
        if link is None or link.transport is None:
            return 0
        return link.transport.get_write_buffer_size()

    def links(self) -> dict[str, dict[str, Any]]:
        now = time.monotonic()
        return {
            node_id: {"up": up, "since_ms": int((now - since) * 1000), "reason": reason}
            for node_id, (up, since, reason) in sorted(self._state.items())
        }

    # --- from the links ---

    def link_made(self, link: Link) -> None:
        assert link.peer is not None
        node_id = link.peer.node_id
        old = self._up.pop(node_id, None)
        if old is not None:
            # The peer has a new connection, so it has given the old one up: it restarted.
            old.peer = None
            old.close("replaced by a newer connection")
            self._down(node_id, old.reason)
        self._up[node_id] = link
        self._note(node_id, True, "")
        for listener in self._on_link:
            listener(node_id, True, "")

    def link_lost(self, link: Link) -> None:
        self._dirty.pop(link, None)
        peer = link.peer
        if peer is not None and self._up.get(peer.node_id) is link:
            del self._up[peer.node_id]
            self._down(peer.node_id, link.reason)

    def _down(self, node_id: str, reason: str) -> None:
        self._note(node_id, False, reason)
        self._calls.lost(node_id, reason)
        if not self._stopping:
            for listener in self._on_link:
                listener(node_id, False, reason)

    def refused(self, reason: str, *, dialed: bool) -> None:
        """A handshake failed: a matter for a person, who must see it, but not every second."""
        text = f"{'a peer' if dialed else 'this node'} refused a peer connection: {reason}"
        if text not in self._refusals:
            if len(self._refusals) >= REFUSALS_REMEMBERED_MAX:
                self._refusals.clear()
            self._refusals[text] = None
            log.warning("%s", text)

    def _note(self, node_id: str, up: bool, reason: str) -> None:
        was_up, _, old_reason = self._state[node_id]
        if was_up != up or old_reason != reason:
            self._state[node_id] = (up, time.monotonic(), reason)
            if up:
                log.info("link to %s is up", node_id)
            elif was_up:
                log.info("link to %s is down: %s", node_id, reason)
            else:
                log.debug("no link to %s: %s", node_id, reason)

    def _reason(self, node_id: str) -> str:
        state = self._state.get(node_id)
        return (state[2] or "link is down") if state else "it is in no peer list"

    def received(self, link: Link, messages: list[Message]) -> None:
        """Dispatch one frame: Raft messages as one batch, the rest one by one."""
        peer = link.peer
        assert peer is not None
        self.frames_received += 1
        link.frames += 1
        raft: list[RaftMessage] = []
        for message in messages:
            if isinstance(message, Call):
                self._called(link, peer, message)
            elif isinstance(message, Return):
                self._calls.returned(peer.node_id, message)
            elif isinstance(message, Cast):
                cast_handler = self._cast_handlers.get(message.method)
                if cast_handler is not None:
                    self._guard(cast_handler, peer, message)
            else:
                raft.append(message)
        if raft and self._raft is not None:
            self._raft(peer, raft)

    def _guard(self, handler: Callable[[Peer, bytes], None], peer: Peer, message: Cast) -> None:
        try:
            handler(peer, message.body)
        except (DssError, *UNREADABLE) as error:
            log.warning("cast %s from %s: %s", message.method, peer.node_id, error)
        except Exception as error:  # one bad message must not break the link for all groups
            unexpected(log, f"cast {message.method} from {peer.node_id}", error)

    def _called(self, link: Link, peer: Peer, call: Call) -> None:
        call_id, node_id = call.call_id, peer.node_id

        def reply(status: int, body: bytes) -> None:
            # Over the link that asked, or not at all: a restarted peer uses the same ids again.
            if self._up.get(node_id) is link:
                self.send(node_id, Return(call_id, status, body))

        handler = self._call_handlers.get(call.method)
        try:
            if handler is None:
                raise Unavailable(f"{self._me.id} does not serve {call.method!r} (yet)")
            handler(peer, call.body, reply)
        except DssError as error:
            reply(error.status, _encode(error.body()))
        except UNREADABLE as error:
            body = {"code": "invalid", "message": f"{call.method}: {error}"}
            reply(422, _encode(body))
        except Exception as error:
            unexpected(log, f"call {call.method} from {node_id}", error)
            reply(500, _encode({"code": "internal", "message": "see the node's log"}))
