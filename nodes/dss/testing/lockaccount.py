"""Who holds and who waits, kept as naively as possible: lists, everything scanned.

The rules of docs/locks.md once more, for lockrules.py: what fits beside what, whose turn it is, who
is stuck. Shares no code with the machine. What must not live here: commands and answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

Who = tuple[str, str]
"""(session, owner)."""

PRIORITY_LEVEL_MS: Final = 1_000
"""A level of priority counts as having come so much earlier (docs/locks.md § Waiting)."""

Node = int | Who
"""Of the wait-for graph: a wait by its number, or whoever waits."""


class Hold(msgspec.Struct, eq=False):
    """`confirm_by_ms` not 0: the grant passes on then, unless it was confirmed."""

    token: int
    mode: str
    permits: int = 1
    limit: int = 0
    confirm_by_ms: int = 0
    count: int = 1


class Wait(msgspec.Struct, eq=False):
    """`number`: the order in which waits began; `at`: (index, position) of its last question."""

    number: int
    names: tuple[str, ...]
    who: Who
    kind: str
    mode: str
    permits: int
    limit: int
    priority: int
    since_ms: int
    deadline_ms: int
    joined_ms: int
    confirm_ms: int
    at: tuple[int, int]
    seq: int = 0
    key: str = ""
    also: list[tuple[int, int]] = []
    """Earlier questions of the same name that wait with it."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Upgrades first, then by age and priority, then by number."""
        upgrade = self.kind == "upgrade"
        early_ms = 0 if upgrade else self.since_ms - PRIORITY_LEVEL_MS * self.priority
        return (not upgrade, early_ms, self.number)


class Lock(msgspec.Struct, eq=False):
    """One lock: its holders, and those who wait for it in no order."""

    holders: dict[Who, Hold] = {}
    waits: list[Wait] = []

    @property
    def line(self) -> list[Wait]:
        return sorted(self.waits, key=_place)

    @property
    def first(self) -> Wait:
        return min(self.waits, key=_place)


def _place(wait: Wait) -> tuple[int, int, int]:
    return wait.place


def conflicts(holders: dict[Who, Hold], who: Who, hold: Hold) -> list[Who]:
    """Whose holds `hold` cannot stand beside. For a semaphore: all of them, if it is too much."""
    others = {each: held for each, held in holders.items() if each != who}
    if hold.mode == "exclusive":
        return list(others)
    if hold.mode == "shared":
        return [each for each, held in others.items() if held.mode != "shared"]
    strangers = [
        each
        for each, held in others.items()
        if (held.mode, held.limit) != ("semaphore", hold.limit)
    ]
    used = sum(held.permits for held in others.values())
    return list(others) if used + hold.permits > hold.limit else strangers


def wanted(wait: Wait, token: int = 0, confirm_by_ms: int = 0) -> Hold:
    """The hold that it waits for."""
    return Hold(token, wait.mode, wait.permits, wait.limit, confirm_by_ms)


