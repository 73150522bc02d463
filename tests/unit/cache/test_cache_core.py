"""The coherence cores step by step: tables, stale messages, leases, eviction."""

from __future__ import annotations

from collections import deque

import pytest

from dss.core.mesi import effects as fx
from dss.core.mesi import messages as ms
from dss.core.mesi.agent import TABLE as AGENT_TABLE
from dss.core.mesi.agent import Agent
from dss.core.mesi.directory import TABLE as HOME_TABLE
from dss.core.mesi.eviction import Link, Sieve
from dss.core.mesi.node import CacheNode
from dss.core.mesi.states import IllegalTransition, Phase, State

LEASE_MS = 1_000


def agent(**changes: int) -> Agent:
    """Node `b`, linked to home `a` (boot `a1`)."""
    made = Agent(
        "b",
        "b1",
        home_of=lambda key: "a",
        lease_ms=LEASE_MS,
        capacity_bytes=changes.get("capacity_bytes", 10_000),
        epoch=1,
        story=deque(),
    )
    made.on_link_up(fx.LinkUp("a", "a1"), 0)
    return made


def sent(made: Agent) -> list[ms.CacheMessage]:
    return [e.message for e in made.take_effects() if isinstance(e, fx.Send)]


def grant(request: int, txn: int, state: State, version: int = 7, boot: str = "a1") -> fx.Receive:
    return fx.Receive(
        "a", boot, ms.Grant("k", 1, boot, txn, request, state, version, b"v", boot="b1")
    )


def home_node() -> CacheNode:
    """One node that is every key's home."""
    return CacheNode(
        "a",
        "a1",
        home_of=lambda key: "a",
        slot_of=lambda key: 0,
        lease_ms=LEASE_MS,
        capacity_bytes=1_000,
        started_ms=0,
    )


def test_tables__every_state_answers_invalidate_and_every_open_phase_an_answer() -> None:
    for state in State:
        for event in (ms.Invalidate, ms.Downgrade, fx.Read, fx.Write):
            assert (state, event) in AGENT_TABLE, (state, event)
        for event in (ms.Grant, ms.Refuse):
            assert ((state, event) in AGENT_TABLE) == (state > State.M), (state, event)
    open_phases = {phase for phase, _ in HOME_TABLE}
    assert open_phases == set(Phase) - {Phase.IDLE}


def test_impossible_event__raises_with_the_story() -> None:
    node = home_node()
    node.step([fx.Claimed({0: 0})], 0)
    node.story.append("something notable")
    (effect,) = node.step([fx.Read(1, "k")], 5_000)
    assert isinstance(effect, fx.ReadMemory)
    with pytest.raises(IllegalTransition, match="MemoryWritten in state READING") as caught:
        node.step([fx.MemoryWritten("k", effect.txn)], 5_001)
    assert "something notable" in str(caught.value)


def test_copy__served_until_its_lease_counted_from_the_question_less_drift() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    (question,) = sent(made)
    assert isinstance(question, ms.GetShared)
    made.on_message(grant(question.request, 5, State.E), 600)
    assert made.state_of("k", 600)[0] is State.E
    assert made.lookup("k", 100 + LEASE_MS - 3) is not None
    assert made.lookup("k", 100 + LEASE_MS - 1) is None
    assert made.state_of("k", 100 + LEASE_MS)[0] is State.I


def test_grant_after_the_lease__answers_but_is_not_kept() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_operation(fx.Read(2, "k"), 900)
    made.take_effects()
    made.on_message(grant(1, 5, State.E), 1_500)
    effects = made.take_effects()
    assert [e.ref for e in effects if isinstance(e, fx.Answer)] == [1]
    messages = [e.message for e in effects if isinstance(e, fx.Send)]
    assert messages[0] == ms.GrantAck("k", 1, "a1", 5, kept=False)
    assert isinstance(messages[1], ms.GetShared), "the later read must ask anew"


def test_invalidate_that_overtakes_a_grant__copy_not_kept() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_message(fx.Receive("a", "a1", ms.Invalidate("k", 1, "a1", 6)), 110)
    made.on_message(grant(1, 5, State.S), 120)
    assert sent(made)[1:] == [
        ms.InvalidateAck("k", 1, "a1", 6),
        ms.GrantAck("k", 1, "a1", 5, kept=False),
    ]
    assert made.state_of("k", 120)[0] is State.I


