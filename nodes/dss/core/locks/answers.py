"""The lock group's refusals: code, and a line that tells a person what happened and what next.

What must not live here: when to refuse (machine.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from dss.base.limits import SESSION_HOLDS_MAX, WAITERS_SHOWN_MAX
from dss.core.locks.state import Hold, Lock, LockState, Waiter
from dss.core.machine import Result


def lock_timeout(state: LockState, lock: Lock, waiter: Waiter | None, now_ms: int) -> Result:
    """What a person needs to know: who has it, since when, where one stood in the line."""
    place = place_in_line(lock, waiter) if waiter else 0
    total = len(lock.waiters or ())
    hold = next(iter(lock.holders.values()))
    held_ms = now_ms - hold.since_ms
    more = f" and {len(lock.holders) - 1} more" if len(lock.holders) > 1 else ""
    held = (
        f"eld by {state.label(hold.session, hold.owner)}{more} for {duration(held_ms)} "
        f"(token {hold.token})"
    )
    if waiter is None:
        line = f"; {total} waiting" if total else ""
        text = f'lock "{lock.name}": busy. H{held}{line}.'
    else:
        stood = ordinal(place) if place else f"behind more than {WAITERS_SHOWN_MAX}"
        waited = duration(now_ms - waiter.since_ms)
        text = (
            f'lock "{lock.name}": not granted within {waited}. H{held}; '
            f"you were {stood} of {total}."
        )
    return 409, {
        "code": "lock_timeout",
        "message": text,
        "holder": state.label(hold.session, hold.owner),
        "held_ms": held_ms,
        "token": hold.token,
        "position": place,
        "waiters": total,
    }


def place_in_line(lock: Lock, waiter: Waiter) -> int:
    """1 for the first in the line; 0 when it is further back than WAITERS_SHOWN_MAX."""
    waiters: Iterable[Waiter] = lock.waiters.values() if lock.waiters else ()
    for place, each in enumerate(islice(waiters, WAITERS_SHOWN_MAX), start=1):
        if each is waiter:
            return place
    return 0


def duration(ms: int) -> str:
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 10_000 and ms % 1_000:
        return f"{ms / 1_000:.1f} s"
    if ms < 120_000:
        return f"{ms // 1_000} s"
    return f"{ms // 60_000} min"


def ordinal(place: int) -> str:
    if 10 <= place % 100 <= 20:
        return f"{place}th"
    return f"{place}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(place % 10, 'th') }"


def problem(status: int, code: str, message: str) -> Result:
    return status, {"code": code, "message": message}


def session_expired(session_id: str) -> Result:
    return problem(
        409,
        "session_expired",
        f"session {session_id[:8]}… does not exist or has ended, and its locks were released: "
        "create a new one.",
    )


def too_many_holds() -> Result:
    return problem(
        429, "overloaded", f"a session holds or waits for at most {SESSION_HOLDS_MAX} locks"
    )


def self_deadlock(lock: Lock, hold: Hold) -> Result:
    mode = "shared" if lock.shared else "exclusive"
    return 409, {
        "code": "deadlock",
        "message": f'lock "{lock.name}": this owner holds it {mode} (token {hold.token}) and '
        "would wait for itself for ever: release it first.",
        "cycle": [{"session": hold.session, "owner": hold.owner, "name": lock.name}],
    }
