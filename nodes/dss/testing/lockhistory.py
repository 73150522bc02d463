"""What clients asked and heard, lock by lock, completed from the log, for linearize.py.

What became of a request whose answer was lost is looked up in the log: each such request would
else double the search. A named command (lockonce.py) is one operation however often it was
repeated, from its first call to the first time that anybody heard its answer.
What must not live here: what answers are allowed (lockspec.py).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.core.locks.commands import (
    Acquire,
    AcquireMany,
    Downgrade,
    GetLock,
    Release,
    Upgrade,
    VerifyToken,
)
from dss.testing import lockspec as spec
from dss.testing.linearize import Operation
from dss.testing.lockasking import Effect
from dss.testing.lockonce import Name

MOMENT_MS: Final = 1e-4
"""What the log does at one moment lasts so long here: any answer takes longer."""
APART_MS: Final = 1e-9
"""Ends of sessions at one moment follow each other in the log's order: were they twenty instants of
the same time, the search would try them in every order."""
REFUSALS = (spec.BUSY, spec.NOT_HOLDER, spec.EXPIRED)


class _Named(msgspec.Struct):
    """`answer` is None until somebody heard it."""

    effects: list[Effect]
    called: float
    returned: float = 0.0
    answer: tuple[int, Any] | None = None


class History:
    """Operations by lock."""

    def __init__(self, *, lines: bool) -> None:
        self.locks: dict[str, list[Operation]] = {}
        self._lines = lines
        self._used: dict[str, dict[str, None]] = {}  # session -> locks
        self._ends: dict[str, float] = {}
        self._last_end = 0.0
        self._done: dict[Effect, list[tuple[float, int]]] = {}  # (when first seen, token)
        self._heard: dict[Effect, list[tuple[float, float, int]]] = {}  # asked, answered, token
        self._unheard: dict[Effect, None] = {}  # of requests whose answer was lost
        self._named: dict[Name, _Named] = {}

    # --- what the log did ---

    def done(self, now: float, effect: Effect, token: int) -> None:
        self._done.setdefault(effect, []).append((now, token))

    def ended(self, now: float, session: str) -> None:
        self._last_end = max(now, self._last_end + APART_MS)
        self._ends[session] = self._last_end

    def lost(self, now: float, lock: str, what: spec.LossOp) -> None:
        self._note(lock, now, now + MOMENT_MS, what)

    # --- what clients asked ---

    def asked(self, command: Any) -> None:
        """Before anything can come of it."""
        for effect in effects_of(command, None):
            self._used.setdefault(effect.session, {})[effect.lock] = None

    def heard(
        self, command: Any, name: Name | None, called: float, returned: float, answer: Any
    ) -> None:
        """An answer, or 504: it never came."""
        status, body = answer
        if isinstance(command, GetLock | VerifyToken):
            if status == 200:
                self._note(command.name, called, returned, _seen(command, body))
            return
        effects = effects_of(command, name)
        code = "" if status < 300 or status == 504 else body["code"]
        if name is not None and effects:
            known = self._named.setdefault(name, _Named(effects, called))
            if (status == 200 or code in (spec.BUSY, spec.NOT_HOLDER)) and known.answer is None:
                known.returned, known.answer = returned, answer
            elif code == spec.EXPIRED:
                self._refused(effects, called, returned, code)
            return
        if status == 200:
            for effect in effects:
                token = _token(effect, body)
                self._heard.setdefault(effect, []).append((called, returned, token))
                self._note(effect.lock, called, returned, self._operation(effect, token))
        elif status == 504:
            for effect in effects:
                self._unheard[effect] = None
        elif code in REFUSALS:
            self._refused(effects, called, returned, code)

    def complete(self) -> None:
        """The ends of sessions, and requests without an answer: each at the moment at which a
        node first carried it out. If the nodes are right, these moments are in the log's order,
        and lie between anybody's question and its answer."""
        for session, now in self._ends.items():
            for lock in self._used.get(session, {}):
                self._note(lock, now, now, spec.EndOp(session))
        for named in self._named.values():
            self._complete(named)
        for effect in self._unheard:
            left = list(self._done.get(effect, []))
            for called, returned, token in self._heard.get(effect, []):
                # Those that do the same follow each other, so this is the one that was answered.
                alike = [each for each in left if called <= each[0] <= returned]
                left.remove(next((each for each in alike if each[1] == token), alike[0]))
            for when, token in left:
                what = self._operation(effect, token)
                self._note(effect.lock, when, when + MOMENT_MS, what)

    def _complete(self, named: _Named) -> None:
        if named.answer is not None:
            status, body = named.answer
            if status != 200:
                self._refused(named.effects, named.called, named.returned, body["code"])
                return
            for effect in named.effects:
                what = self._operation(effect, _token(effect, body))
                self._note(effect.lock, named.called, named.returned, what)
            return
        for effect in named.effects:
            for when, token in self._done.get(effect, []):
                what = self._operation(effect, token)
                self._note(effect.lock, when, when + MOMENT_MS, what)

    # --- operations ---

    def _note(self, lock: str, called: float, returned: float, what: spec.What) -> None:
        self.locks.setdefault(lock, []).append(Operation(called, returned, what))

    def _operation(self, effect: Effect, token: int) -> spec.What:
        """It was done; `token` is 0 when nobody heard of it."""
        _, _, session, owner, mode, permits, limit, named, _ = effect
        if effect.kind == "acquire":
            return spec.AcquireOp(session, owner, mode, spec.GRANTED, token, permits, limit)
        if effect.kind == "upgrade":
            return spec.UpgradeOp(session, owner, named, spec.DONE, token)
        if effect.kind == "downgrade":
            return spec.DowngradeOp(session, owner, named, spec.DONE)
        return spec.ReleaseOp(session, owner, named, spec.DONE)

    def _refused(self, effects: list[Effect], called: float, returned: float, code: str) -> None:
        if code == spec.BUSY and len(effects) > 1:
            return  # one of them was busy, and only the log knows which
        for effect in effects:
            what = self._refusal(effect, code)
            self._note(effect.lock, called, returned, what)

    def _refusal(self, effect: Effect, code: str) -> spec.What:
        _, _, session, owner, mode, permits, limit, named, _ = effect
        if effect.kind == "acquire":
            return spec.AcquireOp(session, owner, mode, code, 0, permits, limit, self._lines)
        if effect.kind == "upgrade":
            return spec.UpgradeOp(session, owner, named, code)
        if effect.kind == "downgrade":
            return spec.DowngradeOp(session, owner, named, code)
        return spec.ReleaseOp(session, owner, named, code)


def effects_of(command: Any, name: Name | None) -> list[Effect]:
    """What it does to which lock, if it is carried out."""
    if not isinstance(command, Acquire | AcquireMany | Release | Upgrade | Downgrade):
        return []
    who = (command.session, command.owner or command.session)
    name_of = (name,) if name is not None else ()
    if isinstance(command, AcquireMany):
        return [Effect("acquire", n, *who, "exclusive", name_of=name_of) for n in command.locks]
    if isinstance(command, Acquire):
        mode, permits, limit = command.mode, command.permits, command.limit
        return [Effect("acquire", command.name, *who, mode, permits, limit, 0, name_of)]
    kind = type(command).__name__.lower()
    return [Effect(kind, command.name, *who, token=command.token, name_of=name_of)]


def _token(effect: Effect, body: Any) -> int:
    """The hold's token by this answer."""
    for each in body.get("locks", ()):
        if each["name"] == effect.lock:
            return int(each["token"])
    return int(body.get("token", 0))


def _seen(command: GetLock | VerifyToken, body: Any) -> spec.What:
    if isinstance(command, VerifyToken):
        return spec.VerifyOp(command.token, body["valid"])
    return spec.read_op(body)
