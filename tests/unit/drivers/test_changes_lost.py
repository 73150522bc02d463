"""A change of members or level that another leader's entry replaces: who asked for it is told."""

from __future__ import annotations

from test_snapshotting import GROUP, Loop

from dss.core.raft.messages import (
    NOOP,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    Member,
    VoteResponse,
)


def test_change_of_members_is_replaced_by_another_leaders_entry__its_asker_is_told() -> None:
    """Nothing else was proposed: only the change itself stood in the log."""
    loop = Loop(Configuration(tuple(Member(name, "inc") for name in "abc")))
    engine, raft = loop.engine, loop.group.raft
    while raft.role != "leader":
        loop.now += 100
        loop.run(1)
        for pre in (True, False):
            vote = VoteResponse(GROUP, raft.term + pre, True, pre)
            engine.receive("b", "inc", [vote])
            loop.run(1)
    engine.receive("b", "inc", [AppendResponse(GROUP, raft.term, True, raft.last_index)])
    loop.run()
    told: list[str] = []
    engine.change_members(GROUP, Member("d", "inc"), remove=False, done=told.append)
    loop.run(1)
    at, term = raft.last_index, raft.term + 1
    before = raft.log.term_at(at - 1)
    assert list(loop.group.changes) == [at]
    assert before is not None
    entry = Entry(at, term, NOOP, 0, b"")
    engine.receive("c", "inc", [AppendRequest(GROUP, term, at - 1, before, at, (entry,))])
    loop.run()
    assert loop.group.applied_index == at
    assert told == ["indeterminate"]
