"""Batches on their way to a leader: each id is answered once, whatever happens on the way."""

import asyncio

import msgspec
import pytest
from driver_world import Sink, until

from dss.base import limits
from dss.base.errors import NoQuorum, RemoteError
from dss.core.machine import Wake, join_items
from dss.drivers import forwarding, forwards
from dss.drivers.forwarding import Forwarder
from dss.drivers.forwards import Answers, Forward
from dss.drivers.group import NULL_SINK, Flight
from dss.drivers.waits import UNCLAIMED_MAX, Waits
from dss.testing.tally import Add, Tally
from dss.transport.ports import Peer

GROUP = 1
HOLD_MS = 60
CODEC = Tally().codec
encode = msgspec.msgpack.encode


class FakeLinks:
    def __init__(self):
        self.peers = {}
        self.casts = []
        self.cast_handlers = {}
        self.listeners = []
        self.frames = {}
        self.unsent = 0
        self.echoes = []
        self.one_way = False

    def on_call(self, method, handler):
        assert method == "link.echo"

    def call(self, node_id, method, body, timeout_ms):
        assert method == "link.echo"
        self.echoes.append(asyncio.get_running_loop().create_future())
        if not self.one_way:
            self.echoes[-1].set_result(b"")
        return self.echoes[-1]

    def frames_from(self, node_id):
        self.frames[node_id] = self.frames.get(node_id, 0) + 1  # it is heard all the while
        return self.frames[node_id]

    def unsent_bytes(self, node_id):
        return self.unsent

    def on_cast(self, method, handler):
        self.cast_handlers[method] = handler

    def on_link(self, listener):
        self.listeners.append(listener)

    def peer(self, node_id):
        return self.peers.get(node_id)

    def cast(self, node_id, method, body):
        self.casts.append((node_id, method, body))

    def up(self, node_id, boot="boot"):
        self.peers[node_id] = Peer(node_id, f"inc-{node_id}", boot)
        for listener in self.listeners:
            listener(node_id, True, "")

    def down(self, node_id):
        self.peers.pop(node_id)
        for listener in self.listeners:
            listener(node_id, False, "cut")

    def forwards(self):
        return [
            (node, msgspec.msgpack.decode(body, type=Forward))
            for node, method, body in self.casts
            if method == "raft.forward"
        ]

    def answers(self):
        return [
            (node, msgspec.msgpack.decode(body, type=Answers))
            for node, method, body in self.casts
            if method == "raft.answers"
        ]


class FakeHost:
    node_id = "me"

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.leader = None
        self.proposed = []
        self.engine = self
        self.waits = Waits()

    def is_leader(self, group):
        return self.leader == self.node_id

    def leader_of(self, group):
        return self.leader

    def propose(self, group, rids, items, commands, sink):
        self.proposed.append((list(rids), items, list(commands), sink))

    def adopt_wait(self, group, place, sink, rid):
        self.waits.adopt(place, sink, rid)

    def claim_wait(self, group, place):
        return self.waits.claim(place)

    def machine(self, group):
        return {GROUP: Tally()}[group]

    def no_quorum(self, group):
        return NoQuorum("no leader")

    def now_ms(self):
        return int(self.loop.time() * 1000)


class World:
    def __init__(self):
        self.host, self.links, self.sink = FakeHost(), FakeLinks(), Sink()
        self.forwarder = Forwarder(self.host, self.links, hold_ms=HOLD_MS)

    def submit(self, *rids, hops=0, sink=None):
        commands = [Add(rid) for rid in rids]
        items = b"".join(map(CODEC.encode_item, rids, commands))
        self.forwarder.submit(GROUP, rids, items, commands, sink or self.sink, hops)

    def forwarded(self, *rids):
        """What has gone to the leader `l` for these requests."""
        self.links.up("l")
        self.leads("l")
        self.submit(*rids)
        [(_, forward)] = self.links.forwards()
        return forward

    async def unheard(self, *rids):
        """The leader `l` gets nothing, though it is heard: these end."""
        self.links.one_way = True
        self.forwarded(*rids)
        await until(lambda: self.sink.answers)

    def leads(self, node_id):
        self.host.leader = node_id
        self.forwarder.role_changed(GROUP, node_id)

    def answer(self, node_id, forward_id, *answers, boot="boot", placed=()):
        peer = Peer(node_id, f"inc-{node_id}", boot)
        body = Answers(forward_id, list(answers), list(placed))
        self.links.cast_handlers["raft.answers"](peer, encode(body))

    def woken(self, index, position, status=200, body="woken"):
        """This node applies the end of a wait."""
        waiting = self.host.waits.woken(Wake(index, position, status, body))
        if waiting is not None:
            sink, rid = waiting
            sink.answer(rid, status, body)
            sink.flush()

    def forwarded_here(self, *rids, hops=1, group=GROUP, forward_id=5, boot="boot"):
        payload = join_items(len(rids), [CODEC.encode_item(rid, Add(rid)) for rid in rids])
        peer = Peer("asker", "inc-asker", boot)
        self.links.cast_handlers["raft.forward"](
            peer, encode(Forward(forward_id, group, hops, payload))
        )


