"""Reads of the lock group's state: plain values for JSON and msgpack, every list bounded.

What must not live here: anything that changes the state.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from typing import Any

from dss.base.limits import WAITERS_SHOWN_MAX
from dss.core.locks.state import LockState


def describe(state: LockState, name: str, log_ms: int) -> dict[str, Any]:
    """One lock: `{name, state, mode?, token?, holders, waiters, waiting}`; ages in ms.

    A lock that nobody holds is `free`, whatever its name.
    """
    lock = state.find_lock(name)
    if lock is None:
        return {"name": name, "state": "free", "holders": [], "waiters": [], "waiting": 0}
    holders = [
        {
            "session": hold.session,
            "owner": hold.owner,
            "label": state.label(hold.session, hold.owner),
            "token": hold.token,
            "count": hold.count,
            "held_ms": max(0, log_ms - hold.since_ms),
        }
        for hold in islice(lock.holders.values(), WAITERS_SHOWN_MAX)
    ]
    waiters = [
        {
            "session": waiter.session,
            "owner": waiter.owner,
            "label": state.label(waiter.session, waiter.owner),
            "mode": "shared" if waiter.shared else "exclusive",
            "position": place,
            "waiting_ms": max(0, log_ms - waiter.since_ms),
            "gives_up_in_ms": max(0, waiter.deadline_ms - log_ms),
        }
        for place, waiter in enumerate(
            islice((lock.waiters or {}).values(), WAITERS_SHOWN_MAX), start=1
        )
    ]
    return {
        "name": name,
        "state": "held",
        "mode": "shared" if lock.shared else "exclusive",
        "token": max(hold.token for hold in lock.holders.values()),
        "holders": holders,
        "waiters": waiters,
        "waiting": len(lock.waiters or ()),
    }


def list_held(
    state: LockState, prefix: str, limit: int, cursor: str, log_ms: int
) -> dict[str, Any]:
    """Held locks by name: `{items: [{name, mode, token, holders, waiting, …}], next}`."""
    names = nsmallest(
        limit + 1,
        (name for name in state.lock_names() if name > cursor and name.startswith(prefix)),
    )
    items = []
    for name in names[:limit]:
        lock = state.find_lock(name)
        assert lock is not None
        hold = next(iter(lock.holders.values()))
        items.append(
            {
                "name": name,
                "mode": "shared" if lock.shared else "exclusive",
                "token": hold.token,
                "holder": state.label(hold.session, hold.owner),
                "holders": len(lock.holders),
                "held_ms": max(0, log_ms - hold.since_ms),
                "waiting": len(lock.waiters or ()),
            }
        )
    return {"items": items, "next": names[limit - 1] if len(names) > limit else None}


def describe_session(state: LockState, session_id: str, log_ms: int) -> dict[str, Any] | None:
    """One session, or None: `{session, ttl_ms, name, expires_in_ms, held, waiting, locks}`."""
    session = state.find_session(session_id)
    if session is None:
        return None
    locks = [
        {"name": hold.name, "owner": hold.owner, "token": hold.token, "count": hold.count}
        for hold in islice(session.holds.values(), WAITERS_SHOWN_MAX)
    ]
    return {
        "session": session.id,
        "ttl_ms": session.ttl_ms,
        "name": session.name,
        "expires_in_ms": max(0, state.session_deadline_ms(session) - log_ms),
        "held": len(session.holds),
        "waiting": len(session.waits),
        "locks": locks,
    }
