"""Requests that wait inside a group's machine, and where their answers go in this process.

A wait is named by its place: the log entry that it began with, and its position in that. Every
node of a group applies the whole log, so each can answer the waits of its own clients, whoever
leads by then: the leader tells a node that has forwarded a request where it stands. What must not
live here: forwarding (forwarding.py), when waits are given up (applying.py).
"""

from __future__ import annotations

from typing import Final

from dss.core.machine import Wake
from dss.drivers.ports import Sink

Place = tuple[int, int]
"""(entry index, position in it)"""

UNCLAIMED_MAX: Final = 1_024
"""Answers kept for waits that nobody here has asked about yet: a wait may end before this node
has been told that it is one of its own. More than a node applies within a message's way."""


class Relay:
    """A sink that passes answers on to another node; it tells that node the places of waits."""

    __slots__ = ()

    def placed(self, request_id: int, place: Place) -> None:
        raise NotImplementedError


class Waits:
    """Those of one group."""

    __slots__ = ("_open", "_unclaimed")

    def __init__(self) -> None:
        self._open: dict[Place, tuple[Sink, int]] = {}
        self._unclaimed: dict[Place, Wake] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, place: Place, sink: Sink, request_id: int) -> None:
        """The command at `place`, proposed here, waits."""
        self._open[place] = (sink, request_id)
        if isinstance(sink, Relay):
            sink.placed(request_id, place)

    def adopt(self, place: Place, sink: Sink, request_id: int) -> None:
        """As `add`, on word of the leader; answered at once when it has ended already."""
        self.add(place, sink, request_id)
        wake = self._unclaimed.pop(place, None)
        if wake is not None:
            self.woken(wake)
            sink.answer(request_id, wake.status, wake.body)

    def woken(self, wake: Wake) -> tuple[Sink, int] | None:
        """Who waited for it; None: nobody here."""
        place = (wake.index, wake.position)
        waiting = self._open.pop(place, None)
        if waiting is None:
            unclaimed = self._unclaimed
            unclaimed[place] = wake
            if len(unclaimed) > UNCLAIMED_MAX:
                del unclaimed[next(iter(unclaimed))]
        return waiting

    def claim(self, place: Place) -> bool:
        """Its answer comes another way. False: it was answered already."""
        return self._open.pop(place, None) is not None

    def here(self) -> list[Place]:
        """The waits of this node's own clients."""
        return [place for place, (sink, _) in self._open.items() if not isinstance(sink, Relay)]

    def take_all(self) -> list[tuple[Sink, int]]:
        """Empties it."""
        waiting = list(self._open.values())
        self._open.clear()
        return waiting
