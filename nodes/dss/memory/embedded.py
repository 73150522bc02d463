"""Main memory in one SQLite file, shared by the cache nodes of one machine.

Write-ahead journal, `synchronous=FULL`: a commit is an fsync. One thread per node takes everything
that is pending into one transaction (one fsync for all) and hands the results to the loop in one
call. Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous.

Schema, version 1 (`PRAGMA user_version`): `slots(slot, epoch, owner, sequence)`,
`lines(key, version, value, content_type, expires_unix_ms)`, `meta(name, value)`.

What must not live here: coherence.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Final

from dss.base import limits
from dss.base.errors import ConfigProblem
from dss.memory import batching
from dss.memory.batching import Operation, OperationQueue
from dss.memory.ports import MemoryLost, Stamp, Stored

SCHEMA_VERSION: Final = 1
SWEEP_EVERY_S: Final = 60.0
SWEEP_ROWS_MAX: Final = 1_000
STOP_TIMEOUT_S: Final = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS slots (
  slot INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
  sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lines (
  key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL,
  content_type TEXT NOT NULL, expires_unix_ms INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS lines_by_expiry ON lines (expires_unix_ms)
  WHERE expires_unix_ms > 0;
"""


class EmbeddedMemory(OperationQueue):
    """`ports.Memory` over SQLite.

    Args:
        path: the database file; its folder is made.
        cluster_id: a file of another cluster is refused.
        timeout_ms: after this a batch's outcome counts as unknown.
    """

    kind = "sqlite"

    def __init__(
        self, path: str, cluster_id: str, timeout_ms: int = limits.MEMORY_TIMEOUT_MS
    ) -> None:
        super().__init__(self._schedule)
        self.path = path
        self._cluster_id = cluster_id
        self._timeout_ms = timeout_ms
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._batches: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._in_flight: list[Operation] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._database: sqlite3.Connection | None = None
        self._sweep_at = time.monotonic() + SWEEP_EVERY_S

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="memory-sqlite", daemon=True)
        self._thread.start()
        if len(self):
            self._schedule()

    async def stop(self) -> None:
        if self._thread is None:
            return
        self._batches.put(None)
        thread, self._thread = self._thread, None
        await asyncio.get_running_loop().run_in_executor(None, thread.join, STOP_TIMEOUT_S)
        # The thread's last results wait in the loop's queue.
        await asyncio.sleep(0)
        self.abandon_all("main memory has been closed")
        if self._watchdog is not None:
            self._watchdog.cancel()

    def warnings(self) -> list[str]:
        return []  # synchronous=FULL is set here, not by the user

    # --- on the loop ------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and self._in_flight is None and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Hand everything pending to the thread, one batch at a time: order is kept."""
        self._scheduled = False
        if self._in_flight is not None or not len(self) or self._loop is None:
            return
        batch = self._in_flight = self.take()
        self._watchdog = self._loop.call_later(self._timeout_ms / 1000, self._given_up, batch)
        self._batches.put(batch)

    def _given_up(self, batch: list[Operation]) -> None:
        """The thread hangs (a disk that stalls): callers must not. The batch stays in flight, so
        that nothing later overtakes it."""
        for operation in batch:
            operation.abandon("main memory (sqlite) has not answered in time", begun=True)

    def _done(self, batch: list[Operation], outcomes: list[Any], error: str, begun: bool) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._in_flight = None
        if error:
            for operation in batch:
                operation.abandon(error, begun=begun)
        else:
            for operation, outcome in zip(batch, outcomes, strict=True):
                _settle(operation, outcome)
        if len(self):
            self._begin()

    # --- on the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch = self._batches.get()
            if batch is None:
                break
            outcomes, error, begun = self._execute(batch)
            loop = self._loop
            if loop is None or loop.is_closed():
                break
            try:
                loop.call_soon_threadsafe(self._done, batch, outcomes, error, begun)
            except RuntimeError:  # the loop has been closed meanwhile: nobody waits
                break
        if self._database is not None:
            self._database.close()

    def _execute(self, batch: list[Operation]) -> tuple[list[Any], str, bool]:
        """One transaction: (outcomes, error or "", may a failed batch have been done)."""
        committing = False
        try:
            database = self._open()
            reading = all(operation.kind == batching.READ for operation in batch)
            database.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
            outcomes = [_APPLY[op.kind](database, *op.args) for op in batch]
            if not reading:
                self._sweep(database)
            committing = True
            database.execute("COMMIT")
        except (sqlite3.Error, OSError, ConfigProblem) as error:
            begun = committing
            if self._database is not None:
                try:
                    self._database.close()  # rolls back
                except sqlite3.Error:
                    begun = True
                self._database = None
            return [], f"main memory (sqlite, {self.path}): {error}", begun
        return outcomes, "", False

    def _open(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=self._timeout_ms / 2000, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            database.close()
            raise ConfigProblem(f"its schema is {version}, this version knows {SCHEMA_VERSION}")
        if version == 0:
            database.executescript(f"{_SCHEMA}; PRAGMA user_version={SCHEMA_VERSION};")
        database.execute("INSERT OR IGNORE INTO meta VALUES ('cluster_id', ?)", (self._cluster_id,))
        found = database.execute("SELECT value FROM meta WHERE name='cluster_id'").fetchone()[0]
        if found != self._cluster_id:
            database.close()
            raise ConfigProblem(f"it belongs to cluster {found!r}, not {self._cluster_id!r}")
        self._database = database
        return database

    def _sweep(self, database: sqlite3.Connection) -> None:
        """Remove values that expired long ago, a few at a time."""
        now = time.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY_S
        before_ms = int(time.time() * 1000) - batching.EXPIRED_KEPT_MS
        database.execute(
            "DELETE FROM lines WHERE key IN (SELECT key FROM lines"
            " WHERE expires_unix_ms > 0 AND expires_unix_ms < ? LIMIT ?)",
            (before_ms, SWEEP_ROWS_MAX),
        )


def _settle(operation: Operation, outcome: Any) -> None:
    status, result = outcome
    if status == batching.OK:
        operation.succeed(result)
    elif operation.kind == batching.CLAIM:
        operation.fail(MemoryLost("another node owns these slots under a newer epoch"))
    else:
        operation.refuse(status, operation.args[1])


def _claim(
    database: sqlite3.Connection, owner: str, epoch: int, slots: tuple[int, ...]
) -> tuple[int, dict[int, int]]:
    sequences = {}
    for slot in slots:
        row = database.execute(
            "INSERT INTO slots VALUES (?, ?, ?, 0) ON CONFLICT (slot) DO UPDATE"
            " SET epoch=excluded.epoch, owner=excluded.owner WHERE epoch <= excluded.epoch"
            " RETURNING sequence",
            (slot, epoch, owner),
        ).fetchone()
        if row is None:
            return batching.LOST, {}
        sequences[slot] = row[0]
    return batching.OK, sequences


def _read(database: sqlite3.Connection, key: str) -> tuple[int, Stored | None]:
    row = database.execute(
        "SELECT value, version, content_type, expires_unix_ms FROM lines WHERE key=?", (key,)
    ).fetchone()
    return batching.OK, None if row is None else Stored(*row)


def _check(database: sqlite3.Connection, stamp: Stamp) -> tuple[int, int]:
    """(OK, STALE or LOST; the slot's sequence)."""
    row = database.execute(
        "SELECT owner, sequence FROM slots WHERE slot=?", (stamp.slot,)
    ).fetchone()
    if row is None or row[0] != stamp.owner or row[1] < stamp.acknowledged:
        return batching.LOST, 0
    return batching.STALE if stamp.version <= row[1] else batching.OK, row[1]


def _advance(database: sqlite3.Connection, stamp: Stamp) -> None:
    database.execute("UPDATE slots SET sequence=? WHERE slot=?", (stamp.version, stamp.slot))


def _write(
    database: sqlite3.Connection, stamp: Stamp, key: str, stored: Stored
) -> tuple[int, bool]:
    status, _ = _check(database, stamp)
    if status != batching.OK:
        return status, False
    row = (stored.value, stamp.version, stored.content_type, stored.expires_unix_ms, key)
    existed = (
        database.execute(
            "UPDATE lines SET value=?, version=?, content_type=?, expires_unix_ms=? WHERE key=?",
            row,
        ).rowcount
        > 0
    )
    if not existed:
        database.execute(
            "INSERT INTO lines (value, version, content_type, expires_unix_ms, key)"
            " VALUES (?, ?, ?, ?, ?)",
            row,
        )
    _advance(database, stamp)
    return batching.OK, existed


def _delete(database: sqlite3.Connection, stamp: Stamp, key: str) -> tuple[int, bool]:
    status, _ = _check(database, stamp)
    if status != batching.OK:
        return status, False
    existed = database.execute("DELETE FROM lines WHERE key=?", (key,)).rowcount > 0
    _advance(database, stamp)
    return batching.OK, existed


def _fence(database: sqlite3.Connection, stamp: Stamp, key: str) -> tuple[int, Stored | None]:
    status, _ = _check(database, stamp)
    if status == batching.LOST:
        return status, None
    if status == batching.OK:
        _advance(database, stamp)
    return _read(database, key)


_APPLY: Final[dict[str, Any]] = {
    batching.CLAIM: _claim,
    batching.READ: _read,
    batching.WRITE: _write,
    batching.DELETE: _delete,
    batching.FENCE: _fence,
}
