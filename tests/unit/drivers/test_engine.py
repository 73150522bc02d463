"""Engines joined in memory over simulated disks: the order of sync, answer and send."""

import random
from collections import deque

import msgspec
import pytest
from driver_world import Sink

from dss.base import limits
from dss.core.machine import PENDING, Wake
from dss.core.raft import effects as fx
from dss.core.raft.messages import (
    NODE_BEAT,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    HeartbeatResponse,
    Member,
)
from dss.core.raft.settings import RaftSettings
from dss.drivers.engine import Engine
from dss.drivers.group import NULL_SINK
from dss.drivers.snapshotting import SNAPSHOTS_PER_RECLAIM
from dss.storage.snapshots import SnapshotStore
from dss.storage.wal import Wal
from dss.testing.disk import SimFiles
from dss.testing.tally import Add, Tally

GROUP = 1
CONFIGURATION = Configuration(tuple(Member(n, f"inc-{n}") for n in "abc"))
ALONE = Configuration((Member("a", "inc-a"),))


class WaitingTally(Tally):
    """An Add with padding waits; the next without wakes all that wait."""

    def __init__(self):
        super().__init__()
        self.waiting, self.wakes, self.due_ms = [], [], None

    def apply(self, index, log_ms, commands):
        results = super().apply(index, log_ms, commands)
        for at, command in enumerate(commands):
            if command.padding:
                self.waiting.append((index, at))
                results[at] = PENDING
            else:
                self.wakes += [Wake(i, p, 200, "woken") for i, p in self.waiting]
                self.waiting = []
        return results

    def take_wakes(self):
        wakes, self.wakes = self.wakes, []
        return wakes

    def next_due_ms(self):
        return self.due_ms

    def due(self, log_ms):
        return [Add(1_000_000)]


class Node:
    """One engine and its hooks; `world` moves its messages and its clock."""

    def __init__(self, world, name, configuration):
        self.world, self.name, self.configuration = world, name, configuration
        self.wal_files = SimFiles(random.Random(1))
        self.snapshot_files = SimFiles(random.Random(2))
        self.up = False
        self.start()

    def start(self):
        self.sent, self.refusals, self.roles, self.offloaded = [], [], [], []
        self.soon_steps = []
        self.machine = WaitingTally()
        wal, recovered = Wal.open(self.wal_files, segment_bytes=16_384)
        self.engine = Engine(
            node_id=self.name,
            incarnation=f"inc-{self.name}",
            wal=wal,
            recovered=recovered,
            snapshots=SnapshotStore(self.snapshot_files),
            settings=RaftSettings(
                heartbeat_ms=10,
                election_min_ms=50,
                election_max_ms=100,
                log_tail_entries=5,
                quiesce_after=self.world.quiesce_after,
            ),
            rng=lambda gid: random.Random(self.name),
            hooks=self,
            snapshot_every_entries=self.world.snapshot_every,
        )
        if not self.engine.open_group(GROUP, self.machine):
            self.engine.create_group(GROUP, self.configuration, self.machine)
        self.up = True

    def crash(self):
        self.up = False
        self.wal_files = self.wal_files.crash(random.Random(3))
        self.snapshot_files = self.snapshot_files.crash(random.Random(4))

    @property
    def group(self):
        return self.engine.groups[GROUP]

    @property
    def leads(self):
        return self.up and self.group.raft.role == "leader"

    def now_ms(self):
        return self.world.now

    def send(self, peer, message):
        self.sent.append(message)
        self.world.net.append((self.name, peer, message))

    def flush(self): ...

    def wake(self): ...

    def soon(self, step):
        self.soon_steps.append(step)

    def refused(self, group, flight, code, leader):
        self.refusals.append((flight, code))

    def role_changed(self, group, role, term, leader, reason):
        self.roles.append(role)

    def applied(self, group): ...

    def offload(self, work, done):
        self.offloaded.append((work, done))

    def cycle(self):
        if self.engine.begin():
            self.engine.sync()
        self.engine.finish()

    def propose(self, sink, *rids, padding=b""):
        commands = [Add(rid, padding) for rid in rids]
        items = b"".join(map(self.machine.codec.encode_item, rids, commands))
        self.engine.propose(GROUP, rids, items, commands, sink)


