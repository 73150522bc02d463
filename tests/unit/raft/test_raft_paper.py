"""Which test proves which section of Raft: of the paper (Ongaro & Ousterhout 2014, extended) and of
the thesis (Ongaro 2014). Each test named here must exist; a section without a test fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from raft_cluster import Cluster

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg

SECTIONS = {
    "paper 5.1, thesis 3.3: terms": [
        "test_higher_term_3_3__leader_becomes_follower",
        "test_older_term_request__tells_the_deposed_leader_the_newer_term",
        "test_requests_5_1__of_an_old_term_change_nothing",
    ],
    "paper 5.2, thesis 3.4: election": [
        "test_start_3_4__follower_until_a_random_timeout_within_the_settings",
        "test_campaign_3_4__votes_for_itself_and_asks_only_after_the_sync",
        "test_vote_3_4__one_per_term_written_before_it_leaves_and_kept_over_a_restart",
        "test_split_vote_3_4__a_later_round_elects",
        "test_timeouts_3_4__are_redrawn_every_round",
        "test_candidate_5_2__follows_whoever_won_its_term",
    ],
    "paper 5.3, thesis 3.5: log replication": [
        "test_figure_7__every_log_is_repaired_to_the_leaders",
        "test_conflict_backtracking_5_3__at_most_one_rejection_per_term",
        "test_conflict__truncates_and_rewrites_from_the_first_difference",
        "test_old_delayed_request__does_not_cut_the_log",
        "test_commit_3_5__only_up_to_what_this_request_verified",
    ],
    "paper 5.4.1, thesis 3.6.1: election restriction": [
        "test_vote_restriction_3_6_1__only_for_a_log_as_good_as_ours",
    ],
    "paper 5.4.2, thesis 3.6.2: committing entries of former terms": [
        "test_figure_8__old_term_entries_are_not_committed_by_counting",
        "test_noop_3_6__is_appended_and_sent_on_election",
    ],
    "paper 5.4.3, thesis 3.6.3: safety": [
        "test_random_faults__safe_throughout_and_converged_after_the_heal",
    ],
    "paper 5.5, thesis 3.7: crashes": [
        "test_crash_5_5__a_repeated_request_is_idempotent",
    ],
    "paper 5.6, thesis 3.9: timing": [
        "test_settings__impossible_timings_are_refused",
        "test_leader_cut_off_6_2__steps_down_within_two_timeouts",
    ],
    "paper 6, thesis 4.1: membership": [
        "test_one_change_at_a_time_4_1__is_refused",
        "test_change_before_the_noop_is_committed_4_1__is_refused",
        "test_uncommitted_change_is_truncated_4_1__the_former_members_count_again",
        "test_configuration_entry_4_1__counts_when_appended_and_goes_with_a_truncation",
        "test_lagging_follower_4_1__votes_for_and_follows_a_member_it_has_never_heard_of",
    ],
    "thesis 4.2.1: catching up new servers": [
        "test_addition_4_2_1__learner_then_voter_by_itself",
        "test_slow_round_4_2_1__another_one_must_be_quick",
        "test_learner_that_cannot_be_reached__stays_one",
    ],
    "thesis 4.2.2: removing the leader": [
        "test_removal_of_the_leader_4_2_2__is_refused_until_it_has_handed_over",
    ],
    "thesis 4.2.3: disruptive servers": [
        "test_disruptive_server_4_2_3__deposes_nobody_is_told_and_asks_no_more",
        "test_stickiness_4_2_3__a_disruptive_real_vote_request_is_ignored",
    ],
    "paper 7, thesis 5: snapshots": [
        "test_lagging_follower__gets_the_snapshot_in_chunks_one_in_flight_and_goes_on",
        "test_snapshot_over_a_diverged_log__discards_it",
        "test_snapshot_of_what_the_log_holds__is_answered_without_storing_it",
        "test_snapshots_come_faster_than_a_transfer__the_follower_catches_up_with_the_first_one",
        "test_snapshot_taken__leaves_a_tail",
    ],
    "paper 8, thesis 6.4: reads": [
        "test_read_before_the_own_noop_is_committed__waits_for_it",
        "test_read_after_a_pause__a_deposed_leader_never_answers_it",
        "test_answer_to_an_older_round__does_not_confirm_a_later_read",
        "test_reads_of_one_step__share_one_round_with_its_own_context",
    ],
    "paper 8, thesis 6.2: clients find the leader": [
        "test_follower__refuses_proposals_and_names_the_leader",
        "test_read_on_a_follower__fails_and_names_the_leader",
    ],
    "thesis 3.10: leadership transfer": [
        "test_transfer__target_leads_at_once_despite_stickiness",
        "test_transfer__catches_a_lagging_target_up_first_and_refuses_proposals",
        "test_transfer_to_a_dead_target__is_given_up_after_one_election_timeout",
    ],
    "thesis 9.6: pre-vote": [
        "test_pre_vote_9_6__changes_neither_term_nor_vote_and_writes_nothing",
        "test_pre_vote_9_6__is_denied_while_a_live_leader_is_heard",
        "test_returning_partitioned_node_9_6__does_not_disrupt_the_leader",
    ],
    "thesis 10.2: pipelining, own disk in parallel": [
        "test_pipelining__sends_on_without_waiting_up_to_the_window",
        "test_followers_alone__are_a_quorum_before_the_leaders_disk",
    ],
}
"""Joint consensus (paper 6, thesis 4.3) and leases for reads (thesis 6.4.1) are not used; clients'
exactly-once (thesis 6.3) is the machines' matter (tests/unit/locks/)."""


