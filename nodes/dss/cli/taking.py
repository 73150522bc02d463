"""`dss lock acquire`: a lock over HTTP, for a session that outlives the command.

What must not live here: arguments, printing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any, Final

from dss.base.errors import EXIT_TRY_AGAIN
from dss.base.limits import WAIT_MS_MAX
from dss.cli.connect import session_label
from dss.cli.http import CliError, Nodes, Problem, segment

_ASK_AGAIN_S: Final = 20.0
"""Asked again before the node's own limit, the same owner keeps its place in line."""


def open_session(client: Nodes, ttl_s: float) -> str:
    """A session that others see as `host:pid`."""
    body = {"ttl_ms": round(ttl_s * 1000), "name": session_label()}
    return str(client.ask("lock", "POST", "/v1/sessions", body).json()["session"])


def end_session(client: Nodes, session: str) -> None:
    """Give back all that the session holds; a session that cannot be reached ends by its TTL."""
    with contextlib.suppress(CliError):
        client.ask("lock", "DELETE", f"/v1/sessions/{segment(session)}")


class Taking:
    """One lock for one session.

    Args:
        ttl_s: of a session made for it, which is kept alive while it waits; else None.
    """

    def __init__(
        self, client: Nodes, name: str, session: str, shared: bool, ttl_s: float | None
    ) -> None:
        self._client = client
        self._path = f"/v1/locks/{segment(name)}"
        self._session = session
        self._mode = "shared" if shared else "exclusive"
        self._ttl_s = ttl_s
        self._answers: queue.SimpleQueue[dict[str, Any] | CliError] = queue.SimpleQueue()
        self._open = 0
        self._asked_s = 0.0

    def wait(self, wait_s: float) -> dict[str, Any]:
        """`{token, mode, expires_in_ms}`. Problem when it is busy for all of that time."""
        began_s = time.monotonic()
        until_s = began_s + wait_s
        granted: dict[str, Any] | None = None
        refusal: CliError | None = None
        self._ask(until_s)
        while self._open:
            answer = self._next(until_s, granted is not None)
            self._open -= 1
            if isinstance(answer, CliError):
                if not (isinstance(refusal, Problem) and refusal.code != "superseded"):
                    refusal = answer
            elif granted is None:
                granted = answer
            else:  # asked again just as it was granted: it counts twice
                body = {"session": self._session, "token": answer["token"]}
                self._client.ask("lock", "POST", f"{self._path}/release", body)
        if granted is None:
            raise refusal or CliError("not granted in time", EXIT_TRY_AGAIN, "lock_timeout")
        if self._ttl_s is not None and time.monotonic() - began_s > self._ttl_s / 10:
            self._keep_alive()
        return granted

    def _next(self, until_s: float, granted: bool) -> dict[str, Any] | CliError:
        """The next answer; meanwhile the session is kept alive, and the place in line."""
        while True:
            pause_s = _ASK_AGAIN_S if self._ttl_s is None else min(_ASK_AGAIN_S, self._ttl_s / 3)
            try:
                return self._answers.get(timeout=pause_s)
            except queue.Empty:
                self._keep_alive()
            now_s = time.monotonic()
            late = until_s <= self._asked_s + WAIT_MS_MAX / 1000
            if not granted and not late and now_s >= self._asked_s + _ASK_AGAIN_S:
                self._ask(until_s)

    def _keep_alive(self) -> None:
        if self._ttl_s is not None:
            with contextlib.suppress(CliError):
                path = f"/v1/sessions/{segment(self._session)}/keepalive"
                self._client.ask("lock", "POST", path, {})

    def _ask(self, until_s: float) -> None:
        self._open += 1
        self._asked_s = time.monotonic()
        wait_ms = min(WAIT_MS_MAX, max(0, round((until_s - self._asked_s) * 1000)))
        body = {"session": self._session, "mode": self._mode, "wait_ms": wait_ms}

        def ask() -> None:
            answer: dict[str, Any] | CliError
            try:
                path = f"{self._path}/acquire"
                answer = self._client.ask("lock", "POST", path, body, wait_ms=wait_ms).json()
            except CliError as error:
                answer = error
            self._answers.put(answer)

        threading.Thread(target=ask, name="acquire", daemon=True).start()
