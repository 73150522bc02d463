"""A guard in an SQL database: the newest token in a table, in the transaction that writes.

Works with any DB-API 2.0 driver; needs none. What must not live here: commits, those are the
caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from dss.guards.tokens import StaleToken, check_mode

_MARKS: Final = {"qmark": "?", "format": "%s", "pyformat": "%s"}


class Cursor(Protocol):
    """What is used of a DB-API cursor."""

    @property
    def rowcount(self) -> int: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any: ...

    def fetchone(self) -> Any: ...


class SqlGuard:
    """Refuses stale tokens in the caller's own transaction.

    The row of a lock stays locked by the database until that transaction ends, so a newer holder's
    check waits for an older one's writes, and no older one comes after it.

    Args:
        table: where the tokens are; `create` makes it. Default: `dss_fences`, with `shared`
            `dss_shared_fences`.
        paramstyle: of the driver module: `qmark` (sqlite3), `format` or `pyformat` (psycopg,
            PyMySQL).
        shared: these locks have readers, too, who check with `mode="shared"`. All who guard the
            same lock must agree on it. Readers of one lock wait for each other's transactions.

    Example:
        database = sqlite3.connect(":memory:")
        guard = SqlGuard(paramstyle=sqlite3.paramstyle)
        guard.create(database.cursor())
        with database:
            guard.check(database.cursor(), "orders/42", 7)
    """

    def __init__(self, table: str = "", *, paramstyle: str = "qmark", shared: bool = False) -> None:
        table = table or ("dss_shared_fences" if shared else "dss_fences")
        if not all(part.isidentifier() for part in table.split(".")):
            raise ValueError(f"not a table's name: {table!r}")
        if paramstyle not in _MARKS:
            raise ValueError(f"paramstyle is one of {', '.join(_MARKS)}, not {paramstyle!r}")
        self._shared = shared
        mark = _MARKS[paramstyle]
        alone = "alone BIGINT NOT NULL, " if shared else ""
        self._create = (
            f"CREATE TABLE IF NOT EXISTS {table} (name VARCHAR(256) PRIMARY KEY, "
            f"token BIGINT NOT NULL, {alone}uses BIGINT NOT NULL)"
        )
        # The table's name is an identifier (above), all else a constant: noqa S608.
        # `uses` changes each time: some databases count only rows that really changed.
        too = f", alone = {mark}" if shared else ""
        self._raise = (
            f"UPDATE {table} SET token = {mark}{too}, uses = uses + 1 "  # noqa: S608
            f"WHERE name = {mark} AND token <= {mark}"
        )
        self._read = (
            f"UPDATE {table} SET token = CASE WHEN token < {mark} THEN {mark} ELSE token END, "  # noqa: S608
            f"uses = uses + 1 WHERE name = {mark} AND alone <= {mark}"
        )
        seen, values = ("token, alone", 4) if shared else ("token", 3)
        self._look = f"SELECT {seen} FROM {table} WHERE name = {mark}"  # noqa: S608
        self._insert = (
            f"INSERT INTO {table} (name, {seen}, uses) VALUES ({', '.join([mark] * values)})"  # noqa: S608
        )

    def create(self, cursor: Cursor) -> None:
        """Make the table unless it is there."""
        cursor.execute(self._create)

    def check(self, cursor: Cursor, name: str, token: int, mode: str = "exclusive") -> None:
        """Remember `token` in the transaction of `cursor`, before its other statements.

        Args:
            mode: what the holder does: `exclusive`, or `shared` (reads; a guard for `shared`).

        Raises:
            StaleToken: roll back.
            The driver's IntegrityError: two first uses of `name` met; roll back and do it again.
        """
        reads = check_mode(mode)
        if reads and not self._shared:
            raise ValueError("this guard knows no readers: make it SqlGuard(…, shared=True)")
        if reads:
            cursor.execute(self._read, (token, token, name, token))
        elif self._shared:
            cursor.execute(self._raise, (token, token, name, token))
        else:
            cursor.execute(self._raise, (token, name, token))
        if cursor.rowcount == 1:
            return
        cursor.execute(self._look, (name,))
        row = cursor.fetchone()
        if row is not None:
            raise StaleToken(name, token, int(row[1 if reads else 0]))
        alone = (0 if reads else token,) if self._shared else ()
        cursor.execute(self._insert, (name, token, *alone, 1))
