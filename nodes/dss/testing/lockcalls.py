"""What a simulated client of the locks asks and knows: calls and sessions.

What must not live here: what it does with them (lockclient.py, lockuses.py).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec

SAFE_PART: Final = 1 - 0.001
"""How much of a TTL a client may count on (architecture § Locks: clocks drift by 1,000 ppm)."""
UNANSWERED: Final = (504, {"code": "indeterminate"})

Answer = tuple[int, Any]


class Call(msgspec.Struct):
    """`command` may be a read. `sent` is when, by the client's clock, it last left; `node` is
    whom to ask, "": the client's contact; `key`: it goes with this Idempotency-Key."""

    command: Any
    timeout_ms: float = 1_000.0
    node: str = ""
    sent: float = 0.0
    key: str = ""

    @property
    def name_of(self) -> tuple[str, int | str] | None:
        """By what a repeat of it is known (lockonce.py)."""
        if self.key:
            return ("", self.key)
        seq = getattr(self.command, "seq", 0)
        return (self.command.session, seq) if seq else None


Part = Generator[float | Call, Answer, None]
"""A part of a client. Helpers that it delegates to return values of their own."""


class ClientSession:
    """What the client knows of one session.

    Attributes:
        safe_until: by the client's clock: until then nobody else can have what it holds.
        over: it ended it, or was told that it has ended, or gave it up.
    """

    def __init__(self, ident: str, ttl_ms: int, sent: float, rate: float) -> None:
        self.id = ident
        self.rate = rate
        self.ttl_ms = ttl_ms
        self.safe_until = sent + ttl_ms * SAFE_PART
        self.over = False
        self.lapses = False
        self.numbered = False
        self.ack = 0
        self._newest = 0
        self._answered: dict[int, None] = {}

    @property
    def safe_until_world(self) -> float:
        """The same in simulated time."""
        return self.safe_until / self.rate

    def number(self) -> int:
        """For its next numbered command."""
        self._newest += 1
        return self._newest

    def answered(self, number: int) -> None:
        """Its answer is in hand; `ack` follows when those before it have theirs."""
        self._answered[number] = None
        while self.ack + 1 in self._answered:
            self.ack += 1
            del self._answered[self.ack]

    def renewed(self, sent: float) -> None:
        self.safe_until = max(self.safe_until, sent + self.ttl_ms * SAFE_PART)
