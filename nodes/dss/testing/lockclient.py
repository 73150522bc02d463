"""One simulated client of the locks: a process with sessions, that holds, pauses, dies, repeats.

Its parts are generators: they yield how long to sleep, or a `Call` to make, and are sent the
answer. What must not live here: how calls travel and what is checked (lockload.py), what a client
does with locks (lockuses.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

from dss.core.locks.commands import (
    Break,
    GetLock,
    SessionCreate,
    SessionEnd,
    SessionKeepalive,
)
from dss.testing import lockuses
from dss.testing.lockcalls import UNANSWERED, Answer, Call, ClientSession, Part

if TYPE_CHECKING:
    from dss.testing.lockload import LockWorkload

REPEATS_MAX: Final = 8


class LockClient:
    """See the module. `crash` ends it for good; the workload makes another."""

    def __init__(self, load: LockWorkload, name: str) -> None:
        self.load = load
        self.name = name
        self.rng = load.sim.world.rng(f"client/{name}")
        self.rate = 1.0 + self.rng.uniform(-0.5, 0.5) * load.sim.plan.drift
        self.alive = True
        self.paused = False
        self.contact = self.rng.choice(list(load.sim.nodes))
        self._held: list[Callable[[], None]] = []
        self._own: list[ClientSession] = []
        self._owners = 0

    def now(self) -> float:
        """Its own clock, in ms."""
        return self.load.sim.world.now * self.rate

    # --- running its parts ---

    def spawn(self, part: Part) -> None:
        self._later(0.0, lambda: self._advance(part, None))

    def _later(self, delay_ms: float, action: Callable[[], None]) -> None:
        def run() -> None:
            if not self.alive:
                return
            if self.paused:
                self._held.append(action)
            else:
                action()

        self.load.sim.world.after(delay_ms, run)

    def _advance(self, part: Part, answer: Answer | None) -> None:
        try:
            step = next(part) if answer is None else part.send(answer)
        except StopIteration:
            return
        if isinstance(step, Call):
            step.sent = self.now()
            self.load.call(self, step, lambda got: self._later(0.0, lambda: self.resume(part, got)))
        else:
            self._later(step, lambda: self._advance(part, None))

    def resume(self, part: Part, answer: Answer) -> None:
        self._advance(part, answer)

    def crash(self) -> None:
        """Gone, and with it all that it believed. Its sessions lapse."""
        self.alive = False
        for session in self._own:
            self.load.gives_up(session)

    def pause(self) -> None:
        self.paused = True

    def unpause(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        for action in held:
            self._later(0.0, action)

    # --- what it does ---

    def life(self) -> Part:
        """One session after the other."""
        while True:
            yield self.rng.expovariate(1.0) * self.load.sim.plan.think_ms
            session = yield from self._open()
            if session is None:
                continue
            session.lapses = self.rng.random() < 0.15
            session.numbered = self.rng.random() < 0.5
            self.spawn(self._keep(session))
            self.spawn(self._look(session))
            self.spawn(self._work(session, default_owner=True))
            for _ in range(self.rng.choice([0, 0, 1, 2])):
                self.spawn(self._work(session, default_owner=False))
            if "break" in self.load.sim.plan.lock_uses:
                self.spawn(self._administer(session))
            yield self.rng.uniform(1.0, 20.0) * session.ttl_ms
            ends = not session.over and self.rng.random() < 0.6
            self.load.gives_up(session)
            self._own.remove(session)
            if ends:
                yield from self.ask(Call(SessionEnd(session.id)))

    def _open(self) -> Generator[float | Call, Answer, ClientSession | None]:
        ident = f"{self.load.sim.world.seed:08x}{self.load.next_number():024x}"
        ttl_ms = self.load.sim.plan.ttl_ms
        call = Call(SessionCreate(ttl_ms, self.name, ident))
        status, _ = yield from self.ask(call)
        if status != 201:
            return None
        session = ClientSession(ident, ttl_ms, call.sent, self.rate)
        self._own.append(session)
        return session

    def ask(self, call: Call) -> Generator[float | Call, Answer, Answer]:
        """Repeat while the answer says that nothing was done; other nodes are asked then."""
        answer: Answer = UNANSWERED
        for _ in range(REPEATS_MAX):
            answer = yield call
            if answer[0] == 504 and self.rng.random() < 0.5:
                self.contact = self.rng.choice(list(self.load.sim.nodes))
            if answer[0] != 503:
                return answer
            leader = answer[1].get("leader")
            names = list(self.load.sim.nodes)
            self.contact = leader if leader in names else self.rng.choice(names)
            yield self.rng.uniform(5.0, 100.0)
        return answer

    def _keep(self, session: ClientSession) -> Part:
        """Keepalives, until it is over; or, when the session lapses, only for a while."""
        until = self.now() + (self.rng.uniform(0.0, 3.0) * session.ttl_ms)
        while not session.over:
            yield session.ttl_ms / 3 * self.rng.uniform(0.5, 1.0)
            if session.lapses and self.now() > until:
                return
            call = Call(SessionKeepalive(session.id), timeout_ms=session.ttl_ms / 2)
            status, body = yield call
            if status == 200:
                session.renewed(call.sent)
            elif status == 409 and body["code"] == "session_expired":
                self.load.gives_up(session)
            elif status == 503:
                self.contact = body.get("leader") or self.rng.choice(list(self.load.sim.nodes))

    def _work(self, session: ClientSession, *, default_owner: bool) -> Part:
        """Lock after lock, as long as the session lasts. One part alone may be the session
        itself as an owner, the others make an owner for every use."""
        while not session.over:
            yield self.rng.expovariate(1.0) * self.load.sim.plan.think_ms
            if self.now() > session.safe_until:
                self.load.gives_up(session)
                return
            if session.over:
                return
            self._owners += 1
            itself = default_owner and self.rng.random() < 0.2
            yield from lockuses.use(self, session, "" if itself else f"o{self._owners}")

    def _look(self, session: ClientSession) -> Part:
        """Ask anybody who holds what: most know that they cannot tell, and nobody may be wrong."""
        while not session.over:
            yield self.rng.expovariate(1.0) * self.load.sim.plan.think_ms
            node = self.rng.choice(list(self.load.sim.nodes))
            yield Call(GetLock(self.load.a_name(self.rng)), timeout_ms=5_000.0, node=node)

    def _administer(self, session: ClientSession) -> Part:
        """Now and then a lock is taken from whoever holds it."""
        while not session.over:
            yield self.rng.expovariate(1.0) * 5_000.0
            key = f"b{self.load.next_number()}" if self.rng.random() < 0.5 else ""
            yield from self.ask(Call(Break(self.load.a_name(self.rng), self.name, "test"), key=key))
