"""ReadIndex (§6.4), leadership transfer (§3.10), snapshots and compaction (§5)."""

from __future__ import annotations

import random

import pytest
from raft_cluster import CHUNK_BYTES, GROUP, Cluster, Node, configuration, entries_of

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.log import RaftLog, SnapshotMeta
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings


def of(effects: list[fx.Effect], kind: type) -> list[fx.Effect]:
    return [e for e in effects if isinstance(e, kind)]


def elected(size: int = 3, **settings: object) -> tuple[Cluster, Node]:
    cluster = Cluster(size, **settings)
    leader = cluster.elect("n1")
    cluster.run(100)
    return cluster, leader


# --- reads --------------------------------------------------------------------------------


def test_reads_of_one_step__share_one_round_with_its_own_context():
    cluster, leader = elected()
    effects = leader.step(fx.Read(1), fx.Read(2))
    contexts = [e.message.context for e in of(effects, fx.Send)]
    assert contexts == [1, 1]
    assert of(effects, fx.ReadReady) == []
    leader.effects.clear()
    cluster.settle()
    assert of(leader.effects, fx.ReadReady) == [fx.ReadReady(1, 1), fx.ReadReady(2, 1)]
    assert [e.message.context for e in of(leader.step(fx.Read(3)), fx.Send)] == [2, 2]


def test_read_before_the_own_noop_is_committed__waits_for_it():
    cluster = Cluster(3)
    cluster.now += 901
    node = cluster["n1"]
    node.step(fx.Tick())
    while node.raft.role != "leader":
        cluster.deliver(*cluster.wire.pop(0))
    node.effects.clear()
    assert of(node.step(fx.Read(1)), fx.Send) == []
    cluster.settle()
    assert of(node.effects, fx.ReadReady) == [fx.ReadReady(1, 1)]


def test_read_after_a_pause__a_deposed_leader_never_answers_it():
    cluster, old = elected()
    cluster.isolate(old.name)
    new = cluster.elect("n2")
    new.step(fx.Propose(1, b"newer"))
    cluster.settle()
    old.step(fx.Read(7))  # it still believes to lead: no timer has fired
    assert old.raft.role == "leader"
    cluster.heal()
    cluster.run(300)
    assert of(old.effects, fx.ReadReady) == []
    assert [e.ref for e in of(old.effects, fx.ReadFailed)] == [7]


def test_answer_to_an_older_round__does_not_confirm_a_later_read():
    _, leader = elected()
    raft = leader.raft
    raft.step([fx.Read(1)], 9_000)
    raft.step([fx.Read(2)], 9_001)
    late = fx.Receive("n2", msg.HeartbeatResponse(GROUP, raft.term, 1))
    assert of(raft.step([late], 9_002), fx.ReadReady) == [fx.ReadReady(1, 1)]


def test_lost_read_round__is_repeated_by_the_next_heartbeat():
    cluster, leader = elected()
    leader.step(fx.Read(1))
    cluster.wire.clear()
    leader.effects.clear()
    cluster.run(100)
    assert of(leader.effects, fx.ReadReady) == [fx.ReadReady(1, 1)]


def test_constant_reads__do_not_postpone_check_quorum():
    cluster, leader = elected()
    cluster.isolate("n1")
    for i in range(200):
        leader.step(fx.Read(i))
        cluster.tick(10)
    assert leader.raft.role != "leader"
    failed = of(leader.effects, fx.ReadFailed)
    assert [e.ref for e in failed] == list(range(200))


def test_too_many_pending_reads__fail_at_once():
    cluster, leader = elected(max_pending_reads=3)
    cluster.isolate("n1")
    effects = leader.step(*[fx.Read(i) for i in range(5)])
    assert [e.ref for e in of(effects, fx.ReadFailed)] == [3, 4]
    assert [e.ref for e in of(leader.step(fx.Read(9)), fx.ReadFailed)] == [9]


def test_single_voter_read__is_ready_in_the_same_step():
    _, leader = elected(1)
    assert of(leader.step(fx.Read(4)), fx.ReadReady) == [fx.ReadReady(4, 1)]


def test_read_on_a_follower__fails_and_names_the_leader():
    cluster, _ = elected()
    assert cluster["n2"].step(fx.Read(1)) == [fx.ReadFailed(1, "n1")]


