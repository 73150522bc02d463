"""`status.remediation`: the history with its counters, and which rows are dropped first.

It is what the operator must not forget, so it is stored before anything is done:
`begin` makes the row, the caller stores it, acts, and stores `ended` with what came of it.

What must not live here: deciding (decide.py), storing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from dss.remediation.decide import DRY_RUN, HOUR_S, cooldown_until, is_open
from dss.remediation.model import HISTORY_MAX, Action, Attempt, Policy

STARTED: Final = "started"
DONE: Final = "done"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """History and counters. Counters never fall; dry runs are not counted."""

    backoffs: int = 0
    restarts: int = 0
    alerts: int = 0
    recoveries: int = 0
    history: tuple[Attempt, ...] = ()

    @property
    def attempts(self) -> int:
        """Actions that touched a member."""
        return self.backoffs + self.restarts

    def begin(self, action: Action, now: float) -> Record:
        """The record to store before `action` is carried out (or told, or withheld)."""
        if action.kind == "none":
            return self
        now = round(now, 3)  # what is stored is the same row again
        if action.kind == "recovered":
            history = tuple(
                msgspec.structs.replace(row, recovered_at=now)
                if row.group_id == action.group_id and is_open(row)
                else row
                for row in self.history
            )
            return msgspec.structs.replace(self, history=history, recoveries=self.recoveries + 1)
        row = Attempt(
            at=now,
            group_id=action.group_id,
            action=action.kind,
            member=action.member,
            term=action.term,
            outcome=DRY_RUN if action.dry_run else DONE if action.kind == "alert" else STARTED,
        )
        counted = msgspec.structs.replace(self, history=_trimmed([*self.history, row], now))
        if action.dry_run:
            return counted
        name = f"{action.kind}s"
        return msgspec.structs.replace(counted, **{name: getattr(self, name) + 1})

    def ended(self, outcome: str) -> Record:
        """What came of the newest row: `done`, or why it could not be carried out."""
        if not self.history or self.history[-1].outcome != STARTED:
            return self
        last = msgspec.structs.replace(self.history[-1], outcome=outcome)
        return msgspec.structs.replace(self, history=(*self.history[:-1], last))

    def merged(self, other: Record) -> Record:
        """With the rows that only `other` has, and the higher of each counter: of two writers none
        may forget what the other did. A row that both have is taken with what came of it."""

        def key_of(row: Attempt) -> tuple[float, int, str]:
            return (round(row.at, 3), row.group_id, row.action)

        rows = {key_of(row): row for row in other.history}
        for row in self.history:
            key = key_of(row)
            theirs = rows.get(key, row)
            rows[key] = msgspec.structs.replace(
                row,
                outcome=theirs.outcome if row.outcome == STARTED else row.outcome,
                recovered_at=max(row.recovered_at, theirs.recovered_at),
            )
        history = sorted(rows.values(), key=lambda row: row.at)
        return Record(
            backoffs=max(self.backoffs, other.backoffs),
            restarts=max(self.restarts, other.restarts),
            alerts=max(self.alerts, other.alerts),
            recoveries=max(self.recoveries, other.recoveries),
            history=_trimmed(history, history[-1].at) if history else (),
        )

    def to_status(self, policy: Policy) -> dict[str, Any]:
        """As JSON for `status.remediation`; times as RFC 3339 for people."""
        status: dict[str, Any] = {
            "attempts": self.attempts,
            "backoffs": self.backoffs,
            "restarts": self.restarts,
            "alerts": self.alerts,
            "recoveries": self.recoveries,
            "history": [_to_row(row) for row in self.history],
        }
        if self.history:
            status["lastActionAt"] = _to_time(self.history[-1].at)
        until = cooldown_until(self.history, policy)
        if until > 0:
            status["cooldownUntil"] = _to_time(until)
        return status

    @classmethod
    def from_status(cls, status: Mapping[str, Any] | None) -> Record:
        """What `to_status` wrote; nothing at all is an empty record.

        Raises:
            ValueError: somebody wrote something else there. Do not act upon a guess.
        """
        status = status or {}
        try:
            return cls(
                backoffs=int(status.get("backoffs", 0)),
                restarts=int(status.get("restarts", 0)),
                alerts=int(status.get("alerts", 0)),
                recoveries=int(status.get("recoveries", 0)),
                history=tuple(_from_row(row) for row in status.get("history", ())),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"status.remediation was not understood: {error!r}") from error


def _trimmed(rows: Sequence[Attempt], now: float) -> tuple[Attempt, ...]:
    """At most HISTORY_MAX rows. First go rows on which no guard depends any more.

    Guards need: the actions of the last hour (at most ACTIONS_PER_HOUR_MAX), the rows of open
    episodes, of alerts only the newest of each group. The newest row always stays.
    """
    kept = list(rows)
    while len(kept) > HISTORY_MAX:
        kept.pop(min(range(len(kept) - 1), key=lambda i: _worth(i, kept, now)))
    return tuple(kept)


def _worth(index: int, rows: Sequence[Attempt], now: float) -> tuple[int, int]:
    """The lowest is dropped first; among equals the oldest."""
    row = rows[index]
    if row.action == "alert":
        newer = any(
            later.action == "alert" and later.group_id == row.group_id
            for later in rows[index + 1 :]
        )
        worth = 0 if newer or not is_open(row) else 4
    elif not is_open(row) and now - row.at >= HOUR_S:
        worth = 1
    elif row.outcome == DRY_RUN:
        worth = 2
    else:
        worth = 3
    return (worth, index)


def _to_row(row: Attempt) -> dict[str, Any]:
    made: dict[str, Any] = {
        "at": _to_time(row.at),
        "groupId": row.group_id,
        "action": row.action,
        "member": row.member,
        "term": row.term,
        "outcome": row.outcome,
    }
    if not is_open(row):
        made["recoveredAt"] = _to_time(row.recovered_at)
    return made


def _from_row(row: Mapping[str, Any]) -> Attempt:
    plain = {
        "at": _from_time(row["at"]),
        "group_id": row["groupId"],
        "action": row["action"],
        "member": row.get("member", ""),
        "term": row.get("term", 0),
        "outcome": row["outcome"],
        "recovered_at": _from_time(row["recoveredAt"]) if row.get("recoveredAt") else 0.0,
    }
    return msgspec.convert(plain, Attempt)


def _to_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _from_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
