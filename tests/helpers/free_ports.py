"""A free TCP port of 127.0.0.1 for a server that a test starts, stops and starts again."""

from __future__ import annotations

import itertools
import secrets
import socket
from typing import Final

FIRST: Final = 31_100
END: Final = 32_700
"""Above what clusters of processes take (cluster_process.free_base_port), below the ephemeral
ports: one of those may become some connection's own port while its server is down."""


_candidates = itertools.count(secrets.randbelow(END - FIRST))


def free_port() -> int:
    """In turn, so that no two of one test are the same; from a place of this process's own."""
    for at in itertools.islice(_candidates, END - FIRST):
        port = FIRST + at % (END - FIRST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port between {FIRST} and {END}")
