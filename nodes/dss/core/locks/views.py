"""Reads of the lock group's state: plain values for JSON and msgpack, every list bounded.

What must not live here: anything that changes the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from dss.base.limits import LIST_STEP_ITEMS, LIST_STEP_NAMES, WAITERS_SHOWN_MAX
from dss.core.locks.answers import duration, locks_named, ordinal
from dss.core.locks.places import Waiter, place_in
from dss.core.locks.state import Lock, LockState, label_of
from dss.core.locks.waits import blockers


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
            "permits": hold.permits,
            "confirmed": not hold.confirm_by_ms,
            "held_ms": max(0, log_ms - hold.since_ms),
        }
        for hold in islice(lock.holders.values(), WAITERS_SHOWN_MAX)
    ]
    waiters = [
        {
            "session": waiter.session,
            "owner": waiter.owner,
            "label": state.label(waiter.session, waiter.owner),
            "mode": waiter.mode,
            "wants": waiter.kind,
            "priority": waiter.priority,
            "position": place,
            "waiting_ms": max(0, log_ms - waiter.since_ms),
            "gives_up_in_ms": max(0, waiter.deadline_ms - log_ms),
        }
        for place, waiter in enumerate(islice(lock.waiters or (), WAITERS_SHOWN_MAX), start=1)
    ]
    found: dict[str, Any] = {"name": name, "state": "held" if holders else "free"}
    if holders:
        found["mode"] = lock.mode
        found["token"] = _newest(lock)
    if holders and lock.mode == "semaphore":
        found |= {"limit": lock.limit, "permits_used": lock.used}
    return found | {
        "holders": holders,
        "waiters": waiters,
        "waiting": len(lock.waiters or ()),
    }


def list_held(
    state: LockState, prefix: str, limit: int, cursor: str, log_ms: int
) -> dict[str, Any]:
    """Held locks by name: `{items: [{name, mode, token, holders, waiting, …}], next}`."""
    pages = list_in_steps(state, prefix, limit, cursor, log_ms)
    return next(page for page in pages if page is not None)


def list_in_steps(
    state: LockState, prefix: str, limit: int, cursor: str, log_ms: int
) -> Iterator[dict[str, Any] | None]:
    """As `list_held`, a bounded amount of work at a time: None until the page is there.

    The state may change in between. A lock that is held all the while is not missed.
    """
    everything = list(state.lock_names())
    yield None
    found: list[str] = []
    below = ""
    for start in range(0, len(everything), LIST_STEP_NAMES):
        found += [
            name
            for name in everything[start : start + LIST_STEP_NAMES]
            if name > cursor
            and name.startswith(prefix)
            and not (below and name > below)
            and state.is_held(name)
        ]
        if len(found) > 4 * limit:
            found.sort()
            del found[limit + 1 :]
            below = found[-1]
        yield None
    found.sort()
    del found[limit + 1 :]
    items: list[dict[str, Any]] = []
    for name in found[:limit]:
        if len(items) % LIST_STEP_ITEMS == LIST_STEP_ITEMS - 1:
            yield None
        lock = state.find_lock(name)
        if lock is None or not lock.holders:
            continue  # given back since
        hold = next(iter(lock.holders.values()))
        items.append(
            {
                "name": name,
                "mode": lock.mode,
                "token": hold.token,
                "holder": state.label(hold.session, hold.owner),
                "holders": len(lock.holders),
                "held_ms": max(0, log_ms - hold.since_ms),
                "waiting": len(lock.waiters or ()),
            }
        )
    yield {"items": items, "next": found[limit - 1] if len(found) > limit else None}


def describe_session(state: LockState, session_id: str, log_ms: int) -> dict[str, Any] | None:
    """One session, or None: its ids and times, what it holds, its kept places in lines."""
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
        "waiting": session.wait_count,
        "locks": locks,
        "kept": [
            {
                "names": list(place.names),
                "owner": place.owner,
                "lapses_in_ms": max(0, place.until_ms - log_ms) if place.until_ms else None,
            }
            for place in (session.places or {}).values()
        ],
    }


def verify(state: LockState, name: str, token: int) -> dict[str, Any]:
    """`{valid, newest}`: whether somebody holds the lock with this token now.

    `newest` is the largest token of the lock that is known: of its holders, else of its history;
    None when neither remembers one.
    """
    lock = state.find_lock(name)
    past = [hold.token for hold in state.past.of(name)]
    if lock is None or not lock.holders:
        return {"valid": False, "newest": max(past, default=None)}
    valid = any(hold.token == token for hold in lock.holders.values())
    return {"valid": valid, "newest": max([_newest(lock), *past])}


def _newest(lock: Lock) -> int:
    """The largest token of a held lock: holders stand in the order of their grants."""
    return next(reversed(lock.holders.values())).token


def history(state: LockState, name: str, log_ms: int) -> dict[str, Any]:
    """Who holds the lock and who held it, newest first: `{name, items}`; ages in ms."""
    lock = state.find_lock(name)
    holders = reversed(lock.holders.values()) if lock is not None else ()
    items = [
        {
            "token": hold.token,
            "mode": hold.mode,
            "holder": label_of(hold.session, hold.session_name, hold.owner),
            "granted_ago_ms": max(0, log_ms - hold.since_ms),
            "held_ms": max(0, (hold.until_ms if hold.how else log_ms) - hold.since_ms),
            "ended_ago_ms": max(0, log_ms - hold.until_ms) if hold.how else None,
            "ended": hold.how or None,
        }
        for hold in (*islice(holders, WAITERS_SHOWN_MAX), *reversed(state.past.of(name)))
    ]
    return {"name": name, "items": items}


def explain(state: LockState, name: str, log_ms: int) -> dict[str, Any]:
    """As `describe`, and why: who each waiter waits for, what the holders wait for themselves.

    Adds `blocked_by` to waiters, `waits_for` to holders, and `summary`, lines for a person.
    """
    found = describe(state, name, log_ms)
    lock = state.find_lock(name)
    summary = []
    if lock is None:
        return found | {"summary": [f'lock "{name}" is free and nobody waits for it.']}
    for shown, hold in zip(found["holders"], lock.holders.values(), strict=False):
        session = state.find_session(hold.session)
        waits = session.waits.get(hold.owner, {}) if session is not None else {}
        shown["waits_for"] = list(islice(waits, WAITERS_SHOWN_MAX))
        line = (
            f"held {lock.mode} by {shown['label']} for {duration(shown['held_ms'])} "
            f"(token {hold.token})"
        )
        if shown["waits_for"]:
            line += f", who waits for {locks_named(shown['waits_for'])} in turn"
        summary.append(line + ".")
    if not lock.holders:
        summary.append("free, but the first in its line waits for other locks as well.")
    for shown, waiter in zip(found["waiters"], lock.waiters or (), strict=False):
        shown["blocked_by"] = _blocked_by(state, lock, waiter)
        summary.append(
            f"{ordinal(shown['position'])} in line: {shown['label']}, {shown['mode']}, for "
            f"{duration(shown['waiting_ms'])}, blocked by {_joined(shown['blocked_by'])}."
        )
    more = found["waiting"] - len(found["waiters"])
    if more:
        summary.append(f"and {more} more in line.")
    return found | {"summary": summary}


def _blocked_by(state: LockState, lock: Lock, waiter: Waiter) -> list[str]:
    """Labels of those that the first in line waits for; of the one before, for all others."""
    assert lock.waiters is not None
    if lock.waiters[0] is not waiter:
        before = lock.waiters[place_in(lock.waiters, waiter) - 1]
        return [state.label(before.session, before.owner)]
    found = blockers(state, waiter)
    agents = [node for node in found.nodes if isinstance(node, tuple)]
    agents += [(hold.session, hold.owner) for hold in found.holders]
    unique = islice(dict.fromkeys(agents), WAITERS_SHOWN_MAX)
    return [state.label(session, owner) for session, owner in unique]


def _joined(labels: list[str]) -> str:
    if not labels:
        return "nobody"
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more
