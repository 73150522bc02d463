"""A seeded world for the coherence cores: real directories and agents, faulty everything else.

Faults: messages are delayed, reordered and duplicated; links break (losing what is under way) and
come back; nodes crash (with directory and copies) and restart with a new boot; nodes pause; clocks
run at different rates within the bound; main memory is slow, refuses, or leaves a write's outcome
unknown and carries it out late or never (behind the fence).

After every step: one writer or many readers, and every readable copy has main memory's version.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dss.core.mesi import effects as fx
from dss.core.mesi.messages import ANY_VERSION, DELETE, INCR, PUT, Record
from dss.core.mesi.node import CacheNode
from dss.core.mesi.states import State

LEASE_MS = 400
INFINITY = 1 << 60


@dataclass
class Operation:
    """One client operation as the checker sees it."""

    key: str
    kind: str
    arg: bytes = b""
    expected: bytes | None = None
    start: int = 0
    end: int = INFINITY
    status: int = 0
    value: bytes = b""
    maybe: bool = False
    """Its outcome is unknown: it may have happened at any time after `start`, or never."""


@dataclass
class Slot:
    owner: str = ""
    sequence: int = 0


@dataclass
class SimMemory:
    """Main memory's rules (dss.memory.ports) without a database."""

    slot: Slot = field(default_factory=Slot)
    records: dict[str, Record] = field(default_factory=dict)

    def apply(self, owner: str, effect: Any) -> Any:
        """The event that answers `effect`."""
        key, txn = effect.key, effect.txn
        if isinstance(effect, fx.ReadMemory):
            return fx.MemoryRead(key, txn, self.records.get(key))
        if self.slot.owner != owner:
            return fx.MemoryFailed(key, txn, False, "another owner", True)
        if isinstance(effect, fx.FenceMemory):
            self.slot.sequence = max(self.slot.sequence, effect.version)
            return fx.MemoryRead(key, txn, self.records.get(key))
        if self.slot.sequence < effect.acknowledged:
            return fx.MemoryFailed(key, txn, False, "regressed", True)
        if effect.version <= self.slot.sequence:
            return fx.MemoryFailed(key, txn, False, "overtaken")
        self.slot.sequence = effect.version
        existed = key in self.records
        if isinstance(effect, fx.DeleteMemory):
            self.records.pop(key, None)
        else:
            self.records[key] = Record(
                effect.value, effect.version, effect.content_type, effect.expires_ms
            )
        return fx.MemoryWritten(key, txn, existed)


