"""The rule of names of locks, queues and cache lines: 1 to NAME_BYTES_MAX bytes, no dot segment.

Who asks says what is wrong in its own words. What must not live here: messages, errors.
"""

from __future__ import annotations

from typing import Final

from dss.base.limits import NAME_BYTES_MAX

_DOT_SEGMENTS: Final = ("", ".", "..")
_CHARACTERS_SAFE: Final = NAME_BYTES_MAX // 4
"""A name this short cannot be longer than NAME_BYTES_MAX in UTF-8."""


def excess_size(name: str) -> int:
    """How many bytes of UTF-8 the name has, if they are too many; else 0."""
    if len(name) <= _CHARACTERS_SAFE:
        return 0
    size = len(name.encode("utf-8", "surrogatepass"))
    return size if size > NAME_BYTES_MAX else 0


def has_dot_segment(name: str) -> bool:
    """Is a part between slashes empty, `.` or `..`? Proxies and clients would rewrite its path."""
    return (not name or "/" in name or name[0] == ".") and any(
        segment in _DOT_SEGMENTS for segment in name.split("/")
    )
