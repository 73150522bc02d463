"""Remediation carried out by the operator: stored before it acts, never twice, never blind."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from fake_api import Killed
from operator_lab import Lab, run


def _stuck(lab: Lab) -> None:
    lab.nodes.leader = None
    lab.nodes.candidates = ("lock-1", "lock-2", "lock-3")


async def _watch(lab: Lab, seconds: int, until: str = "") -> None:
    """Sampling as the task does it, with terms that rise, until an Event of that reason."""
    for _ in range(seconds // 5):
        if lab.nodes.leader is None:
            lab.nodes.term += 2
        await lab.sample()
        if until and until in lab.api.reasons():
            return
        if round(lab.clock.now) % 30 < 5:
            lab.api.run_sets()
            await lab.tick(0)


async def _formed(**spec: Any) -> Lab:
    lab = Lab(**spec)
    await lab.formed()
    await _watch(lab, 60)
    return lab


def _history(lab: Lab) -> list[tuple[str, str, str]]:
    rows = lab.status["remediation"]["history"]
    return [(row["action"], row["member"], row["outcome"]) for row in rows]


def test_split_vote__backoff_of_the_chosen_candidate_then_recovery() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        assert lab.condition("ElectionStuck") == ("True", "SplitVote")
        assert lab.condition("Ready") == ("False", "NoLeader")
        host, body = lab.nodes.posts[0]
        assert host == "pod:demo-lock-3"
        assert body == {"group_id": 0, "boot_id": "lock-3/1"}
        assert _history(lab) == [("backoff", "lock-3", "done")]
        lab.nodes.leader = "lock-2"
        await _watch(lab, 30)
        assert lab.condition("ElectionStuck") == ("False", "HasLeader")
        assert lab.condition("Ready") == ("True", "Serving")
        assert lab.status["leader"] == "lock-2"
        assert "RemediationRecovered" in lab.api.reasons()
        assert len(lab.nodes.posts) == 1
        assert lab.api.evictions == []

    run(scenario())


def test_backoff_does_not_help__eviction_of_that_pod_then_alert_then_nothing() -> None:
    async def scenario() -> None:
        lab = await _formed()
        uid = lab.api.get("pods", "demo-lock-3")["metadata"]["uid"]
        _stuck(lab)
        await _watch(lab, 120, until="RemediationRestart")
        assert lab.api.evictions == [("demo-lock-3", uid)]
        lab.nodes.boots["lock-3"] = 2
        lab.api.run_sets()
        await _watch(lab, 1200)
        actions = [row[0] for row in _history(lab)]
        assert actions[:2] == ["backoff", "restart"]
        assert "alert" in actions
        touched = [row for row in _history(lab) if row[0] in ("backoff", "restart")]
        assert len(touched) <= 4  # each rung once in each of the two groups
        posts, evictions = len(lab.nodes.posts), len(lab.api.evictions)
        await _watch(lab, 1200)
        assert (len(lab.nodes.posts), len(lab.api.evictions)) == (posts, evictions)
        assert lab.status["remediation"]["attempts"] == len(touched)

    run(scenario())


def test_unready_candidate__deleted_with_its_uid_instead_of_evicted() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        lab.api.run_sets(ready=lambda pod: pod != "demo-lock-3")
        await lab.tick(0)
        await _watch(lab, 120, until="RemediationRestart")
        assert lab.api.evictions == []
        assert not lab.api.has("pods", "demo-lock-3")
        assert ("restart", "lock-3", "done") in _history(lab)

    run(scenario())


def test_pod_replaced_meanwhile__no_eviction_is_sent() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        # Replaced behind the operator's back: same address and process id, another pod.
        lab.api.objects["pods", "ns", "demo-lock-3"]["metadata"]["uid"] = "another"
        lab.api.forget_calls()
        for _ in range(12):
            lab.nodes.term += 2
            await lab.sample()
        assert not any(call.sub == "eviction" for call in lab.api.calls)
        assert lab.api.has("pods", "demo-lock-3")
        assert [row[2] for row in _history(lab) if row[0] == "restart"] == [
            "not restarted: the pod was replaced meanwhile"
        ]

    run(scenario())


def test_budget_refuses_the_eviction__recorded_and_not_tried_again() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.api.eviction_status = 429
        _stuck(lab)
        await _watch(lab, 300)
        refused = [row for row in _history(lab) if row[0] == "restart"]
        assert refused
        assert "429" in refused[0][2]
        assert sum(call.sub == "eviction" for call in lab.api.calls) == len(refused)
        assert "RemediationRestartFailed" in lab.api.reasons()

    run(scenario())


def test_unreachable_member__uncertain_and_nothing_is_done() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        lab.nodes.silent = {"lock-2"}
        await _watch(lab, 600)
        assert lab.nodes.posts == []
        assert lab.api.evictions == []
        assert lab.condition("ElectionStuck") == ("Unknown", "Unreachable")
        assert "RemediationAlert" in lab.api.reasons()

    run(scenario())


def test_all_lock_pods_go_away_while_stuck__uncertain_and_no_rung_is_burnt() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        rows = len(_history(lab))
        for name in ("demo-lock-1", "demo-lock-2", "demo-lock-3"):
            lab.api.remove("pods", name)
        await lab.tick(0)
        for _ in range(12):
            await lab.sample()
            await lab.tick(0)
        assert [row for row in _history(lab)[rows:] if row[0] == "restart"] == []
        assert lab.condition("ElectionStuck")[0] == "Unknown"
        count = lab.metrics.registry.get_sample_value
        labels = {"namespace": "ns", "cluster": "demo"}
        assert count("dss_operator_election_stuck", labels) == 0

    run(scenario())


def test_candidates_pod_just_gone__no_row_for_what_cannot_be_done() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        lab.cluster._target = lambda member: None  # type: ignore[method-assign]
        rows = _history(lab)
        await _watch(lab, 60)
        assert _history(lab) == rows

    run(scenario())


@pytest.mark.parametrize("plural", ["networkpolicies", "services"])
def test_other_object_hangs_on_a_finalizer__remediation_goes_on(plural: str) -> None:
    async def scenario() -> None:
        lab = await _formed()

        def hang(obj: dict[str, Any]) -> None:
            obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

        name = {"networkpolicies": "demo-prometheus", "services": "demo-cache"}[plural]
        lab.api.edit(plural, name, hang)
        await lab.tick()
        assert lab.condition("Progressing") == ("True", "Waiting")
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        assert len(lab.nodes.posts) == 1

    run(scenario())


@pytest.mark.parametrize("mode", ["DryRun", "Off"])
def test_not_enforced__no_member_is_touched(mode: str) -> None:
    async def scenario() -> None:
        lab = await _formed(remediation={"mode": mode})
        _stuck(lab)
        await _watch(lab, 600)
        assert lab.nodes.posts == []
        assert lab.api.evictions == []
        if mode == "DryRun":
            assert _history(lab)[0] == ("backoff", "lock-3", "dry-run")
            told = [e["message"] for e in lab.api.events if e["reason"] == "RemediationBackoff"]
            assert told[0].startswith("dry run, nothing was done")
            assert lab.status["remediation"]["attempts"] == 0
        else:
            assert _history(lab) == []
            assert lab.condition("ElectionStuck") == ("Unknown", "Off")

    run(scenario())


def test_paused__no_member_is_touched() -> None:
    async def scenario() -> None:
        lab = await _formed()
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(paused=True))
        await lab.tick()
        _stuck(lab)
        await _watch(lab, 300)
        assert lab.nodes.posts == []
        assert lab.condition("ElectionStuck")[0] == "True"

    run(scenario())


def test_foreign_pod_with_the_labels_of_a_member__gets_no_token_and_is_no_member() -> None:
    async def scenario() -> None:
        lab = await _formed()
        stranger = copy.deepcopy(lab.api.get("pods", "demo-lock-1"))
        stranger["metadata"] |= {"name": "zz-1", "uid": "stranger"}
        stranger["status"]["podIP"] = "pod:zz-lock-1"
        lab.api.add("pods", stranger)
        adopted = copy.deepcopy(lab.api.get("pods", "demo-lock-2"))
        lab.api.remove("pods", "demo-lock-2")
        adopted["metadata"] |= {"uid": "adopted", "ownerReferences": []}
        lab.api.add("pods", adopted)
        await lab.tick()
        asked: list[str] = []
        original = lab.nodes.get

        async def get(host: str, path: str, token: str) -> Any:
            asked.append(host)
            return await original(host, path, token)

        lab.nodes.get = get  # type: ignore[method-assign]
        await lab.sample()
        assert {host for host in asked if "lock" in host} == {"pod:demo-lock-1", "pod:demo-lock-3"}

    run(scenario())


def test_state_not_on_a_volume__never_touched() -> None:
    async def scenario() -> None:
        lab = await _formed()
        for name in ("demo-lock-1", "demo-lock-2", "demo-lock-3"):
            lab.api.objects["pods", "ns", name]["spec"]["volumes"] = [
                {"name": "data", "emptyDir": {}}
            ]
        await lab.tick()
        _stuck(lab)
        await _watch(lab, 300)
        assert lab.nodes.posts == []
        assert lab.condition("ElectionStuck") == ("True", "NoSafeCandidate")

    run(scenario())


def test_killed_at_every_call_around_an_action__the_next_process_does_not_repeat_it() -> None:
    """From just before the decision to the row's outcome; kills before and after each call."""

    async def until_backoff(kill_at: int) -> tuple[Lab, bool]:
        lab = await _formed()
        lab.api.forget_calls()
        _stuck(lab)
        lab.api.kill_at = kill_at
        try:
            await _watch(lab, 60, until="RemediationBackoff")
        except Killed:
            return lab, True
        return lab, False

    async def scenario() -> None:
        kills = 0
        for point in range(1, 1_000):
            lab, killed = await until_backoff(point)
            if not killed:
                break
            kills += 1
            lab.api.kill_at = 0
            lab.process()
            await lab.tick()
            stored = [row for row in _history(lab) if row[0] == "backoff"]
            done = len(lab.nodes.posts)
            assert done <= len(stored)  # whatever was done had been stored
            await _watch(lab, 25)
            if stored:
                assert len(lab.nodes.posts) == done
            assert len([r for r in _history(lab) if r[0] == "backoff"]) <= 1
        assert kills >= 8

    run(scenario())