class SimNode:
    """One process at a time under one node id."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.boots = 0
        self.rate = 1 + world.random.uniform(-0.0005, 0.0005)
        self.offset = world.random.randrange(10**6)
        self.paused_until = 0
        self.memory_free_at = 0
        self.core: CacheNode | None = None
        self.answers: dict[int, Operation] = {}
        self.timer = 0

    @property
    def boot(self) -> str:
        return f"{self.name}#{self.boots}"

    def clock(self) -> int:
        return self.offset + int(self.world.now * self.rate)

    def start(self) -> None:
        self.boots += 1
        world = self.world
        self.core = CacheNode(
            self.name,
            self.boot,
            home_of=world.home_of,
            slot_of=lambda key: 0,
            lease_ms=LEASE_MS,
            capacity_bytes=world.capacity_bytes,
            started_ms=self.clock(),
        )
        self.memory_free_at = world.now
        memory = world.memories[self.name]
        memory.slot.owner = self.boot
        self.feed(fx.Claimed({0: memory.slot.sequence}))
        for other in world.nodes.values():
            if other is not self and other.core is not None:
                world.cut.discard(frozenset((self.name, other.name)))
                other.feed(fx.LinkUp(self.name, self.boot))
                self.feed(fx.LinkUp(other.name, other.boot))

    def crash(self) -> None:
        self.core = None
        for operation in self.answers.values():
            if operation.kind != "get":
                operation.maybe = True
        self.answers.clear()
        for other in self.world.nodes.values():
            if other is not self and other.core is not None:
                other.feed(fx.LinkDown(self.name))

    def feed(self, event: Any) -> None:
        """Step the core now, or when its pause ends."""
        world, boots = self.world, self.boots
        if self.core is None:
            return
        if world.now < self.paused_until:
            world.at(self.paused_until, lambda: self.feed(event) if self.boots == boots else None)
            return
        clock = self.clock()
        for effect in self.core.step([event], clock):
            self.carry_out(effect)
        due = self.core.next_deadline_ms()
        if due < fx.FOREVER_MS:
            wake = world.now + max(1, int((due - clock) / self.rate) + 1)
            if self.timer <= world.now or wake < self.timer:
                self.timer = wake
                world.at(wake, lambda: self.feed(fx.Tick()) if self.boots == boots else None)
        world.check()

    def carry_out(self, effect: Any) -> None:
        world = self.world
        if isinstance(effect, fx.Send):
            world.send(self, effect)
        elif isinstance(effect, fx.Answer):
            operation = self.answers.pop(effect.ref, None)
            if operation is not None:
                world.answered(operation, effect)
        else:
            self.memory_effect(effect)

    def memory_effect(self, effect: Any) -> None:
        world, chance, boots, boot = self.world, self.world.random.random, self.boots, self.boot
        memory = world.memories[self.name]
        self.memory_free_at = max(self.memory_free_at, world.now) + world.random.randint(0, 5)

        def back(event: Any) -> None:
            delay = world.random.randint(0, 5)
            world.after(delay, lambda: self.feed(event) if self.boots == boots else None)

        if chance() < world.memory_faults:
            unknown = isinstance(effect, fx.WriteMemory | fx.DeleteMemory) and chance() < 0.7
            back(fx.MemoryFailed(effect.key, effect.txn, unknown, "simulated"))
            if unknown and chance() < 0.6:
                world.after(
                    world.random.randint(0, 300), lambda: memory.apply(boot, effect) and None
                )
            return
        world.at(self.memory_free_at, lambda: back(memory.apply(boot, effect)))


class World:
    """Runs `operations` random client operations under `seed`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        names = [f"cache-{n}" for n in range(1, self.random.randint(2, 4) + 1)]
        self.keys = ["a", "b", "n"]
        self._homes = {key: self.random.choice(names) for key in self.keys}
        self.capacity_bytes = self.random.choice([10_000, 450])
        self.memory_faults = self.random.choice([0, 0, 0.05, 0.2])
        self.reorder = self.random.random() < 0.5
        self.duplicates = self.random.choice([0, 0.1, 0.3])
        self.delay_max = self.random.choice([3, 30, 300])
        self.history: list[Operation] = []
        self.steps = 0
        self.cut: set[frozenset[str]] = set()
        self._last: dict[tuple[str, str], int] = {}
        self.seen: dict[str, dict[bytes, int]] = {key: {} for key in self.keys}
        self.states: dict[State, int] = {}
        self.memories = {name: SimMemory() for name in names}
        self.nodes: dict[str, SimNode] = {}
        for name in names:
            self.nodes[name] = SimNode(self, name)
        for node in self.nodes.values():
            node.start()

    def home_of(self, key: str) -> str:
        return self._homes[key]

    # --- time -------------------------------------------------------------------------------

    def at(self, when: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, action))

    def after(self, delay: int, action: Callable[[], None]) -> None:
        self.at(self.now + delay, action)

    def run_until(self, when: int) -> None:
        while self._heap and self._heap[0][0] <= when:
            self.now, _, action = heapq.heappop(self._heap)
            self.steps += 1
            action()
        self.now = when

    # --- network ----------------------------------------------------------------------------

    def send(self, source: SimNode, effect: fx.Send) -> None:
        target = self.nodes[effect.peer]
        pair = frozenset((source.name, target.name))
        if target.core is None or pair in self.cut:
            return
        boot, target_boots = source.boot, target.boots
        message = effect.message
        for copy in range(2 if self.random.random() < self.duplicates else 1):
            when = self.now + self.random.randint(0, self.delay_max) + copy
            if not self.reorder and copy == 0:
                link = (source.name, target.name)
                when = self._last[link] = max(when, self._last.get(link, 0))

            def deliver() -> None:
                if target.boots == target_boots and pair not in self.cut:
                    target.feed(fx.Receive(source.name, boot, message))

            self.at(when, deliver)

    def cut_link(self, one: SimNode, other: SimNode, length: int) -> None:
        pair = frozenset((one.name, other.name))
        if one.core is None or other.core is None or pair in self.cut:
            return
        self.cut.add(pair)
        one.feed(fx.LinkDown(other.name))
        other.feed(fx.LinkDown(one.name))

        def heal() -> None:
            if pair in self.cut and one.core is not None and other.core is not None:
                self.cut.discard(pair)
                one.feed(fx.LinkUp(other.name, other.boot))
                other.feed(fx.LinkUp(one.name, one.boot))

        self.after(length, heal)

    # --- clients ----------------------------------------------------------------------------

    def operate(self, node: SimNode) -> None:
        """One random operation at `node`."""
        if node.core is None or self.now < node.paused_until:
            return
        pick, number = self.random.random(), len(self.history) + 1
        key = self.random.choice(self.keys)
        if sum(op.key == key for other in self.nodes.values() for op in other.answers.values()) > 5:
            return  # the checker's work is exponential in what is open at once
        value = b"v%d" % number
        event: Any
        if pick < 0.5:
            line = node.core.agent.lookup(key, node.clock())
            operation = Operation(key, "get", start=self.now)
            self.history.append(operation)
            if line is not None:
                operation.end, operation.status, operation.value = self.now, 200, line.value
                return
            event = fx.Read(number, key)
        elif key == "n":
            operation = Operation(key, "incr", start=self.now)
            event = fx.Write(number, key, INCR, delta=1)
        elif pick < 0.7:
            operation = Operation(key, "put", value, start=self.now)
            event = fx.Write(number, key, PUT, value)
        elif pick < 0.8:
            operation = Operation(key, "delete", start=self.now)
            event = fx.Write(number, key, DELETE)
        elif pick < 0.9 or not self.seen[key]:
            operation = Operation(key, "create", value, start=self.now)
            event = fx.Write(number, key, PUT, value, if_none_match=(ANY_VERSION,))
        else:
            expected, version = self.random.choice(list(self.seen[key].items())[-3:])
            operation = Operation(key, "cas", value, expected, start=self.now)
            event = fx.Write(number, key, PUT, value, if_match=(version,))
        if operation.kind != "get":
            self.history.append(operation)
        node.answers[number] = operation
        node.feed(event)

    def answered(self, operation: Operation, answer: fx.Answer) -> None:
        fitting = {"get": (200,), "delete": (204,), "create": (201,)}.get(
            operation.kind, (200, 201)
        )
        assert answer.status >= 400 or answer.status in fitting, (operation, answer)
        operation.end = self.now
        operation.status = answer.status
        operation.value = answer.value
        if answer.status == 504:
            assert operation.kind != "get"
            operation.maybe, operation.end = True, INFINITY
        if answer.status == 200 and operation.kind == "get" and operation.key != "n":
            known = self.seen[operation.key]
            assert known.setdefault(answer.value, answer.version) == answer.version

    def disturb(self) -> None:
        """One random fault."""
        node = self.random.choice(list(self.nodes.values()))
        pick = self.random.random()
        if pick < 0.3 and node.core is not None:
            node.crash()
            self.after(self.random.randint(1, 800), node.start)
        elif pick < 0.6:
            other = self.random.choice(list(self.nodes.values()))
            if other is not node:
                self.cut_link(node, other, self.random.randint(1, 1_000))
        else:
            node.paused_until = self.now + self.random.randint(1, 700)

    # --- checks -----------------------------------------------------------------------------

    def check(self) -> None:
        """Single writer or many readers; a readable copy is what main memory has."""
        for node in self.nodes.values():
            if node.core is not None:
                node.core.check_invariants()
        for key in self.keys:
            readable: list[tuple[str, State, int]] = []
            for node in self.nodes.values():
                if node.core is None:
                    continue
                state, version, _ = node.core.agent.state_of(key, node.clock())
                if 0 < state <= State.M:
                    readable.append((node.name, state, version))
                    self.states[state] = self.states.get(state, 0) + 1
            if any(state in (State.E, State.M) for _, state, _ in readable):
                assert len(readable) == 1, (self.now, key, readable)
            record = self.memories[self.home_of(key)].records.get(key)
            for name, state, version in readable:
                assert record is not None, (self.now, key, name, state, version)
                assert version == record.version, (self.now, key, name, state, record)


