"""The SDK: `from dss.client import connect`. Imports only `dss.base`, aiohttp and msgspec."""

from dss.client.client import Client, connect
from dss.client.election import Election, Leader
from dss.client.errors import Closed, DeadlockError, LockTimeout
from dss.client.handles import LockHandle, RwLock
from dss.client.held import Guard, Held, LockLost
from dss.client.lock_calls import clock_s
from dss.client.queues import Message, Queue
from dss.client.sessions import Session

__all__ = [
    "Client", "Closed", "DeadlockError", "Election", "Guard", "Held", "Leader", "LockHandle",
    "LockLost", "LockTimeout", "Message", "Queue", "RwLock", "Session", "clock_s", "connect",
]  # fmt: skip
