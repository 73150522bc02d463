"""Peer links over TCP: one per pair of nodes, all groups and calls on it.

The node with the greater id dials. A frame is `u32 length | msgpack array of messages`; all that
was sent in one loop iteration leaves as one frame. What must not live here: what messages mean.

Half-open connections are found by TCP keepalive and TCP_USER_TIMEOUT (the kernel's work, no
application pings); a stopped but reachable peer is Raft's and the callers' time-outs' matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from typing import cast as typed

import msgspec

from dss.base import limits
from dss.base.errors import DssError, Indeterminate, RemoteError, Unavailable
from dss.base.levels import BASE_LEVEL
from dss.core.raft.messages import RaftMessage
from dss.observe.logs import unexpected
from dss.topology.nodes import NodeSpec
from dss.transport.handshake import (
    HANDSHAKE_BYTES_MAX,
    Acceptor,
    Dialer,
    HandshakeRefused,
    Identity,
    reject,
)
from dss.transport.ports import CallHandler, Peer
from dss.transport.wire import Call, Cast, Message, Return

log = logging.getLogger("dss.transport")

RESOLVE_TIMEOUT_S: Final = 10.0
"""For a peer's name: two tries of the usual resolver, of which the first server may be dead."""
DIAL_TIMEOUT_S: Final = 1.0
"""For a connection: a dead pod's address may not answer at all, and its name has a new one soon."""
HANDSHAKE_TIMEOUT_S: Final = 3.0
REDIAL_MIN_S: Final = 0.05
REDIAL_MAX_S: Final = 0.4
"""With its jitter below an election timeout: a node that has come back is reached before the
requests that it holds meanwhile are refused."""
REFUSALS_REMEMBERED_MAX: Final = 64
"""Refused handshakes that are logged once only: peers dial again and again."""
RaftListener = Callable[[Peer, list[RaftMessage]], None]

_encoder = msgspec.msgpack.Encoder()
_frames: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])


def encode_frames(messages: list[Message]) -> bytes:
    """Length-prefixed frames of at most FRAME_BYTES_MAX each; usually one.

    A single message beyond the limit is dropped with an error line: no sender may make one.
    """
    body = _encoder.encode(messages)
    if len(body) <= limits.FRAME_BYTES_MAX:
        return len(body).to_bytes(4, "big") + body
    if len(messages) == 1:
        log.error("a %s of %d bytes is beyond the frame limit", type(messages[0]), len(body))
        return b""
    half = len(messages) // 2
    return encode_frames(messages[:half]) + encode_frames(messages[half:])


