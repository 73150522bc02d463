"""The SDK: `from dss.client import connect`. Imports only `dss.base`, aiohttp and msgspec."""

from dss.client.client import Client, connect
from dss.client.locks import Held, Session
from dss.client.queues import Message, Queue

__all__ = ["Client", "Held", "Message", "Queue", "Session", "connect"]
