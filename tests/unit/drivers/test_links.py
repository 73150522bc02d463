"""Peer links over TCP: who is let in, what calls end with, what a lost link means."""

import asyncio
import logging
import socket
import time

import msgspec
import pytest
from driver_world import identity, make_links, specs, until
from free_ports import free_port

from dss.base import limits
from dss.base.errors import Indeterminate, Invalid, RemoteError, Unavailable
from dss.topology.nodes import NodeSpec
from dss.transport import dialing
from dss.transport import link as link_module
from dss.transport.links import Links
from dss.transport.wire import Cast


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 10))


async def pair(**who_b):
    nodes = specs("a", "b")
    a, b = make_links("a", nodes), make_links("b", nodes, **who_b)
    await a.start()
    await b.start()
    return a, b


async def stop(*every):
    for links in every:
        await links.stop()
    await asyncio.sleep(0.01)


async def connected():
    a, b = await pair()
    await until(lambda: a.peer("b") and b.peer("a"))
    return a, b


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ({"secret": b"x" * 32}, "CLUSTER_SECRET"),
        ({"cluster": "other"}, "this is cluster 'test'"),
    ],
)
def test_stranger_dials__refused_with_the_reason_and_no_link(who, said):
    async def scenario():
        a, b = await pair(**who)
        await until(lambda: said in b.links()["a"]["reason"])
        assert a.peer("b") is None
        assert b.peer("a") is None
        await stop(a, b)

    run(scenario)


@pytest.mark.parametrize("first", [0, 1])
def test_new_secret_at_one_node_after_the_other__links_stay_and_new_ones_are_made(first):
    """Whichever of the two learns it first; the dialer is b."""

    async def scenario():
        new = b"n" * 32
        both = a, b = await connected()
        assert both[first].use_secret(new)
        assert not both[first].use_secret(new)
        assert a.peer("b"), "the link stays"
        for _ in range(2):  # the second time both have it
            made = a._up["b"]
            b._up["a"].close("broken for a test")
            await until(lambda made=made: a._up.get("b") not in (None, made) and b.peer("a"))
            both[1 - first].use_secret(new)
        assert {links.identity.previous_secret for links in both} == {b"s" * 32}
        await stop(a, b)

    run(scenario)


def test_secret_before_the_previous_one__refused():
    async def scenario():
        a, b = await pair()
        await until(lambda: b.peer("a"))
        a.use_secret(b"n" * 32)
        a.use_secret(b"m" * 32)
        b._up["a"].close("broken for a test")
        await until(lambda: "CLUSTER_SECRET" in b.links()["a"]["reason"])
        await stop(a, b)

    run(scenario)


def test_unknown_node_dials__refused():
    async def scenario():
        nodes = specs("a", "z")
        a = Links(identity("a"), nodes[0], "127.0.0.1", [nodes[0]])
        z = make_links("z", nodes)
        await a.start()
        await z.start()
        await until(lambda: "in no peer list" in z.links()["a"]["reason"])
        assert z.peer("a") is None
        await stop(a, z)

    run(scenario)


def test_dialed_address_is_another_node__refused():
    async def scenario():
        nodes = specs("a", "b", "c")
        wrong = [nodes[0], NodeSpec("b", "127.0.0.1", 1, nodes[0].peer_port), nodes[2]]
        a = make_links("a", nodes)
        c = Links(identity("c"), nodes[2], "127.0.0.1", wrong)
        await a.start()
        await c.start()
        await until(lambda: "this is node 'a'" in c.links()["b"]["reason"])
        assert c.peer("b") is None
        await stop(a, c)

    run(scenario)


