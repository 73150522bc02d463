"""Elections: Raft thesis §3.4, §3.6.1, §4.2.3, §6.2, §9.6."""

from __future__ import annotations

import random

import pytest
from raft_cluster import GROUP, Cluster, configuration, entries_of

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.raft import NEVER_MS, Raft
from dss.core.raft.settings import RaftSettings


def make(node_id: str = "a", terms: tuple[int, ...] = (), **kwargs: object) -> Raft:
    arguments: dict[str, object] = {
        "group": GROUP,
        "node_id": node_id,
        "configuration": configuration("abc"),
        "term": max(terms, default=0),
        "entries": entries_of(terms),
        "settings": RaftSettings(),
        "rng": random.Random(5),
        "now_ms": 0,
    }
    return Raft(**{**arguments, **kwargs})  # type: ignore[arg-type]


def vote(term: int, last_index: int, last_term: int, **flags: bool) -> msg.VoteRequest:
    return msg.VoteRequest(GROUP, term, last_index, last_term, **flags)


def kinds(effects: list[fx.Effect], kind: type) -> list[fx.Effect]:
    return [e for e in effects if isinstance(e, kind)]


def test_start_3_4__follower_until_a_random_timeout_within_the_settings():
    raft = make()
    assert raft.role == "follower"
    assert 300 <= raft.next_deadline_ms <= 900
    assert raft.step([fx.Tick()], raft.next_deadline_ms - 1) == []


def test_timeouts_3_4__are_redrawn_every_round():
    raft, now, waits = make(), 0, []
    for _ in range(6):
        waits.append(raft.next_deadline_ms - now)
        now = raft.next_deadline_ms
        raft.step([fx.Tick()], now)
    assert len(dict.fromkeys(waits)) > 3
    assert all(300 <= wait <= 900 for wait in waits)


def test_pre_vote_9_6__changes_neither_term_nor_vote_and_writes_nothing():
    raft = make(terms=(1, 2))
    effects = raft.step([fx.Tick()], 1_000)
    assert (raft.role, raft.term, raft.voted_for) == ("pre_candidate", 2, None)
    assert kinds(effects, fx.SaveState) == []
    assert kinds(effects, fx.Send) == [
        fx.Send(peer, vote(3, 2, 2, pre=True)) for peer in ("b", "c")
    ]


def test_pre_vote_9_6__is_denied_while_a_live_leader_is_heard():
    raft = make()
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 1_000)
    ask = fx.Receive("c", vote(2, 9, 1, pre=True))
    denied = fx.Send("c", msg.VoteResponse(GROUP, 1, False, True))
    granted = fx.Send("c", msg.VoteResponse(GROUP, 2, True, True))
    assert raft.step([ask], 1_299) == [denied]
    assert raft.step([ask], 1_300) == [granted]
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 1_310)
    assert raft.step([fx.LinkChanged("b", False), ask], 1_311) == [granted]


def test_pre_vote_9_6__of_a_term_we_are_in_already_names_our_term():
    raft = make(terms=(1, 4))
    assert raft.step([fx.Receive("c", vote(3, 9, 4, pre=True))], 10) == [
        fx.SendAfterSync("c", msg.VoteResponse(GROUP, 4, False, True))
    ]
    raft = make(terms=(1, 2))
    raft.step([fx.Tick()], 1_000)
    raft.step([fx.Receive("b", msg.VoteResponse(GROUP, 4, False, True))], 1_001)
    assert (raft.role, raft.term) == ("follower", 4)


def test_campaign_3_4__votes_for_itself_and_asks_only_after_the_sync():
    raft = make()
    raft.step([fx.Tick()], 1_000)
    effects = raft.step([fx.Receive("b", msg.VoteResponse(GROUP, 1, True, True))], 1_001)
    assert (raft.role, raft.term, raft.voted_for) == ("candidate", 1, "a")
    assert effects[0] == fx.SaveState(1, "a")
    assert kinds(effects, fx.Send) == []
    asked = kinds(effects, fx.SendAfterSync)
    assert asked == [fx.SendAfterSync(peer, vote(1, 0, 0)) for peer in ("b", "c")]
    raft.step([fx.Receive("c", msg.VoteResponse(GROUP, 1, True))], 1_002)
    assert raft.role == "leader"


