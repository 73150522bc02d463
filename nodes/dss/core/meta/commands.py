"""The commands and values of the metadata group: plain structs, bounds included. No logic."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.base.limits import (
    NAME_BYTES_MAX,
    NODES_PER_ROLE_MAX,
    PARTITIONS_MAX,
)
from dss.core.machine import CommandCodec
from dss.core.queueing.commands import QueueSettings

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
NodeName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Incarnation = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Replica(msgspec.Struct, frozen=True, array_like=True):
    """A queue node and the incarnation of its data directory."""

    node_id: NodeName
    incarnation: Incarnation


class Partition(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one partition should be; the first replica is the preferred leader."""

    replicas: Annotated[tuple[Replica, ...], msgspec.Meta(min_length=1, max_length=9)]


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """A registered node. `lost_disks` are other incarnations that came under the same id."""

    node_id: str
    role: str
    incarnation: str
    lost_disks: tuple[str, ...] = ()


class QueueEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A queue of the registry.

    `incarnation` is new for each queue made, also under an old name, and rises; `version` rises
    with each change of the settings.
    """

    name: str
    incarnation: int
    version: int
    settings: QueueSettings


class RegisterNode(msgspec.Struct, frozen=True, omit_defaults=True):
    node_id: NodeName
    role: Literal["lock", "queue", "cache"]
    incarnation: Incarnation


class SetTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """Replace the partition table if its version is still `expected_version` (0: none yet)."""

    expected_version: Annotated[int, msgspec.Meta(ge=0)]
    partitions: Annotated[
        tuple[Partition, ...], msgspec.Meta(min_length=1, max_length=PARTITIONS_MAX)
    ]


class PutQueue(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Name
    settings: QueueSettings = QueueSettings()


class DeleteQueue(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Name


class Sync(msgspec.Struct, frozen=True, omit_defaults=True):
    """Changes nothing; answers the version, which is at least that of all earlier answers."""


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything: the snapshot, and what watchers get. All sequences sorted by id or name."""

    version: int
    table_version: int = 0
    table: tuple[Partition, ...] = ()
    members: tuple[Member, ...] = ()
    queues: tuple[QueueEntry, ...] = ()
    level: int = BASE_LEVEL


META_OPS: dict[str, type[msgspec.Struct]] = {
    "register_node": RegisterNode,
    "set_table": SetTable,
    "put_queue": PutQueue,
    "delete_queue": DeleteQueue,
    "sync": Sync,
}

MEMBERS_MAX = 3 * NODES_PER_ROLE_MAX
LOST_DISKS_MAX = 8


def meta_codec() -> CommandCodec:
    """The codec of group 0."""
    return CommandCodec(META_OPS)