class World:
    def __init__(
        self, names="abc", configuration=CONFIGURATION, snapshot_every=100_000, quiesce_after=0
    ):
        self.now, self.net, self.cut = 1_000, deque(), set()
        self.snapshot_every = snapshot_every
        self.quiesce_after = quiesce_after
        self.nodes = {name: Node(self, name, configuration) for name in names}

    def __getitem__(self, name):
        return self.nodes[name]

    def run(self, ms=0):
        """Let time pass; at each ms everything sent arrives and every engine cycles."""
        for _ in range(ms + 1):
            for node in self.nodes.values():
                if node.up:
                    node.engine.tick()
            for _ in range(20):
                self.deliver()
                for node in self.nodes.values():
                    while node.offloaded:
                        work, done = node.offloaded.pop(0)
                        work()
                        done()
                    steps, node.soon_steps = node.soon_steps, []
                    for step in steps:
                        step()
                    if node.up and node.engine.pending:
                        node.cycle()
            self.now += 1

    def deliver(self):
        for _ in range(len(self.net)):
            sender, receiver, message = self.net.popleft()
            node = self.nodes[receiver]
            if node.up and not {sender, receiver} & self.cut:
                node.engine.receive(sender, f"inc-{sender}", [message])

    def elect(self):
        for _ in range(50):
            self.run(10)
            leaders = [node for node in self.nodes.values() if node.leads]
            if len(leaders) == 1 and leaders[0].group.raft.commit_index:
                return leaders[0]
        raise AssertionError("no leader")


def test_proposals_of_one_cycle__one_entry_applied_by_all_answered_once():
    world = World()
    leader = world.elect()
    first, second = Sink(), Sink()
    before = leader.group.raft.last_index
    leader.propose(first, 1, 2)
    leader.propose(second, 1, 3)
    world.run(20)
    assert leader.group.raft.last_index == before + 1
    assert first.statuses == {1: 200, 2: 200}
    assert second.statuses == {1: 200, 3: 200}
    assert len(first.answers) == first.flushed == 2
    assert all(node.machine.idents == [1, 2, 1, 3] for node in world.nodes.values())


def test_message_with_more_commands_than_an_entry_may_have__cut_and_each_answered_once():
    world = World()
    leader = world.elect()
    before = leader.group.raft.last_index
    sink, other = Sink(), Sink()
    leader.propose(other, 7)
    leader.propose(sink, *range(4_096))
    world.run(20)
    assert sink.statuses == dict.fromkeys(range(4_096), 200)
    assert len(sink.answers) == sink.flushed == 4_096
    assert other.statuses == {7: 200}
    sizes = [
        len(msgspec.msgpack.decode(entry.payload))
        for entry in leader.group.raft.log.slice(before + 1, leader.group.raft.last_index)
    ]
    assert sizes == [1, 1_000, 1_000, 1_000, 1_000, 96]
    assert all(node.machine.idents == [7, *range(4_096)] for node in world.nodes.values())


def test_much_is_committed_at_once__a_cycle_applies_a_bounded_part_of_it():
    world = World()
    leader = world.elect()
    slow = next(node for node in world.nodes.values() if node is not leader)
    world.cut = {slow.name}
    for start in range(0, 6_000, 600):
        leader.propose(Sink(), *range(start, start + 600))
        world.run(1)
    applied = []
    apply = slow.engine.applying.apply

    def counted(group):
        before = slow.engine.applying.commands_applied
        apply(group)
        applied.append(slow.engine.applying.commands_applied - before)

    slow.engine.applying.apply = counted
    world.cut = set()
    world.run(200)
    assert slow.machine.idents == list(range(6_000))
    assert max(applied) == 1_200, "two entries: the first that reaches the bound is the last"
    assert slow.engine.applying.entries_applied == slow.group.applied_index


