"""A setting's file that is looked at again while the node runs: tokens, the cluster secret.

Kubernetes swaps a mounted Secret by a symbolic link, others rewrite the file: both are seen by
polling its status. Bad content keeps what was good, with one line in the log. What must not live
here: what the content means.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dss.base.errors import ConfigProblem
from dss.base.limits import SETTING_FILE_BYTES_MAX, SETTING_FILE_POLL_S
from dss.observe.logs import unexpected

log = logging.getLogger("dss.node")


class WatchedFile:
    """Calls `take` with the file's text whenever it has changed.

    Args:
        name: the variable, for the log.
        take: uses the text; raises ConfigProblem (whose message is logged) to keep what was.
            Returns whether anything is different now.
    """

    def __init__(
        self,
        name: str,
        path: str,
        take: Callable[[str], bool],
        *,
        poll_s: float = SETTING_FILE_POLL_S,
    ) -> None:
        self._name = name
        self._path = Path(path)
        self._take = take
        self._poll_s = poll_s
        self._stamp: tuple[int, int, int] | None = None
        self._text: str | None = None
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"watch-{self._name}")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def readiness(self) -> str | None:
        """Never in the way: what was good at the start still is."""
        return None

    async def _run(self) -> None:
        while True:
            try:
                text = await asyncio.to_thread(self._read)
                if text is not None and self._take(text):
                    log.info("%s: took up the new content of %s", self._name, self._path)
                self._problem = ""
            except ConfigProblem as problem:
                self._report(problem.message)
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
                self._report(f"{self._name}_FILE: {self._path} cannot be read: {reason}.")
            await asyncio.sleep(self._poll_s)

    def _read(self) -> str | None:
        """The text, when it is another than last time."""
        status = os.stat(self._path)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return None
        with open(self._path, "rb") as file:
            text = file.read(SETTING_FILE_BYTES_MAX + 1).decode("utf-8-sig").rstrip()
        self._stamp = stamp
        if text == self._text:
            return None
        self._text = text
        return text

    def _report(self, problem: str) -> None:
        if problem != self._problem:  # once, not at every look
            self._problem = problem
            log.error("%s The node goes on with what it had.", problem)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            unexpected(log, f"watching {self._path}", error)
