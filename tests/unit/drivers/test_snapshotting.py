"""Snapshots in the engine: large ones are cut beside the loop, one that is sent stays on disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from dss.base import limits
from dss.core.locks.commands import LOG_CODEC, Acquire, SessionCreate
from dss.core.locks.machine import LockMachine
from dss.core.machine import join_items
from dss.core.queueing.commands import Configure, QueueSettings
from dss.core.queueing.machine import QueueMachine
from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.leadership import Leadership
from dss.core.raft.messages import Configuration, Member, SnapshotChunk
from dss.core.raft.settings import RaftSettings
from dss.drivers.engine import Engine
from dss.drivers.group import Flight
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles

GROUP = 1
ALONE = Configuration((Member("a", "inc"),))
TWO = Configuration((Member("a", "inc"), Member("b", "inc")))


class Answers:
    def __init__(self) -> None:
        self.statuses: list[int] = []

    def answer(self, request_id: int, status: int, body: Any) -> None:
        self.statuses.append(status)

    def flush(self) -> None: ...


class Loop:
    """The engine's hooks. What is offloaded waits until a test runs it."""

    def __init__(self, configuration: Configuration = ALONE, **options: Any) -> None:
        self.now = 0
        self.sent: list[Any] = []
        self.offloaded: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.answers = Answers()
        self.files = SimFiles(random.Random(1))
        self.store = SnapshotStore(SimFiles(random.Random(2)))
        self.engine = Engine(
            node_id="a",
            incarnation="inc",
            wal=Wal.open(self.files, segment_bytes=1 << 20)[0],
            recovered={},
            snapshots=self.store,
            settings=RaftSettings(apply_align_entries=options.pop("align", 1_024)),
            rng=lambda gid: random.Random(gid),
            hooks=self,
            **options,
        )
        self.machine = Counting()
        self.engine.create_group(GROUP, configuration, self.machine)
        self.group = self.engine.groups[GROUP]
        self.run()

    def now_ms(self) -> int:
        return self.now

    def send(self, peer: str, message: msg.RaftMessage) -> None:
        self.sent.append(message)

    def flush(self) -> None: ...

    def wake(self) -> None: ...

    def soon(self, step: Callable[[], None]) -> None:
        raise AssertionError("nothing here is so large")

    def refused(self, group: int, flight: Flight, code: str, leader: str | None) -> None: ...

    def role_changed(self, *of: Any) -> None: ...

    def applied(self, group: int) -> None: ...

    def offload(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.offloaded.append((work, done))

    def run(self, cycles: int = 6) -> None:
        for _ in range(cycles):
            self.now += 1
            self.engine.tick()
            if self.engine.begin():
                self.engine.sync()
            self.engine.finish()

    def beside(self, at: int = 0) -> None:
        """A piece of offloaded work (the oldest), to its end."""
        work, done = self.offloaded.pop(at)
        work()
        done()

    def do(self, *commands: Any) -> None:
        items = b"".join(self.machine.codec.encode_item(0, command) for command in commands)
        self.engine.propose(GROUP, [0] * len(commands), items, commands, self.answers)
        self.run(3)

    def fill(self, locks: int) -> None:
        self.do(SessionCreate(session="s", name="", ttl_ms=60_000))
        for first in range(0, locks, 1_000):
            names = range(first, min(first + 1_000, locks))
            self.do(*(Acquire(session="s", name=f"lock/{at}", owner=f"o{at}") for at in names))
        self.answers.statuses.clear()


class Counting(LockMachine):
    """Counts what is encoded, by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = 0
        self.whole = 0

    def snapshot(self) -> bytes:
        self.whole += 1
        return super().snapshot()

    def snapshot_pieces(self) -> Iterator[bytes]:
        for piece in super().snapshot_pieces():
            self.pieces += 1
            yield piece


def take(loop: Loop) -> None:
    loop.engine.take_snapshot(loop.group)


def test_large_state__none_of_it_is_encoded_on_the_loop_and_heartbeats_go_on() -> None:
    loop = Loop()
    loop.fill(9_000)
    take(loop)
    assert (loop.machine.whole, loop.machine.pieces) == (0, 0)
    # The work of another thread, in steps: between any two of them the loop does its turn.
    cut = []
    applied = loop.group.applied_index
    for piece in loop.machine.snapshot_pieces():
        cut.append(piece)
        loop.do(SessionCreate(session=f"new{len(cut)}", name="", ttl_ms=60_000))
    assert len(cut) > 9_000 // limits.SNAPSHOT_PIECE_ROWS
    assert loop.group.raft.commit_index > applied, "it appends and commits meanwhile"
    assert loop.group.applied_index == applied, "but what is being encoded does not change"
    assert loop.answers.statuses == []
    other = LockMachine()
    other.restore(b"".join(cut))
    assert other.held == 9_000


def test_large_state__a_piece_is_a_bounded_amount_of_work() -> None:
    loop = Loop()
    loop.fill(3_000)
    # A lock's name stands in its row, and in that of its holder.
    rows = [piece.count(b"lock/") // 2 for piece in loop.machine.snapshot_pieces()]
    assert max(rows) == limits.SNAPSHOT_PIECE_ROWS
    assert sum(rows) == 3_000
    data = loop.machine.snapshot()
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(data)) == data, "msgpack as ever"


def test_snapshot_is_cut__what_came_meanwhile_is_applied_and_answered_then() -> None:
    loop = Loop()
    loop.fill(3_000)
    take(loop)
    at = loop.group.applied_index
    loop.do(Acquire(session="s", name="one more", owner="o"))
    assert loop.answers.statuses == []
    loop.beside()
    assert loop.answers.statuses == [200]
    assert loop.group.applied_index == at + 1
    loop.beside()
    loop.run()
    assert loop.engine.snapshotting.taken == 1
    other = LockMachine()
    other.restore(loop.store.load(GROUP, at))
    assert other.held == 3_000, "the snapshot knows nothing of it"
    loop.do(Acquire(session="s", name="yet another", owner="o"))
    assert loop.answers.statuses == [200, 200]


@pytest.mark.parametrize("locks", [100, 3_000])
def test_snapshot_is_too_large__group_goes_on_without_it_and_tries_again_when_the_next_is_due(
    locks: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(snapshot_every_entries=20)
    loop.fill(locks)
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES_MAX", 1_000)
    take(loop)
    while loop.offloaded:
        loop.beside()
    snapshotting = loop.engine.snapshotting
    assert (snapshotting.taken, snapshotting.refused) == (0, 1)
    assert "acknowledge answers" in caplog.text
    monkeypatch.undo()
    loop.do(Acquire(session="s", name="one more", owner="o"))
    assert loop.answers.statuses == [200]
    snapshotting.take_pinned()
    assert not loop.offloaded, "not at every quiet moment"
    for at in range(30):
        loop.do(Acquire(session="s", name=f"more {at}", owner="o"))
        while loop.offloaded:
            loop.beside()
    assert snapshotting.taken >= 1
    other = LockMachine()
    other.restore(loop.store.load(GROUP, loop.group.snapshot_index))
    assert other.held > locks


def test_small_state__is_encoded_on_the_spot_and_nothing_waits() -> None:
    loop = Loop()
    loop.fill(100)
    take(loop)
    loop.do(Acquire(session="s", name="one more", owner="o"))
    assert loop.answers.statuses == [200]
    assert loop.machine.whole == 1


def test_leaders_snapshot_arrives_while_ours_is_cut__ours_is_dropped() -> None:
    loop = Loop(TWO)
    assert loop.group.raft.role == "follower"
    leader = LockMachine()
    leader.apply(1, 1, [SessionCreate(session=f"s{at}", name="", ttl_ms=1_000) for at in range(9)])
    for at in range(limits.SNAPSHOT_INLINE_ROWS + 1):
        command = SessionCreate(session=f"old{at}", name="", ttl_ms=60_000)
        loop.machine.apply(at, 1, [command])
    entry = msg.Entry(1, 1, msg.NOOP, 0, b"")
    loop.engine.receive("b", "inc", [msg.AppendRequest(GROUP, 1, 0, 0, 1, (entry,))])
    loop.run()
    assert loop.group.applied_index == 1
    take(loop)
    assert loop.group.cutting
    later = msg.Entry(2, 1, msg.NOOP, 0, b"")
    loop.engine.receive("b", "inc", [msg.AppendRequest(GROUP, 1, 1, 1, 2, (later,))])
    loop.run()
    assert loop.group.to_apply
    data = leader.snapshot()
    chunk = SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), 0, data)
    loop.engine.receive("b", "inc", [chunk])
    loop.beside(1)
    loop.run()
    assert loop.group.applied_index == 9
    loop.beside()  # ours
    loop.beside()  # the old state is freed
    assert loop.offloaded == []
    assert not loop.group.snapshot_busy
    assert loop.engine.snapshotting.taken == 0
    assert loop.machine.sessions == 9
    follows = msg.Entry(10, 1, msg.NOOP, 0, b"")
    loop.engine.receive("b", "inc", [msg.AppendRequest(GROUP, 1, 9, 1, 10, (follows,))])
    loop.run()
    assert loop.group.applied_index == 10


def chunks_of(data: bytes, checksum: int, *offsets: int) -> list[SnapshotChunk]:
    size = len(data) // 2
    return [
        SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), at, data[at : at + size], checksum)
        for at in offsets
    ]


def test_other_encoding_of_the_same_snapshot__begins_anew_and_is_not_mixed() -> None:
    loop = Loop(TWO)
    first, second = b"x" * 1_000, LockMachine()
    second.apply(1, 1, [SessionCreate(session="s" * 9, name="n" * 500, ttl_ms=1_000)])
    data = second.snapshot()
    data += bytes(len(data) % 2)
    first = first[: len(data)]
    loop.engine.receive("b", "inc", chunks_of(first, 111, 0))
    loop.run()
    half = len(first) // 2
    assert loop.group.receiver is not None
    assert loop.group.receiver.received == half
    # The next leader has a snapshot at the same index, encoded by another version.
    loop.engine.receive("b", "inc", chunks_of(second.snapshot(), 222, 0))
    loop.run()
    assert loop.group.receiver.identity[3] == 222
    assert loop.group.receiver.received == len(second.snapshot()) // 2


def test_broken_transfer__is_resumed_where_it_was() -> None:
    loop = Loop(TWO)
    data = b"y" * 1_000
    loop.engine.receive("b", "inc", chunks_of(data, 7, 0))
    loop.run()
    loop.engine.link_changed("b", False)
    loop.engine.link_changed("b", True)
    loop.sent.clear()
    loop.engine.receive("b", "inc", chunks_of(data, 7, 0))  # the leader begins anew
    loop.run()
    answers = [m for m in loop.sent if isinstance(m, msg.SnapshotResponse)]
    assert [answer.offset for answer in answers] == [500]


def followed(loop: Loop, commit: int, *entries: msg.Entry) -> None:
    """What the leader `b` of term 1 appends and has committed."""
    before = entries[0].index - 1
    append = msg.AppendRequest(GROUP, 1, before, min(before, 1), commit, entries)
    loop.engine.receive("b", "inc", [append])
    loop.run()


@pytest.mark.parametrize("pieces", [1, 2])
def test_whole_snapshot_has_come__a_thread_makes_it_ready_while_the_node_goes_on(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(TWO)
    leader = LockMachine()
    leader.apply(1, 1, [SessionCreate(session=f"s{at}", name="", ttl_ms=1_000) for at in range(8)])
    data = leader.snapshot()
    cut = 0 if pieces == 1 else 50
    chunks = [
        SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), at, part)
        for at, part in ((0, data[:cut]), (cut, data[cut:]))
        if part
    ]
    prepared: list[bytes] = []
    prepare = loop.machine.prepare

    def noted(data: bytes) -> Callable[[], None]:
        prepared.append(data)
        return prepare(data)

    monkeypatch.setattr(loop.machine, "prepare", noted)
    for chunk in chunks:
        loop.engine.receive("b", "inc", [chunk])
        loop.run()
    assert len(loop.offloaded) == 1
    assert not prepared, "decoded on the loop"
    assert loop.store.latest(GROUP) is None, "written on the loop"
    followed(loop, 1, msg.Entry(1, 1, msg.NOOP, 0, b""))
    assert loop.group.applied_index == 1, "it applies meanwhile"
    loop.sent.clear()
    loop.engine.receive("b", "inc", [chunks[-1], msg.Heartbeat(GROUP, 1, 1, 7)])
    loop.run()
    [answer] = loop.sent
    assert isinstance(answer, msg.HeartbeatResponse), "the repeated piece is not answered yet"
    assert len(loop.offloaded) == 1
    loop.beside()
    loop.run()
    assert loop.group.applied_index == loop.group.snapshot_index == 9
    assert loop.machine.snapshot() == data
    assert any(isinstance(m, msg.AppendResponse) and m.index == 9 for m in loop.sent)
    assert len(prepared) == 1
    loop.beside()
    assert loop.group.arriving is None
    assert loop.offloaded == []
    loop.engine.receive("b", "inc", [chunks[-1]])  # once more, late
    loop.run()
    assert loop.offloaded == []
    assert loop.engine.snapshotting.installed == 1


def test_ready_snapshot_is_not_wanted_any_more__the_next_one_is_taken() -> None:
    loop = Loop(TWO)
    data = LockMachine().snapshot()
    loop.engine.receive("b", "inc", [SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), 0, data)])
    # The next leader's heartbeat comes first: the piece is of a term that is over.
    loop.engine.receive("b", "inc", [msg.Heartbeat(GROUP, 2, 0, 1)])
    loop.run()
    loop.beside()
    loop.run()
    assert loop.group.applied_index == 0
    assert loop.group.arriving is None, "what was made ready is not kept"
    loop.engine.receive("b", "inc", [SnapshotChunk(GROUP, 2, 12, 2, 5, TWO, len(data), 0, data)])
    loop.beside(-1)
    loop.run()
    assert loop.group.applied_index == 12
    assert loop.store.meta(GROUP, 12) is not None


def test_repeated_piece_is_stepped_while_a_thread_has_the_file__it_does_not_begin_anew() -> None:
    loop = Loop(TWO)
    leader = LockMachine()
    leader.apply(1, 1, [SessionCreate(session=f"s{at}", name="", ttl_ms=1_000) for at in range(8)])
    data = leader.snapshot()
    third = len(data) // 3
    first, second, last = [
        SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), at, data[at:end])
        for at, end in ((0, third), (third, 2 * third), (2 * third, len(data)))
    ]
    for chunk in (first, second):
        loop.engine.receive("b", "inc", [chunk])
        loop.run()
    # The leader repeats the second, hears that it had come, and sends the last: in one cycle here.
    loop.engine.receive("b", "inc", [second, last])
    loop.sent.clear()
    loop.run()
    assert not any(isinstance(m, msg.SnapshotResponse) for m in loop.sent)
    loop.beside()
    loop.run()
    assert loop.group.applied_index == 9
    assert loop.machine.snapshot() == data


def test_last_piece_without_those_before_it__is_asked_for_from_the_start() -> None:
    loop = Loop(TWO)
    data = b"y" * 1_000
    loop.engine.receive("b", "inc", chunks_of(data, 7, 500))
    loop.run()
    answers = [m for m in loop.sent if isinstance(m, msg.SnapshotResponse)]
    assert [answer.offset for answer in answers] == [0]
    assert loop.offloaded == []


def test_node_crashes_while_a_snapshot_is_made_ready__it_starts_as_before() -> None:
    loop = Loop(TWO)
    data = LockMachine().snapshot()
    loop.engine.receive("b", "inc", [SnapshotChunk(GROUP, 1, 9, 1, 5, TWO, len(data), 0, data)])
    work, _ = loop.offloaded[0]
    work()  # the file is whole, and the log does not know of it
    loop.run()
    wal, recovered = Wal.open(loop.files.kill(), segment_bytes=1 << 20)
    assert recovered[GROUP].snapshot_index == 0
    wal.close()


@pytest.mark.parametrize("machine", [LockMachine(), QueueMachine(3)])
def test_prepared_state__the_machine_is_the_old_one_until_it_is_put_in_place(
    machine: LockMachine | QueueMachine,
) -> None:
    def fill(machine: LockMachine | QueueMachine, name: str) -> None:
        if isinstance(machine, LockMachine):
            machine.apply(1, 1, [SessionCreate(session=name, name="", ttl_ms=1_000)])
        else:
            machine.apply(1, 1, [Configure(name, 1, 1, QueueSettings())])

    other = type(machine)() if isinstance(machine, LockMachine) else QueueMachine(3)
    fill(machine, "one")
    fill(other, "two")
    old, new = machine.snapshot(), other.snapshot()
    replace = machine.prepare(new)
    assert machine.snapshot() == old
    fill(machine, "three")
    machine.check_invariants()
    replace()
    machine.check_invariants()
    assert machine.snapshot() == new
    assert machine.next_due_ms() == other.next_due_ms()


def test_snapshot_that_is_sent__stays_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(ALONE)
    loop.fill(10)
    take(loop)
    loop.beside()
    loop.run()
    first = loop.group.snapshot_index
    effect = fx.SendSnapshot("b", 1, first, 0)
    monkeypatch.setattr(Leadership, "snapshot_in_transfer", lambda leading: first)
    loop.do(Acquire(session="s", name="more", owner="o"))
    take(loop)
    loop.beside()
    loop.run()
    loop.engine.reclaim()
    loop.sent.clear()
    loop.engine.snapshotting.send_chunk(loop.group, effect)
    assert loop.sent[0].index == first
    assert loop.sent[0].checksum == loop.store.checksum(GROUP, first) > 0
    monkeypatch.undo()
    loop.engine.reclaim()
    loop.sent.clear()
    loop.engine.snapshotting.send_chunk(loop.group, effect)
    assert loop.sent == []


@pytest.mark.parametrize("seed", range(5))
def test_nodes_that_apply_in_different_steps__take_the_same_snapshots(seed: int) -> None:
    """So the next leader goes on with a transfer that the former one began."""
    rng = random.Random(seed)
    taken = []
    for _ in range(2):
        loop = Loop(TWO, align=8, snapshot_every_entries=20)
        at = 0
        while at < 100:
            last = min(100, at + rng.randrange(1, 15))
            entries = tuple(entry_of(index) for index in range(at + 1, last + 1))
            request = msg.AppendRequest(GROUP, 1, at, int(at > 0), last, entries)
            loop.engine.receive("b", "inc", [request])
            loop.run(rng.randrange(2, 5))
            while loop.offloaded:
                loop.beside()
            at = last
        loop.run()
        taken.append(
            (loop.group.snapshot_index, loop.store.checksum(GROUP, loop.group.snapshot_index))
        )
    assert taken[0] == taken[1]
    assert taken[0][0] % 8 == 0


def entry_of(index: int) -> msg.Entry:
    command = SessionCreate(session=f"{index:032x}", name="", ttl_ms=60_000)
    payload = join_items(1, [LOG_CODEC.encode_item(0, command)])
    return msg.Entry(index, 1, msg.COMMAND, index, payload)


def test_few_large_entries__do_not_wait_for_an_even_index() -> None:
    loop = Loop(TWO, align=8, snapshot_every_bytes=1_000)
    for index in range(1, 4):
        command = SessionCreate(session=f"{index:032x}", name="n" * 128, ttl_ms=60_000)
        items = [LOG_CODEC.encode_item(0, command)] * 5
        entry = msg.Entry(index, 1, msg.COMMAND, index, join_items(len(items), items))
        previous = int(index > 1)
        loop.engine.receive(
            "b", "inc", [msg.AppendRequest(GROUP, 1, index - 1, previous, index, (entry,))]
        )
        loop.run()
    assert loop.offloaded, "more than the bytes after which one is due, and a quarter"