def test_much_is_committed_while_the_disk_syncs__it_is_applied_meanwhile():
    world = World("a", ALONE)
    node = world.elect()
    sinks = [Sink() for _ in range(5)]
    for number, sink in enumerate(sinks):
        node.propose(sink, *range(1_000 * number, 1_000 * number + 1_000))
    node.cycle()
    assert len(node.machine.idents) == 1_000
    assert [len(sink.answers) for sink in sinks] == [1_000, 0, 0, 0, 0]
    other = Sink()
    node.propose(other, 5_000)
    assert node.engine.begin(), "what follows happens beside its sync"
    while node.soon_steps:
        node.soon_steps.pop(0)()
    assert [sink.flushed for sink in sinks] == [1_000] * 5
    assert not other.answers
    node.engine.sync()
    node.engine.finish()
    world.run(1)
    assert other.statuses == {5_000: 200}
    assert node.machine.idents == list(range(5_001))


def test_snapshot_comes_while_something_is_left_to_apply__it_stands_for_that_too():
    world = World(snapshot_every=20)
    leader = world.elect()
    slow = next(node for node in world.nodes.values() if node is not leader)
    group, engine = slow.group, slow.engine
    for start in range(0, 40_000, 1_000):
        leader.propose(Sink(), *range(start, start + 1_000))
        world.run(1)
        if start == 20_000:
            engine.applying.apply = lambda group: None  # it lags, as a busy machine's loop would
            world.run(1)
            world.cut = {slow.name}
    assert group.to_apply
    del engine.applying.apply
    leader.engine.reclaim()
    world.cut = set()
    world.run(300)
    assert engine.snapshotting.installed == 1
    assert not group.to_apply
    assert slow.machine.idents == leader.machine.idents == list(range(40_000))


def test_lone_voter__answers_only_after_its_sync():
    world = World("a", ALONE)
    node, sink = world.elect(), Sink()
    node.propose(sink, 1)
    assert node.engine.begin()
    assert not sink.answers
    assert node.machine.idents == []
    node.engine.sync()
    assert not sink.answers
    node.engine.finish()
    assert sink.statuses == {1: 200}


def follower_that_was_sent_an_entry():
    world = World()
    leader = world.elect()
    follower = next(node for node in world.nodes.values() if node is not leader)
    leader.propose(Sink(), 1)
    leader.cycle()
    world.deliver()
    return follower


def test_follower__acknowledges_only_after_its_sync():
    follower = follower_that_was_sent_an_entry()
    follower.sent.clear()
    assert follower.engine.begin()
    assert not [m for m in follower.sent if isinstance(m, AppendResponse)]
    follower.engine.sync()
    follower.engine.finish()
    [ack] = [m for m in follower.sent if isinstance(m, AppendResponse)]
    assert ack.ok
    assert ack.index == follower.group.raft.last_index


def order_of(node, monkeypatch):
    """What `node` does from now on, in order."""
    done = []

    def noting(of, name, what):
        original = getattr(of, name)

        def noted(*args, **kwargs):
            done.append(what)
            return original(*args, **kwargs)

        monkeypatch.setattr(of, name, noted)

    wal = node.engine.wal
    noting(wal, "write", "write")
    noting(wal, "sync", "sync")
    noting(node, "send", "send")
    noting(node, "flush", "flush")
    return done


def test_leader__its_requests_leave_before_its_own_log_is_written(monkeypatch):
    world = World()
    leader = world.elect()
    done = order_of(leader, monkeypatch)
    leader.propose(Sink(), 1)
    leader.cycle()
    assert done == ["send", "send", "flush", "write", "sync"]


def test_follower__its_acknowledgement_leaves_first_after_the_sync(monkeypatch):
    follower = follower_that_was_sent_an_entry()
    done = order_of(follower, monkeypatch)
    follower.cycle()
    assert done == ["flush", "write", "sync", "send", "flush"]


