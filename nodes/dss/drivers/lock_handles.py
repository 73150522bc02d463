"""What clients are shown in place of others' session ids.

A session's id is the only proof of being its client: whoever knows it may release what it holds and
end it. So it is told to the client that created it, to nodes and to administrators; everybody else
sees its handle. Whoever has the id recognises itself by it.

What must not live here: what a handle is (base/handles.py), who is an administrator (api/auth.py).
"""

from __future__ import annotations

from typing import Any

from dss.base.handles import handle_of, shown_owner
from dss.core.machine import Result


def hide_sessions(lock: dict[str, Any]) -> None:
    """In a description of a lock, in place."""
    for each in (*lock["holders"], *lock["waiters"]):
        _hide(each)


def shown(result: Result) -> Result:
    """An answer as a client may see it: a deadlock's names other sessions."""
    status, body = result
    if status != 409 or "cycle" not in body:
        return result
    cycle = [dict(step) for step in body["cycle"]]
    for step in cycle:
        _hide(step)
    return status, {**body, "cycle": cycle}  # a copy: the machine keeps its own


def _hide(row: dict[str, Any]) -> None:
    row["owner"] = shown_owner(row["session"], row["owner"])
    row["session"] = handle_of(row["session"])
