"""What is asked for, looked at before anything is sent: in the caller's own words and units.

The servers check it all again. What must not live here: requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dss.base.errors import Invalid
from dss.base.limits import (
    LABEL_CHARS_MAX,
    LOCKS_TOGETHER_MAX,
    NAME_BYTES_MAX,
    PRIORITY_MAX,
    SEMAPHORE_PERMITS_MAX,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
)
from dss.base.names import has_dot_segment

_TTL_S_MIN: Final = SESSION_TTL_MS_MIN / 1_000
_TTL_S_MAX: Final = SESSION_TTL_MS_MAX / 1_000


def check_name(name: str) -> None:
    """1 to 256 bytes of UTF-8, no `.`, `..` or empty part between slashes."""
    if not isinstance(name, str):
        raise Invalid(f"a lock's name is a str, not {type(name).__name__}: {name!r:.60}")
    try:
        size = len(name) if name.isascii() else len(name.encode())
    except UnicodeEncodeError:
        raise Invalid(f"a lock's name is text that UTF-8 can carry, not {name!r:.60}") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise Invalid(f"a lock's name has 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {size}")
    if has_dot_segment(name):
        raise Invalid(
            f"a lock's name has no empty, '.' or '..' part between slashes, as {name!r:.60} has"
        )


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Of several locks."""
    if isinstance(names, str):
        raise Invalid(f"locks takes a list of names, not one str: [{names!r:.60}]")
    for name in names:
        check_name(name)
    if len(names) == 1:
        return tuple(names)
    if not 1 <= len(names) <= LOCKS_TOGETHER_MAX:
        raise Invalid(f"1 to {LOCKS_TOGETHER_MAX} locks are taken at once, not {len(names)}")
    twice = {name for name in names if list(names).count(name) > 1}
    if twice:
        raise Invalid(f"a lock is named twice: {min(twice)!r:.60}")
    return tuple(names)


def check_ttl(ttl: float) -> int:
    """In ms."""
    if not _TTL_S_MIN <= _number("ttl", ttl) <= _TTL_S_MAX:
        raise Invalid(f"ttl is {_TTL_S_MIN:g} to {_TTL_S_MAX:g} seconds, not {ttl:g}")
    return round(ttl * 1_000)


def check_wait(wait: float | None) -> float:
    """In seconds; without an end: infinite."""
    if wait is None:
        return float("inf")
    if not _number("wait", wait) >= 0:
        raise Invalid(f"wait is a number of seconds from 0 on, or None for ever; not {wait:g}")
    return wait


def check_priority(priority: int) -> int:
    """As an int: other kinds of numbers cannot be sent."""
    if not 0 <= _number("priority", priority) <= PRIORITY_MAX:
        raise Invalid(f"priority is 0 to {PRIORITY_MAX}, not {priority}")
    return _whole("priority", priority)


def check_permits(permits: int, limit: int) -> tuple[int, int]:
    """Both as ints."""
    if not 1 <= _number("limit", limit) <= SEMAPHORE_PERMITS_MAX:
        raise Invalid(f"limit is 1 to {SEMAPHORE_PERMITS_MAX}, not {limit}")
    if not 1 <= _number("permits", permits) <= limit:
        raise Invalid(f"permits is 1 to the limit of {limit}, not {permits}")
    return _whole("permits", permits), _whole("limit", limit)


def check_owner(owner: str) -> str:
    """Up to 128 characters; "": the handle is an owner of its own."""
    if not isinstance(owner, str):
        raise Invalid(f"owner is a str, not {type(owner).__name__}: {owner!r:.60}")
    if len(owner) > LABEL_CHARS_MAX:
        raise Invalid(f"owner has at most {LABEL_CHARS_MAX} characters, not {len(owner)}")
    if not owner.isascii():
        try:
            owner.encode()
        except UnicodeEncodeError:
            raise Invalid(f"owner is text that UTF-8 can carry, not {owner!r:.60}") from None
    return owner


def _whole(what: str, value: float) -> int:
    if value != int(value):
        raise Invalid(f"{what} is a whole number, not {value}")
    return int(value)


def _number(what: str, value: float) -> float:
    kind = type(value)
    if kind is float or kind is int:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid(f"{what} is a number, not {type(value).__name__}: {value!r:.60}")
    return value