# --- transfer -----------------------------------------------------------------------------


def test_transfer__target_leads_at_once_despite_stickiness():
    cluster, old = elected()
    old.step(fx.Transfer("n3"))
    cluster.settle()
    assert cluster["n3"].raft.role == "leader"
    assert old.raft.role == "follower"
    assert cluster["n3"].raft.counters["pre_votes"] == 0


def test_transfer__catches_a_lagging_target_up_first_and_refuses_proposals():
    cluster, old = elected()
    cluster.isolate("n3")
    old.step(fx.Propose(1, b"a"), fx.Propose(2, b"b"))
    cluster.settle()
    cluster.heal()
    old.step(fx.Transfer("n3"))
    (refused,) = old.step(fx.Propose(3, b"c"))
    assert refused == fx.Refused(3, "transferring", "n1")
    cluster.run(300)
    assert cluster["n3"].raft.role == "leader"
    assert cluster["n3"].machine == [b"a", b"b"]


def test_transfer_to_none__picks_the_most_caught_up_voter():
    cluster, old = elected()
    cluster.isolate("n2")
    old.step(fx.Propose(1, b"a"))
    cluster.settle()
    old.step(fx.Transfer())
    cluster.settle()
    assert cluster["n3"].raft.role == "leader"


def test_transfer_to_a_dead_target__is_given_up_after_one_election_timeout():
    cluster, old = elected()
    cluster.isolate("n3")
    old.step(fx.Transfer("n3"))
    cluster.run(800)
    assert of(old.step(fx.Propose(1, b"x")), fx.Refused)
    cluster.run(200)
    assert of(old.step(fx.Propose(2, b"y")), fx.Proposed) == [fx.Proposed(2, 2)]


def test_transfer_to_a_stranger_or_oneself__changes_nothing():
    _, old = elected()
    old.step(fx.Transfer("zz"), fx.Transfer("n1"))
    assert of(old.step(fx.Propose(1, b"x")), fx.Proposed)


# --- snapshots ----------------------------------------------------------------------------


def behind_a_snapshot(log_tail_entries: int = 2, **settings: object) -> tuple[Cluster, Node, Node]:
    """n3 is cut off while n1 and n2 go on, take snapshots and drop their log."""
    cluster, leader = elected(log_tail_entries=log_tail_entries, **settings)
    cluster.isolate("n3")
    for i in range(20):
        leader.step(fx.Propose(i, b"value-%d" % i))
        cluster.settle()
    cluster.run(100)
    leader.take_snapshot()
    cluster["n2"].take_snapshot()
    cluster.heal()
    return cluster, leader, cluster["n3"]


def until_it_is_sent(cluster: Cluster, leader: Node) -> None:
    """The leader has begun to send a snapshot; nobody has got anything of it."""
    while not of(leader.effects, fx.SendSnapshot):
        cluster.tick(10)
        if cluster.wire:
            cluster.deliver(*cluster.wire.pop(0))


def test_snapshot_taken__leaves_a_tail():
    _, leader, _ = behind_a_snapshot()
    assert leader.raft.log.base_index == 19
    assert leader.raft.last_index == 21
    assert leader.raft.log.term_at(19) == 1
    assert leader.raft.log.term_at(18) is None


def test_lagging_follower__gets_the_snapshot_in_chunks_one_in_flight_and_goes_on():
    cluster, leader, behind = behind_a_snapshot()
    leader.effects.clear()
    cluster.run(100)
    chunks = of(leader.effects, fx.SendSnapshot)
    assert [e.offset for e in chunks] == list(range(0, leader.raft.log.snapshot.size, CHUNK_BYTES))
    assert behind.machine == leader.machine
    assert behind.raft.commit_index == 21
    leader.step(fx.Propose(99, b"after"))
    cluster.run(100)
    assert behind.machine[-1] == b"after"
    behind.restart()
    cluster.run(100)
    assert behind.machine == leader.machine


def test_follower_within_the_tail__needs_no_snapshot():
    cluster, leader, _ = behind_a_snapshot()
    cluster.run(200)
    cluster.isolate("n3")
    leader.step(fx.Propose(50, b"x"))
    cluster.settle()
    leader.take_snapshot()
    cluster.heal()
    leader.effects.clear()
    cluster.run(200)
    assert of(leader.effects, fx.SendSnapshot) == []
    assert cluster["n3"].machine == leader.machine


