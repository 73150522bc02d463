"""A compose `.env` file, read exactly and with line numbers.

The rules are those of Compose: `NAME=value`, an optional `export`, comments, values bare or in
single quotes (literal) or double quotes (escapes); quoted values may span lines. References
`$X` and `${X}` (with `:-`, `-`, `:+`, `+`, `:?`, `?`) are resolved outside single quotes.
Stricter than Compose in one thing: text after a closing quote is a fault, not dropped.
What must not live here: what the variables mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from dss.base.limits import ENV_FILE_BYTES_MAX

_NAME: Final = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*[=:][ \t]*")
_REFERENCE: Final = re.compile(
    r"\$(?:\$|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-+?])([^}]*))?\}|(\{))"
)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


class EnvFault(msgspec.Struct, frozen=True):
    """A line that is no setting."""

    line: int
    message: str


class EnvFile(msgspec.Struct, frozen=True):
    """The settings of one file.

    Attributes:
        name: as it stands in messages.
        values: name -> value, the last assignment wins.
        lines: name -> the line where that assignment starts, from 1.
        faults: lines that could not be read.
    """

    name: str
    values: dict[str, str]
    lines: dict[str, int]
    faults: tuple[EnvFault, ...] = ()


def read_env_file(path: str | Path, environ: Mapping[str, str] | None = None) -> EnvFile:
    """Read the file at `path`. OSError when it cannot be read; ValueError when it is too large."""
    data = Path(path).read_bytes()
    if len(data) > ENV_FILE_BYTES_MAX:
        raise ValueError(f"{path}: larger than {ENV_FILE_BYTES_MAX} bytes: not an .env file")
    return parse_env(data.decode("utf-8-sig", "replace"), str(path), environ)


def parse_env(text: str, name: str = ".env", environ: Mapping[str, str] | None = None) -> EnvFile:
    """Parse the text of a `.env` file; `environ` serves references to names outside the file."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    faults: list[EnvFault] = []
    rows = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(rows):
        row, number = rows[at].strip(" \t"), at + 1
        at += 1
        if not row or row.startswith("#"):
            continue
        match = _NAME.match(row)
        if match is None:
            faults.append(EnvFault(number, f"expected NAME=value, found {_shown(row)}"))
            continue
        variable, raw = match.group(1), row[match.end() :]
        if raw[:1] in ("'", '"'):
            quote = raw[0]
            end = _closing(raw, quote)
            while end < 0 and at < len(rows):
                raw += "\n" + rows[at]
                at += 1
                end = _closing(raw, quote)
            if end < 0:
                faults.append(EnvFault(number, f"{variable}: the value has no closing {quote}"))
                break
            rest = raw[end + 1 :].strip(" \t")
            if rest and not rest.startswith("#"):
                message = f"{variable}: expected nothing after the closing {quote}"
                faults.append(EnvFault(number, message))
                continue
            value = raw[1:end]
            value = _unescape(value) if quote == '"' else value.replace("\\'", "'")
        else:
            quote = ""
            value = re.split(r"[ \t]#", raw)[0].rstrip()
        if quote != "'":
            try:
                value = _resolve(value, values, environ or {})
            except _BadReference as bad:
                faults.append(EnvFault(number, f"{variable}: {bad}"))
                continue
        values[variable] = value
        lines[variable] = number
    return EnvFile(name, values, lines, tuple(faults))


def _shown(row: str) -> str:
    """The start of a bad line up to anything that could be a secret."""
    word = re.match(r"[A-Za-z0-9_ .-]{1,40}", row)
    return f'"{word.group().rstrip()}"' if word else f'"{ascii(row[0])[1:-1]}"'


def _closing(raw: str, quote: str) -> int:
    """Where the value's closing quote stands; -1 when it does not."""
    at = 1
    while at < len(raw):
        if raw[at] == "\\" and (quote == '"' or raw[at + 1 : at + 2] == "'"):
            at += 2
            continue
        if raw[at] == quote:
            return at
        at += 1
    return -1


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(0)), value, flags=re.DOTALL)


class _BadReference(Exception):
    """A `$…` that Compose would refuse."""


def _resolve(value: str, values: Mapping[str, str], environ: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if match.group(5):
            raise _BadReference("expected ${NAME} after '${'; a dollar sign itself is $$")
        if name is None:
            return "$"
        found = values.get(name, environ.get(name))
        operator, word = match.group(3) or "", match.group(4) or ""
        given = bool(found) if operator.startswith(":") else found is not None
        if operator.endswith("+"):
            return word if given else ""
        if operator.endswith("?") and not given:
            raise _BadReference(f"{name} is not set: {word}")
        return (found or "") if given or not operator else word

    return _REFERENCE.sub(replace, value)
