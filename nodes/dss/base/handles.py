"""What is shown in place of a session's id, by nodes, by the client and on the command line.

A session's id is the only proof of being its client; its handle, the first HANDLE_CHARS characters
(as in labels), leaves 96 of 128 random bits secret. What must not live here: who may see an id.
"""

from __future__ import annotations

import string
from typing import Final

HANDLE_CHARS: Final = 8


def handle_of(session_id: str) -> str:
    return session_id[:HANDLE_CHARS]


def looks_like_handle(session: str) -> bool:
    """As shown, or as messages write it: `0123abcd…`."""
    shown = session.removesuffix("…")
    return len(shown) == HANDLE_CHARS and set(shown) <= set(string.hexdigits)


def shown_owner(session: str, owner: str) -> str:
    """The default owner is the session itself, whose id must not be told."""
    return "" if owner == session else owner
