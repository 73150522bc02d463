"""The commands, results and receipts of a queue partition: plain structs, bounds included.

Bodies are bytes: of a JSON body exactly the bytes that the producer sent; of a base64 body the raw
bytes, with `base64` set. What must not live here: the state machine, HTTP's shapes (api/queues.py).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from dss.base.errors import Invalid
from dss.base.limits import (
    BATCH_ITEMS_MAX,
    BODY_BYTES_MAX,
    HEADER_CHARS_MAX,
    HEADERS_MAX,
    NAME_BYTES_MAX,
    QUEUE_DELIVERIES_MAX,
    QUEUE_LENGTH_MAX,
    RECEIVE_BYTES_MAX,
    VISIBILITY_MS_DEFAULT,
    VISIBILITY_MS_MAX,
)
from dss.core.machine import CommandCodec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
Key = Annotated[str, msgspec.Meta(max_length=NAME_BYTES_MAX)]
HeaderText = Annotated[str, msgspec.Meta(max_length=HEADER_CHARS_MAX)]
Headers = Annotated[dict[HeaderText, HeaderText], msgspec.Meta(max_length=HEADERS_MAX)]
DelayMs = Annotated[int, msgspec.Meta(ge=0, le=VISIBILITY_MS_MAX)]
VisibilityMs = Annotated[int, msgspec.Meta(ge=1, le=VISIBILITY_MS_MAX)]
BatchSize = Annotated[int, msgspec.Meta(ge=1, le=BATCH_ITEMS_MAX)]
Counter = Annotated[int, msgspec.Meta(ge=0)]


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user may set of a queue. Times in ms."""

    visibility_ms: Annotated[int, msgspec.Meta(ge=1, le=VISIBILITY_MS_MAX)] = VISIBILITY_MS_DEFAULT
    """How long a received message stays hidden when the receive does not say."""
    max_deliveries: Annotated[int, msgspec.Meta(ge=1, le=QUEUE_DELIVERIES_MAX)] = 20
    """After so many deliveries without an ack the message goes to the dead letters."""
    max_length: Annotated[int, msgspec.Meta(ge=1, le=QUEUE_LENGTH_MAX)] = QUEUE_LENGTH_MAX
    """Messages kept, dead letters included: beyond, sends are refused with `queue_full`."""


# --- commands -----------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a producer sent. It is kept as it is until the ack."""

    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    base64: bool = False
    headers: Headers | None = None
    key: Key | None = None
    delay_ms: DelayMs = 0


class Configure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bring a queue to this version. An older incarnation or version changes nothing."""

    queue: Name
    incarnation: Counter
    version: Counter
    settings: QueueSettings


class Drop(msgspec.Struct, frozen=True, omit_defaults=True):
    """Delete a queue and its messages, unless a newer incarnation has taken the name."""

    queue: Name
    incarnation: Counter


class Send(msgspec.Struct, frozen=True, omit_defaults=True):
    """Add messages, all or none. `incarnation` is the queue that the producer's node knows."""

    queue: Name
    incarnation: Counter
    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1, max_length=BATCH_ITEMS_MAX)]


class Receive(msgspec.Struct, frozen=True, omit_defaults=True):
    """Lease up to `max` visible messages, oldest first, of `bytes_max` (but at least one)."""

    queue: Name
    max: BatchSize = 1
    visibility_ms: VisibilityMs | None = None
    bytes_max: Annotated[int, msgspec.Meta(ge=1, le=RECEIVE_BYTES_MAX)] = RECEIVE_BYTES_MAX


Delivery = tuple[Counter, Counter]
"""(sequence, deliveries): which message, and the how-manieth delivery of it."""
Deliveries = Annotated[tuple[Delivery, ...], msgspec.Meta(min_length=1, max_length=BATCH_ITEMS_MAX)]


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    queue: Name
    deliveries: Deliveries


class Nack(msgspec.Struct, frozen=True, omit_defaults=True):
    """Give messages back: visible again at once, or after `delay_ms`."""

    queue: Name
    deliveries: Deliveries
    delay_ms: DelayMs = 0


class Extend(msgspec.Struct, frozen=True, omit_defaults=True):
    """The leases end `visibility_ms` from now, whatever was left of them."""

    queue: Name
    deliveries: Deliveries
    visibility_ms: VisibilityMs


class Expire(msgspec.Struct, frozen=True, omit_defaults=True):
    """Internal: end the leases and delays that are due at this entry's log time.

    It names nothing: what is due is decided by the state when it is applied, so that an ack or an
    extend before it in the log wins, and a late or repeated one does nothing.
    """


QUEUE_OPS: dict[str, type[msgspec.Struct]] = {
    "configure": Configure,
    "drop": Drop,
    "send": Send,
    "receive": Receive,
    "ack": Ack,
    "nack": Nack,
    "extend": Extend,
    "expire": Expire,
}


def queue_codec() -> CommandCodec:
    """The codec of partition groups."""
    return CommandCodec(QUEUE_OPS)


# --- results ------------------------------------------------------------------------------


class Sent(msgspec.Struct, frozen=True, gc=False):
    """The messages of a send have the sequences `first`, `first` + 1, …"""

    first: int


class Delivered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message as `receive` answers it."""

    sequence: int
    deliveries: int
    body: bytes
    base64: bool = False
    headers: dict[str, str] | None = None
    key: str | None = None


class Settled(msgspec.Struct, frozen=True, gc=False):
    """Of an ack, nack or extend: the positions in `deliveries` that were stale."""

    stale: tuple[int, ...] = ()


# --- names that clients see ---------------------------------------------------------------


def message_id(partition: int, sequence: int) -> str:
    """A message's id: unique for ever, as a partition never counts a sequence twice."""
    return f"{partition}-{sequence}"


def receipt(partition: int, sequence: int, deliveries: int) -> str:
    """The name of one delivery of one message; opaque to clients."""
    return f"{partition}-{sequence}-{deliveries}"


def parse_receipt(text: str) -> tuple[int, int, int]:
    """(partition, sequence, deliveries) of a receipt.

    Raises:
        Invalid: it is none.
    """
    parts = text.split("-")
    if len(text) <= 64 and len(parts) == 3:
        try:
            partition, sequence, deliveries = int(parts[0]), int(parts[1]), int(parts[2])
        except ValueError:
            pass
        else:
            if partition >= 0 and 0 <= sequence < 2**63 and 0 <= deliveries < 2**63:
                return partition, sequence, deliveries
    raise Invalid(f"{text[:64]!r} is not a receipt: use the one that receive gave")