def run(scenario):
    async def within():
        async with asyncio.timeout(5):
            await scenario(World())

    asyncio.run(within())


def test_leader_is_here__proposed_at_once():
    async def scenario(world):
        world.host.leader = "me"
        world.submit(1, 2)
        assert world.host.proposed[0][0] == [1, 2]
        assert not world.forwarder.owed_groups()

    run(scenario)


def test_leader_elsewhere__each_id_answered_once_and_nothing_is_kept():
    async def scenario(world):
        world.links.up("l")
        world.leads("l")
        world.submit(1, 2, 3)
        [(node, forward)] = world.links.forwards()
        assert (node, forward.hops) == ("l", 1)
        assert [rid for rid, _, _ in CODEC.split(forward.payload)] == [1, 2, 3]
        world.answer("l", forward.forward_id, (2, 200, "b"))
        world.answer("l", forward.forward_id, (2, 200, "again"), (1, 200, "a"), (9, 200, "?"))
        world.answer("other", forward.forward_id, (3, 200, "not from the leader"))
        world.answer("l", forward.forward_id, (3, 409, "c"))
        world.answer("l", forward.forward_id, (3, 200, "again"))
        assert world.sink.answers == [(2, 200, "b"), (1, 200, "a"), (3, 409, "c")]
        assert not world.forwarder.owed_groups()

    run(scenario)


@pytest.mark.parametrize("how", ["link", "leader", "close"])
def test_leader_is_lost_after_forwarding__indeterminate_once(how):
    async def scenario(world):
        forward = world.forwarded(1, 2)
        world.answer("l", forward.forward_id, (1, 200, "a"))
        if how == "link":
            world.links.down("l")
        elif how == "leader":
            world.leads(None)
            await asyncio.sleep(2.2 * HOLD_MS / 1000)
        else:
            world.forwarder.close()
        world.answer("l", forward.forward_id, (2, 200, "late"))
        assert world.sink.statuses == {1: 200, 2: 504}
        assert len(world.sink.answers) == world.sink.flushed == 2
        assert not world.forwarder.owed_groups()

    run(scenario)


def test_deposed_leader_answers_in_time__nothing_is_lost():
    """What it took is in its log, and the next leader commits that."""

    async def scenario(world):
        world.links.up("l", "m")
        world.leads("l")
        world.submit(1, 2)
        [(_, forward)] = world.links.forwards()
        world.leads(None)
        world.leads("m")
        await asyncio.sleep(HOLD_MS / 1000)
        world.answer("l", forward.forward_id, (1, 200, "a"), (2, 200, "b"))
        assert world.sink.statuses == {1: 200, 2: 200}
        await asyncio.sleep(1.5 * HOLD_MS / 1000)
        assert len(world.sink.answers) == 2
        assert not world.forwarder.owed_groups()

    run(scenario)


def test_the_same_leader_again__no_doubt_remains():
    async def scenario(world):
        forward = world.forwarded(1)
        world.leads(None)
        world.leads("l")
        await asyncio.sleep(2.5 * HOLD_MS / 1000)
        assert not world.sink.answers
        world.answer("l", forward.forward_id, (1, 200, "a"))
        assert world.sink.statuses == {1: 200}

    run(scenario)


def test_leader_never_answers__indeterminate_in_the_end(monkeypatch):
    monkeypatch.setattr(forwarding, "OUTGOING_MS_MAX", 20)
    monkeypatch.setattr(forwarding, "SWEEP_EVERY_S", 0.01)

    async def scenario(world):
        world.links.up("l")
        world.leads("l")
        world.submit(1)
        await asyncio.sleep(0.08)
        assert world.sink.statuses == {1: 504}
        assert world.forwarder._sweep_timer is None

    run(scenario)


