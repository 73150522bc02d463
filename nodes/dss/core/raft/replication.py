"""How a leader brings each follower's log up to its own: requests, windows, snapshots.

What must not live here: what is committed, reads, members, time (leadership.py); one follower's
window (progress.py); who is served first (thrift.py). Source: Raft thesis §3.5, §5.1, §10.2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.messages import Entry
from dss.core.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from dss.core.raft.thrift import Thrift

if TYPE_CHECKING:
    from dss.core.raft.base import RaftBase

Shared = dict[tuple[int, int], msg.AppendRequest]


class Replication:
    """See the module. `Leadership` is built on it."""

    __slots__ = (
        "_commit_dirty",
        "_leaving",
        "_log",
        "_raft",
        "_send_dirty",
        "_settings",
        "peers",
        "thrift",
        "transfer_target",
    )

    def __init__(self, raft: RaftBase) -> None:
        self._raft = raft
        self._log = raft.log
        self._settings = raft.settings
        self.peers: dict[str, Progress] = {}
        self._leaving: list[Progress] = []
        self._commit_dirty = self._send_dirty = False
        self.transfer_target: str | None = None
        self.thrift = Thrift(raft.settings)
        self.match_members()

    def match_members(self) -> None:
        """One Progress per other member; those that stay keep theirs."""
        raft, old = self._raft, self.peers
        self.peers = {
            peer: old.get(peer) or Progress(peer, raft.last_index + 1, raft.now_ms)
            for peer in raft.membership.members
            if peer != raft.node_id
        }
        self._leaving += [old[peer] for peer in old if peer not in self.peers]
        self.thrift.reset()
        self._commit_dirty = self._send_dirty = True

    def replicate(self, written: tuple[Entry, ...]) -> None:
        """Send each follower what it may get; equal requests are one object, encoded once.

        Args:
            written: what this step appends to our own log: the usual request, ready made.
        """
        if self._leaving and self._raft.commit_index >= self._raft.membership.index:
            self._say_goodbye()
        if not self._send_dirty and self._raft.now_ms < self.thrift.due_ms:
            return
        self._send_dirty = False
        shared: Shared = {}
        last_index = self._log.last_index
        lazy = self.thrift.lazy(self.peers, self._log, self._raft.now_ms)
        for progress in self.peers.values():
            if progress.state == REPLICATE:
                if progress.next <= last_index and progress.node_id not in lazy:
                    self._pipeline(progress, shared, written)
            elif progress.state == PROBE and not progress.waiting:
                self._probe(progress, shared, written)

    def _say_goodbye(self) -> None:
        """The last that removed members hear, if it arrives: that they were, and that for certain.

        Not before it is committed: until then they may be needed. (Of two voters one is removed;
        the leader dies before its own disk has that, and only the other one's log does.)
        """
        leaving, self._leaving = self._leaving, []
        for progress in leaving:
            if progress.state == REPLICATE and progress.next <= self._log.last_index:
                self._pipeline(progress, {}, ())

    def _pipeline(self, progress: Progress, shared: Shared, written: tuple[Entry, ...]) -> None:
        settings, log = self._settings, self._log
        if progress.next <= log.base_index:
            self._begin_snapshot(progress)
            return
        while progress.next <= log.last_index and progress.has_room(
            settings.max_inflight, settings.max_inflight_bytes
        ):
            first = progress.next
            last = log.last_within(first, settings.max_append_bytes)
            self._raft.send(progress.node_id, self._request(first, last, shared, written))
            progress.sent(last, log.bytes_between(first - 1, last))

    def _probe(self, progress: Progress, shared: Shared, written: tuple[Entry, ...]) -> None:
        log, first = self._log, progress.next
        if first <= log.base_index:
            self._begin_snapshot(progress)
            return
        progress.waiting = True
        last = first - 1
        if first <= log.last_index:
            last = log.last_within(first, self._settings.max_append_bytes)
        self._raft.send(progress.node_id, self._request(first, last, shared, written))

    def _ask(self, progress: Progress) -> None:
        """An empty request: has all that we sent arrived?"""
        first = progress.next
        if first > self._log.base_index:
            self._raft.send(progress.node_id, self._request(first, first - 1, {}, ()))

    def _request(
        self, first: int, last: int, shared: Shared, written: tuple[Entry, ...]
    ) -> msg.AppendRequest:
        request = shared.get((first, last))
        if request is None:
            raft = self._raft
            if written and first == written[0].index and last == written[-1].index:
                entries = written
            else:
                entries = self._log.slice(first, last) if first <= last else ()
            prev_term = self._log.term_at(first - 1)
            assert prev_term is not None, f"entry {first - 1} is compacted"
            request = shared[first, last] = msg.AppendRequest(
                raft.group, raft.term, first - 1, prev_term, raft.commit_index, entries
            )
        return request

    def on_append_response(self, peer: str, response: msg.AppendResponse) -> None:
        progress = self.peers.get(peer)
        if progress is None:
            return
        progress.answered(self._raft.now_ms)
        if not response.ok:
            self._back_up(progress, response)
            return
        last_index = self._log.last_index
        if response.index > last_index:
            return  # impossible for a peer that keeps the rules: never count it
        if progress.acknowledged(response.index):
            self._commit_dirty = True
        if progress.state == PROBE:
            if response.index == progress.match:
                progress.become_replicate()
        elif progress.state == SNAPSHOT:
            if progress.match >= self._log.base_index:
                progress.become_replicate()
            elif progress.match >= progress.snapshot_index:
                self._begin_snapshot(progress)  # so much was written meanwhile: another one
        if progress.next <= last_index:
            self._send_dirty = True
        if peer == self.transfer_target and progress.match == last_index:
            self._raft.send(peer, msg.TimeoutNow(self._raft.group, self._raft.term))

    def _back_up(self, progress: Progress, response: msg.AppendResponse) -> None:
        """§3.5: the logs differ at `index`; go where they could agree, a term at a time."""
        if progress.state == SNAPSHOT or progress.is_stale_rejection(response.index):
            return
        hint = min(response.hint_index, response.index - 1)
        agree = self._log.last_with_term_at_most(hint, response.hint_term)
        progress.become_probe(agree + 1)
        self._send_dirty = True

    # --- snapshots -------------------------------------------------------------------------

    def _begin_snapshot(self, progress: Progress) -> None:
        snapshot = self._log.snapshot
        assert snapshot is not None, "a compacted log has a snapshot"
        progress.become_snapshot(snapshot.index, snapshot.size, self._raft.now_ms)
        self._send_chunk(progress, 0)

    def _is_moving(self, progress: Progress) -> bool:
        """Whether the snapshot that it is being sent is kept for it."""
        silence_ms = self._raft.now_ms - progress.snapshot_moved_ms
        return silence_ms <= self._settings.snapshot_keep_ms

    def snapshot_in_transfer(self) -> int | None:
        """The oldest snapshot that is being sent to somebody, and must stay until it is there.

        Otherwise a follower whose transfer takes longer than the next snapshot is away would never
        finish one.
        """
        return min(
            (
                progress.snapshot_index
                for progress in self.peers.values()
                if progress.state == SNAPSHOT and self._is_moving(progress)
            ),
            default=None,
        )

    def _send_chunk(self, progress: Progress, offset: int) -> None:
        """The chunk at `offset`; of the newest one from its start if this one is kept no more."""
        raft, snapshot = self._raft, self._log.snapshot
        assert snapshot is not None, "a compacted log has a snapshot"
        if snapshot.index != progress.snapshot_index and not self._is_moving(progress):
            progress.become_snapshot(snapshot.index, snapshot.size, raft.now_ms)
            offset = 0
        progress.snapshot_sent(offset, raft.now_ms)
        raft.emit(fx.SendSnapshot(progress.node_id, raft.term, progress.snapshot_index, offset))

    def on_snapshot_response(self, peer: str, response: msg.SnapshotResponse) -> None:
        progress = self.peers.get(peer)
        if progress is None:
            return
        progress.answered(self._raft.now_ms)
        if (
            progress.state == SNAPSHOT
            and response.index == progress.snapshot_index
            and response.offset != progress.snapshot_offset  # else: a repeated answer
            and 0 <= response.offset < progress.snapshot_size
        ):
            # In this order: what was given up before this answer came is gone.
            self._send_chunk(progress, response.offset)
            progress.snapshot_moved_ms = self._raft.now_ms

    def on_link_changed(self, event: fx.LinkChanged) -> None:
        progress = self.peers.get(event.peer)
        if progress is None:
            return
        if progress.state == SNAPSHOT:
            progress.snapshot_sent_ms = 0  # the chunk may be lost: repeat it when it answers
        elif not event.up:
            progress.become_probe(progress.match + 1)
            progress.waiting = True  # nothing can arrive: until it answers a heartbeat
        else:
            progress.waiting = False
            self._send_dirty = True

    def peers_status(self) -> dict[str, dict[str, int | str]]:
        now = self._raft.now_ms
        return {
            peer: {
                "match": progress.match,
                "next": progress.next,
                "state": progress.state,
                "lazy": self.thrift.is_lazy(peer),
                "last_contact_ms": now - progress.contact_ms,
            }
            for peer, progress in self.peers.items()
        }

    def check_invariants(self) -> None:
        for progress in self.peers.values():
            progress.check_invariants()
            assert progress.next <= self._log.last_index + 1
