"""`dss_raft_*`: the consensus driver's figures, read on scrape from plain ints.

What must not live here: counting on the hot path (the engine and the WAL count).
"""

from __future__ import annotations

from typing import Final

from dss.drivers.host import Host
from dss.observe.metrics import Registry

FSYNC_BUCKETS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0)


def register(registry: Registry, host: Host) -> None:
    """Add the gauges and counters of `host` to `registry`."""
    engine = host.engine

    def per_group(name: str) -> dict[tuple[str, ...], float]:
        return {
            (str(gid),): float(getattr(group.raft, name)) for gid, group in engine.groups.items()
        }

    registry.gauge(
        "dss_raft_term", "Current term, per group.", lambda: per_group("term"), ("group",)
    )
    registry.gauge(
        "dss_raft_commit_index",
        "Last committed index, per group.",
        lambda: per_group("commit_index"),
        ("group",),
    )
    registry.gauge(
        "dss_raft_applied_index",
        "Last applied index, per group.",
        lambda: {(str(gid),): group.applied_index for gid, group in engine.groups.items()},
        ("group",),
    )
    registry.gauge(
        "dss_raft_is_leader",
        "1 on the leader of the group.",
        lambda: {(str(gid),): int(host.is_leader(gid)) for gid in engine.groups},
        ("group",),
    )
    registry.gauge(
        "dss_raft_feature_level",
        "Feature level at which the group's machine behaves here.",
        lambda: {(str(gid),): group.machine.level for gid, group in engine.groups.items()},
        ("group",),
    )
    registry.gauge(
        "dss_raft_feature_level_supported",
        "Newest feature level that this node supports, as it is set up.",
        lambda: engine.feature_level,
    )
    registry.gauge(
        "dss_raft_has_leader",
        "1 where a leader of the group is known.",
        lambda: {(str(gid),): int(host.leader_of(gid) is not None) for gid in engine.groups},
        ("group",),
    )
    registry.gauge(
        "dss_raft_quiescent_groups",
        "Idle groups whose heartbeats and timers rest.",
        lambda: sum(group.raft.quiescent for group in engine.groups.values()),
    )
    registry.counter_callback(
        "dss_raft_elections_total",
        "Elections of this node by outcome, over all groups.",
        lambda: {
            (outcome,): sum(group.raft.counters[outcome] for group in engine.groups.values())
            for outcome in ("started", "won", "lost", "split", "pre_votes")
        },
        ("outcome",),
    )
    for name, help_text, read in (
        ("dss_raft_cycles_total", "Engine cycles.", lambda: engine.cycles),
        (
            "dss_raft_entries_applied_total",
            "Log entries applied.",
            lambda: engine.applying.entries_applied,
        ),
        (
            "dss_raft_commands_applied_total",
            "Commands applied.",
            lambda: engine.applying.commands_applied,
        ),
        ("dss_raft_wal_syncs_total", "fsyncs of the log.", lambda: engine.wal.syncs),
        ("dss_raft_wal_bytes_total", "Bytes written to the log.", lambda: engine.wal.bytes_written),
        ("dss_raft_snapshots_taken_total", "Snapshots saved.", lambda: engine.snapshotting.taken),
        (
            "dss_raft_snapshots_refused_total",
            "Snapshots not saved because they were too large: the log is kept instead.",
            lambda: engine.snapshotting.refused,
        ),
        (
            "dss_raft_snapshots_installed_total",
            "Snapshots received from a leader.",
            lambda: engine.snapshotting.installed,
        ),
        (
            "dss_raft_forwarded_total",
            "Batches sent on to a leader.",
            lambda: host.forwarder.forwarded,
        ),
        (
            "dss_raft_mismatched_incarnations_total",
            "Messages dropped because the sender's disk is not the one its group knows.",
            lambda: engine.mismatched_incarnations,
        ),
    ):
        registry.counter_callback(name, help_text, read)
    host.sync_seconds = registry.histogram(
        "dss_raft_fsync_seconds", "Time of one log fsync.", FSYNC_BUCKETS
    )
