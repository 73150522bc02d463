"""Who holds: a lock's holder is `(session, owner)`, and the servers see deadlocks between owners.

What a task enters (`async with`) is held by one owner, the task's: so a deadlock over what it
holds and what it waits for is found. What it takes by `acquire` may be given back by any other
task, so each such hold is an owner of its own. Two handles exclude each other either way: an owner
that has or wants a lock already never asks for it twice. What must not live here: requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dss.base.handles import handle_of, shown_owner
from dss.client.errors import DeadlockError

if TYPE_CHECKING:
    from dss.client.held import Held
    from dss.client.waits import Want


class Owners:
    """The owners of one client. A doer is a task, or in `dss.client.sync` a thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._of_doer: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self._taken: dict[tuple[str, str], Held | None] = {}
        """(owner of a doer, lock) -> what it holds there; None while that is open."""

    def pick(self, doer: object, want: Want, before: str) -> str:
        """The doer's own; without one `before`; a new one where that has or wants the lock.

        Args:
            doer: None: whoever gives it back.
            before: what the handle was refused as: a deadlock's victim has its old place.

        Raises:
            DeadlockError: the doer would wait for itself.
        """
        owner = before if doer is None else self._of(doer)
        keys = [(owner, name) for name in want.names]
        if not owner or not self._taken.keys().isdisjoint(keys):
            if doer is not None:
                for key in keys:
                    _refuse_own(self._taken.get(key), want)
            return str(next(self._numbers))
        self._taken.update(dict.fromkeys(keys))
        return owner

    def _of(self, doer: object) -> str:
        owner = self._of_doer.get(doer)
        if owner is None:
            owner = self._of_doer[doer] = str(next(self._numbers))
        return owner

    def holds(self, held: Held) -> None:
        """It was granted."""
        for name in held.tokens:
            if (held.owner, name) in self._taken:
                self._taken[held.owner, name] = held

    def free(self, owner: str, names: Iterable[str]) -> None:
        """Neither held nor wanted any more, for certain."""
        for name in names:
            self._taken.pop((owner, name), None)


def _refuse_own(held: Held | None, want: Want) -> None:
    """Only a hold that is surely there, and excludes what is wanted, is waited for in vain."""
    if held is None or not held.is_safe or not want.wait_s:
        return
    if held.mode == want.mode != "exclusive":
        return
    session = held.session.id
    raise DeadlockError(
        "deadlock",
        f'lock "{held.name}": this task holds it already ({held.mode}, token {held.token}) and '
        "would wait for itself: release it first, or give both the same session= and owner= to "
        "hold it twice",
        cycle=[
            {
                "session": handle_of(session),
                "owner": shown_owner(session, held.owner),
                "label": "this task",
                "name": held.name,
            }
        ],
    )
