"""A follower's half: its log follows the leader's, by entries or by a snapshot.

What must not live here: whether a message counts at all (raft.py), elections (elections.py).
Source: Raft thesis (Ongaro 2014) §3.5, §3.6, §5.
"""

from __future__ import annotations

from collections.abc import Sequence

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.base import PRE_CANDIDATE
from dss.core.raft.elections import Elections
from dss.core.raft.log import SnapshotMeta
from dss.core.raft.messages import Entry


class Following(Elections):
    """See the module."""

    def _follow(self, peer: str) -> None:
        """A message from this term's leader."""
        if self.leader != peer or self.role == PRE_CANDIDATE:
            assert self.leader is None, f"two leaders in term {self.term}: {self.leader} and {peer}"
            self._become_follower(self.term, peer, f"{peer} leads")
        self.removed_at = 0
        self._leader_contact_ms = self.now_ms
        self._election_ms = self.now_ms + self._timeout_ms

    def _on_append_request(self, peer: str, request: msg.AppendRequest) -> None:
        self._follow(peer)
        log = self.log
        prev, entries = request.prev_index, request.entries
        last = prev + len(entries)
        if prev < self.commit_index:
            # What is committed here is the leader's too (leader completeness).
            entries = entries[self.commit_index - prev :]
            prev = self.commit_index
            last = max(last, prev)
        elif log.term_at(prev) != request.prev_term:
            self._reject(peer, request)
            return
        if entries:
            if prev < log.last_index:
                same = log.first_conflict(entries)
                entries = entries[same:]
            if entries:
                if entries[0].index <= log.last_index:
                    self._truncate_from(entries[0].index)
                self._append_received(entries)
        self._ack_index = max(self._ack_index, last)
        self._follow_commit(min(request.commit, last))

    def _reject(self, peer: str, request: msg.AppendRequest) -> None:
        hint = self.log.last_with_term_at_most(request.prev_index, request.prev_term)
        hint = max(hint, self.commit_index)
        term = self.log.term_at(hint) or 0
        self._send_synced(
            peer,
            msg.AppendResponse(self.group, self.term, False, request.prev_index, hint, term),
        )

    def _append_received(self, entries: Sequence[Entry]) -> None:
        self.log.extend(entries)
        self.unwritten.extend(entries)
        if self.membership.append(entries):
            self._members_changed()

    def _truncate_from(self, index: int) -> None:
        assert index > self.commit_index, f"conflict at committed entry {index}"
        self.log.truncate_from(index)
        self.synced_index = min(self.synced_index, index - 1)
        unwritten = self.unwritten
        while unwritten and unwritten[-1].index >= index:
            unwritten.pop()
        if self.membership.truncate_from(index):
            self._members_changed()

    def _follow_commit(self, commit: int) -> None:
        if commit > self.commit_index:
            assert commit <= self.log.last_index, f"acknowledged entries before {commit} are lost"
            self.commit_index = commit

    def _send_ack(self) -> None:
        """One acknowledgement for all append requests of this step."""
        index, self._ack_index = self._ack_index, -1
        if self.leader is not None and self.leader != self.node_id:
            answer = msg.AppendResponse(self.group, self.term, True, index)
            self._send_synced(self.leader, answer)

    def _on_heartbeat(self, peer: str, heartbeat: msg.Heartbeat) -> None:
        self._follow(peer)
        if self.membership.listed:  # else it may speak of what our lost disk acknowledged
            self._follow_commit(heartbeat.commit)
        if heartbeat.quiesce and heartbeat.commit == self.commit_index == self.log.last_index:
            self.quiescent = True
        self.send(peer, msg.HeartbeatResponse(self.group, self.term, heartbeat.context))

    def _on_snapshot_chunk(self, peer: str, chunk: msg.SnapshotChunk) -> None:
        self._follow(peer)
        if self.log.term_at(chunk.index) == chunk.snapshot_term:
            self._follow_commit(chunk.index)  # our log reaches it already
        if chunk.index <= self.commit_index:
            self._ack_index = max(self._ack_index, self.commit_index)
            return
        if chunk.offset + len(chunk.data) >= chunk.size:
            self._holds_apply = True
        self._out.append(fx.StoreChunk(peer, chunk))

    def _on_snapshot_installed(self, event: fx.SnapshotInstalled) -> None:
        log, index = self.log, event.index
        meta = SnapshotMeta(index, event.term, event.log_ms, event.size)
        if log.term_at(index) == event.term:
            if log.snapshot is None or index > log.snapshot.index:
                log.compact(meta, self.settings.log_tail_entries)
        else:
            assert index > self.commit_index, "installed an old snapshot of another history"
            log.reset(meta)
            self.synced_index = index
            self.unwritten.clear()
            self._ack_index = index
            self.membership.reset(event.configuration)
            self._members_changed()
        self.commit_index = max(self.commit_index, index)
        self.synced_index = max(self.synced_index, index)
        self.applied_index = self._handed_index = index
        self.note(f"installed the snapshot at {index}")
        self._ack_index = max(self._ack_index, index)
