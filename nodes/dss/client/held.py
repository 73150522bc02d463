"""What a holder has in hand: the token, how long it is safe, the guard, other modes.

What must not live here: waiting for a lock (locks.py).
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from dss.base.errors import Conflict
from dss.client.checks import check_wait
from dss.client.lock_calls import clock_s
from dss.client.sessions import Session

if TYPE_CHECKING:
    from dss.client.locks import Locks


class LockLost(Conflict):
    """The lock may be somebody else's: what it protected must not be touched any more.

    Example:
        async with client.lock("report") as held:
            held.lose("for this example")
            try:
                held.check()
            except LockLost as lost:
                print(lost.name, lost.reason)
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__("lock_lost", f'lock "{name}" was lost: {reason}')


class Held:
    """A lock that is held.

    Attributes:
        name: the lock's; of several, the first one's.
        token: pass it to what the lock protects. It grows with every grant, so what refuses
            smaller tokens is safe from late holders.
        tokens: of several locks, by name.
        mode: `exclusive`, `shared` or `semaphore`.

    Example:
        async with client.lock("orders/42") as held:
            print(held.token, held.safe_until - clock_s())
            held.check()  # raises LockLost when it is not safe any more
    """

    def __init__(
        self, locks: Locks, session: Session, owner: str, tokens: dict[str, int], mode: str
    ) -> None:
        self.tokens = tokens
        self.name, self.token = next(iter(tokens.items()))
        self.mode = mode
        self.session = session
        self.owner = owner
        self._locks = locks
        self._is_lost = False
        self._lost: asyncio.Event | None = None
        """Made when somebody waits for it."""
        self._reason = ""
        self.changing = False
        """See sessions.Holder."""
        self._watch()

    def __repr__(self) -> str:
        names = ", ".join(f'"{name}"' for name in self.tokens)
        safe = f"safe for {self.safe_until - clock_s():.1f} s" if self.is_safe else "not safe"
        return f"<Held {names} {self.mode}, token {self.token}, {safe}>"

    def _watch(self) -> None:
        if self.session.lost:
            self.lose("its session has ended")
        for key in self.tokens.items():
            self.session.holders[key] = self

    def unwatch(self) -> None:
        """It is about to be given back: its end is no loss."""
        for key in self.tokens.items():
            self.session.holders.pop(key, None)

    def lose(self, reason: str) -> None:
        """See sessions.Holder."""
        self._reason = self._reason or reason
        self._is_lost = True
        if self._lost is not None:
            self._lost.set()

    @property
    def safe_until(self) -> float:
        """On `dss.client.clock_s()`: until then nobody else can have it. Grows by keepalives."""
        return self.session.safe_until_s

    @property
    def is_safe(self) -> bool:
        """The lock is certainly still held (its session's TTL has not run out unrenewed)."""
        return not self._is_lost and self.session.is_safe

    def check(self) -> None:
        """Raises LockLost unless `is_safe`."""
        if not self.is_safe:
            raise self.loss()

    def loss(self) -> LockLost:
        """The error that says why it is not safe."""
        return LockLost(self.name, self._reason or "no lock node has confirmed its session in time")

    async def until_lost(self) -> LockLost:
        """Wait until it is lost, or may be; says why."""
        if self._lost is None:
            self._lost = asyncio.Event()
        while self.is_safe:
            try:
                async with asyncio.timeout(max(0.0, self.safe_until - clock_s())):
                    await self._lost.wait()
            except TimeoutError:
                continue
        return self.loss()

    def guard(self) -> Guard:
        """`async with held.guard():` cancels the block when the lock is lost; raises LockLost."""
        return Guard(self)

    async def upgrade(self, *, wait: float = 5.0) -> int:
        """A shared hold becomes exclusive once the other readers have gone; the new token.

        Raises:
            Conflict: `deadlock` when another reader upgrades already, `lock_timeout`.
        """
        return await self._locks.change(self, "upgrade", check_wait(wait))

    async def downgrade(self) -> None:
        """An exclusive hold becomes shared; readers come in. The token stays."""
        await self._locks.change(self, "downgrade", 0.0)

    def became(self, mode: str, token: int) -> None:
        """The server has changed it."""
        self.unwatch()
        self.token = self.tokens[self.name] = token
        self.mode = mode
        self._watch()


class Guard:
    """Cancels the block inside when the lock is lost; get one from `held.guard()`.

    Example:
        async with client.lock("report") as held, held.guard():
            await asyncio.sleep(0.01)  # the work
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._watch: asyncio.Task[None] | None = None
        self._fired = False

    async def __aenter__(self) -> Held:
        self._held.check()
        task = asyncio.current_task()
        assert task is not None, "inside a task"
        self._cancelling = task.cancelling()
        self._task = task
        self._watch = asyncio.create_task(self._cancel_when_lost(), name="dss-guard")
        return self._held

    async def _cancel_when_lost(self) -> None:
        await self._held.until_lost()
        self._fired = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._watch is not None, "exit without entry"
        self._watch.cancel()
        if self._fired:
            ours = self._task.uncancel() <= self._cancelling
            if kind is None or (ours and issubclass(kind, asyncio.CancelledError)):
                raise self._held.loss() from error
        elif kind is None:
            self._held.check()