def test_no_leader__held_then_503_after_one_election_timeout():
    async def scenario(world):
        started = world.host.loop.time()
        world.submit(1)
        assert not world.sink.answers
        await until(lambda: world.sink.answers)
        assert HOLD_MS <= (world.host.loop.time() - started) * 1000 + 1 < HOLD_MS + 300
        assert world.sink.statuses == {1: 503}
        assert not world.forwarder.owed_groups()
        assert world.forwarder._held.items == world.forwarder._held.bytes == 0

    run(scenario)


def test_hold_timer_fires_early__the_batch_is_not_forgotten():
    async def scenario(world):
        world.submit(1)
        world.host.loop.call_soon(world.forwarder._held.expire, GROUP)
        clock, world.host.now_ms = world.host.now_ms, lambda: clock() - 30
        await asyncio.sleep(HOLD_MS / 1000 + 0.08)
        assert world.sink.statuses == {1: 503}

    run(scenario)


def test_leader_found_while_held__forwarded_and_not_answered_503_later():
    async def scenario(world):
        world.submit(1)
        world.links.up("l")
        world.leads("l")
        await asyncio.sleep(HOLD_MS / 1000 + 0.02)
        [(_, forward)] = world.links.forwards()
        assert not world.sink.answers
        world.answer("l", forward.forward_id, (1, 200, "a"))
        assert world.sink.statuses == {1: 200}

    run(scenario)


def test_leader_known_but_no_link__goes_when_the_link_is_up():
    async def scenario(world):
        world.leads("l")
        world.submit(1)
        assert not world.links.forwards()
        world.links.up("l")
        assert len(world.links.forwards()) == 1

    run(scenario)


def test_too_much_is_held__503_at_once(monkeypatch):
    monkeypatch.setattr(limits, "UNCOMMITTED_BYTES_MAX", 30)

    async def scenario(world):
        world.submit(1)
        world.submit(2, 3, 4, 5)
        assert world.sink.statuses == {2: 503, 3: 503, 4: 503, 5: 503}

    run(scenario)


def test_two_nodes_point_at_each_other__a_batch_rests_before_it_goes_on(monkeypatch):
    monkeypatch.setattr(forwarding, "HOP_PAUSE_S", 0.02)

    async def scenario(world):
        world.links.up("asker")
        world.leads("asker")
        world.forwarded_here(1, 2, hops=limits.FORWARD_HOPS_MAX)
        assert not world.links.casts
        await asyncio.sleep(0.005)
        assert not world.links.casts
        await asyncio.sleep(0.03)
        [(node, forward)] = world.links.forwards()
        assert (node, forward.hops) == ("asker", limits.FORWARD_HOPS_MAX)
        assert not world.links.answers()
        assert not world.forwarder._held.groups()

    run(scenario)


def test_nodes_disagree_and_one_of_them_leads_soon__the_batch_is_served():
    async def scenario(world):
        world.links.up("asker")
        world.leads("asker")
        world.forwarded_here(1, hops=limits.FORWARD_HOPS_MAX)
        world.leads("me")
        await asyncio.sleep(0.005)
        assert [rids for rids, *_ in world.host.proposed] == [[1]]
        assert not world.links.casts

    run(scenario)


def test_forwarded_twice__the_hops_are_counted_and_the_answer_goes_back():
    async def scenario(world):
        world.links.up("asker")
        world.links.up("l")
        world.leads("l")
        world.forwarded_here(1)
        [(node, forward)] = world.links.forwards()
        assert (node, forward.hops) == ("l", 2)
        world.answer("l", forward.forward_id, (1, 200, "a"))
        assert world.links.answers()[0][1].answers == [(1, 200, "a")]

    run(scenario)


def test_asker_restarted__its_new_process_gets_no_old_answers():
    async def scenario(world):
        world.links.up("asker", boot="first")
        world.host.leader = "me"
        world.forwarded_here(1, boot="first")
        sink = world.host.proposed[0][3]
        world.links.up("asker", boot="second")
        sink.answer(1, 200, "a")
        sink.flush()
        assert not world.links.answers()

    run(scenario)


def test_group_is_not_here__the_asker_hears_503():
    async def scenario(world):
        world.links.up("asker")
        world.forwarded_here(1, group=77)
        assert world.links.answers()[0][1].answers[0][:2] == (1, 503)

    run(scenario)


def test_huge_answers__cut_into_several_casts(monkeypatch):
    monkeypatch.setattr(forwards, "ANSWERS_BYTES_MAX", 1_000)

    async def scenario(world):
        world.links.up("asker")
        world.host.leader = "me"
        world.forwarded_here(*range(1, 9))
        sink = world.host.proposed[0][3]
        for rid in range(1, 9):
            sink.answer(rid, 200, "x" * 400)
        sink.flush()
        assert len(world.links.answers()) == 4
        rids = [rid for _, message in world.links.answers() for rid, _, _ in message.answers]
        assert rids == list(range(1, 9))

    run(scenario)


