"""Ready-made guards for what a lock protects: a token smaller than one seen before is refused.

A lock alone cannot stop a holder that was paused past its lease; the resource can. Nothing here
talks to DSS: a guard needs only the token that its caller sends.
"""

from dss.guards.http import TOKEN_HEADER, AsgiGuard, aiohttp_guard
from dss.guards.redis import AsyncRedisGuard, RedisGuard
from dss.guards.sql import SqlGuard
from dss.guards.tokens import MemoryFences, StaleToken

__all__ = [
    "TOKEN_HEADER", "AsgiGuard", "AsyncRedisGuard", "MemoryFences", "RedisGuard", "SqlGuard",
    "StaleToken", "aiohttp_guard",
]  # fmt: skip
