import asyncio

import msgspec
import pytest
from lock_fakes import FakeConsensus, FakeTransport, ListSink
from machine_world import sid

from dss.base.errors import Invalid, NoQuorum
from dss.core.locks.commands import (
    Acquire,
    GetLock,
    GetSession,
    ListLocks,
    Release,
    SessionEnd,
    SessionKeepalive,
)
from dss.drivers import gone_clients as gone_module
from dss.drivers.locks import LockService, register_metrics
from dss.observe.metrics import Registry

pack = msgspec.msgpack.encode


def service(consensus=None, transport=None):
    return LockService(consensus or FakeConsensus(), transport or FakeTransport())


def create(rid, number):
    return [rid, "session.create", {"session": sid(number)}]


def acquire(rid, number, name="a", **more):
    return [rid, "acquire", {"session": sid(number), "name": name, **more}]


# --- streams ------------------------------------------------------------------------------


def test_message_of_valid_writes__its_own_bytes_become_the_logs():
    consensus, sink = FakeConsensus(), ListSink()
    payload = pack([create(5, 1), acquire(9, 1)])
    service(consensus).submit_stream(sink, payload)
    assert consensus.submitted == [payload[1:]]
    assert sink.answers[5] == (201, {"session": sid(1), "ttl_ms": 10_000})
    assert sink.answers[9][1]["token"] == 1
    assert len(sink.flushed) == 1


def test_invalid_items__answered_one_by_one_while_the_valid_ones_go_on():
    consensus, sink = FakeConsensus(), ListSink()
    items = [
        create(1, 1),
        acquire(2, 1, wait_ms=99_999),
        [3, "nonsense", {}],
        [4, "expire_sessions", {"sessions": []}],
        acquire(5, 1, name="a//b"),
        [6, "acquire", "not a map"],
        acquire(7, 1),
    ]
    service(consensus).submit_stream(sink, pack(items))
    answers = sink.answers
    assert [answers[rid][0] for rid in range(1, 8)] == [201, 422, 422, 422, 422, 422, 200]
    assert "wait_ms" in answers[2][1]["message"]
    assert "unknown op" in answers[4][1]["message"]
    [items_logged] = consensus.submitted
    assert b"nonsense" not in items_logged
    assert b"expire" not in items_logged


def test_message_of_only_invalid_items__nothing_is_submitted():
    consensus, sink = FakeConsensus(), ListSink()
    service(consensus).submit_stream(sink, pack([[1, "nonsense", {}]]))
    assert consensus.submitted == []
    assert sink.answers[1][0] == 422


def test_session_created_without_an_id__gets_one_of_128_bits():
    consensus, sink = FakeConsensus(), ListSink()
    message = [[1, "session.create", {}], [2, "session.create", {"ttl_ms": 500}]]
    service(consensus).submit_stream(sink, pack(message))
    first, second = sink.answers[1][1], sink.answers[2][1]
    assert len(bytes.fromhex(first["session"])) == 16
    assert first["session"] != second["session"]
    assert second["ttl_ms"] == 500


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", pack({}), pack([1]), pack([[1, "acquire"]]), pack([]) + b"x"]
)
def test_payload_that_is_not_the_protocol__invalid(payload):
    with pytest.raises(Invalid):
        service().submit_stream(ListSink(), payload)


def test_beyond_the_streams_room__429_for_the_rest_only():
    consensus, sink = FakeConsensus(), ListSink(room=2)
    service(consensus).submit_stream(sink, pack([create(1, 1), create(2, 2), create(3, 3)]))
    assert [sink.answers[rid][0] for rid in (1, 2, 3)] == [201, 201, 429]
    assert sink.answers[3][1]["retry_after_ms"] > 0


def test_waiting_acquire__answers_when_the_lock_is_released_elsewhere():
    consensus = FakeConsensus()
    locks = service(consensus)
    first, second = ListSink(), ListSink()
    locks.submit_stream(first, pack([create(1, 1), acquire(2, 1)]))
    locks.submit_stream(second, pack([create(1, 2), acquire(2, 2, wait_ms=5_000)]))
    assert 2 not in second.answers
    args = {"session": sid(1), "name": "a", "token": first.answers[2][1]["token"]}
    locks.submit_stream(first, pack([[3, "release", args]]))
    assert second.answers[2][1]["token"] == 2