def test_vote_3_4__one_per_term_written_before_it_leaves_and_kept_over_a_restart():
    raft = make()
    effects = raft.step([fx.Receive("b", vote(1, 0, 0))], 10)
    assert kinds(effects, fx.SaveState)[-1] == fx.SaveState(1, "b")
    assert effects[-1] == fx.SendAfterSync("b", msg.VoteResponse(GROUP, 1, True))
    assert raft.step([fx.Receive("c", vote(1, 9, 1))], 11) == [
        fx.SendAfterSync("c", msg.VoteResponse(GROUP, 1, False))
    ]
    back = make(term=1, voted_for="b")
    assert back.step([fx.Receive("c", vote(1, 9, 1))], 1) == [
        fx.SendAfterSync("c", msg.VoteResponse(GROUP, 1, False))
    ]
    assert back.step([fx.Receive("b", vote(1, 0, 0))], 1) == [
        fx.SendAfterSync("b", msg.VoteResponse(GROUP, 1, True))
    ]


@pytest.mark.parametrize(
    ("own", "last_index", "last_term", "granted"),
    [
        ((1,), 1, 1, True),
        ((1,), 2, 1, True),
        ((1, 1), 1, 1, False),
        ((1, 1), 1, 2, True),
        ((1, 2), 9, 1, False),
        ((1, 2), 2, 2, True),
    ],
)
@pytest.mark.parametrize("pre", [False, True])
def test_vote_restriction_3_6_1__only_for_a_log_as_good_as_ours(
    own: tuple[int, ...], last_index: int, last_term: int, granted: bool, pre: bool
):
    raft = make(terms=own)
    effects = raft.step([fx.Receive("b", vote(3, last_index, last_term, pre=pre))], 10)
    sent = [e.message for e in kinds(effects, fx.Send if pre else fx.SendAfterSync)]
    (answer,) = (message for message in sent if isinstance(message, msg.VoteResponse))
    assert answer.granted is granted
    assert raft.term == (max(own) if pre else 3)


def test_rival_wins__lost_and_not_split():
    cluster = Cluster(pre_vote=False)
    cluster.now += 901
    for name in ("n1", "n2"):
        cluster[name].step(fx.Tick())
    cluster.deliver("n1", "n3", next(m for s, t, m in cluster.wire if (s, t) == ("n1", "n3")))
    cluster.settle()
    assert cluster["n1"].raft.role == "leader"
    assert cluster["n1"].raft.counters == {
        "started": 1, "won": 1, "lost": 0, "split": 0, "pre_votes": 0,
    }  # fmt: skip
    assert cluster["n2"].raft.counters == {
        "started": 1, "won": 0, "lost": 1, "split": 0, "pre_votes": 0,
    }  # fmt: skip


def test_round_without_a_winner__each_voter_waits_in_a_slot_of_its_own():
    """Two that met once do not meet again: no third round, whatever they draw."""
    for seed in range(40):
        cluster = Cluster(5, seed=seed)
        cluster.now += 901
        for node in cluster.nodes.values():
            node.step(fx.Tick())
            node.step(fx.Tick())
        deadlines = [n.raft.next_deadline_ms - cluster.now for n in cluster.nodes.values()]
        assert deadlines == sorted(deadlines)
        for slot, ms in enumerate(deadlines):
            assert 300 + 601 * slot // 5 <= ms <= 300 + 601 * (slot + 1) // 5
        cluster.run(1_500)
        leader = cluster.leader()
        assert leader is not None
        # A leader was heard: the whole range is drawn from again.
        assert not any(n.raft._retrying for n in cluster.nodes.values())


def test_majority_refuses__candidate_gives_up_and_counts_it():
    cluster = Cluster(logs={"a": [1], "b": [1, 1], "c": [1, 1]}, pre_vote=False)
    cluster.now += 901
    cluster["a"].step(fx.Tick())
    cluster.settle()
    assert cluster["a"].raft.role == "follower"
    assert cluster["a"].raft.counters["lost"] == 1


