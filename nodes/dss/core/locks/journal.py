"""What happened to locks lately: the source of events and pushes on every node.

Events are numbered: the same number is the same event on every node, for ever. A node remembers
those that it applied since it started, or since it took over a snapshot, up to EVENTS_MAX. What
must not live here: subscribers (drivers/lock_events.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from dss.base.limits import EVENTS_MAX
from dss.core.locks.history import Hold

WAITING: Final = "waiting"
GAVE_UP: Final = "gave_up"
"""A wait ended without a grant."""
LAPSED: Final = "lapsed"
"""A place in line that was kept is given up."""
NOT_ASKED_AGAIN: Final = "not_asked_again"

WaitEvent = tuple[str, str, str, str, str, str, int]
"""(WAITING, GAVE_UP or LAPSED, lock name, session id, session name, owner, mode or code, log_ms)"""
Happening = Hold | tuple[Hold] | WaitEvent
"""A hold: its grant. A hold in a tuple: its end."""
Loss = tuple[str, str, int, str, str]
"""(session id, lock name, token, owner, why); without a name, the session itself."""


class Journal:
    """Attributes:
    note: `note(happening)` appends; the list's own method, since it runs for every grant.
    """

    def __init__(self) -> None:
        self._events: list[Happening] = []
        self._before = 0
        self._losses: deque[Loss] = deque(maxlen=EVENTS_MAX)
        self.note: Callable[[Happening], None] = self._events.append
        self.jumps = 0
        """How often the state was replaced: what was lost meanwhile nobody can list."""

    @property
    def newest(self) -> int:
        """The number of the last event; 0: none yet."""
        return self._before + len(self._events)

    @property
    def oldest(self) -> int:
        """The number of the first event that is remembered here."""
        return self._before + 1

    def since(self, number: int, count: int) -> Sequence[Happening]:
        """Up to `count` events after `number`, which must be `oldest - 1` or later."""
        start = number - self._before
        assert start >= 0, (number, self._before)
        return self._events[start : start + count]

    def trim(self) -> None:
        """Forget the oldest; cheap because it is rare."""
        surplus = len(self._events) - EVENTS_MAX
        if surplus > EVENTS_MAX:
            del self._events[:surplus]
            self._before += surplus

    def lost(self, loss: Loss) -> None:
        """A session ended, or a hold ended without its owner's release."""
        self._losses.append(loss)

    def take_losses(self) -> list[Loss]:
        """Oldest first; empties the list."""
        losses = list(self._losses)
        self._losses.clear()
        return losses

    def jump(self, newest: int) -> None:
        """The state was replaced: nothing is known here of events up to `newest`."""
        self._events.clear()
        self._losses.clear()
        self._before = newest
        self.jumps += 1
