"""Which Events tell what a tick did. Pure.

What must not live here: sending them (events.py), Events of conditions (status.py) and of
elections (remedy.py).
"""

from __future__ import annotations

from dss_operator.events import Event
from dss_operator.plan import Action
from dss_operator.state import Key


def events_of(done: list[Action], fresh: set[Key], *, changed: bool) -> list[Event]:
    """Events of what was done: creations and removals in one each, repairs one by one.

    Args:
        changed: the resource asks for something else than in the last look (or this is the first):
            then what differs is followed, not repaired.
    """
    events = []
    made = [f"{a.kind} {a.name}" for a in done if a.verb == "create"]
    if len(made) > 3:
        events.append(Event("Normal", "Created", f"created {len(made)} objects"))
    elif made:
        events.append(Event("Normal", "Created", f"created {', '.join(made)}"))
    for action in done:
        what = f"{action.kind} {action.name}"
        if action.verb in ("apply", "strip") and changed:
            events.append(Event("Normal", "Updated", f"{what}: {action.why}"))
        elif action.verb in ("apply", "strip"):
            events.append(Event("Normal", "Repaired", f"{what}: put back {action.why}"))
        elif action.verb == "recreate":
            events.append(Event("Normal", "Recreated", f"{what}: {action.why} cannot be changed"))
    pruned = [f"{a.kind} {a.name}" for a in done if a.verb == "prune"]
    if pruned:
        text = ", ".join(pruned[:5]) + (f" and {len(pruned) - 5} more" if len(pruned) > 5 else "")
        events.append(Event("Normal", "Pruned", f"removed {text}: no longer wanted"))
    for _, name in sorted(fresh):
        events.append(
            Event(
                "Warning", "SecretReplaced",
                f"Secret {name} was lost while no operator ran: it has new values. Clients need "
                "the new tokens, and pods keep the old values until they are restarted "
                "(annotation dss.io/restartedAt)",
            )
        )  # fmt: skip
    return events