def test_split_vote_3_4__a_later_round_elects():
    cluster = Cluster(4)
    cluster.now += 901
    for name in ("n1", "n2"):
        cluster[name].step(fx.Tick())
    for source, target, message in list(cluster.wire):  # each gets one follower's pre-vote
        if (source, target) in (("n1", "n3"), ("n2", "n4")):
            cluster.deliver(source, target, message)
    cluster.wire.clear()
    assert cluster.leader() is None
    assert cluster.await_leader().raft.counters["won"] == 1


def test_higher_term_3_3__leader_becomes_follower():
    cluster = Cluster(3)
    leader = cluster.await_leader()
    term = leader.raft.term
    leader.step(fx.Receive("n2", msg.AppendResponse(GROUP, term + 5, False, 0)))
    assert (leader.raft.role, leader.raft.term) in (("follower", term + 5),)
    assert leader.term == term + 5, "the new term was written"


def test_returning_partitioned_node_9_6__does_not_disrupt_the_leader():
    cluster = Cluster(3)
    leader = cluster.await_leader()
    term = leader.raft.term
    lost = next(n for n in cluster.nodes.values() if n is not leader)
    cluster.isolate(lost.name)
    cluster.run(5_000)
    assert lost.raft.term == term
    cluster.heal()
    cluster.run(2_000)
    assert leader.raft.role == "leader"
    assert leader.raft.term == term
    assert lost.raft.leader == leader.name


def test_stickiness_4_2_3__a_disruptive_real_vote_request_is_ignored():
    cluster = Cluster(3)
    leader = cluster.await_leader()
    term = leader.raft.term
    request = vote(term + 7, 99, term + 6)
    for node in cluster.nodes.values():
        if node.name != "n1":
            assert node.step(fx.Receive("n1", request)) == []
    assert leader.raft.term == term


def test_stuck_in_a_newer_term__deposes_the_leader_once_and_everyone_moves_on():
    cluster = Cluster(3, pre_vote=False)
    leader = cluster.await_leader()
    lost = next(n for n in cluster.nodes.values() if n is not leader)
    cluster.isolate(lost.name)
    cluster.run(3_000)
    assert lost.raft.term > leader.raft.term
    cluster.heal()
    cluster.run(3_000)
    leader = cluster.await_leader()
    assert all(n.raft.leader == leader.name for n in cluster.nodes.values())
    assert leader.raft.term >= lost.raft.term


def test_leader_cut_off_6_2__steps_down_within_two_timeouts():
    cluster = Cluster(3)
    old = cluster.await_leader()
    cluster.isolate(old.name)
    cluster.run(1_800)
    assert old.raft.role != "leader"
    reasons = [change.reason for change in old.roles]
    assert "lost contact with a quorum" in reasons
    new = cluster.await_leader()
    assert new is not old
    cluster.heal()
    cluster.run(1_000)
    assert old.raft.leader == new.name


def test_leader_process_dies__link_break_elects_within_200_ms():
    cluster = Cluster(3)
    old = cluster.await_leader()
    old.up = False
    cluster.isolate(old.name)
    cluster.run(300)
    for node in cluster.nodes.values():
        node.step(fx.LinkChanged(old.name, False))
    cluster.run(200)
    new = cluster.leader()
    assert new is not None
    assert new is not old


def test_link_break_of_one_follower__leader_stays():
    cluster = Cluster(3)
    leader = cluster.await_leader()
    cluster.run(200)
    term = leader.raft.term
    follower = next(n for n in cluster.nodes.values() if n is not leader)
    follower.step(fx.LinkChanged(leader.name, False))
    cluster.run(1_000)
    assert (leader.raft.role, leader.raft.term) == ("leader", term)
    assert follower.raft.leader == leader.name


def test_single_voter__elects_itself_at_once_and_commits_after_its_own_sync():
    cluster = Cluster(1)
    node = cluster["n1"]
    node.auto_sync = False
    node.step(fx.Tick())
    assert node.raft.role == "leader"
    node.step(fx.Propose(1, b"a"))
    assert node.raft.commit_index == 0
    node.sync()
    assert node.raft.commit_index == 2
    assert node.machine == [b"a"]