def test_restarted_after_the_row_was_stored__outcome_unknown_and_next_rung_in_its_time() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)

        def die() -> None:
            raise Killed("while the node was asked")

        lab.nodes.on_post = die
        with pytest.raises(Killed):
            await _watch(lab, 120)
        assert _history(lab) == [("backoff", "lock-3", "started")]
        lab.nodes.on_post = lambda: None
        lab.process()
        await lab.tick()
        await _watch(lab, 20)
        assert len(lab.nodes.posts) == 1
        assert _history(lab)[0][2].startswith("unknown")
        await _watch(lab, 120, until="RemediationRestart")
        assert [row[0] for row in _history(lab)][:2] == ["backoff", "restart"]

    run(scenario())


def test_history_that_nobody_understands__no_action_and_kept_for_a_person() -> None:
    async def scenario() -> None:
        lab = await _formed()
        nonsense = {"history": [{"at": "yesterday", "action": "dance"}]}
        lab.api.objects["dssclusters", "ns", "demo"]["status"]["remediation"] = nonsense
        lab.process()
        await lab.tick()
        _stuck(lab)
        await _watch(lab, 300)
        assert lab.nodes.posts == []
        assert lab.condition("Degraded") == ("True", "RemediationUnreadable")
        assert lab.status["remediation"] == nonsense

    run(scenario())


