"""A connection to a node, by the name that others know it by.

What must not live here: when to dial (links.py), what is said (link.py).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from dss.topology.nodes import NodeSpec
from dss.transport.link import Link

RESOLVE_TIMEOUT_S: Final = 10.0
"""For a peer's name: two tries of the usual resolver, of which the first server may be dead."""
DIAL_TIMEOUT_S: Final = 1.0
"""For a connection: a dead pod's address may not answer at all, and its name has a new one soon."""


async def dial(peer: NodeSpec, make: Callable[[], Link]) -> Link:
    """A connection to the first address that takes it.

    The name is resolved anew at every dial: a restarted pod has a new address. Separately,
    because uvloop's create_connection leaves its look-up behind when it is given up.

    Raises:
        OSError, ValueError: none; says why.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(peer.host, peer.peer_port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise OSError("name look-up timed out") from None
    failure = OSError("the name has no address")
    for *_, address in found:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                _, link = await loop.create_connection(make, str(address[0]), peer.peer_port)
            return link
        except TimeoutError:
            failure = OSError("dial timed out")
        except OSError as error:
            failure = error
    raise failure
