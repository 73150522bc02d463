"""An event loop in a thread of its own, for code that blocks. What must not live here: locks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from dss.client.errors import Closed

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dss", daemon=True)
        self._thread.start()
        self._pid = os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; Ctrl-C cancels it."""
        if self._loop.is_closed() or self._pid != os.getpid():
            work.close()
            if self._pid == os.getpid():
                raise Closed
            raise Closed(  # threads do not come along, and what is held is the parent's
                f"this client belongs to process {self._pid}, which has forked this one "
                f"({os.getpid()}): connect here again"
            )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self._loop.is_closed() or self._pid != os.getpid():
            return
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
