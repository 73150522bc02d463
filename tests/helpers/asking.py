"""One HTTP request, and waiting until something is so: for tests of what runs for real.

What must not live here: what is right or wrong; anything of Docker or Kubernetes.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str,
    url: str,
    body: object = None,
    *,
    host: str = "",
    token: str = "",
    login: tuple[str, str] | None = None,
    headers: dict[str, str] | None = None,
    timeout_s: float = 40.0,
) -> Answer:
    """One request; `body` as JSON, or as it is when it is bytes. Any status is an answer.

    `timeout_s` lets a request wait at the node, as most do. Raises OSError when nobody answers.
    """
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    if data is not None:
        raw = isinstance(body, bytes)
        request.add_header("Content-Type", "text/plain" if raw else "application/json")
    if host:
        request.add_header("Host", host)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if login is not None:
        both = base64.b64encode(":".join(login).encode()).decode()
        request.add_header("Authorization", f"Basic {both}")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return Answer(response.status, response.read(), dict(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), dict(error.headers))


def until(
    what: str, check: Callable[[], _T], timeout_s: float = 60.0, *, every_s: float = 0.5
) -> _T:
    """The first truthy result of `check`; an error that names `what` and the last result."""
    end = time.monotonic() + timeout_s
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() >= end:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what} (last: {result!r})")
        time.sleep(every_s)
