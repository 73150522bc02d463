"""A guard in Redis: one Lua script compares the token and carries the command out.

Works with the clients of redis-py, blocking and asyncio; imports neither. What must not live here:
connections.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from dss.guards.tokens import StaleToken, check_mode

SCRIPT: Final = """
local token, shared = tonumber(ARGV[1]), ARGV[2] == 'shared'
local newest, alone = string.match(redis.call('GET', KEYS[1]) or '0', '^(%d+):?(%d*)$')
if alone == '' then alone = newest end
local least = shared and alone or newest
if token < tonumber(least) then return {0, least} end
if token > tonumber(newest) then newest = ARGV[1] end
if not shared then alone = newest end
redis.call('SET', KEYS[1], newest == alone and newest or newest .. ':' .. alone)
local command = {ARGV[3]}
for i = 2, #KEYS do command[#command + 1] = KEYS[i] end
for i = 4, #ARGV do command[#command + 1] = ARGV[i] end
return {1, redis.call(unpack(command))}
"""
"""A fence is the largest token seen; once readers have been here, `largest:largest exclusive`."""
PREFIX: Final = "dss:fence:"


class Client(Protocol):
    """What is used of a Redis client."""

    def eval(self, script: str, numkeys: int, /, *keys_and_args: Any) -> Any: ...


class RedisGuard:
    """Carries a Redis command out unless its token is stale, atomically.

    Args:
        prefix: the newest tokens of lock `a` are kept at `{prefix}a`, for ever. In a Redis cluster
            it must be in the slot of the keys: name the lock with their {hash tag}.

    Example:
        RedisGuard(redis).run("orders/42", 7, "SET", "order", "packed")
    """

    def __init__(self, client: Client, *, prefix: str = PREFIX) -> None:
        self._client = client
        self._prefix = prefix

    def run(
        self, name: str, token: int, command: str, key: str, *args: Any, mode: str = "exclusive"
    ) -> Any:
        """`command key args…`; its result. Raises StaleToken when it was not carried out."""
        return _result(name, token, self._send(name, token, mode, command, key, args))

    def _send(
        self, name: str, token: int, mode: str, command: str, key: str, args: tuple[Any, ...]
    ) -> Any:
        check_mode(mode)
        fence = self._prefix + name
        return self._client.eval(SCRIPT, 2, fence, key, token, mode, command, *args)


class AsyncRedisGuard(RedisGuard):
    """The same for `redis.asyncio`: `await guard.run(…)`.

    Example:
        await AsyncRedisGuard(async_redis).run("orders/42", 7, "SET", "order", "packed")
    """

    async def run(
        self, name: str, token: int, command: str, key: str, *args: Any, mode: str = "exclusive"
    ) -> Any:
        """`command key args…`; its result. Raises StaleToken when it was not carried out."""
        answer: Awaitable[Any] = self._send(name, token, mode, command, key, args)
        return _result(name, token, await answer)


def _result(name: str, token: int, answer: Any) -> Any:
    done, *rest = answer
    if not done:
        raise StaleToken(name, token, int(rest[0]))
    return rest[0] if rest else None
