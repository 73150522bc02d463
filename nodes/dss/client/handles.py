"""What `client.lock`, `locks`, `rwlock` and `semaphore` give: `async with` takes and gives back.

What must not live here: requests (locks.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from dss.base.errors import Conflict, DssError
from dss.client.errors import DeadlockError
from dss.client.held import Held
from dss.client.locks import Locks
from dss.client.waits import Want


class LockHandle:
    """`async with client.lock(...) as held`: acquired on entry, released on exit.

    After a `deadlock` the same handle entered again has its old place in line.

    Example:
        async with client.lock("orders/42", wait=5) as held:
            print(held.token)
        handle = client.lock("manual")
        await handle.acquire()
        await handle.release()
    """

    def __init__(self, locks: Locks, want: Want, owner: str = "") -> None:
        self._locks = locks
        self._want = want
        self._given_owner = owner
        self._owner = ""
        self._held: Held | None = None
        self._waiting = False

    def __repr__(self) -> str:
        names = ", ".join(f'"{name}"' for name in self._want.names)
        state = "waiting" if self._waiting else "free" if self._held is None else repr(self._held)
        return f"<LockHandle {names} {self._want.mode}, {state}>"

    async def acquire(self) -> Held:
        """Without `async with`: give it back with `release`, from any task.

        Raises:
            LockTimeout: busy for all of `wait`.
            DeadlockError: its `cycle` says who waits for whom.
            Conflict: `in_use`: this handle holds or waits already.
            Indeterminate: nobody could say whether it was granted; if so, it is given back.
        """
        return await self.acquire_as(None)

    async def acquire_as(self, doer: object) -> Held:
        """`acquire` for what a task (or a thread) enters and leaves: see owners.py."""
        if self._held is not None or self._waiting:
            names = ", ".join(self._want.names)
            raise Conflict("in_use", f'this handle of lock "{names}" is in use: make another')
        owner = self._given_owner or self._locks.owners.pick(doer, self._want, self._owner)
        self._owner = ""
        self._waiting = True
        try:
            self._held = await self._locks.acquire(self._want, owner)
        except DeadlockError:
            self._owner = owner
            raise
        finally:
            self._waiting = False
        return self._held

    async def release(self) -> None:
        """Give back what `acquire` took. Raises Conflict when it was lost before."""
        held, self._held = self._held, None
        if held is None:
            raise Conflict(
                "not_holder",
                f'lock "{self._want.names[0]}" is not held by this handle: it was released before, '
                "or never acquired",
            )
        await self._locks.release(held)

    def __aenter__(self) -> Coroutine[Any, Any, Held]:
        return self.acquire_as(asyncio.current_task())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            await self.release()
        except DssError:
            if error is None:  # else the body's own failure is the one to see
                raise


class RwLock:
    """`client.rwlock(name)`: any number of readers, or one writer.

    Example:
        lock = client.rwlock("catalogue")
        async with lock.read() as held:
            await held.upgrade(wait=5)
        async with lock.write():
            pass
    """

    def __init__(self, locks: Locks, reader: Want, writer: Want, owner: str = "") -> None:
        self._locks = locks
        self._reader = reader
        self._writer = writer
        self._owner = owner

    def read(self) -> LockHandle:
        """Held together with other readers; `held.upgrade()` makes it the writer."""
        return LockHandle(self._locks, self._reader, self._owner)

    def write(self) -> LockHandle:
        """Held alone; `held.downgrade()` lets readers in."""
        return LockHandle(self._locks, self._writer, self._owner)