@pytest.mark.parametrize("voters", [1, 3])
def test_own_sync__is_stepped_at_once_only_where_it_commits(voters: int):
    world = World("a", ALONE) if voters == 1 else World()
    leader, sink = world.elect(), Sink()
    raft = leader.group.raft
    leader.propose(sink, 1)
    leader.cycle()
    assert (raft.synced_index == raft.last_index) is (voters == 1)
    world.run(20)
    assert raft.synced_index == raft.commit_index == raft.last_index
    assert sink.statuses == {1: 200}


def test_failed_sync__nothing_is_acknowledged():
    world = World("a", ALONE)
    node, sink = world.elect(), Sink()
    node.wal_files.fail["datasync"] = [5]
    node.propose(sink, 1)
    assert node.engine.begin()
    with pytest.raises(Exception, match="sync failed"):
        node.engine.sync()
    assert not sink.answers
    node.engine.abandon()
    assert sink.statuses == {1: 504}


def test_group_created_while_a_sync_runs__still_needs_the_next_one():
    world = World("a", ALONE)
    node = world.elect()
    node.propose(Sink(), 1)
    assert node.engine.begin()
    node.engine.create_group(2, ALONE, WaitingTally())
    node.engine.sync()
    node.engine.finish()
    assert node.engine.pending
    assert node.engine.begin()
    node.engine.sync()
    node.crash()
    node.start()
    assert 2 in node.engine.recovered


def test_power_failure_after_the_answer__the_command_is_still_there():
    world = World()
    leader, sink = world.elect(), Sink()
    leader.propose(sink, 7)
    world.run(5)
    assert sink.statuses == {7: 200}
    for node in world.nodes.values():
        node.crash()
    for node in world.nodes.values():
        node.start()
    assert world.elect().machine.idents == [7]


def test_other_incarnation_or_no_member__its_answers_are_dropped(caplog):
    world = World()
    leader = world.elect()
    term = leader.group.raft.term
    for peer, incarnation in (("b" if leader.name != "b" else "a", "wiped"), ("z", "inc-z")):
        for _ in range(3):
            leader.engine.receive(peer, incarnation, [HeartbeatResponse(GROUP, term + 5)])
    world.run(1)
    assert leader.leads
    assert leader.group.raft.term == term
    assert leader.engine.mismatched_incarnations == 6
    assert caplog.text.count("its disk was lost") == 2


def test_leader_is_cut_off__its_proposals_and_reads_end_once_and_in_the_end_its_waits(monkeypatch):
    monkeypatch.setattr(limits, "WAITS_LEADERLESS_MS", 2_000)
    world = World()
    old, sink, reads = world.elect(), Sink(), []
    old.propose(sink, 1, padding=b"waits")
    world.run(20)
    assert not sink.answers
    world.cut = {old.name}
    old.propose(sink, 2)
    old.engine.read(GROUP, lambda leader, ok: reads.append(ok))
    world.run(400)
    assert not old.leads
    assert sink.statuses == {2: 504}
    assert reads == [False]
    world.run(2_000)
    assert sink.statuses == {1: 504, 2: 504}
    world.cut = set()
    new = world.elect()
    assert new is not old
    new.propose(Sink(), 3)
    world.run(50)
    assert old.machine.idents == new.machine.idents == [1, 3]
    assert len(sink.answers) == sink.flushed == 2
    group = old.group
    assert not group.flights
    assert not group.waits
    assert not group.reads
    assert not group.read_waiters


def test_leader_is_cut_off_for_a_while__what_waits_there_is_answered_when_it_is_back():
    world = World()
    old, sink = world.elect(), Sink()
    old.propose(sink, 1, padding=b"waits")
    world.run(20)
    world.cut = {old.name}
    world.run(1_000)
    assert not old.leads
    assert not sink.answers
    world.cut = set()
    new = world.elect()
    assert new is not old
    new.propose(Sink(), 2)
    world.run(50)
    assert sink.answers == [(1, 200, "woken")]
    assert not old.group.waits


