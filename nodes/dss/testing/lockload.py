"""The workload of locks: simulated clients, what they may believe, and whether it was true.

Three checks beside the rules in the order of the log (lockrules.py):

* Belief: while a client may believe that it holds a lock (until it lets go, hears of the loss, or
  its `safe_until` passes), nobody else is granted it. This is about real time, so it is checked
  only while clocks differ by no more than promised.
* Linearizability of all answers, lock by lock (linearize.py, lockspec.py). What became of a request
  whose answer was lost is looked up in the log: each such request would else double the search.
* After the end every session ends and every lock becomes free by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dss.core.locks.commands import Acquire, GetLock, Release, SessionCreate, SessionEnd
from dss.core.locks.machine import LockMachine
from dss.core.machine import Machine
from dss.testing import lockspec as spec
from dss.testing.linearize import Operation, Unknown, is_linearizable
from dss.testing.lockclient import UNANSWERED, Answer, Call, ClientSession, LockClient
from dss.testing.lockrules import Effect, LockRules, Who, effect
from dss.testing.simnode import SimNode

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation

SLACK_MS: Final = 2.0
"""Nodes read their clocks in whole ms: each end of a lease may be one early."""
ANSWER_LOST: Final = 0.02
"""How often a connection breaks between a request and its answer, when the net is bad."""


class Held(msgspec.Struct, eq=False):
    """A client believes that it holds a lock."""

    session: ClientSession
    who: Who
    name: str
    shared: bool
    token: int


class _Reply:
    """Where a node's answer to one call goes. Implements drivers.ports.Sink."""

    def __init__(self, answered: Callable[[Answer], None]) -> None:
        self._answered = answered

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._answered((status, body))

    def flush(self) -> None:
        """Nothing is buffered."""


