"""Log replication: Raft thesis §3.5, §3.6, §10.2.1; back-pressure and log time."""

from __future__ import annotations

import random

import msgspec
import pytest
from raft_cluster import GROUP, Cluster, configuration, entries_of

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings

# Figure 3.6 of the thesis (figure 7 of the paper): logs a new leader of term 8 may meet.
LEADER_LOG = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def of(effects: list[fx.Effect], kind: type) -> list[fx.Effect]:
    return [e for e in effects if isinstance(e, kind)]


def sent(effects: list[fx.Effect], kind: type) -> list[msg.RaftMessage]:
    return [e.message for e in effects if isinstance(e, fx.Send) and isinstance(e.message, kind)]


def follower(terms: list[int], **kwargs: object) -> Raft:
    return Raft(
        group=GROUP,
        node_id="b",
        configuration=configuration("abc"),
        term=max(terms, default=0),
        entries=entries_of(terms),
        settings=RaftSettings(),
        rng=random.Random(3),
        now_ms=0,
        **kwargs,  # type: ignore[arg-type]
    )


def request(
    term: int, prev: int, prev_term: int, commit: int, entries: list[msg.Entry]
) -> fx.Receive:
    return fx.Receive("a", msg.AppendRequest(GROUP, term, prev, prev_term, commit, tuple(entries)))


def answer(effects: list[fx.Effect]) -> msg.AppendResponse:
    (found,) = of(effects, fx.SendAfterSync)
    return found.message


def leading(size: int = 3, **settings: object) -> tuple[Cluster, Raft]:
    """A leader of term 1 whose no-op is committed, known to all."""
    cluster = Cluster(size, **settings)
    raft = cluster.elect("n1").raft
    cluster.tick(50)
    cluster.settle()
    return cluster, raft


@pytest.mark.parametrize("name", FIGURE_7)
def test_figure_7__every_log_is_repaired_to_the_leaders(name: str):
    cluster = Cluster(logs={"L": LEADER_LOG, name: FIGURE_7[name], "x": LEADER_LOG})
    leader, other = cluster["L"], cluster[name]
    cluster.isolate(name)
    leader.term = 7
    leader.restart()
    cluster.elect("L")
    cluster.heal()
    cluster.run(200)
    assert leader.raft.term == 8
    assert cluster.terms(name) == [*LEADER_LOG, 8]
    assert [e.term for e in other.log] == [*LEADER_LOG, 8]
    assert other.raft.commit_index == 11


@pytest.mark.parametrize("name", FIGURE_7)
def test_conflict_backtracking_5_3__at_most_one_rejection_per_term(name: str):
    cluster = Cluster(logs={"L": LEADER_LOG, name: FIGURE_7[name], "x": LEADER_LOG})
    leader, other = cluster["L"], cluster[name]
    leader.term = 7
    leader.restart()
    cluster.isolate(name)
    cluster.elect("L")
    cluster.heal()
    other.effects.clear()
    cluster.run(200)
    refusals = [
        e
        for e in of(other.effects, fx.SendAfterSync)
        if isinstance(e.message, msg.AppendResponse) and not e.message.ok
    ]
    assert len(refusals) <= 3


def test_figure_8__old_term_entries_are_not_committed_by_counting():
    # (c): S1, back as leader of term 4, brings its entry 2 (term 2) to a majority.
    raft = Raft(
        group=GROUP,
        node_id="s1",
        configuration=configuration(["s1", "s2", "s3", "s4", "s5"]),
        term=3,
        entries=entries_of([1, 2]),
        settings=RaftSettings(pre_vote=False),
        rng=random.Random(1),
        now_ms=0,
    )
    raft.step([fx.Tick()], 901)
    votes = [fx.Receive(p, msg.VoteResponse(GROUP, 4, True)) for p in ("s2", "s3")]
    raft.step(votes, 902)
    assert raft.role == "leader"
    acks = [fx.Receive(p, msg.AppendResponse(GROUP, 4, True, 2)) for p in ("s2", "s3", "s4")]
    assert of(raft.step(acks, 903), fx.Apply) == []
    assert raft.commit_index == 0
    # (e): once its own entry is on a majority, everything before is committed too.
    acks = [fx.Receive(p, msg.AppendResponse(GROUP, 4, True, 3)) for p in ("s2", "s3")]
    (apply,) = of(raft.step([*acks, fx.Synced(3, 4)], 904), fx.Apply)
    assert [e.index for e in apply.entries] == [1, 2, 3]


def test_noop_3_6__is_appended_and_sent_on_election():
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    (append,) = of(leader.effects, fx.Append)
    assert append.entries == (msg.Entry(1, 1, msg.NOOP, 0, b""),)