def test_leader_hands_over__what_is_in_its_log_is_answered_by_what_the_next_one_commits():
    world = World()
    old, sink = world.elect(), Sink()
    old.propose(sink, 1, padding=b"waits")
    world.run(20)
    for ident in (2, 3, 4):
        old.propose(sink, ident, padding=b"waits")
        old.cycle()
    assert len(old.group.flights) == 3
    old.engine.event(GROUP, fx.Transfer(None))
    world.run(60)
    new = world.elect()
    assert new is not old
    assert not old.group.flights
    assert len(old.group.waits) == 4, "they wait inside the machine, also here"
    assert not sink.answers
    new.propose(Sink(), 5)
    world.run(20)
    assert sink.statuses == dict.fromkeys((1, 2, 3, 4), 200)
    assert not old.group.waits


def test_deposed_leader_is_overwritten__its_proposals_are_indeterminate_at_once():
    world = World()
    old, sink = world.elect(), Sink()
    world.cut = {old.name}
    for ident in range(1, 6):
        old.propose(sink, ident)
        world.run(1)
    first = min(old.group.flights)
    assert len(old.group.flights) == 5
    old.engine.receive(
        "b" if old.name != "b" else "a",
        "inc-b" if old.name != "b" else "inc-a",
        [
            AppendRequest(
                GROUP, 99, first - 1, old.group.raft.term, 0, (Entry(first, 99, 0, 0, b""),)
            )
        ],
    )
    world.run(1)
    assert sink.statuses == dict.fromkeys(range(1, 6), 504)
    assert not old.group.flights


def test_waiting_command__answered_when_woken():
    world = World()
    leader, sink = world.elect(), Sink()
    leader.propose(sink, 1, padding=b"waits")
    world.run(5)
    assert not sink.answers
    leader.propose(sink, 2)
    world.run(5)
    assert sink.answers == [(2, 200, 2), (1, 200, "woken")]
    assert not leader.group.waits


def test_read__true_once_applied_and_false_on_a_follower():
    world = World()
    leader, done, sink = world.elect(), [], Sink()
    leader.propose(sink, 1)
    world.run(5)
    assert sink.statuses == {1: 200}
    leader.engine.read(GROUP, lambda node, ok: done.append((ok, list(leader.machine.idents))))
    world.run(20)
    assert done == [(True, [1])]
    follower = next(node for node in world.nodes.values() if node is not leader)
    follower.engine.read(GROUP, lambda node, ok: done.append((node, ok)))
    world.run(1)
    assert done[1] == (leader.name, False)


def test_refused_beside_clients__what_is_due_is_proposed_again():
    world = World("a", ALONE)
    node, sink = world.elect(), Sink()
    node.machine.due_ms = 0
    node.propose(sink, 1)
    node.engine.tick()
    [flight] = node.group.pending
    assert [part[1] for part in flight.sinks] == [sink, NULL_SINK]
    node.group.raft._leading.transfer_target = "b"
    node.group.raft._leading.transfer_until_ms = world.now + 5
    node.cycle()
    assert [code for _, code in node.refusals] == ["transferring"]
    assert not node.group.due_in_flight
    world.run(30)
    assert 1_000_000 in node.machine.idents


def test_follower_far_behind__gets_the_snapshot_and_the_old_file_goes():
    world = World(snapshot_every=20)
    leader = world.elect()
    slow = next(node for node in world.nodes.values() if node is not leader)
    slow.crash()
    for ident in range(60):
        leader.propose(Sink(), ident)
        world.run(1)
    assert leader.engine.snapshotting.taken >= 2
    leader.engine.reclaim()
    known = leader.engine.snapshots.latest(GROUP)
    assert [n for n in leader.snapshot_files.list() if n.endswith(".snap")] == [
        f"{GROUP:010d}-{known.index:016d}.snap"
    ]
    slow.start()
    world.run(300)
    assert slow.engine.snapshotting.installed == 1
    assert slow.machine.idents == leader.machine.idents == list(range(60))
    slow.crash()
    slow.start()
    world.run(300)
    assert slow.machine.idents == list(range(60))