def test_lost_chunk__is_repeated_after_a_stall():
    cluster, leader, behind = behind_a_snapshot()
    until_it_is_sent(cluster, leader)
    cluster.wire.clear()
    cluster.run(1_000)
    assert behind.machine == leader.machine


def test_repeated_chunk_answer__does_not_double_the_stream():
    cluster, leader, _ = behind_a_snapshot()
    progress = leader.raft._leading.peers["n3"]
    while progress.state != "snapshot":
        cluster.tick(10)
        if cluster.wire:
            cluster.deliver(*cluster.wire.pop(0))
    index = progress.snapshot_index
    again = fx.Receive("n3", msg.SnapshotResponse(GROUP, 1, index, CHUNK_BYTES))
    leader.effects.clear()
    leader.step(again)
    leader.step(again)
    assert [e.offset for e in of(leader.effects, fx.SendSnapshot)] == [CHUNK_BYTES]


def test_newer_snapshot_while_sending__the_one_under_way_is_finished():
    cluster, leader, behind = behind_a_snapshot()
    until_it_is_sent(cluster, leader)
    cluster.isolate("n3")  # its first chunk is lost
    leader.step(fx.Propose(70, b"x"))
    cluster.settle()
    leader.take_snapshot()
    assert leader.raft.log.base_index <= 21  # what follows the one that is sent
    cluster.heal()
    cluster.run(1_500)
    sent = of(leader.effects, fx.SendSnapshot)
    assert {e.index for e in sent} == {21}
    assert behind.machine == leader.machine


def test_snapshots_come_faster_than_a_transfer__the_follower_catches_up_with_the_first_one():
    cluster, leader, behind = behind_a_snapshot(log_tail_entries=0)
    taken = 0
    for ref in range(100, 300):
        cluster.tick(10)
        if behind.machine and behind.machine[: len(leader.machine)] == leader.machine:
            break
        # Before every step of the transfer there is a newer snapshot.
        leader.step(fx.Propose(ref, b"w%d" % ref))
        for _ in range(len(cluster.wire)):
            cluster.deliver(*cluster.wire.pop(0))
        leader.take_snapshot()
        taken += 1
    cluster.run(100)
    sent = of(leader.effects, fx.SendSnapshot)
    assert taken > 3
    assert {e.index for e in sent} == {21}
    assert [e.offset for e in sent] == sorted(e.offset for e in sent)
    assert behind.machine == leader.machine
    assert leader.raft.snapshot_in_transfer is None
    leader.take_snapshot()
    assert leader.older == {}


def test_receiver_is_away_for_long__what_was_kept_for_it_goes_and_it_gets_the_newest():
    cluster, leader, behind = behind_a_snapshot(log_tail_entries=0, snapshot_keep_ms=2_000)
    until_it_is_sent(cluster, leader)
    cluster.isolate("n3")
    cluster.run(3_000)
    assert leader.raft.snapshot_in_transfer is None
    leader.step(fx.Propose(70, b"x"))
    cluster.settle()
    leader.take_snapshot()
    assert leader.raft.log.base_index == 22
    assert leader.older == {}
    cluster.heal()
    cluster.run(2_000)
    assert of(leader.effects, fx.SendSnapshot)[-1].index == 22
    assert behind.machine == leader.machine


def test_more_is_written_than_is_kept__another_snapshot_follows_the_first():
    cluster, leader, behind = behind_a_snapshot(log_tail_entries=0, transfer_log_bytes_max=100)
    until_it_is_sent(cluster, leader)
    held, cluster.wire = cluster.wire, []
    for ref in range(100, 110):
        leader.step(fx.Propose(ref, b"much"))
        cluster.settle()
    leader.take_snapshot()
    assert leader.raft.log.base_index == 31
    cluster.wire += held
    cluster.run(1_000)
    indexes = [e.index for e in of(leader.effects, fx.SendSnapshot)]
    assert indexes == sorted(indexes)
    assert set(indexes) == {21, 31}
    assert behind.machine == leader.machine


