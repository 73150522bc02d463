"""How two nodes prove who they are before the first frame: mutual HMAC over the cluster secret.

    dialer   -> Hello(magic, cluster, from, to, incarnation, boot, nonce, level)
    acceptor -> Welcome(magic, from, incarnation, boot, nonce, proof, level)   or Reject(reason)
    dialer   -> Proof(proof)                                                   or nothing, closes

Both say which feature level they support (base/levels.py); a node of a release without levels says
none, and is not told any: it would take a longer welcome for a forged one.

Each proof is HMAC-SHA256 over a label and every byte said so far, so a recorded handshake is
worth nothing: the other side's nonce is new. Frames after it are not encrypted (TLS is a later
issue). What must not live here: sockets.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.core.machine import UNREADABLE

MAGIC: Final = "dss-peer/1"
NONCE_BYTES: Final = 32
HANDSHAKE_BYTES_MAX: Final = 4096
"""A handshake message is a few hundred bytes; more is not a DSS node."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    magic: str
    cluster_id: str
    node_id: str
    to: str
    incarnation: str
    boot_id: str
    nonce: bytes
    secret_id: bytes = b""
    """Which secret the dialer means, while a new one is being handed out."""
    feature_level: int = 0
    """What the dialer supports; 0: its release has no levels."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    magic: str
    node_id: str
    incarnation: str
    boot_id: str
    nonce: bytes
    proof: bytes
    feature_level: int = BASE_LEVEL


_PROOF_AT: Final = 1 + Welcome.__struct_fields__.index("proof")
"""Where the proof stands in an encoded Welcome, behind the tag."""


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=3):
    proof: bytes


class Reject(msgspec.Struct, frozen=True, array_like=True, tag=4):
    reason: str


HandshakeMessage = Hello | Welcome | Proof | Reject
_decoder = msgspec.msgpack.Decoder(HandshakeMessage)
_encode = msgspec.msgpack.Encoder().encode


class HandshakeRefused(Exception):
    """The other end is not a node of this cluster, or this one is not to it."""


class Identity(msgspec.Struct, frozen=True):
    """Who this process is to its peers."""

    cluster_id: str
    node_id: str
    incarnation: str
    boot_id: str
    secret: bytes
    previous_secret: bytes | None = None
    """Accepted as well: not all nodes get a new secret at the same moment."""
    feature_level: int = BASE_LEVEL
    """What this process supports."""

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Those to accept, the current one first."""
        return (self.secret,) if self.previous_secret is None else (
            self.secret, self.previous_secret,
        )  # fmt: skip

    def with_secret(self, secret: bytes) -> Identity:
        """The same process with a new secret; the current one stays good beside it."""
        return msgspec.structs.replace(self, secret=secret, previous_secret=self.secret)


def decode(data: bytes) -> HandshakeMessage:
    try:
        message: HandshakeMessage = _decoder.decode(data)
    except UNREADABLE as error:
        raise HandshakeRefused(f"not a DSS peer: {error}") from error
    return message


def _secret_id(secret: bytes) -> bytes:
    """Tells two secrets apart and nothing about either."""
    return hmac.new(secret, b"secret id", "sha256").digest()[:8]


def _prove(secret: bytes, label: bytes, *said: bytes) -> bytes:
    mac = hmac.new(secret, label, "sha256")
    for part in said:
        mac.update(len(part).to_bytes(4, "big"))
        mac.update(part)
    return mac.digest()


def _with_proof(welcome: bytes, proof: bytes) -> bytes:
    """The encoded Welcome with that proof, whatever fields stand behind it."""
    fields = msgspec.msgpack.decode(welcome)
    fields[_PROOF_AT] = proof
    return _encode(fields)


class Dialer:
    """The dialing side: `hello()` goes out first, then `welcomed(bytes)` gives the proof."""

    def __init__(self, me: Identity, to: str) -> None:
        self._me = me
        self._to = to
        self._hello = _encode(
            Hello(
                MAGIC,
                me.cluster_id,
                me.node_id,
                to,
                me.incarnation,
                me.boot_id,
                secrets.token_bytes(NONCE_BYTES),
                _secret_id(me.secret),
                me.feature_level,
            )
        )

    def hello(self) -> bytes:
        return self._hello

    def welcomed(self, data: bytes) -> tuple[Welcome, bytes]:
        """Check the acceptor; returns its Welcome and the Proof message to send."""
        message = decode(data)
        if isinstance(message, Reject):
            raise HandshakeRefused(f"{self._to} refused: {message.reason[:200]}")
        if not isinstance(message, Welcome) or message.magic != MAGIC:
            raise HandshakeRefused(f"{self._to} answered something else than a welcome")
        if message.node_id != self._to:
            raise HandshakeRefused(f"dialed {self._to}, but {message.node_id[:64]} answered")
        unsigned = _with_proof(data, b"")
        for secret in self._me.secrets:
            expected = _prove(secret, b"accept", self._hello, unsigned)
            if hmac.compare_digest(expected, message.proof):
                return message, _encode(Proof(_prove(secret, b"dial", self._hello, data)))
        raise HandshakeRefused(f"{self._to} does not know this cluster's CLUSTER_SECRET")


class Acceptor:
    """The accepting side: `greeted(bytes)` gives the Welcome, then `proved(bytes)` the Hello."""

    def __init__(self, me: Identity, known: frozenset[str]) -> None:
        self._me = me
        self._known = known
        self._secret = me.secret
        self._heard = b""
        self._said = b""
        self._hello: Hello | None = None

    def greeted(self, data: bytes) -> bytes:
        me = self._me
        message = decode(data)
        if not isinstance(message, Hello) or message.magic != MAGIC:
            raise HandshakeRefused("expected a hello")
        if message.cluster_id != me.cluster_id:
            raise HandshakeRefused(f"this is cluster {me.cluster_id!r}")
        if message.to != me.node_id:
            raise HandshakeRefused(f"this is node {me.node_id!r}")
        if message.node_id not in self._known or message.node_id == me.node_id:
            raise HandshakeRefused(f"{message.node_id[:64]!r} is in no peer list of {me.node_id}")
        if len(message.nonce) != NONCE_BYTES:
            raise HandshakeRefused("bad nonce")
        fields = [
            Welcome.__struct_config__.tag,
            MAGIC,
            me.node_id,
            me.incarnation,
            me.boot_id,
            secrets.token_bytes(NONCE_BYTES),
            b"",
        ]
        if message.feature_level:
            fields.append(me.feature_level)
        welcome = _encode(fields)
        self._secret = next(
            (known for known in me.secrets if _secret_id(known) == message.secret_id), me.secret
        )
        proof = _prove(self._secret, b"accept", data, welcome)
        self._heard = data
        self._said = _with_proof(welcome, proof)
        self._hello = message
        return self._said

    def proved(self, data: bytes) -> Hello:
        message = decode(data)
        assert self._hello is not None
        if not isinstance(message, Proof):
            raise HandshakeRefused("expected a proof")
        expected = _prove(self._secret, b"dial", self._heard, self._said)
        if not hmac.compare_digest(expected, message.proof):
            raise HandshakeRefused("wrong CLUSTER_SECRET")
        return self._hello


def reject(reason: str) -> bytes:
    return _encode(Reject(reason))