class Account:
    """All locks that anybody holds or waits for."""

    def __init__(self) -> None:
        self.locks: dict[str, Lock] = {}
        self.waits: dict[tuple[int, int], Wait] = {}

    def lock(self, name: str) -> Lock:
        lock = self.locks.get(name)
        if lock is None:
            lock = self.locks[name] = Lock({}, [])
        return lock

    def hold(self, name: str, who: Who) -> Hold | None:
        lock = self.locks.get(name)
        return lock.holders.get(who) if lock is not None else None

    def enter(self, wait: Wait) -> None:
        self.waits[wait.at] = wait
        for name in wait.names:
            self.lock(name).waits.append(wait)

    def leave(self, wait: Wait) -> None:
        del self.waits[wait.at]
        for name in wait.names:
            self.locks[name].waits.remove(wait)

    def move(self, wait: Wait, at: tuple[int, int]) -> None:
        """A newer question takes it over."""
        del self.waits[wait.at]
        wait.at = at
        self.waits[at] = wait

    def joined_at(self, at: tuple[int, int]) -> Wait | None:
        """The wait that this question joined, or began."""
        found = self.waits.get(at)
        if found is not None:
            return found
        return next((wait for wait in self.waits.values() if at in wait.also), None)

    def waits_of(self, who: Who, names: Iterable[str]) -> list[Wait]:
        """In the order of the names, each once."""
        found = {
            id(wait): wait
            for name in names
            if name in self.locks
            for wait in self.locks[name].waits
            if wait.who == who
        }
        return list(found.values())

    def ahead(self, wait: Wait) -> list[Wait]:
        """Those before it, in all of its lines."""
        return [
            each
            for name in wait.names
            if name in self.locks
            for each in self.locks[name].waits
            if each is not wait and each.place < wait.place
        ]

    def ready(self, wait: Wait) -> bool:
        """Whether it could have what it waits for."""
        for name in wait.names:
            lock = self.locks[name]
            own = lock.holders.get(wait.who)
            if lock.first is not wait or conflicts(lock.holders, wait.who, wanted(wait)):
                return False
            if wait.kind == "many" and own is not None and own.mode != "exclusive":
                return False
        return True

    # --- deadlocks ---

    def blockers(self, wait: Wait) -> tuple[list[Node], list[Hold], int]:
        """What must move before it can: all of these nodes; and of a semaphore's holders, any
        that give so many permits back (the holders' nodes stand at the end, in their order)."""
        nodes: list[Node] = []
        shares: dict[Who, Hold] = {}
        missing = 0
        for name in wait.names:
            lock = self.locks[name]
            line = lock.line
            at = next(i for i, each in enumerate(line) if each is wait)
            if at:
                before = line[at - 1]
                together = before.mode == wait.mode and (
                    wait.mode == "shared"
                    or (wait.mode == "semaphore" and before.limit == wait.limit)
                )
                nodes.append(before.number)
                if not together:
                    nodes.append(before.who)
                continue
            for who in conflicts(lock.holders, wait.who, wanted(wait)):
                held = lock.holders[who]
                if wait.mode == held.mode == "semaphore" and held.limit == wait.limit:
                    shares[who] = held
                else:
                    nodes.append(who)
            own = lock.holders.get(wait.who)
            if own is not None and (
                wait.kind == "one" or (wait.kind == "many" and own.mode != "exclusive")
            ):
                nodes.append(wait.who)
            if shares:
                used = sum(held.permits for held in shares.values())
                missing = used + wait.permits - wait.limit
        return [*nodes, *shares], list(shares.values()), missing

    def stuck(self) -> list[Wait]:
        """The waits on cycles: everything less what can move, until nothing more can."""
        edges: dict[Node, list[Node]] = {}
        shares: dict[Node, tuple[list[Hold], int]] = {}
        for wait in self.waits.values():
            nodes, holds, missing = self.blockers(wait)
            edges[wait.number] = nodes
            edges.setdefault(wait.who, []).append(wait.number)
            if holds:
                shares[wait.number] = (holds, missing)
        left = dict.fromkeys(edges)
        while moving := [node for node in left if _moves(edges[node], shares.get(node), left)]:
            for node in moving:
                del left[node]
        return [
            wait
            for wait in self.waits.values()
            if wait.number in left and _reaches(wait.number, edges, left)
        ]


def _moves(
    after: list[Node], shares: tuple[list[Hold], int] | None, left: dict[Node, None]
) -> bool:
    if shares is None:
        return not any(node in left for node in after)
    holds, missing = shares
    sure, holders = after[: -len(holds)], after[-len(holds) :]
    if any(node in left for node in sure):
        return False
    back = [held for node, held in zip(holders, holds, strict=True) if node not in left]
    return sum(held.permits for held in back) >= missing


def _reaches(start: Node, edges: dict[Node, list[Node]], left: dict[Node, None]) -> bool:
    """Whether it is on a cycle of what is left."""
    seen: dict[Node, None] = {}
    todo = [start]
    while todo:
        for node in edges[todo.pop()]:
            if node == start:
                return True
            if node in left and node not in seen:
                seen[node] = None
                todo.append(node)
    return False
