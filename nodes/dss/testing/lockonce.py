"""The one true answer of every numbered and keyed command, as the log gives it.

An own account of docs/locks.md § Once: what is carried out, what only answered again, and what an
answer must be. Shares no code with the machine. What must not live here: what commands do.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.core.machine import Result
from dss.testing.lockaccount import Wait

KEY_MS: Final = 600_000
"""A key is kept for 10 minutes of log time."""
WINDOW: Final = 1_024
TRY_LATER: Final = (429, 503)
"""Nothing was done; such an answer is not kept."""

Name = tuple[str, int | str]
"""(session, number), or ("", key)."""


class _Key(msgspec.Struct):
    digest: bytes
    until_ms: int


class OnceAccount:
    """See the module.

    Attributes:
        final: the answer of every command that has one, for ever.
        replays: how many were answered again instead of carried out.
    """

    def __init__(self) -> None:
        self.final: dict[Name, Result] = {}
        self.replays = 0
        self._waiting: dict[Name, Wait] = {}
        self._keys: dict[str, _Key] = {}
        self._floors: dict[str, int] = {}
        self._known: dict[str, dict[int, None]] = {}

    def begin(self, name: Name, digest: bytes, ack: int, now_ms: int) -> Result | Wait | None:
        """What a command that names itself so must come to: this answer, or this wait, which it
        joins. None: it is carried out now."""
        refused = self._key(name[1], digest, now_ms) if not name[0] else self._number(name, ack)
        if refused is not None:
            return refused
        wait = self._waiting.get(name)
        if wait is None and name not in self.final:
            return None
        self.replays += 1
        return wait if wait is not None else self.final[name]

    def _key(self, key: Any, digest: bytes, now_ms: int) -> Result | None:
        for old in [each for each, entry in self._keys.items() if entry.until_ms <= now_ms]:
            del self._keys[old]
            self.final.pop(("", old), None)
            self._waiting.pop(("", old), None)
        known = self._keys.setdefault(key, _Key(digest, now_ms + KEY_MS))
        if known.digest != digest:
            return 422, {"code": "idempotency_key_reused"}
        return None

    def _number(self, name: Name, ack: int) -> Result | None:
        session, number = name
        assert isinstance(number, int)
        floor = self._floors[session] = max(ack, self._floors.get(session, 0))
        known = self._known.setdefault(session, {})
        for old in [each for each in known if each <= floor]:
            del known[old]
        if number in known:
            return None
        if number <= floor:
            return 409, {"code": "sequence_too_old"}
        if number > floor + WINDOW:
            return 429, {"code": "overloaded"}
        assert name not in self.final, f"{name} would be carried out a second time"
        known[number] = None
        return None

    def answered(self, name: Name, result: Result) -> None:
        """It was carried out at once, with this answer."""
        if result[0] in TRY_LATER:
            self.forget(name)
        else:
            earlier = self.final.setdefault(name, result)
            assert earlier == result, f"{name} was answered {earlier}, and now {result}"

    def waits(self, name: Name, wait: Wait) -> None:
        self._waiting[name] = wait

    def woken(self, wait: Wait, result: Result) -> None:
        """A wait is over, or goes on under another name; whoever named it has its answer."""
        for name in names_of(wait):
            if self._waiting.pop(name, None) is not None:
                self.answered(name, result)

    def forget(self, name: Name) -> None:
        """It may come again, and is then carried out."""
        self._waiting.pop(name, None)
        if not name[0]:
            self._keys.pop(str(name[1]), None)
        elif isinstance(name[1], int):
            self._known.get(name[0], {}).pop(name[1], None)

    def ended(self, session: str) -> None:
        """The session is gone; its answers stay what they were."""
        self._floors.pop(session, None)
        self._known.pop(session, None)


def names_of(wait: Wait) -> list[Name]:
    """By what its last question may be repeated."""
    names: list[Name] = []
    if wait.seq:
        names.append((wait.who[0], wait.seq))
    if wait.key:
        names.append(("", wait.key))
    return names