def test_duplicate_and_late_messages__change_nothing() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_message(grant(1, 5, State.E), 110)
    made.take_effects()
    made.on_message(grant(1, 5, State.E), 120)
    assert sent(made) == [ms.GrantAck("k", 1, "a1", 5, kept=True)]
    made.on_message(fx.Receive("a", "a1", ms.Invalidate("k", 1, "a1", 4)), 130)
    made.on_message(fx.Receive("a", "a0", ms.Invalidate("k", 1, "a0", 99)), 130)
    made.on_message(fx.Receive("a", "a1", ms.Invalidate("k", 2, "a1", 99)), 130)
    assert sent(made) == []
    assert made.state_of("k", 130)[0] is State.E


def test_refused_write__copy_back_only_while_its_lease_holds() -> None:
    for when, expected in ((200, State.E), (1_200, State.I)):
        made = agent()
        made.on_operation(fx.Read(1, "k"), 100)
        made.on_message(grant(1, 5, State.E), 110)
        made.on_operation(fx.Write(2, "k", ms.PUT, b"w", if_match=(1,)), 120)
        assert made.state_of("k", 120)[0] is State.S_M
        assert made.lookup("k", 120) is None
        refusal = ms.Refuse("k", 1, "a1", 6, 2, 412, "precondition_failed", "no", 7, boot="b1")
        made.on_message(fx.Receive("a", "a1", refusal), when)
        assert made.state_of("k", when)[0] is expected


def test_answer_to_an_earlier_process__not_taken_for_an_equal_request_id() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.take_effects()
    old = ms.Grant("k", 1, "a1", 5, 1, State.E, 7, b"v", boot="b0")
    made.on_message(fx.Receive("a", "a1", old), 110)
    refusal = ms.Refuse("k", 1, "a1", 5, 1, 404, "not_found", "no", boot="b0")
    made.on_message(fx.Receive("a", "a1", refusal), 111)
    assert made.take_effects() == [fx.Send("a", ms.GrantAck("k", 1, "a1", 5, kept=False))]
    made.on_message(grant(1, 6, State.E), 120)
    assert made.state_of("k", 120)[0] is State.E


def test_requester_restarts__its_queued_requests_are_dropped_at_the_home() -> None:
    home = home_node()
    home.step([fx.Claimed({0: 0}), fx.LinkUp("b", "b0")], 0)
    (read,) = home.step([fx.Read(1, "k")], 5_000)
    assert isinstance(read, fx.ReadMemory)
    late = ms.GetExclusive("k", 1, "a1", 1, 1, 5_000, ms.PUT, b"lost with its sender")
    assert home.step([fx.Receive("b", "b0", late), fx.LinkUp("b", "b1")], 5_001) == []
    (answer,) = home.step([fx.MemoryRead("k", read.txn, None)], 5_002)
    assert isinstance(answer, fx.Answer), "and no write was begun"


def test_home_restarts__its_copies_are_dead_at_once() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_message(grant(1, 5, State.E), 110)
    made.on_operation(fx.Write(2, "k", ms.PUT, b"w"), 120)
    made.take_effects()
    made.on_link_up(fx.LinkUp("a", "a2"), 130)
    (answer,) = [e for e in made.take_effects() if isinstance(e, fx.Answer)]
    assert (answer.ref, answer.status) == (2, 504)
    assert made.state_of("k", 130)[0] is State.I


def test_home_unreachable__503_at_once_and_reads_go_on_within_the_lease() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_message(grant(1, 5, State.E), 110)
    made.on_link_down(fx.LinkDown("a"), 120)
    made.take_effects()
    assert made.lookup("k", 500) is not None
    made.on_operation(fx.Write(2, "k", ms.PUT, b"w"), 500)
    (answer,) = made.take_effects()
    assert isinstance(answer, fx.Answer)
    assert (answer.status, answer.code) == (503, "home_unavailable")
    assert made.lookup("k", 510) is not None


def answers(effects: list[fx.Effect]) -> list[tuple[int, int]]:
    return [(e.ref, e.status) for e in effects if isinstance(e, fx.Answer)]


