"""What goes into the Raft core (events) and what it asks for (effects). Plain values, no logic.

The embedder's contract (drivers/engine.py carries it out, in production and in the simulator):

1. `step` a batch of events; collect the effects of all groups.
2. Write every `SaveState` and `Append` to the WAL, in order, in one write.
3. `Send` messages may leave at once, before that write (append requests, heartbeats).
4. fsync once for all groups.
5. Only now send the `SendAfterSync` messages (votes, append acknowledgements), and give each group
   that appended `Synced(index)` of its last appended entry: at once where it is a quorum of one,
   else with its next events, since nothing is committed before somebody else answers.
6. `Apply` entries in order; `Applied(index)` follows with the next batch.
"""

from __future__ import annotations

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.core.raft.messages import Configuration, Entry, Member, RaftMessage, SnapshotChunk

# --- events -------------------------------------------------------------------------------


class Receive(msgspec.Struct, frozen=True, gc=False):
    """A message of this group from `peer`, whose link proved its id."""

    peer: str
    message: RaftMessage


class Propose(msgspec.Struct, frozen=True, gc=False):
    """Append `payload` as a COMMAND entry. Answered in the same step: Proposed or Refused."""

    ref: int
    payload: bytes


class Read(msgspec.Struct, frozen=True, gc=False):
    """ReadIndex (§6.4): answered by ReadReady(ref, index), or ReadFailed, some steps later."""

    ref: int


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed: fire whatever is due at `now_ms`."""


class Synced(msgspec.Struct, frozen=True, gc=False):
    """All entries up to `index` (whose term is `term`) are durable here."""

    index: int
    term: int


class Applied(msgspec.Struct, frozen=True, gc=False):
    """The state machine has applied everything up to `index`."""

    index: int


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Hand leadership to `target`, or to the most caught-up voter when None (§3.10)."""

    target: str | None = None


class ChangeMembers(msgspec.Struct, frozen=True, gc=False):
    """Add `member` as a learner (voter once it has caught up), or remove it: one at a time (§4.1).

    Answered in the same step: ChangeProposed or ChangeRefused. `remove` names an incarnation too,
    so that a repeated removal never hits the node that took its place.
    """

    ref: int
    member: Member
    remove: bool = False
    feature_level: int = BASE_LEVEL
    """What a member to add supports: below the group's level it is refused."""


class RaiseLevel(msgspec.Struct, frozen=True, gc=False):
    """Raise the group's feature level to `level`, which each of `members` supports and is there.

    Answered in the same step: ChangeProposed or ChangeRefused. Members that the embedder has not
    asked (the group has changed meanwhile) make it refused. From where the entry is applied on the
    machines behave at `level`, whoever leads then.
    """

    ref: int
    level: int
    members: tuple[Member, ...]


class Backoff(msgspec.Struct, frozen=True, gc=False):
    """Give up a candidacy and do not campaign for `wait_ms`: how a split vote is ended.

    Nothing happens where a live leader is known (or this is it). Hearing of a leader ends it.
    """

    wait_ms: int


class Rouse(msgspec.Struct, frozen=True, gc=False):
    """For a quiescent group: the leader's node (on a follower), or a member's (on the leader), has
    not been heard for `election_min_ms`. The group goes back to heartbeats and timers."""


class LinkChanged(msgspec.Struct, frozen=True, gc=False):
    """The link to `peer` came up or broke. A broken link empties its in-flight window."""

    peer: str
    up: bool


class SnapshotTaken(msgspec.Struct, frozen=True, gc=False):
    """A snapshot at `index` is durable here: the log before it (less a tail) can go."""

    index: int
    term: int
    log_ms: int
    size: int


class SnapshotInstalled(msgspec.Struct, frozen=True, gc=False):
    """The received snapshot is durable and restored: continue the log from `index`."""

    index: int
    term: int
    log_ms: int
    size: int
    configuration: Configuration


Event = (
    Receive
    | Propose
    | Read
    | Tick
    | Synced
    | Applied
    | Transfer
    | ChangeMembers
    | RaiseLevel
    | Backoff
    | Rouse
    | LinkChanged
    | SnapshotTaken
    | SnapshotInstalled
)

# --- effects ------------------------------------------------------------------------------


class SaveState(msgspec.Struct, frozen=True, gc=False):
    """Persist term and vote."""

    term: int
    voted_for: str | None


class Append(msgspec.Struct, frozen=True, gc=False):
    """Persist `entries` (consecutive); stored entries from the first one's index on are void."""

    entries: tuple[Entry, ...]


class Send(msgspec.Struct, frozen=True, gc=False):
    """May leave before the fsync."""

    peer: str
    message: RaftMessage


class SendAfterSync(msgspec.Struct, frozen=True, gc=False):
    """Must leave only after everything persisted so far is synced."""

    peer: str
    message: RaftMessage


class SendSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Send the chunk at `offset` of the snapshot at `index` to `peer` in term `term`."""

    peer: str
    term: int
    index: int
    offset: int


class StoreChunk(msgspec.Struct, frozen=True, gc=False):
    """Keep this chunk; answer `peer` after sync with SnapshotResponse, or install when whole."""

    peer: str
    chunk: SnapshotChunk


class Apply(msgspec.Struct, frozen=True, gc=False):
    """These entries are committed: apply them in order."""

    entries: tuple[Entry, ...]


class Proposed(msgspec.Struct, frozen=True, gc=False):
    ref: int
    index: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Nothing was appended. `code` is `not_leader`, `overloaded` or `transferring`."""

    ref: int
    code: str
    leader: str | None


class ChangeProposed(msgspec.Struct, frozen=True, gc=False):
    """The configuration entry stands at `index`: it counts at once, and is made once applied."""

    ref: int
    index: int


class ChangeRefused(msgspec.Struct, frozen=True, gc=False):
    """Nothing was appended. `code` is `not_leader`, `transferring`, or one of leadership.py's."""

    ref: int
    code: str
    leader: str | None


class MembersChanged(msgspec.Struct, frozen=True):
    """From now on these are the members, and the level, as the log stands (a truncation may undo
    it). The embedder must not go on with a level that it does not support."""

    configuration: Configuration


class ReadReady(msgspec.Struct, frozen=True, gc=False):
    """A read begun as `ref` is linearizable once `index` has been applied here."""

    ref: int
    index: int


class ReadFailed(msgspec.Struct, frozen=True, gc=False):
    ref: int
    leader: str | None


class RoleChanged(msgspec.Struct, frozen=True, gc=False):
    """One per change of (role, term, leader); logged as one line with its reason.

    `role` is `follower`, `pre_candidate`, `candidate`, `leader` or `learner`.
    """

    role: str
    term: int
    leader: str | None
    reason: str


Effect = (
    SaveState
    | Append
    | Send
    | SendAfterSync
    | SendSnapshot
    | StoreChunk
    | Apply
    | Proposed
    | Refused
    | ChangeProposed
    | ChangeRefused
    | MembersChanged
    | ReadReady
    | ReadFailed
    | RoleChanged
)