def test_learner__never_campaigns_nor_counts_but_receives_and_votes_when_asked():
    cluster = Cluster(logs={"a": [], "b": [], "z": []}, learners=["z"], promote_learners=False)
    learner = cluster["z"]
    assert learner.raft.role == "learner"
    assert learner.raft.next_deadline_ms == NEVER_MS
    cluster.now += 60_000
    assert learner.step(fx.Tick()) == []
    # §4.1: the candidate may know that the learner has become a voter; the candidate counts.
    asked = learner.step(fx.Receive("a", vote(1, 9, 1)), fx.Receive("b", vote(1, 9, 9)))
    assert [e.message.granted for e in kinds(asked, fx.SendAfterSync)] == [True, False]
    assert learner.raft.role == "learner"
    cluster.wire.clear()
    leader = cluster.elect("a")
    cluster.isolate("b")
    leader.step(fx.Propose(1, b"x"))
    cluster.settle()
    assert learner.raft.last_index == leader.raft.last_index == 2
    assert leader.raft.commit_index == 1, "one voter and one learner are no quorum of two voters"


def test_unknown_member__its_votes_and_answers_are_ignored():
    raft = make()
    raft.step([fx.Tick()], 1_000)
    raft.step([fx.Receive("zz", msg.VoteResponse(GROUP, 1, True, True))], 1_001)
    assert raft.role == "pre_candidate"
    assert raft.step([fx.Receive("zz", msg.AppendResponse(GROUP, 9, True, 1))], 1_002) == []
    assert raft.term == 0


def test_unknown_candidate__is_voted_for_unless_a_leader_is_heard():
    """§4.1: our configuration may lag behind the candidate's; §4.2.3: or it was removed."""
    raft = make()
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 10)
    assert raft.step([fx.Receive("zz", vote(9, 9, 9))], 20) == []
    (refused,) = raft.step([fx.Receive("zz", vote(9, 9, 9, pre=True))], 20)
    assert isinstance(refused, fx.Send)
    assert not refused.message.granted
    answers = raft.step([fx.Receive("zz", vote(9, 9, 9))], 10_000)
    assert [e.message.granted for e in kinds(answers, fx.SendAfterSync)] == [True]
    assert raft.voted_for == "zz"


def test_repeated_vote__counts_once():
    raft = make(configuration=configuration("abcde"), settings=RaftSettings(pre_vote=False))
    raft.step([fx.Tick()], 1_000)
    answer = fx.Receive("b", msg.VoteResponse(GROUP, 1, True))
    raft.step([answer, answer, answer], 1_001)
    assert raft.role == "candidate"


def test_answer_in_the_same_batch_as_the_tick__beats_the_timer():
    raft = make()
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 10)
    raft.step([fx.Tick(), fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 5_000)
    assert (raft.role, raft.leader) == ("follower", "b")


def test_two_leaders_in_one_term__raises_with_the_story():
    raft = make()
    raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 10)
    with pytest.raises(AssertionError, match="two leaders in term 1") as raised:
        raft.step([fx.Receive("c", msg.Heartbeat(GROUP, 1, 0))], 11)
    assert "10 follower term 1 leader b: b leads a newer term" in str(raised.value)


def test_settings__impossible_timings_are_refused():
    with pytest.raises(ValueError, match="heartbeat_ms < election_min_ms"):
        RaftSettings(heartbeat_ms=400)


def test_heartbeats__of_all_groups_fall_into_the_same_millisecond():
    cluster = Cluster(3)
    raft = cluster.elect("n1").raft
    raft.step([fx.Tick()], 2_007)
    assert raft.next_deadline_ms == 2_050
    raft.step([fx.Tick()], 2_050)
    assert raft.next_deadline_ms == 2_100


def test_lone_voter_with_a_learner__sends_nothing_of_its_term_before_the_term_is_synced():
    raft = make(configuration=configuration("a", ["z"]))
    effects = raft.step([fx.Tick()], 1_000)
    assert raft.role == "leader"
    assert kinds(effects, fx.Send) == []
    (first,) = kinds(effects, fx.SendAfterSync)
    assert isinstance(first.message, msg.AppendRequest)


def test_link_to_the_leader_breaks_without_fast_failover__the_whole_timeout_is_waited():
    for fast in (True, False):
        raft = make(settings=RaftSettings(link_failover=fast))
        raft.step([fx.Receive("b", msg.Heartbeat(GROUP, 1, 0))], 10)
        before = raft.next_deadline_ms
        raft.step([fx.LinkChanged("b", False)], 20)
        assert (raft.next_deadline_ms < before) == fast
