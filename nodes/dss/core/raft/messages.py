"""Raft's wire messages, log entries and configurations: frozen structs, encoded by position.

A new field goes last, with a default (old nodes skip it, new nodes default it). The sender is
not in the message: the link that carried it proved who it is. Source: Raft thesis (Ongaro 2014)
§3, §4.2.1, §6.4, §9.6; etcd-io/raft for ReadIndex contexts.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dss.base.levels import BASE_LEVEL

NOOP: Final = 0
COMMAND: Final = 1
CONFIGURATION: Final = 2
LEVEL: Final = 3
"""Raises the group's feature level; the members stay. Any other kind is of a newer release."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One log entry. `payload` is opaque here: for COMMAND a msgpack array of command items."""

    index: int
    term: int
    kind: int
    log_ms: int
    payload: bytes


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A voter or learner: its id and the incarnation of its data directory."""

    node_id: str
    incarnation: str


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who belongs to a group, and at which feature level. Members are sorted by node_id."""

    voters: tuple[Member, ...]
    learners: tuple[Member, ...] = ()
    feature_level: int = BASE_LEVEL


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """RequestVote (§3.4), or with `pre` PreVote (§9.6: `term` is the term it would have).

    `transfer` marks a campaign ordered by TimeoutNow: it overrides leader stickiness (§4.2.3).
    """

    group: int
    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class VoteResponse(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """`term` echoes the request's term when granted, else is the responder's own term.

    `behind`: refused because the candidate's log is behind, whoever else gets the vote.
    `outside`, if not 0: at this index, which is committed, the candidate is no member.
    """

    group: int
    term: int
    granted: bool
    pre: bool = False
    behind: bool = False
    outside: int = 0


class AppendRequest(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """AppendEntries (§3.5). Empty `entries` probes; heartbeats are their own message."""

    group: int
    term: int
    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...]


class AppendResponse(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """`index` is the durable match when `ok`, else the rejected prev_index.

    On rejection `hint_index`/`hint_term` say where the follower's log could agree: the largest
    index <= prev_index whose term is <= the leader's prev_term (conflict backtracking).
    """

    group: int
    term: int
    ok: bool
    index: int
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """`commit` is min(match, leader's commit); `context` numbers the ReadIndex round (0: none).

    `quiesce`: the group is idle and this is the last one: whoever has all of `commit` lets its
    timer rest for as long as the leader's node is heard.
    """

    group: int
    term: int
    commit: int
    context: int = 0
    quiesce: bool = False


class HeartbeatResponse(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    group: int
    term: int
    context: int = 0


NODE_GROUP: Final = 2**32 - 1
NODE_BEAT: Final = HeartbeatResponse(NODE_GROUP, 0)
"""What nodes with quiescent groups in common send each other instead of those groups' heartbeats.
It belongs to no group; a version that does not know it ignores it."""


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """A piece of a snapshot at `index`/`snapshot_term`; `size` is the whole length in bytes.

    `checksum` is of the whole: pieces of two encodings of one state never come together. 0: the
    sender's version does not tell.
    """

    group: int
    term: int
    index: int
    snapshot_term: int
    log_ms: int
    configuration: Configuration
    size: int
    offset: int
    data: bytes
    checksum: int = 0


class SnapshotResponse(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """`offset` is how many bytes of the snapshot at `index` are held: the next one wanted."""

    group: int
    term: int
    index: int
    offset: int


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """The leader asks this follower to campaign at once (§3.10)."""

    group: int
    term: int


RaftMessage = (
    VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | SnapshotChunk
    | SnapshotResponse
    | TimeoutNow
)

ANSWERS: Final = (VoteResponse, AppendResponse, HeartbeatResponse, SnapshotResponse)
"""What is counted. It counts only from a member, in the incarnation that the receiver's own
configuration lists: a lost disk must not vote or acknowledge under its old name. Requests are
looked at whoever sends them (§4.1): the receiver's configuration may lag behind the sender's."""