def test_leader_changes_while_sending__the_next_leader_finishes_it():
    cluster, leader, behind = behind_a_snapshot()
    until_it_is_sent(cluster, leader)
    cluster.isolate("n1")
    cluster.run(4_000)
    assert cluster["n2"].raft.role == "leader"
    assert behind.machine == cluster["n2"].machine


def bare(**kwargs: object) -> Raft:
    return Raft(
        group=GROUP,
        node_id="b",
        configuration=configuration("abc"),
        settings=RaftSettings(),
        rng=random.Random(3),
        now_ms=0,
        **kwargs,  # type: ignore[arg-type]
    )


def chunk(index: int, term: int, offset: int = 0, size: int = 4) -> fx.Receive:
    data = b"data"[: size - offset]
    return fx.Receive(
        "a", msg.SnapshotChunk(GROUP, 5, index, term, 0, configuration("abc"), size, offset, data)
    )


def test_whole_snapshot__holds_back_apply_until_it_is_installed():
    raft = bare(term=5, entries=entries_of([1, 1]))
    beat = fx.Receive("a", msg.AppendRequest(GROUP, 5, 2, 1, 2, ()))
    effects = raft.step([chunk(9, 4), beat], 1)
    assert of(effects, fx.StoreChunk)
    assert of(effects, fx.Apply) == []
    effects = raft.step([fx.SnapshotInstalled(9, 4, 70, 4, configuration("abd"))], 2)
    assert of(effects, fx.SendAfterSync)[0].message == msg.AppendResponse(GROUP, 5, True, 9)
    assert (raft.commit_index, raft.applied_index, raft.last_index) == (9, 9, 9)
    assert raft.log_ms(10) == 70
    assert list(raft.membership.voters) == ["a", "b", "d"]


def test_snapshot_of_what_the_log_holds__is_answered_without_storing_it():
    raft = bare(term=5, entries=entries_of([1, 1, 1]))
    effects = raft.step([chunk(2, 1)], 1)
    assert of(effects, fx.StoreChunk) == []
    assert of(effects, fx.SendAfterSync)[0].message == msg.AppendResponse(GROUP, 5, True, 2)
    assert raft.commit_index == 2
    assert raft.last_index == 3


def test_snapshot_over_a_diverged_log__discards_it():
    raft = bare(term=5, entries=entries_of([1, 2, 2, 2]))
    raft.step([chunk(3, 4)], 1)
    raft.step([fx.SnapshotInstalled(3, 4, 0, 4, configuration("abc"))], 2)
    assert (raft.last_index, raft.log.last_term) == (3, 4)


def test_recovery__continues_from_a_snapshot_with_the_tail_before_it():
    meta = SnapshotMeta(5, 2, 40, 100)
    raft = bare(term=2, snapshot=meta, entries=entries_of([1, 1, 2, 2, 2], first=3))
    assert (raft.commit_index, raft.applied_index, raft.last_index) == (5, 5, 7)
    assert raft.log.base_index == 3
    assert raft.synced_index == 7


def test_recovery__entries_of_another_history_than_the_snapshot_are_dropped():
    meta = SnapshotMeta(5, 4, 40, 100)
    assert RaftLog(meta, entries_of([1, 1, 2], first=4)).last_index == 5
    assert RaftLog(meta, entries_of([1, 1], first=1)).last_index == 5
    kept = RaftLog(meta, entries_of([1, 1, 4, 4], first=4))
    assert (kept.base_index, kept.last_index) == (5, 7)


def test_recovery_with_a_gap__raises():
    with pytest.raises(AssertionError, match="gap"):
        RaftLog(None, [*entries_of([1]), *entries_of([1], first=3)])
    with pytest.raises(AssertionError, match="starts at 9"):
        RaftLog(SnapshotMeta(5, 4, 40, 100), entries_of([4], first=9))


# --- status -------------------------------------------------------------------------------


def test_status__tells_what_the_contract_lists():
    cluster, leader = elected()
    status = leader.raft.status()
    assert status["group_id"] == GROUP
    assert (status["role"], status["leader"], status["term"]) == ("leader", "n1", 1)
    assert status["voters"] == ["n1", "n2", "n3"]
    assert status["peers"]["n2"]["match"] == 1
    assert status["peers"]["n2"]["last_contact_ms"] <= 100
    assert status["elections"]["won"] == 1
    assert cluster["n2"].raft.status()["peers"] == {}
