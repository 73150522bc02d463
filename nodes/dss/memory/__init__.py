"""The cache's main memory: `open_memory(url, cluster_id)` gives one behind `ports.Memory`,
`follow_url` hands it a new password.

What must not live here: coherence (core/mesi), who is a key's home.
"""

from __future__ import annotations

from urllib.parse import SplitResult, unquote, urlsplit

from dss.base.errors import ConfigProblem
from dss.memory.embedded import EmbeddedMemory
from dss.memory.ports import Memory
from dss.memory.redis import RedisMemory

__all__ = ["AnotherMemory", "Memory", "follow_url", "open_memory"]

_EXPECTED = (
    "expected redis://[:password@]host:port/db or sqlite:///absolute/path. "
    "Example: MEMORY_URL=redis://redis:6379/0"
)


class AnotherMemory(Exception):
    """The URL names another place: it has to be claimed anew, by a process that starts with it."""


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
        username, password = _credentials(parts)
        return RedisMemory(
            parts.hostname,
            port,
            int(database),
            cluster_id,
            username=username,
            password=password,
        )
    scheme = repr(parts.scheme) if parts.scheme else "no scheme"
    raise ConfigProblem(f"MEMORY_URL has {scheme}: {_EXPECTED}")


def follow_url(memory: Memory, old: str, new: str) -> bool:
    """Use the credentials of `new` from the next connection on; whether they are others.

    Args:
        old: the URL that `memory` was opened with, or has followed last; both are valid.

    Raises:
        AnotherMemory: `new` differs in more than its credentials.
    """
    before, after = urlsplit(old), urlsplit(new)
    if _place(before) != _place(after):
        raise AnotherMemory
    credentials = _credentials(after)
    if credentials == _credentials(before):
        return False
    assert isinstance(memory, RedisMemory), "only redis URLs have credentials"
    memory.use_credentials(*credentials)
    return True


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    return (
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
    )


def _place(parts: SplitResult) -> tuple[str, str | None, int | None, str]:
    return parts.scheme, parts.hostname, parts.port or 6379, parts.path.strip("/") or "0"
