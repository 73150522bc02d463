"""The wait-for graph: who is stuck because of whom, looked up in the state, never stored.

Nodes are waits (tickets) and agents (session, owner); an edge leads to what must move first.

* An agent that waits is stuck with each of its waits.
* The first in a line waits for the agents that hold the lock, unless it fits beside them. For
  another share of a semaphore it takes only enough of them to give their permits back.
* Everybody else in a line waits for the one before: for its grant and, unless both fit together,
  for its agent.

So a deadlock is a cycle, but a semaphore's waiter is stuck only when all holders that could help
are. Only edges into the line's first place are looked at from there: whoever is further back is
looked at again when it gets there. Source: Holt 1972 (general resource systems), Knapp 1987.

What must not live here: changing anything; when to look (lines.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from dss.base.limits import DEADLOCK_EDGES_MAX
from dss.core.locks.history import Hold
from dss.core.locks.places import Waiter, place_in
from dss.core.locks.state import Lock, LockState, Session, joins

HOLDS_PER_EDGE: Final = 8
"""So many holds are looked through in the time of one edge."""

Agent = tuple[str, str]
Node = int | Agent
"""A wait's ticket, or an agent."""


class Blockers:
    """What one wait waits for.

    Attributes:
        nodes: each of them must move.
        holders, missing: of a semaphore: these holders must give back `missing` permits.
    """

    __slots__ = ("holders", "missing", "nodes")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.holders: list[Hold] = []
        self.missing = 0


def blockers(state: LockState, waiter: Waiter) -> Blockers:
    """The edges out of one wait."""
    found = Blockers()
    for name in waiter.names:
        lock = state._locks[name]
        line = lock.waiters
        assert line is not None
        if line[0] is waiter:
            _of_holders(lock, waiter, found)
            continue
        before = line[place_in(line, waiter) - 1]
        found.nodes.append(before.ticket)
        if not _together(before, waiter):
            found.nodes.append((before.session, before.owner))
    return found


def _of_holders(lock: Lock, waiter: Waiter, found: Blockers) -> None:
    if not lock.holders or joins(lock, waiter.mode, waiter.permits, waiter.limit):
        return
    me = (waiter.session, waiter.owner)
    if waiter.mode == lock.mode == "semaphore" and waiter.limit == lock.limit:
        found.holders = list(lock.holders.values())
        found.missing = lock.used + waiter.permits - lock.limit
    elif waiter.kind == "upgrade" or (waiter.kind == "many" and lock.mode == "exclusive"):
        found.nodes += [agent for agent in lock.holders if agent != me]
    else:
        found.nodes += lock.holders


def _together(one: Waiter, other: Waiter) -> bool:
    """Whether the two modes can be held at once, permits allowing."""
    return one.mode == other.mode and (
        one.mode == "shared" or (one.mode == "semaphore" and one.limit == other.limit)
    )


class Deadlock:
    """The stuck part of the graph around one wait."""

    def __init__(self, edges: dict[Node, list[Node]], members: dict[Node, None]) -> None:
        self._edges = edges
        self._members = members

    @property
    def tickets(self) -> Iterable[int]:
        """The waits on its cycles."""
        return (node for node in self._members if isinstance(node, int))

    def cycle(self, ticket: int) -> list[int]:
        """The waits of a shortest cycle through one of them, it first."""
        came_from: dict[Node, Node] = {}
        queue: deque[Node] = deque([ticket])
        while queue:
            node = queue.popleft()
            for after in self._edges[node]:
                if after in self._members and after not in came_from:
                    came_from[after] = node
                    queue.append(after)
        path = [ticket]
        node = came_from[ticket]
        while node != ticket:
            if isinstance(node, int):
                path.append(node)
            node = came_from[node]
        return [path[0], *reversed(path[1:])]


