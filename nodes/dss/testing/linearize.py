"""Is a history linearizable? Wing and Gong's search with Lowe's cache, as in Porcupine.

A history is a list of operations with the times of their call and return. It is linearizable when
every operation can be given one moment between the two such that, in the order of these moments,
each gives the answer that the specification gives. Operations whose outcome nobody knows
(`returned` is infinite) may have happened at any moment after their call, or never.

Partition first: a history of independent objects is linearizable when each object's is.
What must not live here: what an answer should be (a Specification).
Source: Wing & Gong 1993; Lowe 2017 ("Testing for linearizability"); Horn & Kroening 2015;
Athalye's Porcupine for the list that operations are lifted out of.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Final, Protocol

import msgspec

STEPS_MAX: Final = 500_000
"""Attempts to take an operation before the search gives up: "unknown", which counts as failure."""


class Operation(msgspec.Struct, frozen=True):
    """`what` is the specification's own. `returned` is infinite when the outcome is unknown."""

    called: float
    returned: float
    what: Any

    @property
    def optional(self) -> bool:
        return math.isinf(self.returned)


class Specification(Protocol):
    """A sequential object."""

    def initial(self) -> Hashable: ...

    def step(self, state: Any, what: Any) -> Hashable | None:
        """The state after `what` with its answer; None: it cannot have that answer here."""


class Unknown(Exception):
    """The search gave up."""


class _Event:
    """A call or a return in the list; lifted out and put back as the search goes."""

    __slots__ = ("match", "next", "number", "previous")

    def __init__(self, number: int) -> None:
        self.number = number
        self.match: _Event | None = None  # a call's return
        self.previous: _Event | None = None
        self.next: _Event | None = None

    def lift(self) -> None:
        for event in (self, self.match):
            if event is not None:
                assert event.previous is not None
                event.previous.next = event.next
                if event.next is not None:
                    event.next.previous = event.previous

    def unlift(self) -> None:
        for event in (self.match, self):
            if event is not None:
                assert event.previous is not None
                event.previous.next = event
                if event.next is not None:
                    event.next.previous = event


def _events(history: Sequence[Operation]) -> tuple[_Event, dict[int, _Event]]:
    """(the head of the list, return events by id()). A call sorts before a return at its time."""
    points: list[tuple[float, int, _Event]] = []
    returns: dict[int, _Event] = {}
    for number, operation in enumerate(history):
        assert operation.called <= operation.returned, operation
        call = _Event(number)
        points.append((operation.called, 0, call))
        if not operation.optional:
            call.match = _Event(number)
            returns[id(call.match)] = call.match
            points.append((operation.returned, 1, call.match))
    points.sort(key=lambda point: point[:2])
    head = last = _Event(-1)
    for _, _, event in points:
        last.next, event.previous = event, last
        last = event
    return head, returns


def is_linearizable(
    specification: Specification, history: Sequence[Operation], *, steps_max: int = STEPS_MAX
) -> bool:
    """See the module.

    Raises:
        Unknown: no answer after `steps_max` attempts.
    """
    head, returns = _events(history)
    left = len(returns)
    state: Hashable = specification.initial()
    taken = 0
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[_Event, Hashable]] = []
    event = head.next
    steps = 0
    while left:
        if event is not None and id(event) not in returns:
            steps += 1
            if steps > steps_max:
                raise Unknown(f"no verdict over {len(history)} operations in {steps_max} steps")
            after = specification.step(state, history[event.number].what)
            if after is not None:
                mark = (taken | 1 << event.number, after)
                if mark not in seen:
                    seen.add(mark)
                    stack.append((event, state))
                    taken, state = mark
                    left -= event.match is not None
                    event.lift()
                    event = head.next
                    continue
            event = event.next
            continue
        # A return whose call was not taken, or only optional calls are left: go back.
        if not stack:
            return False
        event, state = stack.pop()
        taken &= ~(1 << event.number)
        left += event.match is not None
        event.unlift()
        event = event.next
    return True