def test_refused_by_the_engine__overloaded_or_held_or_sent_on():
    async def scenario(world):
        def flight(*parts):
            rids = [rid for _, some in parts for rid in some]
            sinks = [(len(some), sink) for sink, some in parts]
            return Flight(rids, sinks, [Add(rid) for rid in rids], [])

        own, other = Sink(), Sink()
        world.forwarder.refused(
            GROUP, flight((own, [1, 2]), (NULL_SINK, [0]), (other, [1])), "overloaded", "me"
        )
        assert own.statuses == {1: 503, 2: 503}
        assert other.statuses == {1: 503}
        world.forwarder.refused(GROUP, flight((own, [3]), (NULL_SINK, [0])), "transferring", "me")
        world.links.up("l")
        world.leads("l")
        await asyncio.sleep(0)
        world.forwarder.refused(GROUP, flight((own, [4])), "not_leader", "l")
        sent = [[r for r, _, _ in CODEC.split(f.payload)] for _, f in world.links.forwards()]
        assert sent == [[3], [4]]

    run(scenario)


def test_node_ends__held_and_later_requests_hear_503():
    async def scenario(world):
        world.submit(1)
        world.forwarder.close()
        world.submit(2)
        assert world.sink.statuses == {1: 503, 2: 503}
        await asyncio.sleep(HOLD_MS / 1000 + 0.02)
        assert len(world.sink.answers) == 2

    run(scenario)


# --- a link that carries one way only -------------------------------------------------------


def test_leader_is_heard_and_brings_no_echo__indeterminate_soon_and_then_503():
    async def scenario(world):
        started = world.host.loop.time()
        await world.unheard(1)
        assert HOLD_MS <= (world.host.loop.time() - started) * 1000 + 1 < HOLD_MS + 300
        assert world.sink.statuses == {1: 504}
        world.submit(2)
        assert len(world.links.forwards()) == 1, "sent to a leader that does not hear"
        await until(lambda: len(world.sink.answers) == 2)
        assert world.sink.statuses[2] == 503
        assert not world.forwarder.owed_groups()

    run(scenario)


def test_leader_hears_again__what_is_held_goes_to_it():
    async def scenario(world):
        await world.unheard(1)
        world.submit(2)
        world.links.echoes[-1].set_result(b"")
        await until(lambda: len(world.links.forwards()) == 2)
        world.answer("l", 2, (2, 200, "b"))
        assert world.sink.statuses == {1: 504, 2: 200}

    run(scenario)


@pytest.mark.parametrize("old", [False, True])
def test_leader_is_slow_and_echoes__the_request_is_not_given_up(old):
    """An older node answers that it does not know the question: it hears."""

    async def scenario(world):
        world.links.one_way = True
        forward = world.forwarded(1)
        for _ in range(3):
            seen = len(world.links.echoes)
            await until(lambda seen=seen: len(world.links.echoes) > seen)
            if old:
                error = RemoteError(503, {"code": "unavailable", "message": "does not serve"})
                world.links.echoes[-1].set_exception(error)
            else:
                world.links.echoes[-1].set_result(b"")
        await asyncio.sleep(0.8 * HOLD_MS / 1000)
        assert not world.sink.answers
        world.answer("l", forward.forward_id, (1, 200, "a"))
        assert world.sink.statuses == {1: 200}

    run(scenario)


@pytest.mark.parametrize("why", ["silent", "unsent"])
def test_leader_is_silent_or_slow_to_take_bytes__not_this_rules_matter(why):
    async def scenario(world):
        world.links.one_way = True
        if why == "silent":
            world.links.frames_from = lambda node_id: 7
        else:
            world.links.unsent = 1
        world.forwarded(1)
        await asyncio.sleep(3 * HOLD_MS / 1000)
        assert world.links.echoes
        assert not world.sink.answers
        world.forwarder.close()

    run(scenario)


def test_request_waits_at_a_leader_that_hears_no_more__it_goes_on_waiting():
    async def scenario(world):
        world.links.one_way = True
        forward = world.forwarded(1, 2)
        world.answer("l", forward.forward_id, placed=[(2, 40, 1)])
        await until(lambda: world.sink.answers)
        assert world.sink.statuses == {1: 504}
        world.woken(40, 1)
        assert world.sink.statuses == {1: 504, 2: 200}

    run(scenario)