def linearizable(operations: list[Operation]) -> bool:
    """Wing & Gong's search with memoised (done, state): is there one order that explains all?"""
    ops = [op for op in operations if op.maybe or (op.status not in (0, 429, 503))]
    ops = [op for op in ops if op.maybe or op.end < INFINITY]
    ops.sort(key=lambda op: op.start)
    everything = sum(1 << i for i, op in enumerate(ops) if not op.maybe)
    tried: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    while stack:
        done, state = stack.pop()
        if done & everything == everything:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        first_end = min(op.end for i, op in enumerate(ops) if not done >> i & 1)
        open_ops = [
            (i, op) for i, op in enumerate(ops) if op.start <= first_end and not done >> i & 1
        ]
        # What changes nothing can go first: no other order could need it later.
        still = sum(
            1 << i for i, op in open_ops if not op.maybe and _outcomes(op, state) == [state]
        )
        if still:
            stack.append((done | still, state))
            continue
        for i, op in sorted(open_ops, key=lambda item: (not item[1].maybe, -item[1].end)):
            stack += [(done | 1 << i, after) for after in _outcomes(op, state)]
    return False


def _outcomes(op: Operation, state: bytes | None) -> list[bytes | None]:
    """The states after `op` when its answer fits `state`; none: it does not fit."""
    fits: bool
    after: bytes | None = op.arg
    failed = op.status in (404, 412)
    if op.kind == "get":
        return [state] if state == (None if op.status == 404 else op.value) else []
    if op.kind == "put":
        fits = True
    elif op.kind == "delete":
        fits, after = state is not None, None
    elif op.kind == "create":
        fits = state is None
    elif op.kind == "cas":
        fits = state is not None and state == op.expected
    else:
        assert op.kind == "incr", op
        after = b"%d" % (int(state or b"0") + 1)
        fits = op.maybe or after == op.value
    if op.maybe:
        return [after] if fits else []
    if failed:
        return [] if fits else [state]
    return [after] if fits else []
