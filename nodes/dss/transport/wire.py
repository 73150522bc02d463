"""What travels between nodes: a frame is a msgpack array of messages, length-prefixed by a u32.

Raft's messages have tags 1-9 (core/raft/messages.py); everything else is a call, its return, or a
cast, whose bodies belong to the service that registered the method. New fields go last.
"""

from __future__ import annotations

import msgspec

from dss.core.raft.messages import RaftMessage


class Call(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """A request: answered by one Return with the same `call_id`."""

    call_id: int
    method: str
    body: bytes


class Return(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """`status` 200: `body` is the method's answer; else a msgpack problem `{code, message}`."""

    call_id: int
    status: int
    body: bytes


class Cast(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """One-way: may be lost with the link."""

    method: str
    body: bytes


Message = RaftMessage | Call | Return | Cast
