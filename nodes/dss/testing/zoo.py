"""Planted bugs: what the simulation must find, or its green runs mean nothing.

Each is a context manager that breaks the real code while it is open: those of consensus and storage
here, those of feature levels in zoo_levels.py, of the locks in zoo_locks.py and zoo_modes.py.
`tests/sim/test_raftsim.py` replays the recorded seed of each; `make zoo` searches anew. What must
not live here: anything that production imports.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.leadership import Leadership
from dss.core.raft.raft import Raft
from dss.drivers.engine import Engine
from dss.drivers.group import Group
from dss.drivers.snapshotting import Snapshotting
from dss.storage.durable import START, DurableMark
from dss.storage.files import Files
from dss.storage.recovery import Recovered, recover
from dss.storage.wal import Wal
from dss.testing import zoo_levels, zoo_locks, zoo_modes
from dss.testing.raftsim import Simulation
from dss.testing.simnode import SimNode
from dss.testing.tally import Tally

SECONDS: Final = 20.0
"""Simulated seconds a seed."""


@contextlib.contextmanager
def acknowledge_before_fsync() -> Iterator[None]:
    """Votes and append acknowledgements leave beside the fsync instead of after it."""
    original = Engine._carry_out

    def broken(self: Engine, group: Group, effects: Any, now_ms: int) -> None:
        early = [
            fx.Send(e.peer, e.message) if isinstance(e, fx.SendAfterSync) else e for e in effects
        ]
        original(self, group, early, now_ms)

    with mock.patch.object(Engine, "_carry_out", broken):
        yield


@contextlib.contextmanager
def double_vote() -> Iterator[None]:
    """A voter forgets whom it voted for."""
    original = Raft._on_vote_request

    def broken(self: Raft, peer: str, request: msg.VoteRequest) -> None:
        self.voted_for = None if self.role == "follower" else self.voted_for
        original(self, peer, request)

    with mock.patch.object(Raft, "_on_vote_request", broken):
        yield


@contextlib.contextmanager
def vote_not_persisted() -> Iterator[None]:
    """Term and vote do not survive a restart."""
    with mock.patch.object(Wal, "save_state", return_value=None):
        yield


@contextlib.contextmanager
def stale_read() -> Iterator[None]:
    """A leader answers reads without asking a quorum whether it still leads."""

    def broken(self: Leadership) -> None:
        self.reads.begin(self._raft.commit_index)
        for index, refs in self.reads.confirmed(self.reads.context):
            for ref in refs:
                self._raft.emit(fx.ReadReady(ref, index))

    with mock.patch.object(Leadership, "_begin_read_round", broken):
        yield


@contextlib.contextmanager
def snapshot_loses_the_last_command() -> Iterator[None]:
    """State lost in a snapshot."""
    original = Tally.snapshot

    def broken(self: Tally) -> bytes:
        last = self.idents.pop() if self.idents else None
        data = original(self)
        if last is not None:
            self.idents.append(last)
        return data

    with mock.patch.object(Tally, "snapshot", broken):
        yield


@contextlib.contextmanager
def acknowledges_what_it_did_not_check() -> Iterator[None]:
    """A follower accepts an append whose predecessor it does not hold."""
    original = Raft._on_append_request

    def broken(self: Raft, peer: str, request: msg.AppendRequest) -> None:
        if request.prev_index <= self.log.last_index:
            held = self.log.term_at(request.prev_index)
            if held is not None and held != request.prev_term:
                request = msg.AppendRequest(
                    request.group,
                    request.term,
                    request.prev_index,
                    held,
                    request.commit,
                    request.entries,
                )
        original(self, peer, request)

    with mock.patch.object(Raft, "_on_append_request", broken):
        yield


@contextlib.contextmanager
def old_terms_count_as_committed() -> Iterator[None]:
    """A leader counts replicas of entries of earlier terms (Raft thesis fig. 3.7, paper fig. 8)."""

    def broken(self: Leadership) -> None:
        self._commit_dirty = False
        raft = self._raft
        index = self._quorum_value(raft.synced_index, {p: q.match for p, q in self.peers.items()})
        raft.commit_index = max(raft.commit_index, index)

    with mock.patch.object(Leadership, "_advance_commit", broken):
        yield


@contextlib.contextmanager
def gathering_counts_as_acknowledged() -> Iterator[None]:
    """What gathers for a lazy voter counts as if it had it: it will get it, after all."""

    def broken(self: Leadership) -> None:
        self._commit_dirty = False
        raft, thrift = self._raft, self.thrift
        matches = {
            peer: self._log.last_index if thrift.is_lazy(peer) else progress.match
            for peer, progress in self.peers.items()
        }
        index = self._quorum_value(raft.synced_index, matches)
        if index > raft.commit_index and self._log.term_at(index) == raft.term:
            raft.commit_index = index
            if not thrift.eager:
                thrift.choose(raft, self.peers)

    with mock.patch.object(Leadership, "_advance_commit", broken):
        yield


@contextlib.contextmanager
def late_answer_confirms_a_read() -> Iterator[None]:
    """Read rounds have no context of their own: an answer from before a pause confirms a read."""
    original = Leadership.on_heartbeat_response

    def broken(self: Leadership, peer: str, response: msg.HeartbeatResponse) -> None:
        newest = msg.HeartbeatResponse(response.group, response.term, self.reads.context)
        original(self, peer, newest)

    with mock.patch.object(Leadership, "on_heartbeat_response", broken):
        yield


@contextlib.contextmanager
def wiped_voter_votes_again() -> Iterator[None]:
    """A node whose disk was lost comes back under its old incarnation, as the voter it was."""

    def wiped(self: SimNode) -> None:
        incarnation = self.incarnation
        original(self)
        if self.sim.world.now == 0:
            return  # a newcomer
        self.wipes -= 1
        self._incarnation = incarnation
        for invariants in self.sim.invariants.values():
            invariants.forget(incarnation)

    original = SimNode.wipe
    with mock.patch.object(SimNode, "wipe", wiped):
        yield


@contextlib.contextmanager
def applies_while_a_snapshot_is_cut() -> Iterator[None]:
    """A snapshot that is encoded in pieces holds what was applied meanwhile."""
    original = Snapshotting._cut

    def broken(self: Snapshotting, group: Group, *args: Any) -> None:
        original(self, group, *args)
        group.cutting = False

    with mock.patch.object(Snapshotting, "_cut", broken):
        yield


@contextlib.contextmanager
def torn_tail_drops_what_was_durable() -> Iterator[None]:
    """Recovery takes any damage at the log's end for a torn tail, and cuts it off."""

    def broken(files: Files, mark: DurableMark) -> Recovered | None:
        if mark.bound is not None:
            mark.bound = START
        return recover(files, mark)

    with (
        mock.patch("dss.storage.wal.recover", broken),
        mock.patch("dss.storage.recovery.synced.vouched", return_value=0),
    ):
        yield


