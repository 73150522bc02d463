"""`client.election(name)`: one leader among those that campaign; it is the holder of a lock.

What must not live here: requests beyond looking at the lock, the event stream (events.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from dss.base.errors import Indeterminate
from dss.client.errors import REPEATABLE
from dss.client.events import GAP
from dss.client.handles import LockHandle
from dss.client.held import Held
from dss.client.lock_calls import clock_s
from dss.client.locks import Locks
from dss.client.waits import Want

LOOK_AGAIN_S: Final = 5.0
"""Between looks beside the events: their node may be cut off from the others."""
LOOK_S: Final = 5.0
"""How long a look at the leader is repeated while nobody can answer."""


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads.

    Example:
        leader = await client.election("scheduler").leader()
        print("nobody" if leader is None else (leader.name, leader.token))
    """

    name: str
    """What its client is called (`connect(name=…)`); without a name `session 0123abcd…`."""
    token: int
    """Grows with every election."""


class Election:
    """Get one from `client.election(name)`.

    Example:
        election = client.election("scheduler", ttl=5)
        async with election as leading, leading.guard():
            leader = await election.leader()
            assert leader is not None and leader.token == leading.token
    """

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
        return _leader(holders[0], holders[0]["label"]) if holders else None

    async def observe(self, *, every: float = 0.5) -> AsyncGenerator[Leader | None, None]:
        """The leader now, and each change, for ever; None: nobody leads.

        The nodes tell of changes at once, and of each one.

        Args:
            every: seconds between looks where no event stream gets through (some proxies); a leader
                shorter than that may be missed there.
        """
        seen = _Seen()
        async with self._locks.news(self._want.names[0]).follow() as news:
            event: dict[str, Any] | None = GAP
            while True:
                if event is None or event is GAP:
                    try:
                        now = await self.leader()
                    except (*REPEATABLE, Indeterminate):
                        pass  # nobody can say: what was seen last still stands
                    else:
                        if seen.look(now):
                            yield now
                elif seen.change(event):
                    yield seen.leader
                event = await news.next(LOOK_AGAIN_S if news.connected else every)


class _Seen:
    """The leader seen last. Tokens grow, so what is older is known from what is newer."""

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self._answered = False
        self._newest = 0

    def look(self, now: Leader | None) -> bool:
        """Whether a look at the lock is news."""
        if self._answered and (now == self.leader or (now and now.token < self._newest)):
            return False
        self._answered = True
        self.leader = now
        if now:
            self._newest = now.token
        return True

    def change(self, event: dict[str, Any]) -> bool:
        """Whether an event is news."""
        kind = event["event"]
        if kind == "granted" and event["token"] > self._newest:
            self._answered = True
            self._newest = event["token"]
            self.leader = _leader(event, event["holder"])
            return True
        if kind == "released" and self.leader and event["token"] == self.leader.token:
            self.leader = None
            return True
        return False


def _leader(holder: dict[str, Any], label: str) -> Leader:
    return Leader(label.removesuffix(f"/{holder.get('owner', '')}"), int(holder["token"]))
