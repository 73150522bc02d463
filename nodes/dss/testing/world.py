"""The simulated world: one heap of (time, seq, action), a faulty net, no asyncio, no real clock.

Everything random comes from one seed, so the same seed gives the same trace hash. Nodes on top of
it (`raftsim.py`) are the real cores, the real engine and the real WAL over a simulated disk.

The fault model of the net: a message is lost, delayed, reordered (by unequal delays), doubled,
replayed long after, held up by a slow link, or cut off by a one-way, full or partial partition; a
link that is cut says so to both ends after a while, as TCP would.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any, Final

Action = Callable[[], None]

REPLAYABLE_MAX: Final = 500
"""Frames kept for a replay; later ones take the places of earlier ones."""


class World:
    """Time and its events. All times are simulated ms (floats, so that order is fine-grained)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._seq = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def rng(self, name: str) -> random.Random:
        """A stream of its own per purpose: one more draw here changes nothing there."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "big"))

    def after(self, delay_ms: float, action: Action) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_ms), self._seq, action))

    def run_until(self, end_ms: float) -> None:
        """Carry out every action due up to `end_ms`."""
        while self._heap and self._heap[0][0] <= end_ms:
            self.now, _, action = heapq.heappop(self._heap)
            self.steps += 1
            action()
        self.now = end_ms

    def trace(self, *what: object) -> None:
        """Fold an observation into the trace hash."""
        self._trace.update(repr((round(self.now, 6), what)).encode())

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest()


class Net:
    """Datagrams between named nodes, with faults.

    Args:
        deliver: called with (sender, receiver, payload) when a datagram arrives.
    """

    def __init__(
        self, world: World, deliver: Callable[[str, str, Any], None], *, faults: NetFaults
    ) -> None:
        self._world = world
        self._deliver = deliver
        self._rng = world.rng("net")
        self.faults = faults
        self._cut: dict[tuple[str, str], None] = {}
        self._slow: dict[tuple[str, str], float] = {}
        self._old: list[tuple[str, str, Any]] = []
        self.sent = self.lost = self.doubled = self.delivered = self.replayed = 0

    def send(self, sender: str, receiver: str, payload: Any) -> None:
        rng, faults = self._rng, self.faults
        self.sent += 1
        if rng.random() < faults.loss:
            self.lost += 1
            return
        copies = 1
        if rng.random() < faults.duplication:
            self.doubled += 1
            copies = 2
        for _ in range(copies):
            delay = faults.delay_ms_min + rng.expovariate(1.0) * faults.delay_ms_mean
            if rng.random() < faults.clog:
                delay += rng.uniform(0.0, faults.clog_ms)
            if self._slow:
                delay += self._slow.get((sender, receiver), 0.0)
            self._world.after(delay, lambda: self._arrive(sender, receiver, payload))
        if faults.replay:
            self._replay(sender, receiver, payload)

    def _replay(self, sender: str, receiver: str, payload: Any) -> None:
        """Now and then, a frame from long ago arrives once more."""
        rng, old = self._rng, self._old
        if old and rng.random() < self.faults.replay:
            self.replayed += 1
            frame = rng.choice(old)
            self._world.after(rng.uniform(0.0, 1_000.0), lambda: self._arrive(*frame))
        if len(old) < REPLAYABLE_MAX:
            old.append((sender, receiver, payload))
        elif rng.random() < 0.05:
            old[rng.randrange(REPLAYABLE_MAX)] = (sender, receiver, payload)

    def _arrive(self, sender: str, receiver: str, payload: Any) -> None:
        # Looked at on arrival: what was under way when the cut came is lost too.
        if (sender, receiver) in self._cut:
            self.lost += 1
            return
        self.delivered += 1
        self._deliver(sender, receiver, payload)

    def cut(self, sender: str, receiver: str) -> None:
        """One way only; call twice for both."""
        self._cut[(sender, receiver)] = None

    def slow(self, sender: str, receiver: str, by_ms: float) -> None:
        """One way only: what is sent from now on arrives later."""
        self._slow[(sender, receiver)] = by_ms

    def heal(self) -> None:
        self._cut.clear()
        self._slow.clear()

    def is_cut(self, one: str, other: str) -> bool:
        return (one, other) in self._cut or (other, one) in self._cut


class NetFaults:
    """Probabilities per datagram, delays in ms. All zero but a small delay: a good network."""

    def __init__(
        self,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        clog: float = 0.0,
        clog_ms: float = 0.0,
        delay_ms_min: float = 0.05,
        delay_ms_mean: float = 0.2,
        replay: float = 0.0,
    ) -> None:
        self.loss = loss
        self.duplication = duplication
        self.clog = clog
        self.clog_ms = clog_ms
        self.delay_ms_min = delay_ms_min
        self.delay_ms_mean = delay_ms_mean
        self.replay = replay

    @classmethod
    def drawn(cls, rng: random.Random) -> NetFaults:
        """A seed's own mixture: each fault is off in about half of all seeds."""

        def maybe(value: float) -> float:
            return value if rng.random() < 0.5 else 0.0

        return cls(
            loss=maybe(rng.uniform(0.0, 0.2)),
            duplication=maybe(rng.uniform(0.0, 0.2)),
            clog=maybe(rng.uniform(0.0, 0.05)),
            clog_ms=rng.uniform(50.0, 2_000.0),
            delay_ms_min=rng.uniform(0.05, 2.0),
            delay_ms_mean=rng.choice([0.2, 2.0, 10.0, 40.0]),
            replay=maybe(rng.uniform(0.0, 0.05)),
        )