def test_proposals_of_one_step__one_append_and_one_shared_request():
    _, raft = leading()
    effects = raft.step([fx.Propose(1, b"a"), fx.Propose(2, b"b")], 5_000)
    (append,) = of(effects, fx.Append)
    assert [e.payload for e in append.entries] == [b"a", b"b"]
    assert of(effects, fx.Proposed) == [fx.Proposed(1, 2), fx.Proposed(2, 3)]
    requests = sent(effects, msg.AppendRequest)
    assert len(requests) == 2
    assert requests[0] is requests[1]
    assert requests[0].entries is append.entries
    assert of(effects, fx.SendAfterSync) == [], "replication runs beside the leader's own sync"


def test_leader__counts_itself_only_when_synced():
    _, raft = leading()
    raft.step([fx.Propose(1, b"a")], 5_000)
    ack = fx.Receive("n2", msg.AppendResponse(GROUP, 1, True, 2))
    raft.step([ack], 5_001)
    assert raft.commit_index == 1
    raft.step([fx.Synced(2, 1)], 5_002)
    assert raft.commit_index == 2


def test_followers_alone__are_a_quorum_before_the_leaders_disk():
    _, raft = leading()
    raft.step([fx.Propose(1, b"a")], 5_000)
    acks = [fx.Receive(p, msg.AppendResponse(GROUP, 1, True, 2)) for p in ("n2", "n3")]
    (apply,) = of(raft.step(acks, 5_001), fx.Apply)
    assert apply.entries[-1].payload == b"a"


def test_synced_of_truncated_entries__is_ignored():
    raft = follower([1, 1])
    raft.step([request(2, 2, 1, 0, entries_of([2], 3))], 1)
    raft.step([request(3, 2, 1, 0, entries_of([3], 3))], 2)
    raft.step([fx.Synced(3, 2)], 3)
    assert raft.synced_index == 2
    raft.step([fx.Synced(3, 3)], 4)
    assert raft.synced_index == 3


def test_pipelining__sends_on_without_waiting_up_to_the_window():
    _, raft = leading(max_inflight=3)
    out: list[fx.Effect] = []
    for i in range(10):
        out += raft.step([fx.Propose(i, b"x")], 5_000)
    assert len(sent(out, msg.AppendRequest)) == 2 * 3
    ack = fx.Receive("n2", msg.AppendResponse(GROUP, 1, True, 2))
    (more,) = sent(raft.step([ack], 5_001), msg.AppendRequest)
    assert [e.index for e in more.entries] == [5, 6, 7, 8, 9, 10, 11], "the rest in one request"


def test_window_by_bytes__stops_before_the_count():
    _, raft = leading(max_inflight_bytes=200)
    out: list[fx.Effect] = []
    for i in range(10):
        out += raft.step([fx.Propose(i, bytes(100))], 5_000)
    assert len(sent(out, msg.AppendRequest)) == 2 * 2


def test_large_batch__is_cut_at_max_append_bytes_but_a_large_entry_goes_alone():
    _, raft = leading(max_append_bytes=300)
    sizes = [100, 100, 100, 1_000, 10]
    effects = raft.step([fx.Propose(i, bytes(n)) for i, n in enumerate(sizes)], 5_000)
    batches = [[e.index for e in s.message.entries] for s in of(effects, fx.Send) if s.peer == "n2"]
    assert batches == [[2, 3], [4], [5], [6]]


def test_link_break__empties_the_window_and_probes_again():
    _, raft = leading(max_inflight=2)
    for i in range(5):
        raft.step([fx.Propose(i, b"x")], 5_000)
    assert sent(raft.step([fx.LinkChanged("n2", False)], 5_001), msg.AppendRequest) == []
    (probe,) = sent(raft.step([fx.LinkChanged("n2", True)], 5_002), msg.AppendRequest)
    assert (probe.prev_index, len(probe.entries)) == (1, 5)


def test_lost_requests__are_noticed_within_two_heartbeats_without_new_proposals():
    cluster, raft = leading()
    cluster["n1"].step(fx.Propose(1, b"lost"))
    cluster.wire.clear()
    cluster.run(200)
    assert [n.machine for n in cluster.nodes.values()] == [[b"lost"]] * 3
    assert raft.commit_index == 2


def test_heartbeat__carries_no_commit_beyond_what_the_follower_has():
    cluster, raft = leading()
    cluster.isolate("n3")
    cluster["n1"].step(fx.Propose(1, b"x"))
    cluster.settle()
    cluster.now += 50
    beats = {
        e.peer: e.message.commit
        for e in raft.step([fx.Tick()], cluster.now)
        if isinstance(e, fx.Send) and isinstance(e.message, msg.Heartbeat)
    }
    assert beats == {"n2": 2, "n3": 1}


