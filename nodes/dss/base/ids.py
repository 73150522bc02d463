"""Names for the numbers and strings that travel through DSS, and the fixed group ids.

What lives here: NewTypes and constants. What must not: behaviour.
"""

from typing import Final, NewType

NodeId = NewType("NodeId", str)
"""A node's name, unique in its cluster: `lock-1`, `queue-2`, `cache-1`."""

GroupId = NewType("GroupId", int)
"""A Raft group. One process carries many; every Raft message names its group."""

Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)
"""Position in a group's log; the first entry is 1, 0 means "before the log"."""

LogMs = NewType("LogMs", int)
"""Log time in ms (docs/architecture.md § Time): never wall time."""

Token = NewType("Token", int)
"""A fencing token: the lock group's grant counter, below 2**53."""

META_GROUP: Final = GroupId(0)
"""Cluster metadata: members, partition table, queue registry. On the lock nodes."""
LOCK_GROUP: Final = GroupId(1)
"""Sessions and locks. On the lock nodes."""
FIRST_PARTITION_GROUP: Final = GroupId(16)
"""Queue partition p is the Raft group FIRST_PARTITION_GROUP + p, on three queue nodes."""


def partition_group(partition: int) -> GroupId:
    """The Raft group of queue partition `partition` (0-based)."""
    return GroupId(FIRST_PARTITION_GROUP + partition)


def group_partition(group: GroupId) -> int:
    """The queue partition (0-based) that Raft group `group` carries."""
    return group - FIRST_PARTITION_GROUP
