"""Requests that schemathesis makes from a node's own `/openapi.json`; what is wrong with answers.

Half of the cases keep to the document, half break it. So that they reach beyond "no such session",
most names come from a small pool and most sessions, tokens and receipts are real ones, heard in
earlier answers. A case fails when its answer has a status, a content type or a body that the
document does not declare, says 500, or does not come.

Nothing raises while cases run: each kind of failure is kept once, with its request, and all are
told at the end. What must not live here: how nodes are started, what an operation means.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

WAIT_MS_MAX: Final = 40
"""No case shall wait longer for a lock or a message: the document's own bound is for clients."""
ANSWER_S: Final = 30
NAMES: Final = ("a", "b", "c", "orders/42", "ünï", "a b", "%2F", "x" * 40)
ENDLESS: Final = frozenset({"/v1/locks:events"})
"""Server-sent events: the answer never ends."""
CHECKS: Final[list[CheckFunction]] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ROUND: Final = 1_000
"""Cases between two requests of the same kind in another state of the node, about."""
REAL: Final = 0.75
"""How many of the names, sessions and tokens are real ones."""


class Fuzz:
    """Cases against nodes of one role, and what came of them."""

    def __init__(self, urls: Sequence[str], number: int = 1) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: dict[str, str] = {}
        self._urls = urls
        self._seed = number
        self._random = random.Random(number)
        self._http = requests.Session()
        self._heard: dict[str, list[Any]] = {"session": [], "token": [], "receipt": []}
        document = self._http.get(f"{urls[0]}/openapi.json", timeout=ANSWER_S).json()
        _shorten(document)
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        self.operations = [each for each in operations if each.path not in ENDLESS]

    @property
    def cases(self) -> int:
        return sum(self.statuses.values())

    def run(self, cases: int, *, until: float = float("inf")) -> None:
        """At least `cases` cases, spread over all operations; ends early at `until`."""
        share = max(2, round(min(cases, ROUND) / len(self.operations) / 2))
        while self.cases < cases and time.monotonic() < until:
            self._seed += 1
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                for operation in self.operations:
                    if time.monotonic() < until:
                        self._operation(operation, mode, share)

    def _operation(self, operation: Any, mode: GenerationMode, cases: int) -> None:
        if not operation.body:
            mode = GenerationMode.POSITIVE  # any text will do for a name: nothing can be broken

        @seed(self._seed)
        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Case) -> None:
            if mode is GenerationMode.POSITIVE:
                self._deepen(case)
            self._send(case)

        one()

    def _deepen(self, case: Case) -> None:
        """Real names, sessions and tokens instead of invented ones, most of the time."""
        for name in case.path_parameters or {}:
            if self._random.random() < (REAL if case.method != "DELETE" else 1 - REAL):
                pool = self._heard.get(name) or ([] if name == "node_id" else NAMES)
                if pool:
                    case.path_parameters[name] = self._random.choice(pool)
        if isinstance(case.body, dict):
            for field, pool in self._heard.items():
                if field in case.body and pool and self._random.random() < REAL:
                    case.body[field] = self._random.choice(pool)
            if "locks" in case.body and self._random.random() < REAL:
                case.body["locks"] = self._random.sample(NAMES, 2)
            if "messages" in case.body and self._random.random() < REAL:
                case.body = {"body": case.body.get("headers"), "key": self._random.choice(NAMES)}
            if isinstance(case.body.get("receipts"), list) and self._random.random() < REAL:
                case.body["receipts"] = self._heard["receipt"][-3:]

    def _send(self, case: Case) -> None:
        what = f"{case.method} {case.path}"
        try:
            response = case.call(
                base_url=self._random.choice(self._urls), session=self._http, timeout=ANSWER_S
            )
        except requests.RequestException as error:
            if isinstance(
                error, requests.exceptions.InvalidHeader | requests.exceptions.InvalidURL
            ):
                return  # what no client can send
            self._failed(f"{what}: {type(error).__name__}", case, str(error))
            return
        self.statuses[response.status_code] += 1
        self._hear(response.content and _json(response))
        if response.status_code == 500:
            self._failed(f"{what}: 500", case, response.text[:300])
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._told(what, failure, case, response.status_code, response.text)
        except Failure as failure:
            self._told(what, failure, case, response.status_code, response.text)

    def _told(self, what: str, failure: Any, case: Case, status: int, text: str) -> None:
        kind = f"{what}: {getattr(failure, 'title', type(failure).__name__)} ({status})"
        self._failed(kind, case, f"{str(failure)[:600]}\n{text[:300]}")

    def _failed(self, kind: str, case: Case, detail: str) -> None:
        self.failures.setdefault(kind, f"{kind}\n{case.as_curl_command()[:600]}\n{detail}\n")

    def _hear(self, body: Any) -> None:
        """Remember what later cases may use."""
        if isinstance(body, dict):
            for field, pool in self._heard.items():
                if isinstance(body.get(field), str | int):
                    pool.append(body[field])
                    del pool[:-20]
            for message in body.get("messages") or ():
                self._hear(message)

    def report(self) -> str:
        counts = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        return f"{self.cases} cases over {len(self.operations)} operations; {counts}"


def _shorten(node: Any) -> None:
    """Waits in the document become short ones, in place."""
    if isinstance(node, dict):
        wait = node.get("wait_ms")
        if isinstance(wait, dict):
            node["wait_ms"] = {"type": "integer", "minimum": 0, "maximum": WAIT_MS_MAX}
        for value in node.values():
            _shorten(value)
    elif isinstance(node, list):
        for value in node:
            _shorten(value)


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