def test_many_quiet_groups_pin_the_log__a_few_snapshots_per_turn():
    world = World("a", ALONE)
    node = world.elect()
    for gid in range(10, 16):
        node.engine.create_group(gid, ALONE, WaitingTally())
    world.run(200)
    for ident in range(60):
        node.propose(Sink(), ident, padding=bytes(1_000))
        world.run(0)
    assert node.engine.wal.segments > 3
    node.engine.reclaim()
    assert len(node.offloaded) == SNAPSHOTS_PER_RECLAIM
    for _ in range(6):
        world.run(2)
        node.engine.reclaim()
    world.run(2)
    assert node.engine.snapshotting.taken >= 7
    node.engine.reclaim()
    assert node.engine.wal.segments <= 3


def test_node_ends__everything_that_waits_is_answered_once():
    world = World()
    leader, sink, reads = world.elect(), Sink(), []
    leader.propose(sink, 1, padding=b"waits")
    world.run(20)
    leader.propose(sink, 2)
    leader.cycle()
    leader.propose(sink, 3)
    leader.engine.read(GROUP, lambda node, ok: reads.append(ok))
    leader.engine.abandon()
    leader.engine.abandon()
    assert sink.statuses == {1: 504, 2: 504, 3: 503}
    assert len(sink.answers) == sink.flushed == 3
    assert reads == [False]


def test_transfer__the_other_node_leads_and_the_log_goes_on():
    world = World()
    old = world.elect()
    target = next(name for name in world.nodes if name != old.name)
    old.engine.event(GROUP, fx.Transfer(target))
    world.run(30)
    assert world[target].leads
    assert not old.leads


def resting():
    world = World(quiesce_after=3)
    for gid in (2, 3, 4):
        for node in world.nodes.values():
            node.engine.create_group(gid, CONFIGURATION, WaitingTally())
    world.elect()
    world.run(400)
    groups = [group for node in world.nodes.values() for group in node.engine.groups.values()]
    assert len(groups) == 12
    assert all(group.raft.quiescent for group in groups)
    return world


def test_idle_groups__one_message_between_two_nodes_stands_for_all_of_them():
    world = resting()
    for node in world.nodes.values():
        node.sent.clear()
    world.run(199)
    for node in world.nodes.values():
        assert set(node.sent) == {NODE_BEAT}
        assert len(node.sent) <= 2 * 20
    # A request wakes one group, and only that.
    leader, sink = world.elect(), Sink()
    leader.propose(sink, 1)
    world.run(5)
    assert sink.statuses == {1: 200}
    awake = [gid for gid, group in leader.engine.groups.items() if not group.raft.quiescent]
    assert awake == [GROUP]


def test_node_of_resting_leaders_falls_silent__its_groups_elect_within_the_usual_time():
    world = resting()
    dead = world.elect()
    led = [gid for gid, group in dead.engine.groups.items() if group.raft.role == "leader"]
    dead.up = False
    world.run(100 + 100)
    for gid in led:
        leaders = [
            node.name
            for node in world.nodes.values()
            if node.up and node.engine.groups[gid].raft.role == "leader"
        ]
        assert len(leaders) == 1
    assert all(
        group.raft.quiescent or gid in led
        for node in world.nodes.values()
        if node.up
        for gid, group in node.engine.groups.items()
        if group.raft.role != "leader"
    )


def test_resting_leader_is_cut_off__it_notices_without_any_request():
    world = resting()
    old = world.elect()
    world.cut = {old.name}
    world.run(300)
    assert not any(group.raft.role == "leader" for group in old.engine.groups.values())
    world.cut = set()
    world.run(500)
    assert all(
        group.raft.quiescent
        for node in world.nodes.values()
        for group in node.engine.groups.values()
    )
