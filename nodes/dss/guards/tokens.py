"""What a stale token is, and the newest tokens in one process's memory."""

from __future__ import annotations

import threading

from dss.base.errors import Conflict


class StaleToken(Conflict):
    """A newer holder has been here: this one's lock is lost. Nothing was done.

    Attributes:
        token: what the caller sent.
        newest: the largest seen, where it is known.

    Example:
        fences = MemoryFences()
        fences.check("orders/42", 8)
        try:
            fences.check("orders/42", 7)
        except StaleToken as stale:
            print(stale.token, stale.newest)
    """

    def __init__(self, name: str, token: int, newest: int | None = None) -> None:
        seen = "a newer one" if newest is None else str(newest)
        super().__init__(
            "stale_token",
            f"token {token} of lock {name!r} is stale: {seen} has been seen; acquire it again",
        )
        self.token = token
        self.newest = newest


class MemoryFences:
    """The newest token of each lock, in this process: for a resource that lives in it, too.

    It forgets with the process and grows by an entry for each name; where either matters, keep the
    tokens beside the data (SqlGuard, RedisGuard). Safe to use from threads.

    Example:
        fences = MemoryFences()
        fences.check("orders/42", 7)  # before each use of what the lock protects
    """

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        self._mutex = threading.Lock()

    def check(self, name: str, token: int) -> None:
        """Remember `token`. Raises StaleToken when a larger one has been seen."""
        with self._mutex:
            newest = self._newest.get(name, 0)
            if token < newest:
                raise StaleToken(name, token, newest)
            self._newest[name] = token
