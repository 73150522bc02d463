"""One cache node's coherence: its directory and its copies, joined.

`step` feeds a batch of events and returns the effects. What one half sends to the other on the same
node is delivered here, in the same step. What must not live here: the protocol itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dss.base import limits
from dss.core.mesi.agent import Agent
from dss.core.mesi.directory import Directory
from dss.core.mesi.effects import (
    Claimed,
    Effect,
    Event,
    LinkDown,
    LinkUp,
    MemoryFailed,
    MemoryRead,
    MemoryWritten,
    Read,
    Receive,
    Send,
    Tick,
    Write,
)
from dss.core.mesi.messages import Downgrade, Grant, Invalidate, LeaseGrant, Refuse

_TO_AGENT = frozenset((Grant, Refuse, Invalidate, Downgrade, LeaseGrant))


class CacheNode:
    """The coherence of one node.

    Args:
        me: this node's id.
        boot: random, new for each process.
        home_of: key -> node id of its home under `epoch`.
        slot_of: key -> slot: part of the key space with one home and one version sequence.
        lease_ms: how long a silent node's copies live; the same on all nodes.
        capacity_bytes: of this node's copies.
        started_ms: CLOCK_BOOTTIME now.
    """

    def __init__(
        self,
        me: str,
        boot: str,
        *,
        home_of: Callable[[str], str],
        slot_of: Callable[[str], int],
        lease_ms: int,
        capacity_bytes: int,
        started_ms: int,
        epoch: int = 1,
    ) -> None:
        self.me = me
        self.boot = boot
        self.epoch = epoch
        self.story: deque[str] = deque(maxlen=limits.STORY_LINES_MAX)
        self.agent = Agent(
            me,
            boot,
            home_of=home_of,
            lease_ms=lease_ms,
            capacity_bytes=capacity_bytes,
            epoch=epoch,
            story=self.story,
        )
        self.directory = Directory(
            me,
            boot,
            slot_of=slot_of,
            owns=lambda key: home_of(key) == me,
            lease_ms=lease_ms,
            started_ms=started_ms,
            epoch=epoch,
            story=self.story,
        )
        self.directory.on_link_up(LinkUp(me, boot))

    def step(self, events: Sequence[Event], now_ms: int) -> list[Effect]:
        """Feed `events`, in order; return what has to be done."""
        effects: list[Effect] = []
        for event in events:
            self._dispatch(event, now_ms)
            self._collect(effects, now_ms)
        return effects

    def next_deadline_ms(self) -> int:
        """When a Tick is due."""
        return min(self.agent.next_deadline_ms(), self.directory.next_deadline_ms())

    def _dispatch(self, event: Any, now_ms: int) -> None:
        kind = type(event)
        if kind is Read or kind is Write:
            self.agent.on_operation(event, now_ms)
        elif kind is Receive:
            if type(event.message) in _TO_AGENT:
                self.agent.on_message(event, now_ms)
            else:
                self.directory.on_message(event, now_ms)
        elif kind in (MemoryRead, MemoryWritten, MemoryFailed):
            self.directory.on_memory(event, now_ms)
        elif kind is Tick:
            self.agent.on_tick(now_ms)
            self.directory.on_tick(now_ms)
        elif kind is LinkUp:
            self.directory.on_link_up(event)
            self.agent.on_link_up(event, now_ms)
        elif kind is LinkDown:
            self.agent.on_link_down(event, now_ms)
        else:
            assert kind is Claimed, event
            self.directory.on_claimed(event)

    def _collect(self, effects: list[Effect], now_ms: int) -> None:
        """Move both halves' effects out; deliver what they send to each other, in order.

        Ends, since a request to oneself causes a bounded exchange and each queue is bounded.
        """
        local = deque(self.agent.take_effects())
        local.extend(self.directory.take_effects())
        while local:
            effect = local.popleft()
            if type(effect) is Send and effect.peer == self.me:
                self._dispatch(Receive(self.me, self.boot, effect.message), now_ms)
                local.extend(self.agent.take_effects())
                local.extend(self.directory.take_effects())
            else:
                effects.append(effect)

    def check_invariants(self) -> None:
        self.agent.check_invariants()
        self.directory.check_invariants()
