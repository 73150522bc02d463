"""A small blocking HTTP client that finds a node of the right role among the given endpoints.

An endpoint may be any node (any role) or an ingress. A request goes to one after the other until
a node of the role answers: 421 `wrong_role` and a refused connection mean "not this one". When
none of them has the role, the cluster list (`GET /v1/cluster`) names more.

What must not live here: printing, subcommands. Standard library only: imports stay cheap.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from dss.base.errors import EXIT_FAILED, EXIT_TRY_AGAIN, EXIT_UNREACHABLE, EXIT_USAGE

ROLES = ("lock", "queue", "cache")
DEFAULT_ENDPOINTS = tuple(
    f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003, 8011, 8012, 8013, 8021, 8022)
)
_CONNECT_AND_READ_S = 10.0
_READ_ONLY_S = 5.0
"""A GET can be asked of the next node. Longer than a node without a quorum takes to say so."""
_TRY_AGAIN_CODES = frozenset({"lock_timeout", "deadlock", "no_quorum", "overloaded"})
_TRY_AGAIN_STATUSES = frozenset({429, 503})


class CliError(Exception):
    """One line for standard error and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED, code: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


class Problem(CliError):
    """A problem document (RFC 9457) that a node answered."""

    def __init__(self, status: int, document: Mapping[str, Any], where: str) -> None:
        self.status = status
        self.document = dict(document)
        code = str(document.get("code") or "")
        message = str(
            document.get("detail") or document.get("title") or f"{where} answered HTTP {status}"
        )
        again = code in _TRY_AGAIN_CODES or status in _TRY_AGAIN_STATUSES
        usage = status in (413, 422)
        exit_code = EXIT_TRY_AGAIN if again else EXIT_USAGE if usage else EXIT_FAILED
        super().__init__(message, exit_code, code)


