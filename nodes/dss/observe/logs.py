"""Structured logs: one line per event on standard error, as text or as JSON.

    log = logging.getLogger("dss.raft")
    event(log, "role_changed", group=1, role="leader", term=3, reason="won 2 of 3 votes")

What must not live here: what is worth a line (each part decides), metrics. Secrets never reach a
line: fields named like one are masked, and so is the user info of any URL.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final, TextIO

import msgspec

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
MASK: Final = "***"
_FIELDS: Final = "dss_fields"
_SECRET_NAME: Final = re.compile(r"secret|password|passwd|authorization|credential|api_?key", re.I)
_URL_USER: Final = re.compile(r"(\w+://)[^/\s@]+@")
_PLAIN: Final = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")


def configure(
    level: str = "info", fmt: str = "text", *, node_id: str = "", stream: TextIO | None = None
) -> None:
    """Send everything that is logged in this process to standard error, one line each.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        fmt: `text` or `json`.
        node_id: named on every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines(node_id) if fmt == "json" else _TextLines(node_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(LEVELS[level], logging.INFO))
    logging.getLogger("dss").setLevel(LEVELS[level])


def event(
    logger: logging.Logger, name: str, /, *, level: int = logging.INFO, **fields: Any
) -> None:
    """Log one event. `name` is snake_case and stable; everything that varies is a field."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={_FIELDS: fields})


def unexpected(logger: logging.Logger, where: str, error: BaseException, **fields: Any) -> None:
    """A bug that was survived: one error line with the exception and its place in our code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    kind = type(error).__name__
    event(
        logger, "unexpected_error", level=logging.ERROR,
        where=where, error=f"{kind}: {error}", at=place, **fields,
    )  # fmt: skip


def redact(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without secrets.

    A fencing token is a number and stays; a `token` that is text is a credential and is masked.
    """
    clean: dict[str, Any] = {}
    for key, value in fields.items():
        secret = _SECRET_NAME.search(key) or ("token" in key and isinstance(value, str | bytes))
        if secret:
            clean[key] = MASK
        elif isinstance(value, str):
            clean[key] = _URL_USER.sub(rf"\1{MASK}@", value)
        elif isinstance(value, Mapping):
            clean[key] = redact(value)
        else:
            clean[key] = value
    return clean


class _Lines(logging.Formatter):
    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def _members(self, record: logging.LogRecord) -> dict[str, Any]:
        """The event's fields; a plain log call's text becomes the event's name."""
        fields = redact(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            fields["traceback"] = _URL_USER.sub(rf"\1{MASK}@", "".join(lines).rstrip())
        return fields

    @staticmethod
    def _time(record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{second}.{int(record.msecs):03d}Z"


class _TextLines(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("dss.")
        parts = [self._time(record), record.levelname.lower(), self._node_id, name]
        message = _URL_USER.sub(rf"\1{MASK}@", record.getMessage())
        parts.append(message.replace("\n", "\\n"))
        parts.extend(f"{key}={_text(value)}" for key, value in self._members(record).items())
        return " ".join(part for part in parts if part)


class _JsonLines(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self._time(record),
            "level": record.levelname.lower(),
            "node": self._node_id,
            "logger": record.name,
            "event": _URL_USER.sub(rf"\1{MASK}@", record.getMessage()),
        }
        for key, value in self._members(record).items():
            line[f"field_{key}" if key in line else key] = value
        return msgspec.json.encode(line, enc_hook=repr).decode()


def _text(value: Any) -> str:
    """Bare when that is unambiguous, else as a JSON string: a line never breaks."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else msgspec.json.encode(value).decode()
    if value is None or isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return msgspec.json.encode(value, enc_hook=repr).decode()
