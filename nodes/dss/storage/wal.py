"""The write-ahead log: one for all groups of a process, one write and one fsync for a batch.

What lives here: buffering, writing, rolling and reclaiming segments. What must not: Raft's rules,
reading back (recovery.py). The bytes are in docs/disk-format.md.

Threads: everything on one thread, except that `sync` may run in another one while this one goes
on buffering records (`append`, `save_state`, …), but not `write`, `reclaim` or `close`; and
`prepare` may run in another one at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from dss.base import limits
from dss.base.errors import StorageFailed
from dss.core.raft.messages import Configuration, Entry
from dss.storage import segments as fmt
from dss.storage import synced
from dss.storage.durable import DurableMark, Position
from dss.storage.files import File, Files
from dss.storage.grouplog import GroupLog, GroupState
from dss.storage.records import TERMINATOR, frame, framed_bytes
from dss.storage.recovery import recover

__all__ = ["GroupState", "Wal"]


class Wal:
    """See the module. Make one with `Wal.open`.

    A failed write or sync poisons it: that call and every later one raise StorageFailed, and the
    node must stop, because what the kernel did with the dirty pages is unknown.

    Attributes:
        torn_bytes: length of the torn tail that `open` cut off; 0 after a clean stop.
        syncs: fsyncs of log data so far.
        bytes_written: bytes written into segments so far.
        last_sync_ns: how long the last `sync` took.
    """

    def __init__(self, files: Files, segment_bytes: int, mark: DurableMark) -> None:
        self._files = files
        self._segment_bytes = segment_bytes
        self._mark = mark
        self._spares = fmt.Spares(files, segment_bytes, limits.WAL_SPARES_MAX)
        self._logs: dict[int, GroupLog] = {}
        self._sizes: dict[int, int] = {}
        self._number = 0
        self._file: File | None = None
        self._offset = 0
        self._room_end = 0
        self._seed = 0
        self._key = 0
        """CRC at the end of the segment's opening: the key of SYNCED records."""
        self._vouches = True
        """Whether SYNCED records go into this segment: not if an older version began it."""
        self._durable_offset = self._vouched_offset = 0
        self._pending: list[tuple[int, bytes, int, tuple[Any, ...]]] = []
        self._unsynced = False
        self._marks_written: dict[int, int] = {}
        self._marks_durable: dict[int, int] = {}
        self._poison = ""
        self._encode = msgspec.msgpack.Encoder().encode
        self.torn_bytes = 0
        self.syncs = 0
        self.bytes_written = 0
        self.last_sync_ns = 0
        self.prepare_error = ""

    @classmethod
    def open(
        cls, files: Files, *, segment_bytes: int = limits.WAL_SEGMENT_BYTES
    ) -> tuple[Wal, dict[int, GroupState]]:
        """Recover what `files` holds, or begin there.

        Raises:
            CorruptData: damage where the data was durable: this node must not serve.
            ConfigProblem: the format is newer than this program.
        """
        # A killed process may have left names that only the kernel knows yet.
        files.sync_dir()
        fresh = not any(fmt.segment_number(name) is not None for name in files.list())
        mark = DurableMark.open(files, fresh=fresh)
        found = recover(files, mark)
        wal = cls(files, segment_bytes, mark)
        if found is None:
            wal._roll(0)
            return wal, {}
        wal._logs, wal._sizes, wal._number = found.logs, found.sizes, found.number
        wal._file, wal._seed, wal.torn_bytes = found.file, found.seed, found.torn_bytes
        wal._offset = wal._durable_offset = wal._vouched_offset = found.offset
        wal._key, wal._vouches = found.key, found.version >= fmt.FORMAT_VERSION
        wal._room_end = found.sizes[found.number] - len(TERMINATOR)
        wal._marks_durable = {group: log.snapshot_index for group, log in wal._logs.items()}
        mark.begin(Position(found.number, found.offset))
        return wal, found.states()

    # --- buffering: nothing reaches a file before `write` ------------------------------------

    def create_group(self, group: int, configuration: Configuration) -> None:
        """Found `group` with its first configuration, term 0, an empty log."""
        self._buffer(fmt.CREATE, (group, configuration), group, (configuration,))

    def save_state(self, group: int, term: int, voted_for: str | None) -> None:
        """Term and vote of `group`."""
        self._buffer(fmt.STATE, (group, term, voted_for), group, (term, voted_for))

    def append(self, group: int, entries: Sequence[Entry]) -> None:
        """Consecutive entries; those stored from the first one's index on are void."""
        if entries:
            self._buffer(fmt.APPEND, (group, entries), group, (entries,))

    def snapshot(
        self, group: int, index: int, term: int, log_ms: int, configuration: Configuration
    ) -> None:
        """Everything up to `index` is in a durable snapshot: those entries may go.

        Entries behind `index` stay if the log has `term` at `index`; otherwise (a snapshot from
        the leader over a log that ended earlier or disagrees) they are void too.
        """
        self._check()
        # The payload needs the log's end at this point, so it is encoded by `write`.
        self._pending.append((fmt.SNAPSHOT, b"", group, (index, term, log_ms, configuration)))

    def _buffer(self, kind: int, payload: tuple[Any, ...], group: int, args: Any) -> None:
        self._check()
        self._pending.append((kind, self._encode(payload), group, args))

    # --- writing ------------------------------------------------------------------------------

    def write(self) -> None:
        """Write everything buffered: one pwrite, or one per segment when it rolls."""
        self._check()
        pending, self._pending = self._pending, []
        parts: list[bytes] = []
        start = end = self._offset
        try:
            if pending and self._durable_offset > self._vouched_offset:
                end += self._vouch(parts)
            for kind, payload, group, args in pending:
                if kind == fmt.SNAPSHOT:
                    args = (*args, self._logs[group].last_after_snapshot(args[0], args[1]))
                    payload = self._encode((group, *args))
                size = framed_bytes(payload)
                if end + size > self._room_end:
                    self._put(parts, start, end)
                    parts = []
                    self._roll(size)
                    start = end = self._offset
                self._note(kind, group, args)
                head, self._seed = frame(self._seed, kind, payload)
                parts += (head, payload)
                end += size
            self._put(parts, start, end)
        except (OSError, ValueError, KeyError) as error:
            self._fail("write", error)

    def _vouch(self, parts: list[bytes]) -> int:
        """Let the write that begins here say what is durable; the length of its record."""
        payload = synced.encode(self._key, self._durable_offset)
        size = framed_bytes(payload)
        if not self._vouches or self._offset + size > self._room_end:
            return 0
        self._vouched_offset = self._durable_offset
        head, self._seed = frame(self._seed, fmt.SYNCED, payload)
        parts += (head, payload)
        return size

    def _note(self, kind: int, group: int, args: tuple[Any, ...]) -> None:
        """Keep the group's bookkeeping in step with the record."""
        if kind == fmt.APPEND:
            self._logs[group].append(args[0], self._number)
        elif kind == fmt.STATE:
            self._logs[group].save_state(*args)
        elif kind == fmt.SNAPSHOT:
            self._logs[group].snapshot(*args)
            self._marks_written[group] = args[0]
        elif group in self._logs:
            raise ValueError(f"group {group} exists already")
        else:
            self._logs[group] = GroupLog(group, args[0])

    def _put(self, parts: list[bytes], start: int, end: int) -> None:
        if not parts:
            return
        assert self._file is not None
        parts.append(TERMINATOR)
        self._file.pwrite(b"".join(parts), start)
        self._offset = end
        self._unsynced = True
        self.bytes_written += end - start

    def _roll(self, record_bytes: int) -> None:
        """Begin the next segment, with room for a record of `record_bytes`.

        The old one is synced first: a segment that has a successor is whole (recovery relies on
        it). The new one's opening is durable before its name is (segments.Spares.become).
        """
        old = self._file
        if old is not None:
            if self._unsynced:
                old.datasync()
                self.syncs += 1
                self._unsynced = False
            self._marks_durable.update(self._marks_written)
            old.close()
        number = self._number + 1
        marks = [log.checkpoint() for _, log in sorted(self._logs.items())]
        previous = (self._offset, self._seed)
        opening_bytes = len(fmt.opening(number, *previous, True, marks)[0])
        size = max(self._segment_bytes, opening_bytes + record_bytes)
        spare, recycled = self._spares.take(size)
        content, length, self._seed = fmt.opening(number, *previous, recycled, marks)
        self._file = self._spares.become(spare, number, content)
        self._number, self._offset = number, length
        self._key, self._vouches = self._seed, True
        self._durable_offset = self._vouched_offset = length
        self._room_end = size - len(TERMINATOR)
        self._sizes[number] = size
        self.bytes_written += length
        self._mark.begin(Position(number, length))

    def sync(self) -> None:
        """One fdatasync: everything written before is durable when this returns."""
        self._check()
        if not self._unsynced:
            return
        assert self._file is not None
        self._unsynced = False
        position = Position(self._number, self._offset)
        marks, self._marks_written = self._marks_written, {}
        started = time.perf_counter_ns()
        try:
            self._file.datasync()
            self._mark.note(position)
        except OSError as error:
            self._fail("sync", error)
        self.last_sync_ns = time.perf_counter_ns() - started
        self.syncs += 1
        self._durable_offset = position.offset
        if marks:
            self._marks_durable.update(marks)

    def prepare(self) -> bool:
        """Have the next segment's file ready, so that rolling costs two small syncs only.

        Blocks for a segment's zero-fill when there is no spare: call it in a thread, or when
        idle. Without it, rolling makes the file itself. Returns whether a spare is there;
        if not, `prepare_error` says why (a full disk), and nothing is poisoned.
        """
        self._check()
        try:
            self._spares.prepare()
        except OSError as error:
            self.prepare_error = str(error)
            return False
        self.prepare_error = ""
        return True

    @property
    def prepared(self) -> bool:
        """Whether a spare is at hand: when not, call `prepare`."""
        return len(self._spares) > 0

    # --- reclaiming ---------------------------------------------------------------------------

    def reclaim(self) -> int:
        """Free the oldest segments that no group needs; returns how many.

        Syncs first if something is unsynced: what makes a segment needless must be durable
        before the segment goes.
        """
        self._check()
        needed = min(self._oldest(log) for log in self._logs.values()) if self._logs else 0
        freed = 0
        try:
            for number in sorted(self._sizes):
                if number >= needed or number == self._number:
                    break
                self.sync()
                # Oldest first, each durably: a crash leaves no hole between segments.
                self._spares.recycle(number, self._sizes[number])
                del self._sizes[number]
                freed += 1
        except OSError as error:
            self._fail("reclaim", error)
        return freed

    def _oldest(self, log: GroupLog) -> int:
        oldest = log.oldest_segment()
        return self._number if oldest is None else oldest

    def pinned(self) -> dict[int, int]:
        """Group -> how many old segments stay for its sake, whatever the others need.

        Groups that need only the current segment are left out. A snapshot of the group with the
        largest number, then `reclaim`, frees the most.
        """
        counts = {group: self._number - self._oldest(log) for group, log in self._logs.items()}
        return {group: count for group, count in counts.items() if count > 0}

    def durable_snapshot(self, group: int) -> int:
        """The index of the group's newest snapshot whose mark is durable; 0: none.

        Snapshot files before it may be pruned; that one is what recovery will ask for.
        """
        return self._marks_durable.get(group, 0)

    @property
    def segments(self) -> int:
        """How many segments the log has now, the current one included."""
        return len(self._sizes)

    # --- ending -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files. What was buffered or written but not synced may be lost."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._mark.close()
        self._poison = self._poison or "it is closed"

    def _check(self) -> None:
        if self._poison:
            raise StorageFailed(f"the WAL in {self._files.where} cannot be used: {self._poison}")

    def _fail(self, doing: str, error: Exception) -> NoReturn:
        if isinstance(error, OSError):
            what, remedy = str(error), "check the disk (space, health), then start it again"
        else:  # a record that cannot be: nothing of it was written
            what = f"unknown group {error}" if isinstance(error, KeyError) else str(error)
            remedy = "this is a defect of DSS; please report it with the log"
        self._poison = f"{doing} failed: {what}"
        message = f"the WAL in {self._files.where}: {self._poison}. The node stops; {remedy}"
        raise StorageFailed(message) from error
