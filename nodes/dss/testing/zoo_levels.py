"""Planted bugs of feature levels: see zoo.py. Found by levels that differ from the log's, and by
nodes that are given what they do not support."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final
from unittest import mock

from dss.core.machine import Machine
from dss.core.raft import effects as fx
from dss.core.raft import membership as members
from dss.core.raft.leadership import Leadership
from dss.core.raft.messages import Entry, Member
from dss.drivers import levels
from dss.drivers.applying import Applying
from dss.drivers.engine import Engine
from dss.drivers.group import Group
from dss.storage.grouplog import GroupState


@contextlib.contextmanager
def quorum_raises_the_level() -> Iterator[None]:
    """A group is raised to what a quorum of its voters supports; the others are not asked."""

    def broken(group: Group, own: int, supports: Callable[[Member], int]) -> int:
        raft = group.raft
        told = [
            own if member.node_id == raft.node_id else supports(member)
            for member in raft.membership.configuration.voters
        ]
        told.sort(reverse=True)
        level = told[raft.membership.quorum - 1]
        return level if level > group.level else 0

    with mock.patch.object(levels, "wanted", broken):
        yield


@contextlib.contextmanager
def level_changes_at_a_restart() -> Iterator[None]:
    """A machine takes the log's level when its node starts, not where the entry stands."""
    start = Engine._start

    def started(self: Engine, state: GroupState, machine: Machine) -> None:
        start(self, state, machine)
        level = self.groups[state.group].level
        if level > machine.level:
            machine.set_level(state.snapshot_index, state.snapshot_log_ms, level)

    def applied(self: Applying, group: Group, entry: Entry) -> None:
        group.configuration = members.changed(group.configuration, entry)
        term, done = group.changes.pop(entry.index, (entry.term, None))
        if done is not None:
            done("" if term == entry.term else "indeterminate")

    with (
        mock.patch.object(Engine, "_start", started),
        mock.patch.object(Applying, "_apply_configuration", applied),
    ):
        yield


@contextlib.contextmanager
def any_member_is_let_in() -> Iterator[None]:
    """A node that supports less than the group's level is added all the same."""
    original = Leadership._why_not_add

    def broken(self: Leadership, event: fx.ChangeMembers) -> str:
        code = original(self, event)
        return "" if code == "feature_level" else code

    with mock.patch.object(Leadership, "_why_not_add", broken):
        yield


BUGS: Final = (quorum_raises_the_level, level_changes_at_a_restart, any_member_is_let_in)
