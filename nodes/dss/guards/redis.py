"""A guard in Redis: one Lua script compares the token and carries the command out.

Works with the clients of redis-py, blocking and asyncio; imports neither. What must not live here:
connections.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from dss.guards.tokens import StaleToken

SCRIPT: Final = """
local newest = redis.call('GET', KEYS[1])
if newest and tonumber(ARGV[1]) < tonumber(newest) then return {0, newest} end
redis.call('SET', KEYS[1], ARGV[1])
local command = {ARGV[2]}
for i = 2, #KEYS do command[#command + 1] = KEYS[i] end
for i = 3, #ARGV do command[#command + 1] = ARGV[i] end
return {1, redis.call(unpack(command))}
"""
PREFIX: Final = "dss:fence:"


class Client(Protocol):
    """What is used of a Redis client."""

    def eval(self, script: str, numkeys: int, /, *keys_and_args: Any) -> Any: ...


class RedisGuard:
    """Carries a Redis command out unless its token is stale, atomically.

    Args:
        prefix: the newest token of lock `a` is kept at `{prefix}a`, for ever. In a Redis cluster it
            must be in the slot of the keys: name the lock with their {hash tag}.

    Example:
        RedisGuard(redis).run("orders/42", 7, "SET", "order", "packed")
    """

    def __init__(self, client: Client, *, prefix: str = PREFIX) -> None:
        self._client = client
        self._prefix = prefix

    def run(self, name: str, token: int, command: str, key: str, *args: Any) -> Any:
        """`command key args…`; its result. Raises StaleToken when it was not carried out."""
        return _result(name, token, self._send(name, token, command, key, args))

    def _send(self, name: str, token: int, command: str, key: str, args: tuple[Any, ...]) -> Any:
        fence = self._prefix + name
        return self._client.eval(SCRIPT, 2, fence, key, token, command, *args)


class AsyncRedisGuard(RedisGuard):
    """The same for `redis.asyncio`: `await guard.run(…)`.

    Example:
        await AsyncRedisGuard(async_redis).run("orders/42", 7, "SET", "order", "packed")
    """

    async def run(self, name: str, token: int, command: str, key: str, *args: Any) -> Any:
        """`command key args…`; its result. Raises StaleToken when it was not carried out."""
        answer: Awaitable[Any] = self._send(name, token, command, key, args)
        return _result(name, token, await answer)


def _result(name: str, token: int, answer: Any) -> Any:
    done, *rest = answer
    if not done:
        raise StaleToken(name, token, int(rest[0]))
    return rest[0] if rest else None