def test_reads_in_a_message__one_round_for_all_of_them():
    async def scenario():
        consensus, sink = FakeConsensus(), ListSink()
        locks = service(consensus)
        locks.submit_stream(sink, pack([create(1, 1), acquire(2, 1)]))
        message = [
            [3, "get", {"name": "a"}],
            [4, "list", {}],
            [5, "session.get", {"session": sid(1)}],
            [6, "session.get", {"session": sid(2)}],
            [7, "session.keepalive", {"session": sid(1)}],
        ]
        locks.submit_stream(sink, pack(message))
        await asyncio.sleep(0.01)
        answers = sink.answers
        assert answers[3][1]["state"] == "held"
        assert [item["name"] for item in answers[4][1]["items"]] == ["a"]
        assert answers[5][1]["held"] == 1
        assert answers[6][0] == 404
        assert answers[7][0] == 200
        assert consensus.reads == 1

    asyncio.run(scenario())


# --- reads on other nodes -----------------------------------------------------------------


def pair():
    """A leader (lock-1) and a follower that share one machine."""
    leader = FakeConsensus(leader="lock-1")
    follower = FakeConsensus(leader.lock_machine, leader="other")
    one, two = FakeTransport(), FakeTransport()
    two.nodes["other"] = one
    return leader, follower, service(leader, one), service(follower, two), two


def test_read_on_a_follower__asks_the_leader():
    async def scenario():
        leader, _, at_leader, at_follower, _ = pair()
        await at_leader.start()
        status, body = await at_leader.create_session(1_000, "me")
        assert status == 201
        await at_leader.write(Acquire(body["session"], "a"))
        status, found = await at_follower.read(GetLock("a"))
        assert status == 200
        assert found["holders"][0]["label"] == "me"
        assert leader.reads == 1

    asyncio.run(scenario())


def test_read_while_the_leader_changes__succeeds_once_there_is_one():
    async def scenario():
        leader, follower, at_leader, at_follower, transport = pair()
        await at_leader.start()
        leader.leader = None
        follower.leader = None
        read = asyncio.ensure_future(at_follower.read(GetLock("a")))
        await asyncio.sleep(0.06)
        follower.leader = "other"  # known here before it is ready there
        await asyncio.sleep(0.06)
        assert not read.done()
        assert transport.calls > 0
        leader.leader = "lock-1"
        assert (await read)[1]["state"] == "free"

    asyncio.run(scenario())


@pytest.mark.parametrize("leader", [None, "unreachable"])
def test_read_without_a_leader__no_quorum_within_the_timeout(leader):
    async def scenario():
        consensus = FakeConsensus(leader=leader)
        locks = LockService(consensus, FakeTransport(), read_timeout_ms=100)
        with pytest.raises(NoQuorum) as raised:
            async with asyncio.timeout(1):
                await locks.read(GetLock("a"))
        assert raised.value.retry_after_ms == 100
        sink = ListSink()
        locks.submit_stream(sink, pack([[1, "get", {"name": "a"}], [2, "get", {"name": "b"}]]))
        await asyncio.sleep(0.2)
        assert [sink.answers[rid][0] for rid in (1, 2)] == [503, 503]

    asyncio.run(scenario())


def test_stop__cancels_reads_under_way():
    async def scenario():
        locks = LockService(FakeConsensus(leader=None), FakeTransport(), read_timeout_ms=60_000)
        locks.submit_stream(ListSink(), pack([[1, "get", {"name": "a"}]]))
        await asyncio.sleep(0)
        await locks.stop()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


# --- the rest -----------------------------------------------------------------------------