ZOO: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    bug.__name__: bug
    for bug in (
        acknowledge_before_fsync,
        double_vote,
        vote_not_persisted,
        stale_read,
        gathering_counts_as_acknowledged,
        late_answer_confirms_a_read,
        snapshot_loses_the_last_command,
        acknowledges_what_it_did_not_check,
        old_terms_count_as_committed,
        wiped_voter_votes_again,
        applies_while_a_snapshot_is_cut,
        torn_tail_drops_what_was_durable,
        *zoo_levels.BUGS,
        *zoo_locks.BUGS,
        *zoo_modes.BUGS,
    )
}


def finds(bug: str, seed: int, seconds: float = SECONDS) -> str | None:
    """Run `seed` with `bug` planted; the violation in words, or None when it went unnoticed."""
    with ZOO[bug]():
        try:
            Simulation(seed, seconds=seconds).run()
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def search(
    bug: str, *, first: int = 1, seeds: int = 500, seconds: float = SECONDS
) -> tuple[int, str] | None:
    """The first seed that finds `bug`, and what it saw."""
    for seed in range(first, first + seeds):
        seen = finds(bug, seed, seconds)
        if seen is not None:
            return seed, seen
    return None


def _search(bug: str) -> tuple[str, tuple[int, str] | None]:
    """In a process of the pool."""
    logging.getLogger("dss").setLevel(logging.ERROR)
    return bug, search(bug)


def main() -> int:
    """`make zoo`: search for every planted bug, or those named. Exit code 1: one stays hidden."""
    hidden = 0
    bugs = sys.argv[1:] or list(ZOO)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for bug, found in pool.imap_unordered(_search, bugs):
            hidden += found is None
            seed, seen = found or (0, "NOT FOUND within 500 seeds")
            print(f"{bug:36} seed {seed:<4} {seen[:120]}", flush=True)
    print(f"{len(bugs) - hidden} passed, {hidden} failed")
    return 1 if hidden else 0


if __name__ == "__main__":
    sys.exit(main())
