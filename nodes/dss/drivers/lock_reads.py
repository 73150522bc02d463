"""Linearizable reads of the lock group, from any of its nodes, without holding the loop up.

They happen on the leader after a ReadIndex round; another node asks it with the call `locks.read`.
What takes long is looked at in steps, and others have their turn in between: a page of a list is
then not one moment's, but each lock in it was so at one after the read was asked for. What must not
live here: what a read shows (core/locks/views.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Indeterminate, NoQuorum, Unavailable
from dss.base.handles import handle_of
from dss.base.ids import LOCK_GROUP
from dss.base.limits import FORWARDED_READ_RETRY_MS
from dss.core.locks.answers import session_expired
from dss.core.locks.commands import (
    CLIENT_CODEC,
    READ_OPS,
    ExplainLock,
    GetLock,
    ListLocks,
    LockHistory,
    Read,
    VerifyToken,
    WatchSession,
)
from dss.core.locks.machine import LockMachine
from dss.core.locks.views import list_in_steps
from dss.core.machine import Result, join_items
from dss.drivers.lock_handles import hide_sessions
from dss.drivers.ports import Consensus
from dss.transport.ports import Peer, Transport

READ_METHOD: Final = "locks.read"
TURN_S: Final = 0.002
"""After so long with reads, others have their turn."""

_encode = msgspec.msgpack.Encoder().encode
_results = msgspec.msgpack.Decoder(list[tuple[int, Any]])


class LockReads:
    """See the module.

    Args:
        spawn: runs work as a task that ends with the service.
        timeout_ms: a read that finds no leader within this time is 503 `no_quorum`.
    """

    def __init__(
        self,
        consensus: Consensus,
        transport: Transport,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        timeout_ms: int,
    ) -> None:
        self._consensus = consensus
        self._transport = transport
        self._spawn = spawn
        self._timeout_ms = timeout_ms
        self._long = asyncio.Lock()

    def start(self) -> None:
        """Answer other nodes' reads."""
        self._transport.on_call(READ_METHOD, self._on_read)

    async def read(self, reads: Sequence[Read], *, whole: bool = False) -> list[Result]:
        """Linearizable; tried again while the leader changes. Raises DssError.

        Args:
            whole: with other clients' session ids, for an administrator.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_ms / 1_000
        while True:
            try:
                results = await self._read_once(reads, deadline - loop.time())
                break
            except (NoQuorum, Unavailable, Indeterminate) as error:
                # Reading twice harms nobody, so an unknown outcome is no obstacle.
                if loop.time() + FORWARDED_READ_RETRY_MS / 1_000 >= deadline:
                    if isinstance(error, NoQuorum):
                        raise
                    raise self._no_quorum() from error
                await asyncio.sleep(FORWARDED_READ_RETRY_MS / 1_000)
        if not whole:
            for read, (status, body) in zip(reads, results, strict=True):
                if isinstance(read, GetLock) and status == 200 and "holders" in body:
                    hide_sessions(body)
        return results

    async def _read_once(self, reads: Sequence[Read], left_s: float) -> list[Result]:
        if self._consensus.is_leader(LOCK_GROUP):
            await self._consensus.read(LOCK_GROUP)
            return await self._look(reads)
        leader = self._consensus.leader_of(LOCK_GROUP)
        if leader is None:
            raise self._no_quorum()
        body = join_items(len(reads), [CLIENT_CODEC.encode_item(0, read) for read in reads])
        timeout_ms = max(1, int(left_s * 1_000))
        try:
            answer = await self._transport.call(leader, READ_METHOD, body, timeout_ms)
        except DssError as error:
            # A RemoteError with this code: the node asked does not lead any longer.
            if error.code == NoQuorum.code:
                raise self._no_quorum() from error
            raise
        return _results.decode(answer)

    async def _look(self, reads: Sequence[Read]) -> list[Result]:
        machine: LockMachine = self._consensus.machine(LOCK_GROUP)
        clock = asyncio.get_running_loop().time
        turn_ends = clock() + TURN_S
        results: list[Result] = []
        for read in reads:
            log_ms = self._consensus.log_ms(LOCK_GROUP)
            if isinstance(read, ListLocks):
                results.append((200, await self._list(machine, read, log_ms)))
                turn_ends = clock() + TURN_S
                continue
            results.append(_answer(machine, read, log_ms))
            if clock() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = clock() + TURN_S
        return results

    async def _list(self, machine: LockMachine, read: ListLocks, log_ms: int) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        async with self._long:  # twenty at once would each have their turn before all others
            steps = list_in_steps(machine, read.prefix, read.limit, read.cursor, log_ms)
            turn_ends = clock() + TURN_S
            while True:
                page = next(steps)
                if page is not None:
                    return page
                if clock() >= turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = clock() + TURN_S

    def _on_read(self, peer: Peer, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        reads = [
            CLIENT_CODEC.decode_args(op, args)
            for _, op, args in CLIENT_CODEC.split(body)
            if op in READ_OPS
        ]
        if not self._consensus.is_leader(LOCK_GROUP):
            raise self._no_quorum()
        self._spawn(self._reply(reads, reply))

    async def _reply(self, reads: Sequence[Read], reply: Callable[[int, bytes], None]) -> None:
        try:
            await self._consensus.read(LOCK_GROUP)
        except DssError as error:
            reply(error.status, _encode(error.body()))
            return
        reply(200, _encode(await self._look(reads)))

    def _no_quorum(self) -> NoQuorum:
        return NoQuorum(
            "no leader of the lock group is known: it has no quorum, or is just electing one; "
            "nothing was done",
            retry_after_ms=self._timeout_ms,
        )


def _answer(machine: LockMachine, read: Read, log_ms: int) -> Result:
    if isinstance(read, ExplainLock):
        return 200, machine.explain(read.name, log_ms)
    if isinstance(read, LockHistory):
        return 200, machine.history(read.name, log_ms)
    if isinstance(read, GetLock):
        return 200, machine.describe(read.name, log_ms)
    if isinstance(read, VerifyToken):
        return 200, machine.verify(read.name, read.token)
    assert not isinstance(read, ListLocks), "looked at in steps"
    session = machine.describe_session(read.session, log_ms)
    if isinstance(read, WatchSession):
        return (200, {}) if session is not None else session_expired(read.session)
    if session is None:
        message = (
            f"session {handle_of(read.session)}… does not exist or has ended: create a new one"
        )
        return 404, {"code": "not_found", "message": message}
    return 200, session