class _Link(asyncio.Protocol):
    """One TCP connection: handshake first, then frames."""

    def __init__(self, links: Links, dial_to: str | None) -> None:
        self.links = links
        self.dialer = Dialer(links.identity, dial_to) if dial_to else None
        self.acceptor = None if dial_to else Acceptor(links.identity, links.known)
        self.peer: Peer | None = None
        self.transport: asyncio.Transport | None = None
        self.outbox: list[Message] = []
        self.buffer = bytearray()
        self.greeted = False
        self.frames = 0
        self.established: asyncio.Future[None] = links.loop.create_future()
        self.closed: asyncio.Future[None] = links.loop.create_future()
        self.reason = "connection closed"
        self.deadline: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = stream = typed(asyncio.Transport, transport)  # uvloop's is no subclass
        _tune(transport.get_extra_info("socket"))
        stream.set_write_buffer_limits(high=limits.PEER_OUTBOX_BYTES_MAX)
        self.links.connections[self] = None
        self.deadline = self.links.loop.call_later(
            HANDSHAKE_TIMEOUT_S, self.close, "handshake timed out"
        )
        if self.dialer:
            self._write_one(self.dialer.hello())

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = _in_words(exc)
        if self.deadline:
            self.deadline.cancel()
        self.links.connections.pop(self, None)
        if not self.established.done():
            self.established.set_exception(ConnectionError(self.reason))
            self.established.exception()  # the dialer may have given up: not "never retrieved"
        if not self.closed.done():
            self.closed.set_result(None)
        self.links.link_lost(self)

    def data_received(self, data: bytes) -> None:
        # The common case is one or a few whole frames in one read: no copy then.
        if self.buffer:
            self.buffer += data
            data = bytes(self.buffer)
            self.buffer.clear()
        view = memoryview(data)
        position, end = 0, len(data)
        while end - position >= 4 and self.transport is not None:
            size = int.from_bytes(view[position : position + 4], "big")
            bound = limits.FRAME_BYTES_MAX if self.peer else HANDSHAKE_BYTES_MAX
            if size > bound:
                self.close(f"frame of {size} bytes is beyond the limit of {bound}")
                return
            if end - position - 4 < size:
                break
            body = view[position + 4 : position + 4 + size]
            position += 4 + size
            if self.peer is not None:
                self._frame(body)
            else:
                self._handshake(bytes(body))
        if position < end and self.transport is not None:
            self.buffer += view[position:]

    # --- sending ---

    def flush(self) -> None:
        messages = self.outbox
        if not messages:
            return
        self.outbox = []
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > limits.PEER_OUTBOX_BYTES_MAX:
            self.links.dropped += len(messages)
            if any(isinstance(message, Call | Return | Cast) for message in messages):
                # Raft repeats itself, nobody repeats these: whoever waits must hear of it.
                self.close(f"it does not read: {limits.PEER_OUTBOX_BYTES_MAX} bytes are unsent")
            return
        transport.write(encode_frames(messages))

    def close(self, reason: str) -> None:
        self.reason = reason
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _write_one(self, body: bytes) -> None:
        assert self.transport is not None
        self.transport.write(len(body).to_bytes(4, "big") + body)

    # --- receiving ---

    def _handshake(self, body: bytes) -> None:
        try:
            if self.dialer:
                welcome, proof = self.dialer.welcomed(body)
                self._write_one(proof)
                peer = Peer(
                    welcome.node_id, welcome.incarnation, welcome.boot_id, welcome.feature_level
                )
            else:
                assert self.acceptor is not None
                if not self.greeted:
                    self._write_one(self.acceptor.greeted(body))
                    self.greeted = True
                    return
                hello = self.acceptor.proved(body)
                peer = Peer(
                    hello.node_id,
                    hello.incarnation,
                    hello.boot_id,
                    max(hello.feature_level, BASE_LEVEL),
                )
        except HandshakeRefused as error:
            if self.acceptor is not None:
                self._write_one(reject(str(error)))
            self.links.refused(str(error), dialed=self.dialer is not None)
            self.reason = str(error)
            if self.transport is not None:
                self.transport.close()
                self.transport = None
            return
        self.peer = peer
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        if not self.established.done():
            self.established.set_result(None)
        self.links.link_made(self)

    def _frame(self, body: memoryview) -> None:
        try:
            messages = _frames.decode(body)
        except msgspec.MsgspecError as error:
            self.close(f"undecodable frame: {error}")
            return
        self.links.received(self, messages)