def test_new_link_to_a_leader_that_did_not_hear__requests_go_to_it():
    async def scenario(world):
        await world.unheard(1)
        world.submit(2)
        world.links.down("l")
        world.links.up("l")
        assert len(world.links.forwards()) == 2
        world.forwarder.close()

    run(scenario)


def test_everything_is_answered__no_echo_is_asked_for():
    async def scenario(world):
        forward = world.forwarded(1)
        world.answer("l", forward.forward_id, (1, 200, "a"))
        await asyncio.sleep(2 * HOLD_MS / 1000)
        assert not world.links.echoes
        assert world.forwarder._echoes._timer is None

    run(scenario)


# --- requests that wait in the machine ------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "leader", "restart", "abandoned"])
def test_leader_is_lost_while_a_request_waits__this_node_answers_it_from_the_log(how):
    async def scenario(world):
        forward = world.forwarded(1, 2)
        world.answer("l", forward.forward_id, placed=[(2, 40, 1)])
        if how == "link":
            world.links.down("l")
        elif how == "leader":
            world.leads(None)
            await asyncio.sleep(2.2 * HOLD_MS / 1000)
        elif how == "restart":
            world.links.down("l")
            world.links.up("l", boot="second")
        else:
            world.answer("l", forward.forward_id, (1, 504, "stops"), (2, 504, "stops"))
        assert world.sink.statuses == {1: 504}
        assert not world.forwarder.owed_groups()
        world.woken(40, 1)
        assert world.sink.answers[1:] == [(2, 200, "woken")]
        world.answer("l", forward.forward_id, (2, 200, "late"))
        assert len(world.sink.answers) == world.sink.flushed == 2

    run(scenario)


@pytest.mark.parametrize("first", ["leader", "log"])
def test_wait_ends_while_the_leader_lives__answered_once_by_whoever_is_first(first):
    async def scenario(world):
        forward = world.forwarded(1)
        world.answer("l", forward.forward_id, placed=[(1, 40, 0)])
        if first == "leader":
            world.answer("l", forward.forward_id, (1, 200, "woken"))
            world.woken(40, 0)
        else:
            world.woken(40, 0)
            world.answer("l", forward.forward_id, (1, 200, "woken"))
        assert world.sink.answers == [(1, 200, "woken")]
        assert not world.forwarder._outgoing
        assert not world.host.waits

    run(scenario)


def test_wait_ended_before_the_leader_told_where_it_stands__answered_when_it_does():
    async def scenario(world):
        forward = world.forwarded(1)
        for index in range(UNCLAIMED_MAX):
            world.woken(40 + index, 0, 409)
        world.answer("l", forward.forward_id, placed=[(1, 40, 0)])
        world.links.down("l")
        assert world.sink.statuses == {1: 409}
        world.woken(40, 0)
        assert len(world.sink.answers) == world.sink.flushed == 1

    run(scenario)


def test_wait_forwarded_twice__the_asker_is_told_where_it_stands():
    async def scenario(world):
        world.links.up("asker")
        world.links.up("l")
        world.leads("l")
        world.forwarded_here(1)
        [(_, forward)] = world.links.forwards()
        world.answer("l", forward.forward_id, placed=[(1, 40, 2)])
        [(node, message)] = world.links.answers()
        assert (node, message.forward_id, message.answers) == ("asker", 5, [])
        assert message.placed == [(1, 40, 2)]
        assert world.host.waits.here() == [], "the asker's wait, not ours"

    run(scenario)


def test_wait_never_ends__indeterminate_in_the_end(monkeypatch):
    monkeypatch.setattr(forwarding, "OUTGOING_MS_MAX", 20)
    monkeypatch.setattr(forwarding, "SWEEP_EVERY_S", 0.01)

    async def scenario(world):
        forward = world.forwarded(1)
        world.answer("l", forward.forward_id, placed=[(1, 40, 0)])
        assert world.host.waits.here() == [(40, 0)]
        await asyncio.sleep(0.08)
        assert world.sink.statuses == {1: 504}
        world.woken(40, 0)
        assert len(world.sink.answers) == world.sink.flushed == 1
        assert not world.forwarder._outgoing

    run(scenario)


def test_node_without_that_field__its_answers_are_read():
    async def scenario(world):
        forward = world.forwarded(1)
        peer = Peer("l", "inc-l", "boot")
        old = encode([forward.forward_id, [[1, 200, "a"]]])
        world.links.cast_handlers["raft.answers"](peer, old)
        assert world.sink.statuses == {1: 200}

    run(scenario)
