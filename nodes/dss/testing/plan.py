"""What one seed turns on: the cluster's size, its settings, its workloads, and its faults.

Everything is drawn from the seed's own stream `plan`; what the faults then hit comes from other
streams (chaos.py). What must not live here: carrying anything out.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

from dss.core.raft.settings import RaftSettings
from dss.testing.lockuses import USES
from dss.testing.world import NetFaults

KINDS: Final = (
    "crash",
    "partition",
    "slow_link",
    "pause",
    "disk_error",
    "disk_full",
    "bit_rot",
    "wipe",
    "restart_all",
    "transfer",
    "stop",
    "fight",
    "slow_disk",
    "expel",
    "clock_jump",
    "client_crash",
    "client_pause",
)
"""Faults that happen at moments. Those of the net, of latencies and of drift are always there."""

DRIFT_PROMISED: Final = 0.001
"""Lengths of leases hold while any two clocks differ by at most this much in speed."""


class Plan:
    """One seed's choices. A test may change them before the simulation starts."""

    def __init__(self, rng: random.Random) -> None:
        self.nodes = rng.choice([1, 2, 3, 3, 3, 4, 5, 5, 7])
        self.workloads = rng.choice([("tally",), ("locks",), ("locks",), ("tally", "locks")])
        election_min = rng.choice([150, 300, 600])
        self.settings = RaftSettings(
            heartbeat_ms=rng.choice([20, 50]),
            election_min_ms=election_min,
            # Nearly equal timeouts make split votes and rival candidates.
            election_max_ms=int(election_min * rng.choice([1.05, 2, 3])),
            pre_vote=rng.random() < 0.7,
            log_tail_entries=rng.choice([5, 1_000]),
            # One entry a message, and one message at a time: followers get a log piecemeal.
            max_append_bytes=rng.choice([1, 65_536]),
            max_inflight=rng.choice([1, 64]),
        )
        self.net = NetFaults.drawn(rng)
        # One seed in ten breaks nothing but the net; the others at least two kinds of thing.
        self.kinds = () if rng.random() < 0.1 else tuple(rng.sample(KINDS, rng.randint(2, 8)))
        self.drift = rng.choice([0.0, DRIFT_PROMISED, 0.2])
        self.sync_ms = rng.choice([0.0, 0.3, 3.0, 20.0])
        self.segment_bytes = rng.choice([16_384, 65_536])
        self.snapshot_every_entries = rng.choice([20, 100, 100_000])
        self.fault_every_ms = rng.choice([100.0, 500.0, 1_500.0, 4_000.0])
        self.calms = rng.random() < 0.6
        """Whether all is mended for a third of the time, so that much gets done in between."""
        self.down_ms_max = rng.choice([100.0, 1_000.0, 4_000.0])
        self.aims_at_leader = rng.choice([0.0, 0.5, 0.9])
        self.kills_new_leaders = rng.choice([0.0, 0.0, 0.3])
        """How often a node that has just won an election dies within a few round trips."""
        self.proposal_every_ms = rng.choice([5.0, 10.0, 50.0])
        self.reads = rng.random() < 0.8
        self.clients = rng.randint(2, 5)
        self.lock_names = rng.choice([1, 2, 5])
        self.lock_uses = tuple(rng.sample(USES, rng.choice([0, 2, 4, len(USES)])))
        self.ttl_ms = rng.choice([300, 1_000, 3_000])
        self.think_ms = rng.choice([20.0, 80.0, 300.0])
        self.joins_ms = rng.choice([0.0, 0.0, 0.0, rng.uniform(1.0, 20_000.0)])
        """When a node that founded nothing joins; 0: there is none."""
        self.chunk_bytes = rng.choice([100, 1_000, 100_000])
        """A snapshot goes in pieces: lost ones, and leaders that change in between."""
        self.inline_rows = rng.choice([3, 3, 1_000])
        """Larger states are encoded beside the loop, while nothing is applied."""
        if self.chunk_bytes == 100 and self.snapshot_every_entries == 20:
            # All nodes cut their snapshots at the same entries: a transfer that a leader began can
            # be finished by the next.
            self.settings = msgspec.structs.replace(self.settings, apply_align_entries=8)
        dice = rng.random()
        if dice < 0.12:
            self._duel(rng)
        elif dice < 0.18:
            self._lag()
        else:
            self.settings = msgspec.structs.replace(
                self.settings, quiesce_after=rng.choice([0, 0, 2, 20])
            )
        # Drawn last: more or fewer seeds with it leave the rest of every plan as it is.
        self.settings = msgspec.structs.replace(self.settings, lazy_ms=rng.choice([0, 10, 10, 50]))

    def _duel(self, rng: random.Random) -> None:
        """Leaders follow each other faster than entries get to a majority (Raft fig. 8)."""
        self.nodes = 5
        self.workloads = ("tally",)
        self.settings = msgspec.structs.replace(
            self.settings,
            pre_vote=False,
            max_append_bytes=1,
            max_inflight=1,
            log_tail_entries=1_000,
        )
        self.net.delay_ms_mean = rng.choice([2.0, 10.0])
        self.joins_ms = 0.0
        self.kinds = ("fight", "crash")
        self.calms = False
        self.sync_ms = 3.0
        self.fault_every_ms = 150.0
        self.down_ms_max = 1_000.0
        self.aims_at_leader = 0.9
        self.kills_new_leaders = 0.9
        self.snapshot_every_entries = 100_000

    def _lag(self) -> None:
        """Leaders that live in the past: what they hear is old, and nobody hears them."""
        self.nodes = 3
        self.workloads = ("tally",)
        self.settings = msgspec.structs.replace(
            self.settings, election_min_ms=150, election_max_ms=450
        )
        self.joins_ms = 0.0
        self.kinds = ("slow_link",)
        self.calms = False
        self.reads = True
        self.sync_ms = 0.3
        self.net.delay_ms_mean = 0.2
        self.proposal_every_ms = 5.0
        self.fault_every_ms = 1_500.0
        self.aims_at_leader = 0.9

    @property
    def lengths_hold(self) -> bool:
        """Whether the clocks are good enough for promises about the length of a lease."""
        return self.drift <= DRIFT_PROMISED and "clock_jump" not in self.kinds
