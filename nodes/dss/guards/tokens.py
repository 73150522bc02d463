"""What a stale token is, and the newest tokens in one process's memory.

Every guard has the same rule. An *exclusive* use is refused when any larger token of the lock has
been seen. A *shared* use is refused when a larger token of an exclusive use has been seen: readers
come and go beside each other, each with its own token, and only a writer that came later makes
them stale. A *semaphore's* tokens cannot be fenced: the one whose permit was lost may have any
place among those that are good, and only the cluster knows (`POST /v1/locks/{name}/verify`).
"""

from __future__ import annotations

import threading

from dss.base.errors import Conflict


class StaleToken(Conflict):
    """A newer holder has been here: this one's lock is lost. Nothing was done.

    Attributes:
        token: what the caller sent.
        newest: the largest seen that makes it stale, where it is known.

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
            f"token {token} of lock {name!r} is stale: {seen} has been seen; acquire it again "
            "(holders of a shared lock: check with mode='shared')",
        )
        self.token = token
        self.newest = newest


def check_mode(mode: str) -> bool:
    """Whether it is a shared use. Raises ValueError for one that no guard can tell."""
    if mode == "semaphore":
        raise ValueError(
            "a semaphore's tokens cannot be fenced: its holders come and go in any order, so a "
            "smaller token may be good and a larger one lost. Ask the cluster about each one "
            "(POST /v1/locks/{name}/verify), or protect what each permit stands for by a lock of "
            "its own"
        )
    if mode not in ("exclusive", "shared"):
        raise ValueError(f"mode is 'exclusive' or 'shared', not {mode!r}")
    return mode == "shared"


class MemoryFences:
    """The newest tokens of each lock, in this process: for a resource that lives in it, too.

    It forgets with the process and grows by an entry for each name; where either matters, keep the
    tokens beside the data (SqlGuard, RedisGuard). Safe to use from threads.

    Example:
        fences = MemoryFences()
        fences.check("orders/42", 7)  # before each use of what the lock protects
        fences.check("catalogue", 8, "shared")  # by a reader
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}
        """(the largest, the largest of an exclusive use)"""
        self._mutex = threading.Lock()

    def check(self, name: str, token: int, mode: str = "exclusive") -> None:
        """Remember `token`. Raises StaleToken when a larger one has been seen that excludes it.

        Args:
            mode: what the holder does: `exclusive`, or `shared` (reads).
        """
        shared = check_mode(mode)
        with self._mutex:
            newest, alone = self._seen.get(name, (0, 0))
            least = alone if shared else newest
            if token < least:
                raise StaleToken(name, token, least)
            self._seen[name] = (max(newest, token), alone if shared else token)
