"""Clients that left before they had an answer: their waits end, what they were granted goes back.

A client that comes back within GONE_CLIENT_MS, over any node, keeps its place. A request that can
be repeated (it has an Idempotency-Key, or a `seq`) keeps its grant: the repeat gets it. What must
not live here: how a lost connection is noticed (api/locks.py, api/lock_stream.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from dss.base.errors import DssError
from dss.base.ids import LOCK_GROUP
from dss.base.limits import GONE_CLIENT_MS
from dss.core.locks.commands import Acquire, AcquireMany, Cancel, Release, Upgrade
from dss.core.machine import Result
from dss.drivers.ports import Consensus

Waiting = Acquire | AcquireMany | Upgrade
"""What may wait in line."""

GIVE_BACK_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each try to give a grant back: longer than any election."""


class GoneClients:
    """See the module.

    Args:
        write: LockService.write.
        spawn: runs work as a task that ends with the service.
    """

    def __init__(
        self,
        consensus: Consensus,
        write: Callable[[Any, str], Awaitable[Result]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._consensus = consensus
        self._write = write
        self._spawn = spawn
        self.stopped = False

    def left(self, command: Waiting, answer: asyncio.Future[Result], repeatable: bool) -> None:
        """Whoever asked has gone.

        Args:
            answer: may come still, or have come and reached nobody.
            repeatable: it has an Idempotency-Key.
        """
        self._later(lambda before_ms: self._after(command, answer, repeatable, before_ms))

    def left_stream(self, waits: Mapping[int, Waiting]) -> None:
        """As `left`, of a stream; `waits` have no answer yet, while they stand there."""
        self._later(lambda before_ms: self._cancel_all(waits, before_ms))

    def undelivered(self, command: Waiting, body: Any) -> None:
        """A wait of a stream that is gone was granted."""
        if not command.seq:
            self._later(lambda before_ms: self._give_back(command, body))

    def _later(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        before_ms = max(1, self._consensus.log_ms(LOCK_GROUP))

        def begin() -> None:
            if not self.stopped:
                self._spawn(work(before_ms))

        asyncio.get_running_loop().call_later(GONE_CLIENT_MS / 1_000, begin)

    async def _after(
        self, command: Waiting, answer: asyncio.Future[Result], repeatable: bool, before_ms: int
    ) -> None:
        if not answer.done():
            await self._cancel(command, before_ms)
        await asyncio.wait((answer,))
        if answer.cancelled() or answer.exception() is not None:
            return  # it never came to be asked
        status, body = answer.result()
        if status == 200 and not repeatable and not command.seq:
            await self._give_back(command, body)

    async def _cancel_all(self, waits: Mapping[int, Waiting], before_ms: int) -> None:
        for wait in list(waits.values()):
            await self._cancel(wait, before_ms)

    async def _cancel(self, wait: Waiting, before_ms: int) -> None:
        """One that fails is no loss: the wait has its own time limit."""
        name = wait.locks[0] if isinstance(wait, AcquireMany) else wait.name
        cancel = Cancel(wait.session, name, wait.owner, before_ms)
        try:
            await self._write(cancel, "")
        except DssError:
            return

    async def _give_back(self, command: Waiting, body: Any) -> None:
        for back in undoing(command, body):
            key = secrets.token_hex(16)
            for pause_s in GIVE_BACK_PAUSES_S:
                await asyncio.sleep(pause_s)
                try:
                    status, _ = await self._write(back, key)
                except DssError as error:
                    status = error.status
                if status not in (429, 503, 504):
                    break


def undoing(command: Waiting, body: Any) -> list[Release]:
    """What takes a grant back. The same holder may have asked again meanwhile: that one stays.

    Nothing takes back a grant that has to be confirmed (it passes on by itself, and its client may
    have confirmed it on another connection), or an upgrade: who came back may rely on it by now,
    which no count of the hold would tell.
    """
    session, owner = command.session, command.owner
    if isinstance(command, AcquireMany):
        return [Release(session, one["name"], one["token"], owner) for one in body["locks"]]
    if isinstance(command, Upgrade) or command.confirm_ms:
        return []
    return [Release(session, command.name, body["token"], owner)]
