"""A TCP proxy between the peer ports of nodes: every directed pair of nodes can be cut.

Run as a process of its own (`python fault_proxy.py`), so that the load's threads do not slow it
down; `FaultProxy` starts it and speaks to it in JSON lines. What happens to bytes from one node to
another, on connections that either of them opened:

    pass   they arrive, `delay_ms` later if one is set
    hold   they arrive after the heal, in order, as if TCP had repeated them
    drop   they vanish; what lost bytes is reset at the heal, since TCP would have given it up

A cut direction lets no end of a connection through either: the other side does not learn of it
before the heal. `reset` breaks what there is between two nodes, with RST, now; `refuse` does so to
new connections as well.

What must not live here: which nodes there are, what they say to each other.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

PASS, HOLD, DROP = "pass", "hold", "drop"
HELD_BYTES_MAX = 4 << 20
"""Of one direction of one connection; then its sender's socket fills, as TCP's would."""


class Rule:
    """What happens to bytes from one node to another."""

    def __init__(self) -> None:
        self.what = PASS
        self.delay_ms = 0


class Proxy:
    """All listeners and connections, in the proxy's process."""

    def __init__(self) -> None:
        self.rules: dict[tuple[str, str], Rule] = {}
        self.refused: set[frozenset[str]] = set()
        self.pipes: set[_Pipe] = set()

    def rule(self, source: str, target: str) -> Rule:
        return self.rules.setdefault((source, target), Rule())

    async def listen(self, dialer: str, target: str, port: int) -> int:
        """A listener where `dialer` finds `target`, whose own port is `port`."""
        loop = asyncio.get_running_loop()

        def accepted() -> asyncio.Protocol:
            near, far = _Pipe(self, dialer, target), _Pipe(self, target, dialer)
            near.other, far.other = far, near
            task = loop.create_task(_connect(far, port))
            near.keep = far.keep = task
            return near

        server = await loop.create_server(accepted, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    def change(self, source: str, target: str, what: str, delay_ms: int) -> None:
        rule = self.rule(source, target)
        was, rule.what, rule.delay_ms = rule.what, what, delay_ms
        if was != what:
            for pipe in list(self.pipes):
                if (pipe.source, pipe.target) == (source, target):
                    pipe.changed()

    def reset(self, one: str, other: str, refuse: bool) -> None:
        pair = frozenset((one, other))
        (self.refused.add if refuse else self.refused.discard)(pair)
        for pipe in list(self.pipes):
            if frozenset((pipe.source, pipe.target)) == pair:
                pipe.abort()


async def _connect(far: _Pipe, port: int) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: far, "127.0.0.1", port)
    except OSError:
        far.ended = True
        far.end_other()


class _Pipe(asyncio.Protocol):
    """One end of a connection: reads what `source` sends, for `other` to write to `target`."""

    def __init__(self, proxy: Proxy, source: str, target: str) -> None:
        self.proxy = proxy
        self.source, self.target = source, target
        self.rule = proxy.rule(source, target)
        self.other: _Pipe
        self.keep: asyncio.Task[None]
        self.transport: asyncio.Transport | None = None
        self.waiting: list[bytes] = []
        """Read and not yet passed on: held, or the other end is not connected yet."""
        self.lost = False
        self.ended = False
        self.due = 0.0
        """When the last of the delayed bytes leaves: nothing may overtake it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.proxy.pipes.add(self)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if frozenset((self.source, self.target)) in self.proxy.refused or self.other.ended:
            self.abort()
            return
        self.other.changed()

    def data_received(self, data: bytes) -> None:
        if self.rule.what == DROP:
            self.lost = True
        elif self.rule.what == HOLD or self.waiting or self.other.transport is None:
            self.waiting.append(data)
            if sum(map(len, self.waiting)) > HELD_BYTES_MAX and self.transport is not None:
                self.transport.pause_reading()
        else:
            loop = asyncio.get_running_loop()
            now = loop.time()
            if self.rule.delay_ms or now < self.due:
                self.due = max(now + self.rule.delay_ms / 1_000, self.due + 1e-6)
                loop.call_at(self.due, self._late, data)
            else:
                self.other.transport.write(data)

    def _late(self, data: bytes) -> None:
        if self.rule.what == DROP:
            self.lost = True
        elif self.rule.what == HOLD:
            self.waiting.append(data)
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def changed(self) -> None:
        """The rule is another one, or the other end is connected now."""
        if self.rule.what == DROP:
            self.lost = self.lost or bool(self.waiting)
            self.waiting.clear()
        if self.rule.what != PASS:
            return
        if self.lost:
            self.abort()
            return
        if self.other.transport is not None:
            for data in self.waiting:
                self.other.transport.write(data)
            self.waiting.clear()
            if self.transport is not None:
                self.transport.resume_reading()
        if self.ended:
            self.end_other()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.transport = None
        self.proxy.pipes.discard(self)
        if self.rule.what == PASS:
            self.end_other()
        else:
            self.proxy.pipes.add(self)  # the heal tells the other end

    def end_other(self) -> None:
        self.proxy.pipes.discard(self)
        if self.other.transport is not None:
            self.other.transport.close()

    def abort(self) -> None:
        """RST to both ends, whatever the rules say."""
        for pipe in (self, self.other):
            self.proxy.pipes.discard(pipe)
            transport, pipe.transport = pipe.transport, None
            if transport is not None:
                sock = transport.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()


async def serve() -> None:
    """Obey the lines on standard input until it ends."""
    proxy = Proxy()
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        answer: Any = None
        if order["do"] == "listen":
            answer = [await proxy.listen(*pair) for pair in order["pairs"]]
        elif order["do"] == "change":
            for source, target in order["pairs"]:
                proxy.change(source, target, order["what"], order["delay_ms"])
        else:
            for one, other in order["pairs"]:
                proxy.reset(one, other, order["refuse"])
        print(json.dumps(answer), flush=True)


class FaultProxy:
    """The proxy's process, as tests use it. Pairs are (from, to); `stop()` ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def _order(self, **order: Any) -> Any:
        with self._lock:
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the fault proxy has ended"
            return json.loads(line)

    def listen(self, pairs: Iterable[tuple[str, str, int]]) -> list[int]:
        """For each (dialer, target, the target's port): the port where the dialer finds it."""
        return list(self._order(do="listen", pairs=list(pairs)))

    def change(self, pairs: Iterable[tuple[str, str]], what: str, delay_ms: int = 0) -> None:
        self._order(do="change", pairs=list(pairs), what=what, delay_ms=delay_ms)

    def reset(self, pairs: Iterable[tuple[str, str]], *, refuse: bool) -> None:
        self._order(do="reset", pairs=list(pairs), refuse=refuse)

    def stop(self) -> None:
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