def _in_words(error: BaseException) -> str:
    """For people: `connection refused`, not `[Errno 111] Connection refused`."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def _tune(sock: socket.socket | None) -> None:
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 5_000),
    ):
        option = getattr(socket, name, None)
        if option is not None:  # Linux has them all; elsewhere the defaults must do
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


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
        self.connections: dict[_Link, None] = {}
        self._me = me
        self._bind_host = bind_host
        self._peers = {peer.id: peer for peer in peers if peer.id != me.id}
        self.known = frozenset(self._peers)
        self._up: dict[str, _Link] = {}
        self._state: dict[str, tuple[bool, float, str]] = {
            node_id: (False, time.monotonic(), "not connected yet") for node_id in self._peers
        }
        self._dirty: dict[_Link, None] = {}
        self._flush_due = False
        self._raft: RaftListener | None = None
        self._on_link: list[Callable[[str, bool, str], None]] = []
        self._call_handlers: dict[str, CallHandler] = {}
        self._cast_handlers: dict[str, Callable[[Peer, bytes], None]] = {}
        self._calls: dict[int, tuple[asyncio.Future[bytes], str, asyncio.TimerHandle, str]] = {}
        self._next_call = 1
        self._server: asyncio.Server | None = None
        self._dialers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._refusals: dict[str, None] = {}

    # --- life cycle ---

    async def start(self) -> None:
        """Listen, and dial every peer with a smaller id until it answers, for ever."""
        self._server = await self.loop.create_server(
            lambda: _Link(self, None), self._bind_host, self._me.peer_port
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
        for future, node_id, timer, _ in list(self._calls.values()):
            timer.cancel()
            if not future.done():
                future.set_exception(Indeterminate(f"this node stops; asked {node_id}"))
                future.exception()
        self._calls.clear()

    async def _keep_dialing(self, node_id: str) -> None:
        peer = self._peers[node_id]
        delay_s = REDIAL_MIN_S
        while not self._stopping:
            link: _Link | None = None
            try:
                link = await self._dial(peer)
                await link.established
                delay_s = REDIAL_MIN_S
                await link.closed
            except (OSError, ValueError) as error:  # ValueError: a name that is no host name
                reason = link.reason if link else _in_words(error)
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

    async def _dial(self, peer: NodeSpec) -> _Link:
        """A connection to the first address that takes it.

        The name is resolved anew at every dial: a restarted pod has a new address. Separately,
        because uvloop's create_connection leaves its look-up behind when it is given up.

        Raises:
            OSError, ValueError: none; says why.
        """
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self.loop.getaddrinfo(
                    peer.host, peer.peer_port, type=socket.SOCK_STREAM
                )
        except TimeoutError:
            raise OSError("name look-up timed out") from None
        failure = OSError("the name has no address")
        for *_, address in found:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    _, link = await self.loop.create_connection(
                        lambda: _Link(self, peer.id), str(address[0]), peer.peer_port
                    )
                return link
            except TimeoutError:
                failure = OSError("dial timed out")
            except OSError as error:
                failure = error
        raise failure

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
        future: asyncio.Future[bytes] = self.loop.create_future()
        if node_id not in self._up:
            future.set_exception(
                Unavailable(f"{node_id} cannot be reached: {self._reason(node_id)}")
            )
            return future
        if len(self._calls) >= limits.PEER_CALLS_MAX:
            future.set_exception(Unavailable("too many unanswered calls", retry_after_ms=100))
            return future
        call_id = self._next_call
        self._next_call += 1
        timer = self.loop.call_later(timeout_ms / 1000, self._call_timed_out, call_id)
        self._calls[call_id] = (future, node_id, timer, method)
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

    def link_made(self, link: _Link) -> None:
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

    def link_lost(self, link: _Link) -> None:
        self._dirty.pop(link, None)
        peer = link.peer
        if peer is not None and self._up.get(peer.node_id) is link:
            del self._up[peer.node_id]
            self._down(peer.node_id, link.reason)

    def _down(self, node_id: str, reason: str) -> None:
        self._note(node_id, False, reason)
        lost = [call_id for call_id, call in self._calls.items() if call[1] == node_id]
        for call_id in lost:
            future, _, timer, method = self._calls.pop(call_id)
            timer.cancel()
            if not future.done():
                future.set_exception(
                    Indeterminate(f"the link to {node_id} broke during {method}: {reason}")
                )
                future.exception()
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

    def received(self, link: _Link, messages: list[Message]) -> None:
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
                self._returned(peer, message)
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
        except (DssError, msgspec.MsgspecError) as error:
            log.warning("cast %s from %s: %s", message.method, peer.node_id, error)
        except Exception as error:  # one bad message must not break the link for all groups
            unexpected(log, f"cast {message.method} from {peer.node_id}", error)

    def _called(self, link: _Link, peer: Peer, call: Call) -> None:
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
            reply(error.status, _encoder.encode(error.body()))
        except msgspec.MsgspecError as error:
            body = {"code": "invalid", "message": f"{call.method}: {error}"}
            reply(422, _encoder.encode(body))
        except Exception as error:
            unexpected(log, f"call {call.method} from {node_id}", error)
            reply(500, _encoder.encode({"code": "internal", "message": "see the node's log"}))

    def _returned(self, peer: Peer, message: Return) -> None:
        call = self._calls.get(message.call_id)
        if call is None or call[1] != peer.node_id:
            return
        future, _, timer, _ = self._calls.pop(message.call_id)
        timer.cancel()
        if future.done():
            return
        if message.status == 200:
            future.set_result(message.body)
            return
        with contextlib.suppress(msgspec.MsgspecError):
            body = msgspec.msgpack.decode(message.body, type=dict[str, Any])
            future.set_exception(RemoteError(message.status, body))
            return
        future.set_exception(Indeterminate(f"{peer.node_id} sent an unreadable answer"))

    def _call_timed_out(self, call_id: int) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None and not call[0].done():
            call[0].set_exception(Indeterminate(f"{call[1]} did not answer {call[3]} in time"))