def test_home_silent_for_a_lease__reads_fail_then_and_at_once_until_it_is_heard() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.on_operation(fx.Write(2, "other", ms.PUT, b"w"), 100)
    made.take_effects()
    assert made.next_deadline_ms() == 100 + LEASE_MS // 2
    made.on_tick(100 + LEASE_MS // 2)
    (probe,) = sent(made)
    assert isinstance(probe, ms.Renew), "a live home answers this however slow its memory is"
    made.on_operation(fx.Read(3, "k"), 900)  # waits behind the first
    assert made.next_deadline_ms() == 100 + LEASE_MS
    made.on_tick(100 + LEASE_MS)
    assert answers(made.take_effects()) == [(1, 503), (3, 503)]
    assert made.pending_count == 1, "the write waits on: giving it up makes its outcome unknown"
    made.on_operation(fx.Read(4, "k"), 1_200)
    assert answers(made.take_effects()) == [(4, 503)], "asked a moment ago: no second question"
    made.on_operation(fx.Read(6, "k"), 1_100 + LEASE_MS // 2)
    effects = made.take_effects()
    assert answers(effects) == [(6, 503)]
    assert [type(e.message) for e in effects if isinstance(e, fx.Send)] == [ms.Renew]
    made.on_message(fx.Receive("a", "a1", ms.LeaseGrant(1, "a1", probe.request, "b1")), 1_700)
    made.on_operation(fx.Read(5, "k"), 1_701)
    (question,) = sent(made)
    assert isinstance(question, ms.GetShared)
    made.on_message(grant(question.request, 5, State.E), 1_710)
    assert answers(made.take_effects()) == [(5, 200)]
    made.check_invariants()


def test_home_with_slow_memory__answers_renewals_and_the_read_waits_on() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    (question,) = sent(made)
    now_ms = 100
    while now_ms < 4_000:
        now_ms = made.next_deadline_ms()
        made.on_tick(now_ms)
        for message in sent(made):
            assert isinstance(message, ms.Renew)
            now_ms += 5
            made.on_message(
                fx.Receive("a", "a1", ms.LeaseGrant(1, "a1", message.request, "b1")), now_ms
            )
    made.on_message(grant(question.request, 5, State.E), now_ms)
    assert answers(made.take_effects()) == [(1, 200)]


def test_paused_while_a_read_waits__asks_first_and_does_not_blame_the_home() -> None:
    made = agent()
    made.on_operation(fx.Read(1, "k"), 100)
    made.take_effects()
    made.on_tick(3_000)
    effects = made.take_effects()
    assert not answers(effects)
    assert made.next_deadline_ms() == 3_000 + LEASE_MS // 2


def test_write_of_unknown_outcome__504_and_no_read_until_resolved() -> None:
    node = home_node()
    node.step([fx.Claimed({0: 41})], 0)
    (write,) = node.step([fx.Write(1, "k", ms.PUT, b"w")], 5_000)
    assert isinstance(write, fx.WriteMemory)
    assert write.version == 42
    failed = fx.MemoryFailed("k", write.txn, True, "timed out")
    fence, answer = node.step([failed, fx.Read(2, "k")], 5_001)
    if isinstance(fence, fx.Answer):
        fence, answer = answer, fence
    assert fence == fx.FenceMemory("k", write.txn, 0, 42)
    assert isinstance(answer, fx.Answer)
    assert (answer.ref, answer.status, answer.code) == (1, 504, "indeterminate")
    assert node.directory.view("k", 5_001)[3] is Phase.RESOLVING
    assert node.step([fx.MemoryFailed("k", write.txn, False, "away")], 5_100) == []
    assert node.next_deadline_ms() <= 5_200
    assert node.step([fx.Tick()], 5_200) == [fence]
    (read,) = node.step([fx.MemoryRead("k", write.txn, ms.Record(b"old", 40))], 5_300)
    assert isinstance(read, fx.ReadMemory)
    (value,) = node.step([fx.MemoryRead("k", read.txn, ms.Record(b"old", 40))], 5_301)
    assert isinstance(value, fx.Answer)
    assert (value.ref, value.value, value.version) == (2, b"old", 40)


def test_sieve__spares_what_was_read_and_drops_the_oldest_other() -> None:
    sieve = Sieve(30)
    links = [Link() for _ in range(4)]
    for link in links[:3]:
        sieve.add(link, 10)
    assert sieve.victim(lambda link: True) is None
    links[0].visited = True
    sieve.add(links[3], 10)
    victim = sieve.victim(lambda link: True)
    assert victim is links[1]
    sieve.remove(victim)
    assert (sieve.held_bytes, sieve.count) == (30, 3)
    assert not links[0].visited
    sieve.add(victim, 10)
    assert sieve.victim(lambda link: link is not links[2]) is links[3]


def test_eviction__tells_the_home_and_keeps_within_capacity() -> None:
    made = agent(capacity_bytes=900)
    for n, key in enumerate(("k", "l", "m"), start=1):
        made.on_operation(fx.Read(n, key), 100)
        message = ms.Grant(key, 1, "a1", n, n, State.E, n, b"v" * 20, boot="b1")
        made.on_message(fx.Receive("a", "a1", message), 101)
    assert made.held_bytes <= 900
    assert made.counters.evictions == 1
    assert ms.Evict("k", 1, "a1", 1) in sent(made)
    made.check_invariants()
