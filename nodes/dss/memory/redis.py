"""Main memory in one Redis.

One connection, one pipeline at a time: everything pending goes out together and in order. Each
write is one Lua script, so that checking the fence and writing are one step. A write is
acknowledged when Redis has answered; with `appendfsync always` that is after its fsync.

Keys, all under `dss:{cluster_id}:`: `slot:<n>` hash (epoch, owner, sequence), `line:<key>` hash
(v value, n version, t content type, x expiry in Unix ms), with PEXPIREAT an hour after the expiry
(garbage collection only).

What must not live here: coherence.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from dss.base import limits
from dss.memory import batching
from dss.memory.batching import Operation, OperationQueue
from dss.memory.ports import MemoryLost, MemoryUnavailable, Stamp, Stored

RECONNECT_PAUSE_MS: Final = 200
"""While Redis is away, what is pending fails this often, instead of waiting for it."""

_CLAIM = """
local found = redis.call('HGET', KEYS[1], 'epoch')
if found and tonumber(found) > tonumber(ARGV[2]) then return -1 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'sequence', 0)
"""
_CHECK = """
local owner, sequence = unpack(redis.call('HMGET', KEYS[1], 'owner', 'sequence'))
sequence = tonumber(sequence or '-1')
if owner ~= ARGV[1] or sequence < tonumber(ARGV[3]) then return {2} end
"""
_WRITE = (
    _CHECK
    + """
if tonumber(ARGV[2]) <= sequence then return {1} end
local existed = redis.call('EXISTS', KEYS[2])
redis.call('HSET', KEYS[2], 'v', ARGV[4], 'n', ARGV[2], 't', ARGV[5], 'x', ARGV[6])
if ARGV[6] == '0' then redis.call('PERSIST', KEYS[2])
else redis.call('PEXPIREAT', KEYS[2], ARGV[7]) end
redis.call('HSET', KEYS[1], 'sequence', ARGV[2])
return {0, existed}
"""
)
_DELETE = (
    _CHECK
    + """
if tonumber(ARGV[2]) <= sequence then return {1} end
local existed = redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'sequence', ARGV[2])
return {0, existed}
"""
)
_FENCE = (
    _CHECK
    + """
