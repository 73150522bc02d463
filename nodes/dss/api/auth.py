"""Who may use /v1: bearer tokens, compared by their SHA-256 (RFC 6750).

`/healthz`, `/readyz`, `/metrics`, `/openapi.json` and `/docs` need no token: probes and Prometheus
have none, and nothing secret stands there. Where no tokens are asked for, a browser's page of
another site may not write all the same. What must not live here: reading the list of tokens
(topology/tokens.py), routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from urllib.parse import urlsplit

from dss.base.errors import Forbidden, Unauthenticated
from dss.topology.nodes import TokenSpec

ADMIN: Final = "admin"
SCHEME: Final = "bearer "
GUARDED_PREFIX: Final = "/v1"
_SEND: Final = (
    'send "Authorization: Bearer <token>" (the SDK, dss and Locust take it from DSS_TOKEN)'
)


class Guard:
    """The tokens that are good now; `replace` takes effect with the next request."""

    def __init__(self, tokens: Sequence[TokenSpec]) -> None:
        self._digests: list[tuple[bytes, TokenSpec]] = []
        self.replace(tokens)

    def replace(self, tokens: Sequence[TokenSpec]) -> bool:
        """Use these from now on; whether they are others than before."""
        before = self._digests
        self._digests = [(bytes.fromhex(token.sha256), token) for token in tokens]
        return self._digests != before

    def check(self, authorization: str | None, *, admin: bool) -> TokenSpec:
        """Whose request it is.

        Args:
            authorization: the header's value.
            admin: the route is an administrator's.

        Raises:
            Unauthenticated: no token, or none that is known.
            Forbidden: a client's token on an administrator's route.
        """
        if authorization is None:
            raise Unauthenticated(f"no token: {_SEND}")
        if authorization[: len(SCHEME)].lower() != SCHEME:
            raise Unauthenticated(f"the Authorization header is not a bearer token: {_SEND}")
        token = authorization[len(SCHEME) :].strip()
        digest = sha256(token.encode("utf-8", "surrogateescape")).digest()
        found: TokenSpec | None = None
        for known, spec in self._digests:  # every one of them: the time must not tell which
            if compare_digest(known, digest):
                found = spec
        if found is None:
            raise Unauthenticated("the token is not known here, or not any more")
        if admin and found.role != ADMIN:
            raise Forbidden(f"the token {found.name!r} is a client's; this takes an admin's")
        return found


def check_origin(headers: Mapping[str, str]) -> None:
    """Without tokens, whoever reaches a node may write, so a browser must not be lent to others.

    Browsers say where a request comes from (`Sec-Fetch-Site`, `Origin`; W3C Fetch Metadata, RFC
    6454); curl, the SDK and proxies say nothing, or pass it on.

    Raises:
        Forbidden: a page of another origin sent it.
    """
    origin = headers.get("Origin")
    site = headers.get("Sec-Fetch-Site")
    if site is None:
        own = origin is None or urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()
    else:
        own = site in ("same-origin", "none")
    if not own:
        raise Forbidden(
            f"a page of another origin ({(origin or 'unknown')[:200]!r}) sent this: without tokens "
            "(AUTH_TOKENS_FILE) only this node's own pages may write"
        )