def test_back_pressure__refuses_beyond_the_uncommitted_bound_and_recovers():
    _, raft = leading(max_uncommitted_bytes=1_000)
    effects = raft.step([fx.Propose(i, bytes(400)) for i in range(5)], 5_000)
    assert [e.ref for e in of(effects, fx.Refused)] == [3, 4]
    assert of(effects, fx.Refused)[0].code == "overloaded"
    acks = [fx.Receive(p, msg.AppendResponse(GROUP, 1, True, 4)) for p in ("n2", "n3")]
    effects = raft.step([*acks], 5_001)
    assert of(raft.step([fx.Propose(9, b"")], 5_002), fx.Proposed)


def test_follower__refuses_proposals_and_names_the_leader():
    cluster, _ = leading()
    (refused,) = cluster["n2"].step(fx.Propose(1, b"x"))
    assert refused == fx.Refused(1, "not_leader", "n1")


# --- a follower's side of §3.5 ---------------------------------------------------------------


def test_append__is_acknowledged_after_the_sync_up_to_what_was_verified():
    raft = follower([1, 1, 1, 1])
    effects = raft.step([request(1, 1, 1, 0, entries_of([1], 2))], 1)
    assert answer(effects) == msg.AppendResponse(GROUP, 1, True, 2), "not 4: 3 and 4 unverified"
    assert of(effects, fx.Append) == []
    assert raft.last_index == 4, "no conflict, no truncation"


def test_requests_of_one_step__one_write_and_one_acknowledgement():
    raft = follower([1])
    effects = raft.step(
        [request(1, 1, 1, 0, entries_of([1], 2)), request(1, 2, 1, 1, entries_of([1, 1], 3))], 1
    )
    assert [len(e.entries) for e in of(effects, fx.Append)] == [3]
    assert answer(effects).index == 4


def test_conflict__truncates_and_rewrites_from_the_first_difference():
    raft = follower([1, 1, 2, 2, 2])
    new = entries_of([1, 3, 3], 2)
    effects = raft.step([request(3, 1, 1, 0, new)], 1)
    (append,) = of(effects, fx.Append)
    assert append.entries == tuple(new[1:])
    assert raft.last_index == 4


def test_old_delayed_request__does_not_cut_the_log():
    raft = follower([1])
    raft.step([request(1, 1, 1, 3, entries_of([1, 1, 1], 2))], 1)
    effects = raft.step([request(1, 1, 1, 1, entries_of([1], 2))], 2)
    assert raft.last_index == 4
    assert raft.commit_index == 3
    assert answer(effects).index == 3, "the commit index is verified too"


def test_commit_3_5__only_up_to_what_this_request_verified():
    raft = follower([1, 1, 1])
    effects = raft.step([request(2, 1, 1, 3, [])], 1)
    assert raft.commit_index == 1, "2 and 3 may differ from the leader's"
    assert [e.index for e in of(effects, fx.Apply)[0].entries] == [1]


def test_two_leaders_requests_in_one_step__only_the_new_one_is_acknowledged():
    raft = follower([1])
    new_leader = fx.Receive("c", msg.Heartbeat(GROUP, 2, 0))
    effects = raft.step([request(1, 1, 1, 0, entries_of([1, 1], 2)), new_leader], 1)
    acknowledged = [e.message for e in of(effects, fx.SendAfterSync)]
    assert not any(isinstance(m, msg.AppendResponse) for m in acknowledged)


def test_entries_replaced_within_one_step__are_never_written():
    raft = follower([1])
    new = entries_of([2, 2], 3)
    newer = fx.Receive("c", msg.AppendRequest(GROUP, 2, 2, 1, 0, tuple(new)))
    effects = raft.step([request(1, 1, 1, 0, entries_of([1, 1, 1], 2)), newer], 1)
    (append,) = of(effects, fx.Append)
    assert [(e.index, e.term) for e in append.entries] == [(2, 1), (3, 2), (4, 2)]


def test_gap__is_rejected_with_a_hint():
    raft = follower([1, 1])
    effects = raft.step([request(4, 9, 4, 0, entries_of([4], 10))], 1)
    assert answer(effects) == msg.AppendResponse(GROUP, 4, False, 9, 2, 1)


def test_older_term_request__tells_the_deposed_leader_the_newer_term():
    raft = follower([3])
    effects = raft.step([request(1, 0, 0, 0, [])], 1)
    assert (answer(effects).ok, answer(effects).term) == (False, 3)
    effects = raft.step([fx.Receive("a", msg.Heartbeat(GROUP, 1, 0))], 2)
    assert of(effects, fx.SendAfterSync)[0].message.term == 3
    assert raft.leader is None