def names_here() -> set[str]:
    return {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_section__has_its_tests(section: str):
    named = SECTIONS[section]
    assert named
    assert [name for name in named if name not in names_here()] == []


def led() -> Cluster:
    cluster = Cluster(3)
    cluster.elect("n1")
    cluster.run(100)
    return cluster


def answers(effects: list[fx.Effect]) -> list[msg.RaftMessage]:
    return [e.message for e in effects if isinstance(e, fx.Send | fx.SendAfterSync)]


def test_requests_5_1__of_an_old_term_change_nothing():
    cluster = led()
    cluster["n1"].step(fx.Transfer("n2"))
    cluster.settle()
    cluster.run(100)
    follower = cluster["n3"].raft
    before = (follower.term, follower.leader, follower.last_index, follower.commit_index)
    old = follower.term - 1
    entry = msg.Entry(follower.last_index + 1, old, msg.COMMAND, 0, b"stale")
    configuration = follower.membership.configuration
    for message in (
        msg.AppendRequest(7, old, follower.last_index, follower.term, 99, (entry,)),
        msg.Heartbeat(7, old, 99),
        msg.SnapshotChunk(7, old, 99, old, 0, configuration, 1, 0, b"x"),
        msg.VoteRequest(7, old, 99, old),
        msg.TimeoutNow(7, old),
    ):
        effects = cluster["n3"].step(fx.Receive("n1", message))
        assert all(answer.term == follower.term for answer in answers(effects))
        assert not [e for e in effects if isinstance(e, fx.Append | fx.StoreChunk | fx.SaveState)]
    after = (follower.term, follower.leader, follower.last_index, follower.commit_index)
    assert after == before


def test_candidate_5_2__follows_whoever_won_its_term():
    cluster = Cluster(3, pre_vote=False)
    cluster.now += cluster.settings.election_max_ms + 1
    for name in ("n1", "n2"):
        cluster[name].step(fx.Tick())
    assert [cluster[name].raft.role for name in ("n1", "n2")] == ["candidate", "candidate"]
    assert cluster["n1"].raft.term == cluster["n2"].raft.term == 1
    cluster.isolate("n2")
    cluster["n3"].step(fx.Receive("n1", msg.VoteRequest(7, 1, 0, 0)))
    cluster.settle()
    assert cluster["n1"].raft.role == "leader"
    cluster.heal()
    cluster.run(100)
    assert (cluster["n2"].raft.role, cluster["n2"].raft.leader) == ("follower", "n1")
    assert cluster["n2"].raft.term == 1


def test_crash_5_5__a_repeated_request_is_idempotent():
    cluster = led()
    leader, follower = cluster["n1"], cluster["n3"]
    leader.step(fx.Propose(1, b"once"))
    (request,) = [m for _, to, m in cluster.wire if to == "n3" and isinstance(m, msg.AppendRequest)]
    cluster.settle()
    follower.restart()  # it has answered, and does not know it any more
    held = follower.raft.last_index
    for _ in range(2):
        effects = follower.step(fx.Receive("n1", request))
        assert not [e for e in effects if isinstance(e, fx.Append)]
        assert answers(follower.effects)[-1] == msg.AppendResponse(7, 1, True, held)
    cluster.run(200)
    assert follower.machine == leader.machine == [b"once"]


def test_removal_of_the_leader_4_2_2__is_refused_until_it_has_handed_over():
    cluster = led()
    assert cluster.change("n1", "n1", remove=True) == "is_leader"
    cluster["n1"].step(fx.Transfer(None))
    cluster.settle()
    cluster.run(100)
    new = cluster.leader()
    assert new.name != "n1"
    assert cluster.change(new.name, "n1", remove=True) == ""
    cluster.run(500)
    assert "n1" not in cluster.voters(new.name)
    assert cluster["n1"].raft.role == "learner"
    new.step(fx.Propose(1, b"without it"))
    cluster.run(100)
    assert new.machine == [b"without it"]
