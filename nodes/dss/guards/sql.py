"""A guard in an SQL database: the newest token in a table, in the transaction that writes.

Works with any DB-API 2.0 driver; needs none. What must not live here: commits, those are the
caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from dss.guards.tokens import StaleToken

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
        table: where the tokens are; `create` makes it.
        paramstyle: of the driver module: `qmark` (sqlite3), `format` or `pyformat` (psycopg,
            PyMySQL).

    Example:
        database = sqlite3.connect(":memory:")
        guard = SqlGuard(paramstyle=sqlite3.paramstyle)
        guard.create(database.cursor())
        with database:
            guard.check(database.cursor(), "orders/42", 7)
    """

    def __init__(self, table: str = "dss_fences", *, paramstyle: str = "qmark") -> None:
        if not all(part.isidentifier() for part in table.split(".")):
            raise ValueError(f"not a table's name: {table!r}")
        if paramstyle not in _MARKS:
            raise ValueError(f"paramstyle is one of {', '.join(_MARKS)}, not {paramstyle!r}")
        mark = _MARKS[paramstyle]
        self._create = (
            f"CREATE TABLE IF NOT EXISTS {table} "
            "(name VARCHAR(256) PRIMARY KEY, token BIGINT NOT NULL, uses BIGINT NOT NULL)"
        )
        # `uses` changes each time: some databases count only rows that really changed.
        self._raise = (
            f"UPDATE {table} SET token = {mark}, uses = uses + 1 "  # noqa: S608 (an identifier)
            f"WHERE name = {mark} AND token <= {mark}"
        )
        self._look = f"SELECT token FROM {table} WHERE name = {mark}"  # noqa: S608
        self._insert = f"INSERT INTO {table} (name, token, uses) VALUES ({mark}, {mark}, 1)"  # noqa: S608

    def create(self, cursor: Cursor) -> None:
        """Make the table unless it is there."""
        cursor.execute(self._create)

    def check(self, cursor: Cursor, name: str, token: int) -> None:
        """Remember `token` in the transaction of `cursor`, before its other writes.

        Raises:
            StaleToken: roll back.
            The driver's IntegrityError: two first uses of `name` met; roll back and do it again.
        """
        cursor.execute(self._raise, (token, name, token))
        if cursor.rowcount == 1:
            return
        cursor.execute(self._look, (name,))
        row = cursor.fetchone()
        if row is not None:
            raise StaleToken(name, token, int(row[0]))
        cursor.execute(self._insert, (name, token))
