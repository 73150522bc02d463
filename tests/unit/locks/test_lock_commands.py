import msgspec
import pytest
from machine_world import sid

from dss.base.errors import Invalid
from dss.core.locks.commands import CLIENT_CODEC, LOCAL_OPS, LOG_CODEC, READ_OPS, Acquire


def decode(op, **args):
    return CLIENT_CODEC.decode_args(op, msgspec.msgpack.encode(args))


@pytest.mark.parametrize(
    "name",
    ["a", "a/b", "orders/42", ".a", "a..b", "...", "ä" * 128, "x" * 256, "a b", "a:b", "日本/x"],
)
def test_good_names__pass(name):
    assert decode("acquire", session="s", name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "../a", "a/..", "ä" * 129, "x" * 257]
)
def test_bad_names__are_refused(name):
    with pytest.raises(Invalid):
        decode("acquire", session="s", name=name)
    with pytest.raises(Invalid):
        decode("get", name=name)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("acquire", {"session": "s", "name": "a", "wait_ms": 30_001}),
        ("acquire", {"session": "s", "name": "a", "wait_ms": -1}),
        ("acquire", {"session": "s", "name": "a", "mode": "semaphore"}),
        ("acquire", {"session": "s", "name": "a", "wait": 5}),
        ("acquire", {"session": "", "name": "a"}),
        ("acquire", {"name": "a"}),
        ("acquire", {"session": "s", "name": "a", "owner": "x" * 129}),
        ("release", {"session": "s", "name": "a"}),
        ("release", {"session": "s", "name": "a", "token": 0}),
        ("release", {"session": "s", "name": "a", "token": 2**53}),
        ("session.create", {"ttl_ms": 99}),
        ("session.create", {"ttl_ms": 24 * 3_600_000 + 1}),
        ("session.create", {"session": "short"}),
        ("session.create", {"session": sid(1).upper().replace("0", "A")}),
        ("session.keepalive", {}),
        ("list", {"limit": 1_001}),
        ("expire_sessions", {"sessions": [["s", 0]]}),
        ("expire_waits", {"tickets": [1]}),
        ("nonsense", {}),
    ],
)
def test_out_of_bounds__is_refused_while_decoding(op, args):
    with pytest.raises(Invalid):
        decode(op, **args)


def test_client_codec__every_write_is_in_the_log_codec_and_nothing_else_is():
    others = READ_OPS | LOCAL_OPS
    assert CLIENT_CODEC.ops - others < LOG_CODEC.ops
    assert others < CLIENT_CODEC.ops
    assert not others & LOG_CODEC.ops


def test_defaults__are_not_encoded():
    item = LOG_CODEC.encode_item(1, Acquire("s", "a"))
    assert msgspec.msgpack.decode(item) == [1, "acquire", {"session": "s", "name": "a"}]


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91\x93\x01\xa2\xff\xfe\x80",
        b"\x91\x93\x01\xa3get" + b"\x91" * 100_000,
        b"\x91" * 100_000,
    ],
)
def test_message_that_msgpack_cannot_read__invalid_not_a_crash(payload):
    with pytest.raises(Invalid):
        CLIENT_CODEC.split(payload)


@pytest.mark.parametrize("args", [b"\x81\xa4name\xa2\xff\xfe", b"\x81\xa4name" + b"\x91" * 100_000])
def test_args_that_msgpack_cannot_read__invalid_not_a_crash(args):
    with pytest.raises(Invalid):
        CLIENT_CODEC.decode_args("get", args)
