"""Feature levels at work: what data needs, what commands need, and when a group is raised.

A leader raises its group once every member is connected and supports more than the group's level:
in one entry, to what all of them support. No vote and no clock decides: one member that is away,
or held back, holds the level back (docs/decisions/0012-feature-levels.md). What must not live
here: what a level changes (the machines), the entry itself (core/raft).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dss.base.errors import ConfigProblem
from dss.base.levels import FEATURE_LEVEL, LEVELS
from dss.core.raft.membership import level_in
from dss.core.raft.messages import CONFIGURATION, LEVEL, Entry, Member
from dss.drivers.group import NULL_SINK, Group
from dss.drivers.ports import Sink
from dss.storage.wal import GroupState

if TYPE_CHECKING:
    from dss.drivers.host import Host

log = logging.getLogger("dss.raft")

LOOK_EVERY_S: Final = 0.5
"""How soon after the last node of an upgrade the level rises; a look costs next to nothing."""


def check_recovered(recovered: Mapping[int, GroupState], supported: int) -> None:
    """Before anything is served: may this release, as it is set up, read what the disk holds?

    Raises:
        ConfigProblem: a group has a higher level, or an entry of a kind that is not known.
    """
    for gid, state in sorted(recovered.items()):
        check_level(gid, state.configuration.feature_level, supported)
        for entry in state.entries:
            if entry.kind == LEVEL:
                check_level(gid, level_in(entry), supported)
            elif entry.kind > CONFIGURATION:
                raise unknown_kind(gid, entry)


def check_level(gid: int, level: int, supported: int) -> None:
    """Raises ConfigProblem when this node must not go on with a group of that level."""
    if level <= supported:
        return
    if level <= FEATURE_LEVEL:
        remedy = f"set FEATURE_LEVEL_MAX to {level} or more, or unset it"
    else:
        remedy = "start the release that raised it, or a newer one"
    raise ConfigProblem(
        f"group {gid} is at feature level {level}, this node supports up to {supported} (its "
        f"release {FEATURE_LEVEL}): a level never falls, so {remedy}. Nothing was changed"
    )


def unknown_kind(gid: int, entry: Entry) -> ConfigProblem:
    return ConfigProblem(
        f"group {gid} has an entry of kind {entry.kind} at index {entry.index}, which a newer "
        f"release wrote: this one, of feature level {FEATURE_LEVEL}, cannot tell what it means: "
        "start the newer release"
    )


def admitted(
    group: Group, rids: Sequence[int], items: bytes, commands: Sequence[Any], sink: Sink
) -> tuple[Sequence[int], bytes, Sequence[Any]]:
    """The part of a batch that may be logged at the group's level; the rest is answered 409.

    A node of an older release could not carry it out.
    """
    codec, level = group.machine.codec, group.level
    needs = [codec.level_of(command) for command in commands]
    if max(needs, default=level) <= level:
        return rids, items, commands
    assert sink is not NULL_SINK, f"group {group.gid} at {level} proposes {commands}"
    kept: list[int] = []
    for at, need in enumerate(needs):
        if need <= level:
            kept.append(at)
        else:
            sink.answer(rids[at], 409, refusal(group.gid, level, need))
    sink.flush()
    rids, commands = [rids[at] for at in kept], [commands[at] for at in kept]
    return rids, b"".join(map(codec.encode_item, rids, commands)), commands


def refusal(gid: int, level: int, need: int) -> dict[str, Any]:
    """The body of a 409 `feature_level`."""
    return {
        "code": "feature_level",
        "message": f"this needs feature level {need} ({LEVELS.get(need, 'of a newer release')}), "
        f"group {gid} is at {level}: it rises by itself once every node of the group runs a "
        "release that supports it (dss members ls)",
        "feature_level": level,
        "needed_level": need,
    }


def wanted(group: Group, own: int, supports: Callable[[Member], int]) -> int:
    """The level to which this node may raise a group that it leads; 0: there is none.

    Args:
        supports: what a member other than this node tells over its link; 0 when there is none.
    """
    raft = group.raft
    configuration = raft.membership.configuration
    level = own
    for member in configuration.voters + configuration.learners:
        if member.node_id != raft.node_id:
            level = min(level, supports(member))
    return level if level > configuration.feature_level else 0


class LevelKeeper:
    """Raises the groups that this node leads, as soon as that may be."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: dict[int, None] = {}

    async def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def readiness(self) -> str | None:
        return None

    def _look(self) -> None:
        self._timer = self._host.loop.call_later(LOOK_EVERY_S, self._look)
        own = self._host.engine.feature_level
        for gid, group in self._host.engine.groups.items():
            if group.level < own and self._host.is_leader(gid) and gid not in self._under_way:
                level = wanted(group, own, self._supports)
                if level:
                    self._raise(gid, level)

    def _raise(self, gid: int, level: int) -> None:
        self._under_way[gid] = None

        def done(code: str) -> None:
            del self._under_way[gid]
            if code:
                log.info("group %d is not raised to feature level %d yet: %s", gid, level, code)

        self._host.engine.raise_level(gid, level, done)

    def _supports(self, member: Member) -> int:
        peer = self._host.links.peer(member.node_id)
        if peer is None or peer.incarnation != member.incarnation:
            return 0
        return peer.feature_level
