"""The workload of locks: simulated clients, what they may believe, and whether it was true.

Four checks beside the rules in the order of the log (lockrules.py):

* Belief: while a client may believe that it holds a lock (until it lets go, hears of the loss, or
  its `safe_until` passes), nobody is granted what excludes it. This is about real time, so it is
  checked only while clocks differ by no more than promised.
* Once: an answer to a numbered or keyed command is the one true answer, whoever gives it and
  however often it is asked for.
* Linearizability of all answers, lock by lock (lockhistory.py, linearize.py, lockspec.py).
* After the end every session ends and every lock becomes free by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dss.core.locks.commands import (
    KEYED_CODEC,
    GetLock,
    Keyed,
    SessionCreate,
    VerifyToken,
    Withdraw,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import Machine
from dss.testing import lockspec as spec
from dss.testing.linearize import Unknown, is_linearizable
from dss.testing.lockaccount import Hold, Who, conflicts
from dss.testing.lockasking import Effect
from dss.testing.lockcalls import UNANSWERED, Answer, Call, ClientSession
from dss.testing.lockclient import LockClient
from dss.testing.lockhistory import History
from dss.testing.lockrules import LockRules
from dss.testing.simnode import SimNode

if TYPE_CHECKING:
    from dss.testing.raftsim import Simulation

SLACK_MS: Final = 2.0
"""Nodes read their clocks in whole ms: each end of a lease may be one early."""
ANSWER_LOST: Final = 0.02
"""How often a connection breaks between a request and its answer, when the net is bad."""
NOT_THE_LAST_WORD: Final = ("superseded", "session_expired", "sequence_too_old")
"""Answers to one of several askers, or to one who comes after all is over."""

_item = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw])


class Held(msgspec.Struct, eq=False):
    """A client believes that it holds a lock."""

    session: ClientSession
    who: Who
    name: str
    hold: Hold


class _Reply:
    """Where a node's answer to one call goes. Implements drivers.ports.Sink."""

    def __init__(self, answered: Callable[[Answer], None]) -> None:
        self._answered = answered

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self._answered((status, body))

    def flush(self) -> None:
        """Nothing is buffered."""


