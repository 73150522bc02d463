"""Time for all groups of one engine: ticks, what a machine has due, silence between nodes.

What must not live here: clocks and timers (the host's), elections (core/raft).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss.core.raft import effects as fx
from dss.core.raft.messages import NODE_BEAT
from dss.drivers.group import NULL_SINK, Group

if TYPE_CHECKING:
    from dss.drivers.engine import Engine


class Timing:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heard_ms: dict[str, int] = {}
        self._node_beat_due_ms = 0

    def heard(self, peer: str) -> None:
        """Anything came from `peer`: it lives."""
        if self._engine.settings.quiesce_after:
            self._heard_ms[peer] = self._engine.hooks.now_ms()

    def tick(self) -> None:
        """Give Tick to every group whose deadline has passed, and propose what is due."""
        now_ms = self._engine.hooks.now_ms()
        for group in self._engine.groups.values():
            raft = group.raft
            if raft.next_deadline_ms <= now_ms:
                group.inbox.append(fx.Tick())
                self._engine.touch(group)
            if (
                group.leaderless_ms is not None
                and self._engine.applying.gives_up_ms(group) <= now_ms
            ):
                self._engine.applying.give_up(group, now_ms)
            if raft.role == "leader" and not group.due_in_flight:
                self._propose_due(group, now_ms)
        if self._engine.settings.quiesce_after and self._node_beat_due_ms <= now_ms:
            self._watch_nodes(now_ms)
        if self._engine.pending:
            self._engine.hooks.wake()

    def _watch_nodes(self, now_ms: int) -> None:
        """For quiescent groups one message between two nodes stands for all their heartbeats."""
        every_ms = self._engine.settings.heartbeat_ms
        self._node_beat_due_ms = now_ms - now_ms % every_ms + every_ms
        heard_since_ms = now_ms - self._engine.settings.election_min_ms
        peers: dict[str, None] = {}
        for group in self._engine.groups.values():
            raft = group.raft
            if not raft.quiescent:
                continue
            watched = raft.membership.members if raft.role == "leader" else (raft.leader,)
            for peer in watched:
                if peer is None or peer == self._engine.node_id:
                    continue
                peers[peer] = None
                if self._heard_ms.get(peer, 0) < heard_since_ms:
                    group.inbox.append(fx.Rouse())
                    self._engine.touch(group)
        for peer in peers:
            self._engine.hooks.send(peer, NODE_BEAT)

    def _propose_due(self, group: Group, now_ms: int) -> None:
        machine = group.machine
        due_ms = machine.next_due_ms()
        if due_ms is None:
            return
        log_ms = group.raft.log_ms(now_ms)
        if due_ms > log_ms:
            return
        commands = machine.due(log_ms)
        if not commands:
            return
        encode = machine.codec.encode_item
        group.due_in_flight = True
        self._engine.propose(
            group.gid,
            [0] * len(commands),
            b"".join([encode(0, command) for command in commands]),
            commands,
            NULL_SINK,
        )

    def next_tick_ms(self) -> int:
        """Monotonic ms at which `tick` next has something to do."""
        now_ms = self._engine.hooks.now_ms()
        soonest = now_ms + 1_000
        for group in self._engine.groups.values():
            raft = group.raft
            soonest = min(soonest, raft.next_deadline_ms)
            if raft.quiescent:
                soonest = min(soonest, self._node_beat_due_ms)
            if group.leaderless_ms is not None:
                soonest = min(soonest, self._engine.applying.gives_up_ms(group))
            if raft.role == "leader" and not group.due_in_flight:
                due_ms = group.machine.next_due_ms()
                if due_ms is not None:
                    soonest = min(soonest, now_ms + due_ms - raft.log_ms(now_ms))
        return soonest