def test_conflict_below_the_commit_index__raises():
    raft = follower([1])
    raft.step([request(1, 1, 1, 3, entries_of([1, 1], 2))], 1)
    with pytest.raises(AssertionError, match="conflict at committed"):
        raft._truncate_from(3)


def test_commit_beyond_the_own_log__raises_because_acknowledged_entries_are_gone():
    raft = follower([1])
    with pytest.raises(AssertionError, match="are lost"):
        raft.step([fx.Receive("a", msg.Heartbeat(GROUP, 1, 5))], 1)


def test_apply__is_bounded_until_the_machine_has_kept_up():
    cluster = Cluster(1, max_apply_entries=2)
    raft = cluster["n1"].raft
    raft.step([fx.Tick()], 2_000)
    raft.step([fx.Propose(i, b"x") for i in range(5)], 2_000)
    (apply,) = of(raft.step([fx.Synced(6, 1)], 2_001), fx.Apply)
    assert [e.index for e in apply.entries] == [1, 2]
    (apply,) = of(raft.step([fx.Applied(2)], 2_002), fx.Apply)
    assert [e.index for e in apply.entries] == [3, 4]


def test_apply__never_goes_past_a_multiple_where_a_snapshot_may_be_taken():
    cluster = Cluster(1, apply_align_entries=4)
    raft = cluster["n1"].raft
    raft.step([fx.Tick()], 2_000)
    raft.step([fx.Propose(i, b"x") for i in range(9)], 2_000)
    (apply,) = of(raft.step([fx.Synced(6, 1)], 2_001), fx.Apply)
    assert [e.index for e in apply.entries] == [1, 2, 3, 4]
    assert of(raft.step([fx.Synced(10, 1)], 2_001), fx.Apply) == []
    (apply,) = of(raft.step([fx.Applied(4)], 2_002), fx.Apply)
    assert [e.index for e in apply.entries] == [5, 6, 7, 8]
    (apply,) = of(raft.step([fx.Applied(8)], 2_003), fx.Apply)
    assert [e.index for e in apply.entries] == [9, 10]


# --- log time -----------------------------------------------------------------------------


def test_log_ms__stands_still_until_the_own_noop_is_applied_then_follows_the_clock():
    raft = Raft(
        group=GROUP,
        node_id="a",
        configuration=configuration("a"),
        term=1,
        entries=[msg.Entry(1, 1, msg.NOOP, 700, b"")],
        settings=RaftSettings(),
        rng=random.Random(1),
        now_ms=50_000,
    )
    raft.step([fx.Tick()], 50_000)
    assert raft.log_ms(50_400) == 700
    (append,) = of(raft.step([fx.Propose(1, b"")], 50_400), fx.Append)
    assert append.entries[0].log_ms == 700
    raft.step([fx.Synced(3, 2)], 50_500)
    assert raft.log_ms(50_500) == 700
    raft.step([fx.Applied(3)], 50_600)
    assert raft.log_ms(50_600) == 700
    assert raft.log_ms(50_850) == 950
    assert raft.log_ms(50_100) == 700, "never falls"
    raft.step([fx.Propose(2, b"")], 50_850)
    raft.step([fx.Synced(4, 2)], 50_900)
    raft.step([fx.Applied(4)], 50_900)
    assert raft.log_ms(50_950) == 1_050, "only the no-op starts the clock"


def test_log_ms__never_falls_over_leader_changes():
    cluster = Cluster(3)
    for name in ("n1", "n2", "n3", "n1"):
        cluster.elect(name)
        cluster.run(300)
        cluster[name].step(fx.Propose(1, b"x"))
        cluster.run(100)
    times = [cluster.applied[i].log_ms for i in sorted(cluster.applied)]
    assert times == sorted(times)
    assert times[-1] >= 4 * 300 - 100


# --- membership seam ----------------------------------------------------------------------


def test_configuration_entry_4_1__counts_when_appended_and_goes_with_a_truncation():
    raft = follower([1])
    payload = msgspec.msgpack.encode(configuration("abcd"))
    entry = msg.Entry(2, 1, msg.CONFIGURATION, 0, payload)
    raft.step([request(1, 1, 1, 0, [entry])], 1)
    assert list(raft.membership.voters) == ["a", "b", "c", "d"]
    raft.step([request(2, 1, 1, 0, entries_of([2], 2))], 2)
    assert list(raft.membership.voters) == ["a", "b", "c"]
