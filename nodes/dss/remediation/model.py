"""What goes into a diagnosis and what comes out of a decision. Times are ms of one monotonic clock.

What must not live here: the rules (diagnose.py, decide.py).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class GroupSample(msgspec.Struct, frozen=True, kw_only=True):
    """One Raft group as one member sees it, out of `GET /v1/raft/status`."""

    group_id: int
    role: str
    leader: str | None
    term: int
    voted_for: str | None
    last_log_term: int
    last_log_index: int
    voters: tuple[str, ...]
    """The ids of the group's voters, this member's view."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one member answered at one moment; `reason` says why when it did not."""

    at_ms: int
    member: str
    boot_id: str = ""
    links_up: tuple[str, ...] = ()
    """Peers that this member has an established link to."""
    groups: tuple[GroupSample, ...] = ()
    reason: str = ""

    @property
    def answered(self) -> bool:
        return not self.reason


State = Literal["Healthy", "Electing", "ElectionStuck", "Uncertain"]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one group.

    `Healthy`: a leader that a quorum follows. `Electing`: no leader, but not (yet) a stuck split
    vote. `ElectionStuck`: every guard of the design holds; `candidate` may be acted upon.
    `Uncertain`: something cannot be seen, so nothing is done.
    """

    group_id: int
    state: State
    reason: str
    """A CamelCase word for conditions and metrics."""
    message: str
    """A sentence for a person."""
    candidates: tuple[str, ...] = ()
    """The competing candidates."""
    candidate: str | None = None
    """The one to act upon: lowest (last log term, last log index), highest ordinal on a tie."""
    boot_id: str = ""
    """The candidate's process, so that an action never hits its successor."""
    term: int = 0
    leaderless_ms: int = 0
    """For how long the samples show no leader; 0 when there is one."""


ActionKind = Literal["none", "backoff", "restart", "alert", "recovered"]
"""`backoff` and `restart` touch a member; `alert` and `recovered` are only recorded and told."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One action taken (or, in DryRun, withheld); lives in status.remediation.history."""

    at: float
    """Unix seconds: the history outlives processes."""
    group_id: int
    action: ActionKind
    member: str
    term: int
    outcome: str
    """`started` (written before acting), `done`, `dry-run`, or why it could not be carried out."""
    recovered_at: float = 0.0
    """When the group had a leader again, unix seconds: the row belongs to a closed episode. 0: the
    episode is still open."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`spec.remediation`, and what the cluster's timing makes of it."""

    mode: Literal["Enforce", "DryRun", "Off"] = "Enforce"
    window_ms: int = 30_000
    cooldown_ms: int = 300_000
    max_per_hour: int = 3
    min_samples: int = 3
    min_term_rise: int = 5


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now; `none` says why nothing. Everything else becomes a history row, an Event and
    a metric; only `backoff` and `restart` without `dry_run` are carried out."""

    kind: ActionKind
    group_id: int = -1
    member: str = ""
    boot_id: str = ""
    term: int = 0
    reason: str = ""
    """A CamelCase word for Events and metrics."""
    dry_run: bool = False
    message: str = ""
    """A sentence for a person."""


HISTORY_MAX: Final = 10
"""Rows of history: enough for every guard (record.py says why), few enough to read."""