def find_deadlock(state: LockState, waiter: Waiter, budget: int) -> tuple[Deadlock | None, int]:
    """What this wait is stuck in, if anything, and how many edges were looked at.

    Args:
        budget: look at so many edges, DEADLOCK_EDGES_MAX at most; beyond, it counts as not stuck.
    """
    looked = cost_of_asking(state._sessions[waiter.session])
    if not is_waited_for(state, waiter):
        return None, looked
    start: Node = waiter.ticket
    edges: dict[Node, list[Node]] = {}
    choices: dict[Node, Blockers] = {}
    queue = deque([start])
    most = min(budget, DEADLOCK_EDGES_MAX)
    closed = False
    while queue:
        node = queue.popleft()
        if node in edges:
            continue
        if isinstance(node, int) and holders_before(state, state._waiters[node]) > most - looked:
            return None, looked
        after = edges[node] = _edges_of(state, node, choices)
        looked += 1 + len(after)
        if looked > most:
            return None, looked
        closed = closed or start in after
        queue.extend(after)
    if not closed:
        return None, looked
    stuck = _stuck(edges, choices) if choices else set(edges)
    if start not in stuck:
        return None, looked
    members = _around(start, edges, stuck)
    return (Deadlock(edges, members) if members else None), looked


def cost_of_asking(session: Session) -> int:
    """What `is_waited_for` costs, in edges looked at."""
    return 1 + len(session.holds) // HOLDS_PER_EDGE


def holders_before(state: LockState, waiter: Waiter) -> int:
    """How many edges lead from it to holders: counted before they are listed."""
    locks = [state._locks[name] for name in waiter.names]
    return sum(len(lock.holders) for lock in locks if lock.waiters and lock.waiters[0] is waiter)


def is_waited_for(state: LockState, waiter: Waiter) -> bool:
    """Whether any edge leads to this wait or its agent: without one it is in no cycle."""
    session = state._sessions[waiter.session]
    for name, mine in session.waits[waiter.owner].items():
        line = state._locks[name].waiters
        if line is not None and line[-1] is not mine:
            return True
    for hold in session.holds.values():
        if hold.owner == waiter.owner and state._locks[hold.name].waiters:
            return True
    return False


def _edges_of(state: LockState, node: Node, choices: dict[Node, Blockers]) -> list[Node]:
    if isinstance(node, tuple):
        waits = state._sessions[node[0]].waits.get(node[1])
        return list({each.ticket: None for each in waits.values()}) if waits else []
    found = blockers(state, state._waiters[node])
    if found.missing:
        choices[node] = found
        return found.nodes + [(hold.session, hold.owner) for hold in found.holders]
    return found.nodes


def _stuck(edges: dict[Node, list[Node]], choices: dict[Node, Blockers]) -> set[Node]:
    """Everything, less what can move: each edge is looked at once."""
    into: dict[Node, list[Node]] = {}
    for node, ways in edges.items():
        for after in ways:
            into.setdefault(after, []).append(node)
    needs = {node: choices[node].missing if node in choices else len(edges[node]) for node in edges}
    gives: dict[Node, dict[Node, int]] = {
        node: {(hold.session, hold.owner): hold.permits for hold in choice.holders}
        for node, choice in choices.items()
    }
    stuck = set(edges)
    moves = [node for node, need in needs.items() if need <= 0]
    while moves:
        node = moves.pop()
        if node not in stuck:
            continue
        stuck.discard(node)
        for before in into.get(node, ()):
            needs[before] -= gives[before][node] if before in gives else 1
            if needs[before] <= 0:
                moves.append(before)
    return stuck


def _around(start: Node, edges: dict[Node, list[Node]], stuck: set[Node]) -> dict[Node, None]:
    """The nodes on cycles through `start`: reached from it, and reaching it. Empty: none."""
    forward: set[Node] = set()
    into: dict[Node, list[Node]] = {}
    todo = [start]
    while todo:
        node = todo.pop()
        for after in edges[node]:
            if after in stuck:
                into.setdefault(after, []).append(node)
                if after not in forward:
                    forward.add(after)
                    todo.append(after)
    if start not in forward:
        return {}
    back: dict[Node, None] = {start: None}
    todo = [start]
    while todo:
        for before in into.get(todo.pop(), ()):
            if before not in back:
                back[before] = None
                todo.append(before)
    return back