class LockWorkload:
    """Implements workload.Workload and lockrules.Watcher."""

    def __init__(self, sim: Simulation, gid: int) -> None:
        self.sim = sim
        self.gid = gid
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self._rules = LockRules(self)
        self._history = History(lines=bool({"many", "break"} & set(sim.plan.lock_uses)))
        self._rng = sim.world.rng("locks")
        self._clients: list[LockClient] = []
        self._numbers = 0
        self._held: dict[str, dict[Held, None]] = {}
        self._lost: dict[int, None] = {}
        self._open: dict[int, tuple[Call, float]] = {}  # calls without an answer yet

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
        for call, called in self._open.values():
            self._record(call, called, math.inf, UNANSWERED)
        self._open = {}
        self._history.complete()
        self.counts.update(self._rules.counts)
        self.counts["replays"] = self._rules.once.replays
        for name, history in self._history.locks.items():
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

    def withdraw(self, node: SimNode, places: list[tuple[int, int]]) -> None:
        """Of a node that stops: told to one that leads."""
        command = Withdraw(places)
        node.at_once(lambda: node.propose(self.gid, 0, command, self))

    # --- calls ---

    def call(self, client: LockClient, call: Call, done: Callable[[Answer], None]) -> None:
        """Carry a call to the client's contact and one answer back, or none in time."""
        sim, world = self.sim, self.sim.world
        command, number = call.command, self.next_number()
        self._open[number] = (call, world.now)
        self._history.asked(command)
        if call.key:
            command = keyed(command, call.key)

        def finish(answer: Answer) -> None:
            if number in self._open:
                _, called = self._open.pop(number)
                self._record(call, called, world.now, answer)
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
        if not isinstance(command, GetLock | VerifyToken):
            node.propose(self.gid, self.next_number(), command, _Reply(back))
            return

        def looked(machine: Machine | None) -> None:
            if machine is None:
                back((503, {"code": "no_quorum"}))
                return
            assert isinstance(machine, LockMachine)
            if isinstance(command, VerifyToken):
                back((200, machine.verify(command.name, command.token)))
            else:
                back((200, machine.describe(command.name, 0)))

        node.read(self.gid, looked)

    def _delay(self) -> float:
        faults = self.sim.net.faults
        return faults.delay_ms_min + self._rng.expovariate(1.0) * faults.delay_ms_mean

    def _breaks(self) -> bool:
        return self.sim.net.faults.loss > 0 and self._rng.random() < ANSWER_LOST

    def _record(self, call: Call, called: float, returned: float, answer: Answer) -> None:
        status, body = answer
        self.acknowledged += status in (200, 201)
        self.counts["unknown"] += status == 504
        self.counts["answers"] += status != 504
        name = call.name_of
        if name is not None and status not in (429, 503, 504):
            code = body.get("code")
            if code not in NOT_THE_LAST_WORD:
                true = self._rules.once.final.get(name)
                assert answer == true, f"{call.command}: answered {answer}, the log says {true}"
                self.counts["answers_once"] += 1
        self._history.heard(call.command, name, called, returned, answer)

    # --- beliefs ---

    def holds(self, session: ClientSession, who: Who, name: str, hold: Hold) -> Held:
        """The client heard of its grant."""
        held = Held(session, who, name, hold)
        if session.over or hold.token in self._lost:
            return held  # it gave up meanwhile, or an administrator was faster than the answer
        self._held.setdefault(name, {})[held] = None
        return held

    def believes(self, held: Held) -> bool:
        """It has not lost it, whether it has heard of that or not."""
        return held in self._held.get(held.name, {})

    def lets_go(self, held: Held) -> None:
        self._held.get(held.name, {}).pop(held, None)

    def gives_up(self, session: ClientSession) -> None:
        """It does not count on this session any more."""
        session.over = True
        for believers in self._held.values():
            for held in [each for each in believers if each.session is session]:
                del believers[held]

    # --- lockrules.Watcher ---

    def granted(self, lock: str, who: Who, hold: Hold) -> None:
        """Somebody applied a grant, so it was committed: may anybody else still believe?"""
        if not self.sim.plan.lengths_hold:
            return
        now = self.sim.world.now
        believers = {
            held.who: held
            for held in self._held.get(lock, {})
            if held.session.safe_until_world - now > SLACK_MS
        }
        for other in conflicts({each: held.hold for each, held in believers.items()}, who, hold):
            held = believers[other]
            left_ms = held.session.safe_until_world - now
            raise AssertionError(
                f"{lock} is granted to {who} with {hold}, but {held.who} may believe for "
                f"{left_ms:.0f} ms more that it has {held.hold}"
            )

    def ended(self, session: str, *, expired: bool) -> None:
        self.counts["expirations" if expired else "ends"] += 1
        self._history.ended(self.sim.world.now, session)

    def lost(self, lock: str, who: Who, token: int, *, broken: bool) -> None:
        self.counts["broken"] += broken
        self._lost[token] = None
        self._history.lost(self.sim.world.now, lock, spec.LossOp(*who, token))
        believers = self._held.get(lock, {})
        for held in [each for each in believers if each.hold.token == token]:
            # Nobody promises anything against an administrator.
            assert broken or not held.hold.confirm_by_ms, "a confirmed grant passed on"
            del believers[held]

    def done(self, effect: Effect, token: int) -> None:
        self._history.done(self.sim.world.now, effect, token)


def keyed(command: msgspec.Struct, key: str) -> Keyed:
    """As a request with an Idempotency-Key reaches the log."""
    _, op, args = _item.decode(KEYED_CODEC.encode_item(0, command))
    digest = hashlib.blake2b(bytes(args), digest_size=16).digest()
    return Keyed(key, digest, op, args)