def test_former_holders_late_write_puts_the_row_back__not_done_again() -> None:
    async def scenario() -> None:
        lab = await _formed()
        old = copy.deepcopy(lab.status)
        _stuck(lab)
        await _watch(lab, 120, until="RemediationBackoff")
        assert len(lab.nodes.posts) == 1
        live = lab.api.objects["dssclusters", "ns", "demo"]
        live["status"] = old
        lab.api._bump(live)
        await lab.tick(0)
        await _watch(lab, 25)
        assert len(lab.nodes.posts) == 1
        assert _history(lab)[0] == ("backoff", "lock-3", "done")
        assert lab.status["remediation"]["backoffs"] == 1

    run(scenario())


def test_resource_changed_since_it_was_read__read_again_before_anything_is_done() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        seen: list[int] = []
        original = lab.api._serve

        def serve(call: Any, headers: Any, body: Any) -> Any:
            started = '"started"' in json.dumps(body)
            if call.sub == "status" and started and not seen:
                seen.append(1)
                lab.api._bump(lab.api.objects["dssclusters", "ns", "demo"])
            return original(call, headers, body)

        lab.api._serve = serve  # type: ignore[method-assign]
        while not seen:
            lab.nodes.term += 2
            await lab.sample()
        assert lab.nodes.posts == []
        assert lab.cluster.next_tick <= lab.clock.now
        await lab.tick(0)
        await _watch(lab, 10, until="RemediationBackoff")
        assert len(lab.nodes.posts) == 1

    run(scenario())


def test_status_cannot_be_stored__nothing_is_done() -> None:
    async def scenario() -> None:
        lab = await _formed()
        _stuck(lab)
        lab.api.fault_by = lambda call: 500 if call.sub == "status" else None
        await _watch(lab, 300)
        assert lab.nodes.posts == []
        assert lab.api.evictions == []
        lab.api.fault_by = lambda call: None
        await _watch(lab, 120, until="RemediationBackoff")
        assert len(lab.nodes.posts) <= 1

    run(scenario())


@pytest.mark.parametrize(("window_s", "every_s"), [(10, 10 / 6), (30, 5), (3_600, 5)])
def test_short_window__is_sampled_often_enough_to_be_judged(window_s: int, every_s: float) -> None:
    async def scenario() -> None:
        timing = {"electionTimeoutMs": {"min": 500, "max": 1_000}}
        lab = await _formed(remediation={"windowSeconds": window_s}, lock=timing)
        assert lab.cluster._sample_every_s() == pytest.approx(every_s)

    run(scenario())


def test_long_split_vote__status_is_not_written_with_each_term() -> None:
    async def scenario() -> None:
        lab = await _formed(remediation={"mode": "DryRun"})
        _stuck(lab)
        await _watch(lab, 600)
        lab.api.forget_calls()
        await _watch(lab, 600)
        assert [call for call in lab.api.calls if call.sub == "status"] == []
        assert [call for call in lab.api.calls if call.plural == "events"] == []

    run(scenario())
