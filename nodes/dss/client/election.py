"""`client.election(name)`: one leader among those that campaign; it is the holder of a lock.

What must not live here: requests beyond looking at the lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from dss.base.errors import Indeterminate
from dss.client.errors import REPEATABLE
from dss.client.handles import LockHandle
from dss.client.held import Held
from dss.client.lock_calls import clock_s
from dss.client.locks import Locks
from dss.client.waits import Want

LOOK_S: Final = 5.0
"""How long a look at the leader is repeated while nobody can answer."""


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads."""

    name: str
    """What its client is called (`connect(name=…)`); without a name `session 0123abcd…`."""
    token: int
    """Grows with every election."""


class Election:
    """Get one from `client.election(name)`."""

    def __init__(self, locks: Locks, want: Want) -> None:
        self._locks = locks
        self._want = want
        self._handle = LockHandle(locks, want)

    async def campaign(self) -> Held:
        """Wait until elected; give it up with `resign`. Lost with the lease: use `guard()`."""
        return await self._handle.acquire()

    async def resign(self) -> None:
        """Let the next one lead."""
        await self._handle.release()

    async def __aenter__(self) -> Held:
        return await self._handle.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._handle.__aexit__(*error)  # type: ignore[arg-type]

    async def leader(self) -> Leader | None:
        """Who leads now, or None."""
        args = {"name": self._want.names[0]}
        until_s = clock_s() + LOOK_S
        found = await self._locks.calls.settle("get", args, lambda _: until_s)
        holders = found["holders"]
        if not holders:
            return None
        label = str(holders[0]["label"]).removesuffix(f"/{holders[0]['owner']}")
        return Leader(label, int(holders[0]["token"]))

    async def observe(self, *, every: float = 0.5) -> AsyncGenerator[Leader | None, None]:
        """The leader now, and each other one that is seen, for ever; None: nobody leads.

        Args:
            every: seconds between looks; a leader shorter than that may be missed.
        """
        answered = False
        seen: Leader | None = None
        while True:
            try:
                now = await self.leader()
            except (*REPEATABLE, Indeterminate):
                pass  # nobody can say: what was seen last still stands
            else:
                if not answered or now != seen:
                    answered, seen = True, now
                    yield now
            await asyncio.sleep(every)