class LockWorkload:
    """Implements workload.Workload."""

    def __init__(self, sim: Simulation, gid: int) -> None:
        self.sim = sim
        self.gid = gid
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self._rules = LockRules(self._granted, self._ended, self._took_effect, self._proposed_ends)
        self.history: dict[str, list[Operation]] = {}
        self._rng = sim.world.rng("locks")
        self._clients: list[LockClient] = []
        self._numbers = 0
        self._held: dict[str, dict[Held, None]] = {}
        self._used: dict[str, dict[str, None]] = {}  # session -> locks
        self._effects: dict[Effect, list[float]] = {}  # when each was first seen to be done
        self._heard: Counter[Effect] = Counter()  # how many of them a client heard of
        self._unheard: dict[Effect, list[float]] = {}  # requests whose answer was lost
        self._expiring: dict[str, float] = {}
        self._asked_to_end: dict[str, float] = {}
        self._ends: dict[str, tuple[float, float]] = {}
        self._open: dict[int, tuple[Any, float]] = {}  # calls without an answer yet

    # --- workload.Workload ---

    @property
    def rules(self) -> LockRules:
        return self._rules

    def new_machine(self) -> Machine:
        return LockMachine()

    def start(self) -> None:
        for _ in range(self.sim.plan.clients):
            self._new_client()

    def stop(self) -> None:
        """They all die at once: what they left must end by itself."""
        for client in self._clients:
            client.crash()
        self._clients = []

    def burst(self, node: SimNode) -> None:
        for _ in range(self._rng.randint(1, 5)):
            self.probe(node)

    def probe(self, node: SimNode) -> None:
        ident = f"{self.sim.world.seed:08x}{self.next_number():024x}"
        command = SessionCreate(self.sim.plan.ttl_ms, "", ident)
        node.at_once(lambda: node.propose(self.gid, self.next_number(), command, self))

    def answer(self, request_id: int, status: int, body: Any) -> None:
        """Of `burst` and `probe`: implements drivers.ports.Sink."""
        self.acknowledged += status == 201

    def flush(self) -> None:
        """Nothing is buffered."""

    def quiet(self) -> bool:
        """Every session has ended, and so has what they held."""
        return not self._rules.sessions

    def final(self, machines: dict[str, Machine]) -> None:
        for node, machine in machines.items():
            assert isinstance(machine, LockMachine)
            machine.check_invariants()
            left = (machine.sessions, machine.held, machine.waiting)
            assert left == (0, 0, 0), f"{node} still has (sessions, holds, waits) {left}"
        for command, called in self._open.values():
            self._record(command, called, math.inf, UNANSWERED)
        self._open = {}
        self._resolve()
        self.counts["grants"] = self._rules.grants
        for name, history in self.history.items():
            self.counts["operations"] += len(history)
            try:
                verdict = is_linearizable(spec.LockSpecification(), history)
            except Unknown as error:
                raise AssertionError(f"lock {name}: {error}") from error
            assert verdict, f"the history of lock {name} is not linearizable"

    # --- clients ---

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def a_name(self, rng: Random) -> str:
        return f"lock-{rng.randrange(self.sim.plan.lock_names)}"

    def world_trace(self, *what: object) -> None:
        self.sim.world.trace(*what)

    def _new_client(self) -> None:
        client = LockClient(self, f"c{self.next_number()}")
        self._clients.append(client)
        client.spawn(client.life())

    def crash_one(self) -> None:
        """A client is gone, with all it believed; another one comes."""
        if self._clients:
            client = self._clients.pop(self._rng.randrange(len(self._clients)))
            client.crash()
            self.sim.world.after(self._rng.uniform(1.0, 1_000.0), self._replace)

    def _replace(self) -> None:
        if self.sim.chaos.breaking:
            self._new_client()

    def pause_one(self) -> None:
        """It stands still, perhaps beyond its TTL, and goes on as if nothing had happened."""
        if self._clients:
            client = self._rng.choice(self._clients)
            client.pause()
            self.sim.world.after(self._rng.uniform(0.1, 3.0) * self.sim.plan.ttl_ms, client.unpause)

    # --- calls ---

    def call(self, client: LockClient, call: Call, done: Callable[[Answer], None]) -> None:
        """Carry a call to the client's contact and one answer back, or none in time."""
        sim, world = self.sim, self.sim.world
        command, number = call.command, self.next_number()
        self._open[number] = (command, world.now)
        if isinstance(command, SessionEnd):
            self._asked_to_end.setdefault(command.session, world.now)

        def finish(answer: Answer) -> None:
            if number in self._open:
                _, called = self._open.pop(number)
                self._record(command, called, world.now, answer)
                done(answer)

        def back(answer: Answer) -> None:
            if not self._breaks():
                world.after(self._delay(), lambda: finish(answer))

        node = sim.nodes[call.node or client.contact]

        def arrive() -> None:
            if self._breaks():
                return
            if not node.alive:
                back((503, {"code": "unreachable"}))
                return
            node.at_once(lambda: self._handle(node, command, back))

        world.after(self._delay(), arrive)
        world.after(call.timeout_ms, lambda: finish(UNANSWERED))

    def _handle(self, node: SimNode, command: Any, back: Callable[[Answer], None]) -> None:
        if not isinstance(command, GetLock):
            node.propose(self.gid, self.next_number(), command, _Reply(back))
            return

        def looked(machine: Machine | None) -> None:
            if machine is None:
                back((503, {"code": "no_quorum"}))
            else:
                assert isinstance(machine, LockMachine)
                back((200, machine.describe(command.name, 0)))

        node.read(self.gid, looked)

    def _delay(self) -> float:
        faults = self.sim.net.faults
        return faults.delay_ms_min + self._rng.expovariate(1.0) * faults.delay_ms_mean

    def _breaks(self) -> bool:
        return self.sim.net.faults.loss > 0 and self._rng.random() < ANSWER_LOST

    # --- beliefs ---

    def holds(self, session: ClientSession, command: Acquire, token: int) -> Held:
        """The client heard of its grant."""
        who = (command.session, command.owner or command.session)
        held = Held(session, who, command.name, command.mode == "shared", token)
        self._held.setdefault(command.name, {})[held] = None
        return held

    def lets_go(self, held: Held) -> None:
        self._held.get(held.name, {}).pop(held, None)

    def gives_up(self, session: ClientSession) -> None:
        """It does not count on this session any more."""
        session.over = True
        for believers in self._held.values():
            for held in [each for each in believers if each.session is session]:
                del believers[held]

    def _granted(self, name: str, who: Who, shared: bool, token: int) -> None:
        """Somebody applied a grant, so it was committed: may anybody else still believe?"""
        if not self.sim.plan.lengths_hold:
            return
        now = self.sim.world.now
        for held in self._held.get(name, {}):
            if held.who == who or (held.shared and shared):
                continue
            left_ms = held.session.safe_until_world - now
            assert left_ms <= SLACK_MS, (
                f"{name} is granted to {who} with token {token}, but {held.who} may believe for "
                f"{left_ms:.0f} ms more that it holds it with token {held.token}"
            )

    # --- the history ---

    def _proposed_ends(self, sessions: list[str]) -> None:
        for session in sessions:
            self._expiring.setdefault(session, self.sim.world.now)

    def _ended(self, session: str, expired: bool) -> None:
        """It ended in the log: at some moment since that was asked for or proposed."""
        now = self.sim.world.now
        self.counts["expirations" if expired else "ends"] += 1
        began = self._expiring if expired else self._asked_to_end
        self._ends[session] = (began.get(session, 0.0), now)

    def _took_effect(self, what: Effect) -> None:
        self._effects.setdefault(what, []).append(self.sim.world.now)

    def _note(self, name: str, called: float, returned: float, what: spec.What) -> None:
        self.history.setdefault(name, []).append(Operation(called, returned, what))

    def _record(self, command: Any, called: float, returned: float, answer: Answer) -> None:
        status, body = answer
        if status in (200, 201):
            self.acknowledged += 1
        unknown = status == 504
        self.counts["unknown"] += unknown
        if isinstance(command, GetLock) and status == 200:
            self._note(command.name, called, returned, _seen(body))
        elif isinstance(command, Acquire | Release):
            what = effect(command)
            self._used.setdefault(command.session, {})[command.name] = None
            if unknown:
                self._unheard.setdefault(what, []).append(called)
            elif status == 200:
                self._heard[what] += 1
                self._note(command.name, called, returned, _operation(what, body))
            elif body["code"] in (spec.BUSY, spec.NOT_HOLDER, spec.EXPIRED):
                self._note(command.name, called, returned, _refusal(what, body["code"]))

    def _resolve(self) -> None:
        """Complete the history: requests without an answer, and the ends of sessions.

        Requests that do the same are alike, so the ones called first stand for those that were
        done: their intervals hold the others'.
        """
        for what, calls in self._unheard.items():
            times = self._effects.get(what, [])
            for called in sorted(calls)[: max(0, len(times) - self._heard[what])]:
                self._note(what[0], called, max(called, *times), _operation(what, {}))
        for session, (began, seen) in self._ends.items():
            for name in self._used.get(session, {}):
                self._note(name, began, seen, spec.EndOp(session))


def _operation(what: Effect, body: Any) -> spec.What:
    """It was done; `body` is empty when nobody heard of it."""
    _, session, owner, shared, token = what
    if token:
        return spec.ReleaseOp(session, owner, token, spec.RELEASED)
    return spec.AcquireOp(session, owner, shared, spec.GRANTED, body.get("token", 0))


def _refusal(what: Effect, code: str) -> spec.What:
    _, session, owner, shared, token = what
    if token:
        return spec.ReleaseOp(session, owner, token, code)
    return spec.AcquireOp(session, owner, shared, code)


def _seen(body: Any) -> spec.ReadOp:
    holders = tuple(
        sorted((h["session"], h["owner"], h["token"], h["count"]) for h in body["holders"])
    )
    return spec.ReadOp(body.get("mode") == "shared", holders)
