"""The feature level in the handshake: told and proved, and invisible to releases without levels."""

import hmac

import msgspec
import pytest
from driver_world import identity

from dss.transport import handshake
from dss.transport.handshake import Acceptor, Dialer, HandshakeRefused

SECRET = b"s" * 32


class OldHello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """As a release without levels sends it."""

    magic: str
    cluster_id: str
    node_id: str
    to: str
    incarnation: str
    boot_id: str
    nonce: bytes
    secret_id: bytes = b""


class OldWelcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    magic: str
    node_id: str
    incarnation: str
    boot_id: str
    nonce: bytes
    proof: bytes


encode = msgspec.msgpack.encode


def old_check(hello: bytes, data: bytes) -> None:
    """What such a release's dialer does with a welcome: decode, take the proof out, encode."""
    welcome = msgspec.msgpack.decode(data, type=OldWelcome)
    unsigned = encode(msgspec.structs.replace(welcome, proof=b""))
    assert hmac.compare_digest(handshake._prove(SECRET, b"accept", hello, unsigned), welcome.proof)


def shake(dialer, acceptor):
    welcome = acceptor.greeted(dialer.hello())
    heard, proof = dialer.welcomed(welcome)
    return heard, acceptor.proved(proof)


def test_both_tell_levels__each_knows_the_others():
    dialer = Dialer(identity("b", level=2), "a")
    welcome, hello = shake(dialer, Acceptor(identity("a", level=5), frozenset(("b",))))
    assert (welcome.feature_level, hello.feature_level) == (5, 2)


def test_dialer_without_levels__is_let_in_and_can_check_the_welcome():
    acceptor = Acceptor(identity("a", level=5), frozenset(("b",)))
    secret_id = handshake._secret_id(SECRET)
    hello = encode(OldHello("dss-peer/1", "test", "b", "a", "i", "boot", b"n" * 32, secret_id))
    welcome = acceptor.greeted(hello)
    old_check(hello, welcome)
    proof = encode(handshake.Proof(handshake._prove(SECRET, b"dial", hello, welcome)))
    assert acceptor.proved(proof).feature_level == 0


def test_acceptor_without_levels__supports_the_base_level():
    dialer = Dialer(identity("b", level=2), "a")
    heard = msgspec.msgpack.decode(dialer.hello(), type=OldHello)
    assert heard.secret_id == handshake._secret_id(SECRET), "it reads the longer hello"
    unsigned = OldWelcome("dss-peer/1", "a", "i", "boot", b"n" * 32, b"")
    proof = handshake._prove(SECRET, b"accept", dialer.hello(), encode(unsigned))
    welcome, _ = dialer.welcomed(encode(msgspec.structs.replace(unsigned, proof=proof)))
    assert welcome.feature_level == 1


@pytest.mark.parametrize("side", ["hello", "welcome"])
def test_level_changed_on_the_way__is_refused(side):
    dialer = Dialer(identity("b", level=1), "a")
    acceptor = Acceptor(identity("a", level=1), frozenset(("b",)))
    hello = dialer.hello()
    if side == "hello":
        hello = encode([*msgspec.msgpack.decode(hello)[:-1], 9])
    welcome = acceptor.greeted(hello)
    if side == "welcome":
        welcome = encode([*msgspec.msgpack.decode(welcome)[:-1], 9])
    with pytest.raises(HandshakeRefused, match="CLUSTER_SECRET"):
        dialer.welcomed(welcome)


@pytest.mark.parametrize("data", [b"\x92\x04\xa2\xff\xfe", b"\x91" * 3_000])
def test_bytes_that_no_peer_sends__are_refused_as_such(data):
    with pytest.raises(HandshakeRefused, match="not a DSS peer"):
        handshake.decode(data)