def test_single_requests__a_session_from_birth_to_end():
    async def scenario():
        locks = service()
        _, session = await locks.create_session(5_000)
        name = session["session"]
        _, held = await locks.write(Acquire(name, "a"))
        assert (await locks.write(SessionKeepalive(name)))[0] == 200
        assert (await locks.read(GetSession(name)))[1]["held"] == 1
        assert (await locks.read(ListLocks()))[1]["items"][0]["token"] == held["token"]
        assert await locks.write(Release(name, "a", held["token"])) == (200, {})
        assert await locks.write(SessionEnd(name)) == (200, {})
        assert (await locks.write(SessionKeepalive(name)))[1]["code"] == "session_expired"

    asyncio.run(scenario())


@pytest.mark.parametrize("session", ["", "x" * 129, "\ud800"])
def test_command_that_a_follower_could_not_decode__never_reaches_the_log(session):
    async def scenario():
        consensus = FakeConsensus()
        with pytest.raises(Invalid):
            await service(consensus).write(SessionKeepalive(session))
        assert consensus.submitted == []

    asyncio.run(scenario())


def test_readiness_and_status__say_what_is_missing():
    consensus = FakeConsensus(leader=None)
    locks = service(consensus)
    assert locks.readiness() is None  # never a matter of leaders (docs/decisions/0004)
    consensus.leader = "lock-1"
    assert locks.readiness() is None
    assert locks.status()["sessions"] == 0
    consensus.founded = False
    assert "founded" in (locks.readiness() or "")
    assert locks.status() == {"leader": None}


def test_metrics__count_what_was_applied():
    consensus, registry = FakeConsensus(), Registry()
    locks = service(consensus)
    register_metrics(registry, locks)
    sink = ListSink()
    locks.submit_stream(sink, pack([create(1, 1), create(2, 2), acquire(3, 1), acquire(4, 2)]))
    text = registry.render().decode()
    assert "dss_lock_grants_total 1.0" in text
    assert "dss_lock_timeouts_total 1.0" in text
    assert "dss_lock_sessions 2.0" in text
    consensus.founded = False
    assert "dss_lock_sessions 2.0" not in registry.render().decode()


# --- clients that go, nodes that go -----------------------------------------------------------


def waiting(consensus, sink, locks, **more):
    """Session 1 holds `a`, session 2 waits for it as request 4."""
    items = [create(1, 1), acquire(2, 1), create(3, 2), acquire(4, 2, wait_ms=30_000, **more)]
    locks.submit_stream(sink, pack(items))
    assert consensus.lock_machine.waiting == 1


def test_node_stops__its_waits_are_answered_503_stopping_and_nothing_waits():
    async def scenario():
        consensus, sink = FakeConsensus(), ListSink()
        locks = service(consensus)
        waiting(consensus, sink, locks)
        await locks.end_waits()
        status, body = sink.answers[4]
        assert (status, body["code"], body["waiting"]) == (503, "stopping", True)
        assert consensus.lock_machine.waiting == 0
        assert not consensus.waits

    asyncio.run(scenario())


def test_node_stops_without_a_quorum__gives_up_in_time():
    async def scenario():
        consensus, sink = FakeConsensus(), ListSink()
        locks = LockService(consensus, FakeTransport(), read_timeout_ms=50)
        waiting(consensus, sink, locks)
        consensus.held = []
        async with asyncio.timeout(1):
            await locks.end_waits()
        assert 4 not in sink.answers

    asyncio.run(scenario())


@pytest.mark.parametrize("comes_back", [True, False])
def test_stream_breaks__the_wait_ends_unless_another_node_took_it_over(comes_back, monkeypatch):
    monkeypatch.setattr(gone_module, "GONE_CLIENT_MS", 20)

    async def scenario():
        consensus, sink = FakeConsensus(), ListSink()
        locks = service(consensus)
        unanswered = sink.noted
        waiting(consensus, sink, locks, seq=1)
        if comes_back:  # before this node notices that the stream is broken
            locks.submit_stream(ListSink(), pack([acquire(1, 2, wait_ms=30_000, seq=1)]))
            assert sink.answers[4][1]["code"] == "superseded"
        consensus.now_ms = 500
        locks.stream_ended(sink, unanswered)
        if comes_back:
            unanswered.pop(4)  # as api.lock_stream.LockStream.answer does
        await asyncio.sleep(0.05)
        assert consensus.lock_machine.waiting == (1 if comes_back else 0)

    asyncio.run(scenario())
