"""A model of the WAL (plain dicts), a seeded user of both, and the comparison after a crash.

After every buffered record the model's state is kept. Whatever a crash does, recovery must give
exactly the state after some prefix of the records, and that prefix holds all that was synced.
"""

from __future__ import annotations

from random import Random
from typing import Any

from dss.base.errors import StorageFailed
from dss.core.raft.messages import Configuration, Entry, Member
from dss.storage.wal import GroupState, Wal
from dss.testing.disk import SimCrash, SimFiles

SEGMENT_BYTES = 4096
State = dict[int, tuple[Any, ...]]


def configuration(*names: str) -> Configuration:
    return Configuration(tuple(Member(name, f"inc-{name}") for name in names))


ABC = configuration("a", "b", "c")


def entry(index: int, term: int = 1, size: int = 20) -> Entry:
    return Entry(index, term, 1, index * 10, bytes([index % 251, term % 251]) * (size // 2))


def entries(first: int, last: int, term: int = 1, size: int = 20) -> list[Entry]:
    return [entry(index, term, size) for index in range(first, last + 1)]


def plain(states: dict[int, GroupState]) -> State:
    """Recovered states as comparable values."""
    return {
        group: (
            state.configuration,
            state.term,
            state.voted_for,
            state.snapshot_index,
            state.snapshot_term,
            state.snapshot_log_ms,
            tuple(state.entries),
        )
        for group, state in states.items()
    }


class Writer:
    """Drives a Wal with random but legal records and remembers what each should leave behind."""

    def __init__(self, files: SimFiles, rng: Random) -> None:
        self.rng = rng
        self.history: list[State] = [{}]
        self.written = 0
        self.synced = 0
        self.freed = 0
        self.attach(files)

    def attach(self, files: SimFiles) -> None:
        """Open (or reopen) on `files`; what recovery finds must fit the history."""
        self.files = files
        self.wal, recovered = Wal.open(files, segment_bytes=SEGMENT_BYTES)
        self.history = [self.check(recovered)]
        self.written = self.synced = 0

    def check(self, recovered: dict[int, GroupState]) -> State:
        """The recovered state, if it is one that the crash may leave; fails otherwise."""
        found = plain(recovered)
        assert found in self.history[self.synced :], self.explain(found)
        return found

    def explain(self, found: State) -> str:
        earlier = [at for at, state in enumerate(self.history) if state == found]
        return (
            f"recovered a state that is none of those after records {self.synced} (synced) to"
            f" {len(self.history) - 1}; it equals those after {earlier}: {found}"
        )

    def step(self) -> None:
        """One random call; SimCrash and StorageFailed pass through."""
        kind = self.rng.choices(
            ("record", "write", "sync", "commit", "reclaim", "prepare", "tidy"),
            (24, 6, 6, 12, 2, 2, 1),
        )[0]
        if kind == "record":
            self.record()
        if kind in ("write", "commit"):
            self.write()
        if kind in ("sync", "commit"):
            self.sync()
        if kind == "reclaim":
            self.freed += self.wal.reclaim()
        if kind == "tidy":
            self.tidy()
        if kind == "prepare":
            self.wal.prepare()

    def write(self) -> None:
        upto = len(self.history) - 1
        self.wal.write()
        self.written = upto

    def sync(self) -> None:
        self.wal.sync()
        self.synced = self.written

    def tidy(self) -> None:
        """Snapshot every group at its end, and free what that makes needless."""
        for group, old in self.history[-1].items():
            if old[6]:
                last = old[6][-1]
                self.wal.snapshot(group, last.index, last.term, last.log_ms, old[0])
                new = (*old[:3], last.index, last.term, last.log_ms, ())
                self.history.append({**self.history[-1], group: new})
        if self.rng.random() < 0.7:
            self.write()
        if self.rng.random() < 0.7:
            self.sync()
        self.freed += self.wal.reclaim()

    def record(self) -> None:
        state = dict(self.history[-1])
        group = self.rng.randrange(1, 4)
        if group not in state:
            names = configuration(*self.rng.sample("abcde", 3))
            self.wal.create_group(group, names)
            state[group] = (names, 0, None, 0, 0, 0, ())
        else:
            call = self.rng.choices((self._vote, self._append, self._snapshot), (2, 8, 2))[0]
            state[group] = call(group, state[group])
        self.history.append(state)

    def _vote(self, group: int, old: tuple[Any, ...]) -> tuple[Any, ...]:
        term = old[1] + self.rng.randrange(1, 3)
        voted_for = self.rng.choice(("a", "b", None))
        self.wal.save_state(group, term, voted_for)
        return (old[0], term, voted_for, *old[3:])

    def _append(self, group: int, old: tuple[Any, ...]) -> tuple[Any, ...]:
        held = list(old[6])
        back = self.rng.choice((0, 0, 0, 0, 1, 3)) if held else 0
        held = held[: max(0, len(held) - back)]
        first = held[-1].index + 1 if held else old[3] + 1
        size = self.rng.choice((0, 20, 200, 300)) if self.rng.random() < 0.97 else 5000
        count = self.rng.randrange(1, 5)
        added = [entry(first + k, old[1], size) for k in range(count)]
        self.wal.append(group, added)
        return (*old[:6], tuple(held + added))

    def _snapshot(self, group: int, old: tuple[Any, ...]) -> tuple[Any, ...]:
        held = old[6]
        names = configuration(*self.rng.sample("abcde", 3))
        if held and self.rng.random() < 0.7:
            at = self.rng.randrange(len(held))
            index, term, kept = held[at].index, held[at].term, held[at + 1 :]
        else:  # from the leader: beyond the log's end, or over a log that disagrees
            index = old[3] + self.rng.randrange(1, len(held) + 6)
            term, kept = old[1] + 1, ()
        self.wal.snapshot(group, index, term, index * 10, names)
        return (names, max(old[1], 0), old[2], index, term, index * 10, kept)


def run(seed: int, steps: int, images: list[int]) -> None:
    """One seed: random calls, crash images along the way, then deaths inside operations.

    Every crash image that was recovered and compared adds one to `images[0]`.
    """
    rng = Random(seed)
    writer = Writer(SimFiles(rng), rng)
    for _ in range(3):
        if rng.random() < 0.5:
            writer.files.crash_after(rng.randrange(1, 40))
        try:
            for _ in range(steps):
                writer.step()
                if rng.random() < 0.3:
                    _check_image(writer, rng, images)
        except SimCrash:
            pass
        survivor = writer.files.kill() if rng.random() < 0.2 else writer.files.crash(rng)
        if rng.random() < 0.3:  # and once more while it recovers
            survivor = _die_while_opening(survivor, rng)
        writer.attach(survivor)
        images[0] += 1


def _check_image(writer: Writer, rng: Random, images: list[int]) -> None:
    wal, recovered = Wal.open(writer.files.crash(rng), segment_bytes=SEGMENT_BYTES)
    writer.check(recovered)
    wal.close()
    images[0] += 1


def _die_while_opening(files: SimFiles, rng: Random) -> SimFiles:
    files.crash_after(rng.randrange(1, 8))
    try:
        wal, _ = Wal.open(files, segment_bytes=SEGMENT_BYTES)
    except (SimCrash, StorageFailed):
        return files.crash(rng)
    wal.close()
    files.heal()
    return files
