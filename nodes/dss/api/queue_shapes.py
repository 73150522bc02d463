"""What queue requests and answers look like, over HTTP and the stream: shapes and checks.

Over HTTP a message's body is a JSON value or base64 text; over the stream it is bytes, of which the
field's name says whether they are JSON. Everything else is the same on both. What must not live
here: routes, ops, decisions.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated

import msgspec

from dss.base.errors import Invalid
from dss.base.limits import BATCH_ITEMS_MAX, VISIBILITY_MS_DEFAULT, WAIT_MS_MAX
from dss.core.machine import Result
from dss.core.meta.commands import QueueEntry
from dss.core.queueing.commands import (
    BatchSize,
    DelayMs,
    Headers,
    Key,
    Message,
    VisibilityMs,
    message_id,
    receipt,
)
from dss.drivers.queue_receiver import Taken
from dss.drivers.queues import Outcome

WaitMs = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]
Receipt = Annotated[str, msgspec.Meta(max_length=64)]
Receipts = Annotated[list[Receipt], msgspec.Meta(max_length=BATCH_ITEMS_MAX)]


class NewMessage(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly one of `body` (any JSON value) and `body_base64`."""

    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: Headers | None = None
    key: Key | None = None
    delay_ms: DelayMs = 0


class SendRequest(NewMessage, forbid_unknown_fields=True):
    """One message, or a batch in `messages` (and then nothing else)."""

    messages: Annotated[list[NewMessage], msgspec.Meta(max_length=BATCH_ITEMS_MAX)] | None = None


class ReceiveRequest(msgspec.Struct, forbid_unknown_fields=True):
    max: BatchSize = 1
    wait_ms: WaitMs = 0
    visibility_ms: VisibilityMs | None = None
    """Default: the queue's setting."""


class AckRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Either `receipts`, answered per item, or one `receipt`, answered by the status."""

    receipts: Receipts | None = None
    receipt: Receipt | None = None


class NackRequest(AckRequest, forbid_unknown_fields=True):
    delay_ms: DelayMs = 0


class ExtendRequest(AckRequest, forbid_unknown_fields=True):
    visibility_ms: VisibilityMs = VISIBILITY_MS_DEFAULT


class SentMessage(msgspec.Struct):
    id: str


class ItemResult(msgspec.Struct, omit_defaults=True):
    """`ok`, or why not: `status` is what the item alone would have been answered with."""

    ok: bool
    id: str | None = None
    status: int = 200
    code: str | None = None
    message: str | None = None


class BatchResults(msgspec.Struct):
    results: list[ItemResult]


class SettledAnswer(msgspec.Struct):
    results: list[ItemResult] | msgspec.UnsetType = msgspec.UNSET
    """Absent where one `receipt` was named: the status says it all."""


class ReceivedMessage(msgspec.Struct, omit_defaults=True):
    id: str
    receipt: str
    deliveries: int
    redelivered: bool
    """It was delivered before: whoever had it may have done part of the work."""
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: dict[str, str] | None = None
    key: str | None = None


class ReceivedMessages(msgspec.Struct):
    messages: list[ReceivedMessage]


class QueueDetail(msgspec.Struct):
    name: str
    visibility_ms: int
    max_deliveries: int
    max_length: int
    version: int
    """Rises with each change of the settings."""


class QueueItem(msgspec.Struct):
    name: str
    ready: int
    leased: int
    delayed: int
    dead: int


class QueuePage(msgspec.Struct):
    items: list[QueueItem]
    next: str | None = None


class QueueStats(msgspec.Struct, omit_defaults=True):
    """Counts over all partitions; the second group since the queue was made."""

    name: str
    ready: int
    leased: int
    delayed: int
    dead: int
    bytes: int
    sent: int
    received: int
    redelivered: int
    acked: int
    nacked: int
    expired: int
    dead_lettered: int
    oldest_age_ms: int | None = None


# --- checks and renderings ----------------------------------------------------------------


def detail(entry: QueueEntry) -> QueueDetail:
    settings = entry.settings
    return QueueDetail(
        entry.name,
        settings.visibility_ms,
        settings.max_deliveries,
        settings.max_length,
        entry.version,
    )


def messages_of(body: SendRequest) -> list[Message]:
    """The one message, or those of the batch. Raises Invalid, naming the field."""
    if body.messages is None:
        return [message_of(body, "")]
    if body != SendRequest(messages=body.messages):
        raise batch_alone()
    return [message_of(new, f"messages[{i}].") for i, new in enumerate(body.messages)]


def batch_alone() -> Invalid:
    return Invalid("a batch has nothing but 'messages'", field="messages")


def message_of(new: NewMessage, place: str) -> Message:
    """Raises Invalid, naming the field, unless there is exactly one body."""
    if new.body is not msgspec.UNSET and new.body_base64 is msgspec.UNSET:
        return Message(bytes(new.body), False, new.headers, new.key, new.delay_ms)
    if new.body is msgspec.UNSET and new.body_base64 is not msgspec.UNSET:
        try:
            data = base64.b64decode(new.body_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            field = f"{place}body_base64"
            raise Invalid(f"field {field!r} is not base64: {error}", field=field) from error
        return Message(data, True, new.headers, new.key, new.delay_ms)
    field = f"{place}body"
    raise Invalid(
        f"field {field!r}: a message has either 'body' (any JSON value) or 'body_base64'",
        field=field,
    )


def received(taken: Taken) -> ReceivedMessage:
    one = taken.delivered
    message = ReceivedMessage(
        message_id(taken.partition, one.sequence),
        receipt(taken.partition, one.sequence, one.deliveries),
        one.deliveries,
        one.deliveries > 1,
        headers=one.headers,
        key=one.key,
    )
    if one.base64:
        message.body_base64 = base64.b64encode(one.body).decode()
    else:
        message.body = msgspec.Raw(one.body)
    return message


def receipts_of(body: AckRequest) -> list[str]:
    if (body.receipts is None) == (body.receipt is None):
        raise Invalid("give either 'receipts' (a list) or one 'receipt'", field="receipts")
    return body.receipts if body.receipts is not None else [str(body.receipt)]


def sent(outcomes: Sequence[Outcome], single: bool) -> Result:
    """A send's answer: of one message 201 `{id}` or its failure, else a result per message."""
    if single and outcomes[0].status < 400:
        return 201, SentMessage(message_id(*outcomes[0].body))
    return _results(outcomes, single)


def settled(outcomes: Sequence[Outcome], single: bool) -> Result:
    """An ack's, a nack's or an extend's answer: 200 `{}` or its failure, or results."""
    if single and outcomes[0].status < 400:
        return 200, {}
    return _results(outcomes, single)


def _results(outcomes: Sequence[Outcome], single: bool) -> Result:
    """A batch of which no item was done for want of a quorum is answered as a whole."""
    if single or (outcomes and all(outcome.status >= 429 for outcome in outcomes)):
        return outcomes[0].status, outcomes[0].body
    return 200, BatchResults([_result(one) for one in outcomes])


def _result(outcome: Outcome) -> ItemResult:
    if outcome.status < 400:
        return ItemResult(True, message_id(*outcome.body) if outcome.body else None)
    code, message = outcome.body["code"], outcome.body["message"]
    return ItemResult(False, None, outcome.status, code, message)
