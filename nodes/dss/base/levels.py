"""Feature levels: what each one brings, and which this release supports.

A state machine's behaviour changes only where its group's log raises the level (an entry of kind
LEVEL), so that releases which differ agree while nodes are upgraded one after another
(docs/decisions/0012-feature-levels.md). A group begins at BASE_LEVEL. A change of what `apply`
does, of a command's fields, or of a snapshot's bytes belongs to a new level; a level, once
released, means the same for ever.

What must not live here: who raises a level, and when (drivers/levels.py).
"""

from __future__ import annotations

from typing import Final

BASE_LEVEL: Final = 1
"""That of a group whose log has no level entry, and of a node that tells none."""
FEATURE_LEVEL: Final = 2
"""The newest that this release supports; it reads all from BASE_LEVEL on."""

LEVELS: Final[dict[int, str]] = {
    1: "everything before there were levels",
    2: "the levels themselves: a machine's snapshot names its own; locks: kept places lapse, "
    "repeats of a request that waits get its answer, waits and holders are bounded in all",
}
"""What each level brings; every one from BASE_LEVEL to FEATURE_LEVEL has its line."""
