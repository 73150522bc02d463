"""The cache's main memory: `open_memory(url, cluster_id)` gives one behind `ports.Memory`.

What must not live here: coherence (core/mesi), who is a key's home.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from dss.base.errors import ConfigProblem
from dss.memory.embedded import EmbeddedMemory
from dss.memory.ports import Memory
from dss.memory.redis import RedisMemory

_EXPECTED = (
    "expected redis://[:password@]host:port/db or sqlite:///absolute/path. "
    "Example: MEMORY_URL=redis://redis:6379/0"
)


def open_memory(url: str, cluster_id: str) -> Memory:
    """The main memory that `url` names; nothing is connected or opened yet.

    Raises:
        ConfigProblem: the URL is not one of the two known forms. Never shows its password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise ConfigProblem(f"MEMORY_URL is not a URL: {_EXPECTED}") from None
    if parts.scheme == "sqlite":
        if parts.netloc or len(parts.path) < 2:
            raise ConfigProblem(f"MEMORY_URL names no absolute file path: {_EXPECTED}")
        return EmbeddedMemory(unquote(parts.path), cluster_id)
    if parts.scheme == "redis":
        database = parts.path.lstrip("/") or "0"
        if not parts.hostname or not database.isascii() or not database.isdigit():
            raise ConfigProblem(f"MEMORY_URL names no host or no database number: {_EXPECTED}")
        return RedisMemory(
            parts.hostname,
            port,
            int(database),
            cluster_id,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )
    scheme = repr(parts.scheme) if parts.scheme else "no scheme"
    raise ConfigProblem(f"MEMORY_URL has {scheme}: {_EXPECTED}")