class Answer:
    """Status below 300, headers (lower case) and body of one request."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, endpoint: str) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body
        self.endpoint = endpoint

    def json(self) -> Any:
        if not self.body:
            return {}
        try:
            return json.loads(self.body)
        except ValueError:
            raise CliError(
                f"{self.endpoint} answered something that is not JSON. Is it a DSS node? "
                "Check --endpoints"
            ) from None


class Nodes:
    """The cluster as the command line sees it: endpoints, and who answers for which role."""

    def __init__(self, endpoints: Sequence[str], token: str = "", host_header: str = "") -> None:
        self.endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        for endpoint in self.endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise CliError(
                    f"endpoint {endpoint!r}: expected a URL such as http://127.0.0.1:8001",
                    EXIT_USAGE,
                )
        self._headers = {"Accept": "application/json", "User-Agent": "dss-cli"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if host_header:
            self._headers["Host"] = host_header
        self._found: dict[str, str] = {}
        self._silent: set[str] = set()
        """Those that did not answer are asked last from then on."""
        # No proxies: nodes are addressed directly, as the SDK does.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        )

    def ask(
        self,
        role: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_ms: int = 0,
    ) -> Answer:
        """One request to a node of `role` (`any` for routes that every node serves).

        Args:
            body: sent as JSON; None sends no body.
            raw: sent as it is, instead of `body`.
            wait_ms: how long the node may hold the answer back on purpose.

        Raises:
            Problem: a node refused. CliError: nobody of the role answered (exit code 69).
        """
        sent = dict(headers or {})
        data = raw
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode()
            sent.setdefault("Content-Type", "application/json")
        timeout_s = (_READ_ONLY_S if method == "GET" else _CONNECT_AND_READ_S) + wait_ms / 1000
        refused: list[str] = []
        tried: set[str] = set()
        listed = False
        queue = [e for e in (self._found.get(role), *self.endpoints) if e]
        queue.sort(key=lambda endpoint: endpoint in self._silent)
        while queue:
            endpoint = queue.pop(0)
            if endpoint in tried:
                continue
            tried.add(endpoint)
            try:
                answer = self._send(endpoint, method, path, data, sent, timeout_s)
            except _NotThere as error:
                self._silent.add(endpoint)
                refused.append(f"{endpoint}: {error}")
            except Problem as problem:
                if problem.code != "wrong_role":
                    raise
            else:
                self._found[role] = endpoint
                return answer
            if not queue and not listed and role in ROLES:
                listed = True
                queue = [e for e in self._listed(role) if e not in tried]
        raise CliError(self._nobody(role, refused), EXIT_UNREACHABLE, "unreachable")

    def ask_one(
        self, endpoint: str, path: str, timeout_s: float = _CONNECT_AND_READ_S
    ) -> Answer | None:
        """GET from exactly this endpoint; None when it does not answer. Raises Problem."""
        try:
            return self._send(endpoint, "GET", path, None, {}, timeout_s)
        except _NotThere:
            return None

    def tell_one(self, endpoint: str, path: str, body: Any) -> Answer | None:
        """POST JSON to exactly this endpoint; None when it cannot have been carried out.

        Raises:
            Problem: it was refused. CliError: whether it was carried out is unknown.
        """
        sent = {"Content-Type": "application/json"}
        data = json.dumps(body, ensure_ascii=False).encode()
        try:
            return self._send(endpoint, "POST", path, data, sent, _CONNECT_AND_READ_S)
        except _NotThere:
            return None

    def ask_each(self, role: str, path: str) -> list[Any]:
        """GET `path` from every node of `role` that can be reached; the JSON bodies.

        From outside only the endpoints may be reachable, from inside only what the cluster
        lists: both are asked. A node that is met twice answers twice.
        """
        urls = [*self.endpoints, *self._listed(role)]

        def get(url: str) -> Any:
            try:
                answer = self.ask_one(url, path)
                return answer.json() if answer is not None else None
            except CliError:
                return None

        with ThreadPoolExecutor(max_workers=8) as pool:
            return [body for body in pool.map(get, dict.fromkeys(urls)) if body is not None]

    def cluster(self) -> list[dict[str, Any]]:
        """`GET /v1/cluster`: every node with id, role and url."""
        return nodes_of(self.ask("any", "GET", "/v1/cluster").json())

    def _listed(self, role: str) -> list[str]:
        try:
            return [str(node["url"]) for node in self.cluster() if node.get("role") == role]
        except CliError:
            return []

    def _nobody(self, role: str, refused: list[str]) -> str:
        what = "node" if role not in ROLES else f"{role} node"
        if refused and all("refused" in reason for reason in refused):
            reason = "connection refused"
        else:
            reason = "; ".join(refused[:2]) or "the endpoints belong to other roles"
        shown = ", ".join(self.endpoints[:3]) + (", …" if len(self.endpoints) > 3 else "")
        return (
            f"no {what} answers at {shown} ({reason}). "
            "Start a cluster with: dss up, or name one with --endpoints"
        )

    def _send(
        self,
        endpoint: str,
        method: str,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Answer:
        request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
            endpoint + path, data=data, method=method, headers={**self._headers, **headers}
        )
        try:
            with self._opener.open(request, timeout=timeout_s) as reply:
                return Answer(reply.status, dict(reply.headers.items()), reply.read(), endpoint)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code == 304:
                return Answer(304, dict(error.headers.items()), b"", endpoint)
            raise Problem(error.code, _document(text), endpoint) from None
        except urllib.error.URLError as error:
            if _never_left(error.reason):
                raise _NotThere(_plain(error.reason)) from None
            raise self._unknown(method, endpoint, error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unknown(method, endpoint, error) from None

    @staticmethod
    def _unknown(method: str, endpoint: str, error: object) -> Exception:
        """The connection broke after the request had left."""
        if method == "GET":
            return _NotThere(_plain(error))
        return CliError(
            f"{endpoint} broke the connection ({_plain(error)}): whether the request was carried "
            "out is unknown. Look at the state before you repeat it",
            EXIT_FAILED,
            "indeterminate",
        )


class _NotThere(Exception):
    """The request cannot have been carried out by this endpoint."""


def nodes_of(cluster: Any) -> list[dict[str, Any]]:
    """The node list of a `GET /v1/cluster` body, each entry with `id`, `role` and `url`."""
    nodes = cluster.get("nodes") if isinstance(cluster, dict) else None
    if not isinstance(nodes, list):
        raise CliError("the cluster list was not understood. Is it a DSS node? Check --endpoints")
    return nodes


def segment(name: str) -> str:
    """A name as one path segment: everything that means something in a path is encoded."""
    return quote(name, safe="")


def query(**values: object) -> str:
    """`?a=1&b=2` of the values that are not None; "" when there are none."""
    given = {key: value for key, value in values.items() if value is not None}
    return "?" + urlencode(given) if given else ""


def _never_left(reason: object) -> bool:
    """urllib wraps what fails up to the end of sending; a peer that resets may have read it all."""
    return not isinstance(reason, (BrokenPipeError, ConnectionResetError, ConnectionAbortedError))


def _plain(error: object) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
