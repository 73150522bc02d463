"""Bearer tokens as nodes know them: a strict JSON array of `{name, sha256, role}`.

Nodes never see a token itself, only its SHA-256: tokens are random and long, so a slow hash would
add nothing. What must not live here: checking a request (api/auth.py), making tokens.
"""

from __future__ import annotations

import re
from typing import Any, Final

from dss.base.limits import AUTH_TOKENS_MAX, SETTING_FILE_BYTES_MAX
from dss.topology.jsonlist import Fault, Fields, ListReader
from dss.topology.nodes import TokenSpec

ADMIN: Final = "admin"
CLIENT: Final = "client"
ROLES: Final = (ADMIN, CLIENT)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parse_tokens(text: str) -> tuple[tuple[TokenSpec, ...], list[Fault]]:
    """Read the list; every fault with its place, never with a value that could be a token."""
    reader = _TokenReader(text)
    if reader.read(chars_max=SETTING_FILE_BYTES_MAX):
        if not reader.tokens and not reader.faults:
            reader.fault(0, "the list is empty, so nobody could enter: expected at least one token")
        if len(reader.tokens) > AUTH_TOKENS_MAX:
            reader.fault(
                0, f"expected at most {AUTH_TOKENS_MAX} tokens, found {len(reader.tokens)}"
            )
    return tuple(reader.tokens), reader.faults


class _TokenReader(ListReader):
    fields = ("name", "sha256", "role")
    noun = "token"
    secret = True

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tokens: list[TokenSpec] = []

    def accept(self, fields: Fields) -> None:
        token = TokenSpec(**{name: fields[name][0] for name in self.fields})
        for other in self.tokens:
            if other.name == token.name:
                self.fault(fields["name"][1], f'the name "{token.name}" stands twice')
            elif other.sha256 == token.sha256:
                self.fault(
                    fields["sha256"][1], f'"{other.name}" and "{token.name}" have the same token'
                )
        self.tokens.append(token)

    def check(self, name: str, value: Any, at: int) -> None:
        if not isinstance(value, str):
            self.fault(at, f'"{name}" must be a string')
        elif name == "name" and not _NAME.fullmatch(value):
            self.fault(at, '"name" must be 1 to 64 characters of a-z, A-Z, 0-9 and . _ -')
        elif name == "sha256" and not _SHA256.fullmatch(value):
            # Never shown: it may be the token itself, put in the wrong place.
            self.fault(
                at,
                '"sha256" must be the 64 hex digits (lower case) of the token\'s SHA-256, '
                f"found {len(value)} characters",
            )
        elif name == "role" and value not in ROLES:
            self.fault(at, f'"role" must be {" or ".join(ROLES)}')