def test_oversized_frame__that_connection_ends():
    async def scenario():
        a, b = await connected()
        link = b._up["a"]
        link.transport.write((limits.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        await until(lambda: b._up.get("a") is not link)
        await until(lambda: b.peer("a") is not None)
        await stop(a, b)

    run(scenario)


def test_oversized_first_message__closed_before_it_is_read():
    async def scenario():
        nodes = specs("a", "b")
        a = make_links("a", nodes)
        await a.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", nodes[0].peer_port)
        writer.write((1_000_000).to_bytes(4, "big"))
        assert await asyncio.wait_for(_rest(reader), 2) == b""
        writer.close()
        await stop(a)

    run(scenario)


async def _rest(reader):
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_call_is_answered__result_or_the_handlers_own_error():
    async def scenario():
        a, b = await connected()

        def broken(peer, body, reply):
            raise KeyError("a defect")

        def refuses(peer, body, reply):
            raise Invalid("no such thing", field="x")

        a.on_call("echo", lambda peer, body, reply: reply(200, peer.node_id.encode() + body))
        a.on_call("refuses", refuses)
        a.on_call("broken", broken)
        assert await b.call("a", "echo", b"!", 1_000) == b"b!"
        with pytest.raises(RemoteError) as refused:
            await b.call("a", "refuses", b"", 1_000)
        assert (refused.value.status, refused.value.code) == (422, "invalid")
        with pytest.raises(RemoteError) as failed:
            await b.call("a", "broken", b"", 1_000)
        assert failed.value.status == 500
        assert b.peer("a") is not None, "a handler's defect must not break the link"
        with pytest.raises(RemoteError) as unknown:
            await b.call("a", "nothing", b"", 1_000)
        assert unknown.value.status == 503
        await stop(a, b)

    run(scenario)


def test_call_without_an_answer__indeterminate_after_its_time():
    async def scenario():
        a, b = await connected()
        a.on_call("silent", lambda peer, body, reply: None)
        with pytest.raises(Indeterminate, match="in time"):
            await b.call("a", "silent", b"", 50)
        assert not b._calls
        await stop(a, b)

    run(scenario)


def test_link_breaks_during_a_call__indeterminate_then_it_reconnects():
    async def scenario():
        a, b = await connected()
        changes = []
        b.on_link(lambda node, up, reason: changes.append(up))
        a.on_call("silent", lambda peer, body, reply: a._up["b"].close("cut"))
        with pytest.raises(Indeterminate, match="broke"):
            await b.call("a", "silent", b"", 5_000)
        assert changes == [False]
        await until(lambda: changes == [False, True])
        await stop(a, b)

    run(scenario)


def test_call_without_a_link__unavailable_at_once():
    async def scenario():
        b = make_links("b", specs("a", "b"))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await b.call("a", "echo", b"", 1_000)

    run(scenario)


def test_late_reply_after_the_asker_restarted__not_given_to_its_new_life():
    async def scenario():
        nodes = specs("a", "b")
        a, b = make_links("a", nodes), make_links("b", nodes)
        replies = []
        a.on_call("slow", lambda peer, body, reply: replies.append(reply))
        await a.start()
        await b.start()
        await until(lambda: a.peer("b") and b.peer("a"))
        first = b.call("a", "slow", b"", 5_000)
        await until(lambda: len(replies) == 1)
        await b.stop()
        with pytest.raises(Indeterminate):
            await first
        await until(lambda: a.peer("b") is None)
        again = make_links("b", nodes)
        await again.start()
        await until(lambda: a.peer("b") and again.peer("a"))
        second = again.call("a", "slow", b"", 5_000)
        await until(lambda: len(replies) == 2)
        replies[0](200, b"for the dead process")
        replies[1](200, b"for the living one")
        assert await second == b"for the living one"
        await stop(a, again)

    run(scenario)


def test_peer_that_does_not_read__the_link_is_given_up_and_calls_fail(monkeypatch):
    async def scenario():
        a, b = await connected()
        monkeypatch.setattr(limits, "PEER_OUTBOX_BYTES_MAX", 1_000_000)
        a._up["b"].transport.pause_reading()
        future = b.call("a", "echo", b"", 5_000)
        for _ in range(40):
            b.cast("a", "big", bytes(1_000_000))
            b.flush()
        with pytest.raises(Indeterminate, match="does not read"):
            await future
        assert b.dropped > 0
        await stop(a, b)

    run(scenario)


def test_undecodable_frame__the_link_ends():
    async def scenario():
        a, b = await connected()
        link = b._up["a"]
        body = msgspec.msgpack.encode([[99, "?"]])
        link.transport.write(len(body).to_bytes(4, "big") + body)
        await until(lambda: b._up.get("a") is not link)
        await stop(a, b)

    run(scenario)


def test_bad_host_name__the_dialer_goes_on_trying():
    async def scenario():
        nodes = [NodeSpec("a", "x" * 70 + ".", 1, free_port()), specs("b")[0]]
        b = make_links("b", nodes)
        await b.start()
        await until(lambda: b.links()["a"]["reason"] != "not connected yet")
        assert not b._dialers[0].done()
        await stop(b)

    run(scenario)


def test_batch_beyond_the_frame_limit__cut_into_frames(monkeypatch):
    monkeypatch.setattr(limits, "FRAME_BYTES_MAX", 1_000)
    casts = [Cast("m", bytes(300)) for _ in range(10)]
    data = link_module.encode_frames(casts)
    seen = 0
    while data:
        size = int.from_bytes(data[:4], "big")
        assert size <= 1_000
        seen += len(link_module._frames.decode(data[4 : 4 + size]))
        data = data[4 + size :]
    assert seen == 10


def test_names_that_fail_hang_and_then_resolve__dialed_each_time_and_quietly(monkeypatch, caplog):
    """A pod's name is unknown before it runs, and DNS may be slow: retries, not problems."""

    async def scenario():
        loop = asyncio.get_running_loop()
        real, asked = loop.getaddrinfo, []
        answers = [
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            asyncio.Event(),  # never set: a resolver that does not answer
        ]

        async def getaddrinfo(host, *args, **kwargs):
            if host != "a.nodes.ns.svc":
                return await real(host, *args, **kwargs)
            asked.append(time.monotonic())
            answer = answers[len(asked) - 1] if len(asked) <= len(answers) else None
            if isinstance(answer, OSError):
                raise answer
            if answer is not None:
                await answer.wait()
            return await real("127.0.0.1", *args, **kwargs)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(dialing, "RESOLVE_TIMEOUT_S", 0.3)
        nodes = specs("a", "b")
        a = make_links("a", nodes)
        named = [NodeSpec("a", "a.nodes.ns.svc", nodes[0].port, nodes[0].peer_port), nodes[1]]
        b = make_links("b", named)
        await a.start()
        await b.start()
        await until(lambda: "not known" in b.links()["a"]["reason"])
        await until(lambda: a.peer("b") and b.peer("a"))
        assert len(asked) == 4
        assert asked[3] - asked[2] >= 0.3
        b._up["a"].close("the pod was replaced")
        await until(lambda: len(asked) == 5)
        await until(lambda: b.peer("a"))
        await stop(a, b)

    with caplog.at_level(logging.INFO):
        run(scenario)
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_address_that_does_not_answer__given_up_and_the_next_one_is_tried(monkeypatch):
    """A dead pod's address neither takes nor refuses; a name may have two."""

    async def scenario():
        loop = asyncio.get_running_loop()
        connect, tried = loop.create_connection, []

        async def getaddrinfo(host, port, **kwargs):
            return [(0, 0, 0, "", (address, port)) for address in ("192.0.2.1", "127.0.0.1")]

        async def create_connection(factory, host, port):
            tried.append(host)
            if host == "192.0.2.1":
                await asyncio.Event().wait()
            return await connect(factory, host, port)

        monkeypatch.setattr(dialing, "DIAL_TIMEOUT_S", 0.1)
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(loop, "create_connection", create_connection)
        nodes = specs("a", "b")
        b = make_links("b", nodes)
        await b.start()
        await until(lambda: tried == ["192.0.2.1", "127.0.0.1"])
        await until(lambda: b.links()["a"]["reason"] == "connection refused")
        a = make_links("a", nodes)
        monkeypatch.setattr(loop, "getaddrinfo", type(loop).getaddrinfo.__get__(loop))
        await a.start()
        await until(lambda: b.peer("a"))
        await stop(a, b)

    run(scenario)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_established_links__the_kernel_finds_a_vanished_peer_within_five_seconds():
    async def scenario():
        a, b = await connected()
        for link in (a._up["b"], b._up["a"]):
            sock = link.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5_000
            idle, every, count = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + every * count <= 5
        await stop(a, b)

    run(scenario)