if tonumber(ARGV[2]) > sequence then redis.call('HSET', KEYS[1], 'sequence', ARGV[2]) end
return {0, redis.call('HMGET', KEYS[2], 'v', 'n', 't', 'x')}
"""
)
_SCRIPTS: Final = {
    batching.CLAIM: _CLAIM,
    batching.WRITE: _WRITE,
    batching.DELETE: _DELETE,
    batching.FENCE: _FENCE,
}
_WANTED: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
}


class RedisMemory(OperationQueue):
    """`ports.Memory` over Redis (7 or newer).

    Args:
        timeout_ms: after this a batch is given up and its writes are of unknown outcome.
    """

    kind = "redis"

    def __init__(
        self,
        host: str,
        port: int,
        database: int,
        cluster_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout_ms: int = limits.MEMORY_TIMEOUT_MS,
    ) -> None:
        super().__init__(self._signal)
        self.where = f"{host}:{port}"
        self._host = host
        self._port = port
        self._database = database
        self._username = username
        self._password = password
        self._prefix = f"dss:{{{cluster_id}}}:"
        self._timeout_s = timeout_ms / 1000
        self._connection: Connection | None = None
        self._lookup: asyncio.Future[list[tuple[Any, ...]]] | None = None
        self._shas: dict[str, str] = {}
        self._warnings: list[str] = []
        self._work = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._pump = asyncio.create_task(self._run(), name="memory-redis")

    async def stop(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._lookup is not None:
            self._lookup.cancel()
        self.abandon_all("main memory has been closed")
        await self._disconnect()

    def warnings(self) -> list[str]:
        return self._warnings

    def use_credentials(self, username: str | None, password: str | None) -> None:
        """For the next connection; Redis keeps the one that is open."""
        self._username, self._password = username, password

    def _signal(self) -> None:
        self._work.set()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while len(self):
                batch = self.take()
                if not await self._serve(batch):
                    self.abandon_all(f"main memory (redis at {self.where}) is not reachable")
                    await asyncio.sleep(RECONNECT_PAUSE_MS / 1000)

    async def _serve(self, batch: list[Operation]) -> bool:
        """Carry out one batch; False: there is no connection any more."""
        begun = False
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._connection or await self._connect()
                commands = [command for op in batch for command in self._commands(op)]
                packed = connection.pack_commands(commands)
                begun = True
                await connection.send_packed_command(packed, check_health=False)
                for operation in batch:
                    await self._settle(connection, operation)
        except (RedisError, OSError, TimeoutError) as error:
            await self._disconnect()
            why = f"main memory (redis at {self.where}): {str(error) or 'no answer in time'}"
            for operation in batch:
                operation.abandon(why, begun=begun)
            return False
        except asyncio.CancelledError:
            for operation in batch:
                operation.abandon("main memory is being closed", begun=begun)
            raise
        return True

    async def _connect(self) -> Connection:
        connection = Connection(
            host=await self._address(),
            port=self._port,
            db=self._database,
            username=self._username,
            password=self._password,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=self._timeout_s,
            socket_timeout=None,  # the batch has its own
            protocol=2,
        )
        await connection.connect()  # type: ignore[no-untyped-call]
        self._connection = connection
        for kind, script in _SCRIPTS.items():
            self._shas[kind] = await _ask(connection, "SCRIPT", "LOAD", script)
        await self._check_settings(connection)
        return connection

    async def _address(self) -> str:
        """Of the host, asked for at each connection: a restarted Redis may have another.

        A look-up may outlive the time of one batch, and then serves the next: a resolver whose
        first server is dead needs seconds.
        """
        if self._lookup is None:
            loop = asyncio.get_running_loop()
            self._lookup = asyncio.ensure_future(
                loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            )
            self._lookup.add_done_callback(_retrieve)
        try:
            found = await asyncio.shield(self._lookup)
        finally:
            if self._lookup.done():
                self._lookup = None
        return str(found[0][4][0])

    async def _check_settings(self, connection: Connection) -> None:
        """Durable and never evicting, or a warning that says what is lost."""
        warnings = []
        for name, wanted in _WANTED.items():
            try:
                reply = await _ask(connection, "CONFIG", "GET", name)
            except ResponseError:
                warnings.append(f"redis: CONFIG is not allowed: {name} could not be checked")
                continue
            found = reply[1].decode() if len(reply) == 2 else "unknown"
            if found != wanted:
                warnings.append(
                    f"redis: {name} is {found}, not {wanted}: acknowledged writes may be lost"
                )
        self._warnings = warnings

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _commands(self, operation: Operation) -> list[tuple[Any, ...]]:
        kind, args = operation.kind, operation.args
        if kind == batching.READ:
            return [("HMGET", self._prefix + "line:" + args[0], "v", "n", "t", "x")]
        sha = self._shas[kind]
        if kind == batching.CLAIM:
            owner, epoch, slots = args
            return [
                ("EVALSHA", sha, 1, f"{self._prefix}slot:{slot}", owner, epoch) for slot in slots
            ]
        stamp: Stamp = args[0]
        command: tuple[Any, ...] = (
            "EVALSHA",
            sha,
            2,
            f"{self._prefix}slot:{stamp.slot}",
            f"{self._prefix}line:{args[1]}",
            stamp.owner,
            stamp.version,
            stamp.acknowledged,
        )
        if kind == batching.WRITE:
            stored: Stored = args[2]
            expiry = stored.expires_unix_ms
            collect = expiry + batching.EXPIRED_KEPT_MS if expiry else 0
            command += (stored.value, stored.content_type, expiry, collect)
        return [command]

    async def _settle(self, connection: Connection, operation: Operation) -> None:
        """Read one operation's answers and end it."""
        if operation.kind == batching.CLAIM:
            await self._settle_claim(connection, operation)
            return
        try:
            reply = await connection.read_response()
        except ResponseError as error:
            # Refused before it ran (NOSCRIPT, OOM, READONLY, LOADING, …): nothing was written.
            operation.fail(MemoryUnavailable(f"main memory (redis): {error}"))
            if "NOSCRIPT" in str(error):
                raise
            return
        if operation.kind == batching.READ:
            operation.succeed(_stored(reply))
        elif reply[0] != batching.OK:
            operation.refuse(reply[0], operation.args[1])
        elif operation.kind == batching.FENCE:
            operation.succeed(_stored(reply[1]))
        else:
            operation.succeed(bool(reply[1]))

    async def _settle_claim(self, connection: Connection, operation: Operation) -> None:
        sequences: dict[int, int] = {}
        failure: Exception | None = None
        for slot in operation.args[2]:
            try:
                sequences[slot] = await connection.read_response()
            except ResponseError as error:
                failure = MemoryUnavailable(f"main memory (redis): {error}")
        if failure is None and any(sequence < 0 for sequence in sequences.values()):
            failure = MemoryLost("another node owns these slots under a newer epoch")
        if failure is not None:
            operation.fail(failure)
        else:
            operation.succeed(sequences)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Its failure has been seen, even if nobody waits any more."""
    if not future.cancelled():
        future.exception()


async def _ask(connection: Connection, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


def _stored(reply: list[bytes | None]) -> Stored | None:
    value, version, kind, expiry = reply
    if value is None or version is None:
        return None
    return Stored(value, int(version), (kind or b"").decode(), int(expiry or b"0"))
