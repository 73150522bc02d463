"""A tiny in-memory cluster that carries out the Raft core's effects, for tests.

Every step is explicit: a test decides which messages arrive, when disks sync and how time
passes. After each step the core's own invariants and the cluster's (one leader per term, log
matching, what was applied never changes) are checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec

from dss.core.raft import effects as fx
from dss.core.raft import messages as msg
from dss.core.raft.log import SnapshotMeta
from dss.core.raft.membership import changed
from dss.core.raft.raft import Raft
from dss.core.raft.settings import RaftSettings

GROUP = 7
CHUNK_BYTES = 8


def configuration(voters: Iterable[str], learners: Iterable[str] = ()) -> msg.Configuration:
    return msg.Configuration(
        tuple(msg.Member(v, "i-" + v) for v in voters),
        tuple(msg.Member(v, "i-" + v) for v in learners),
    )


def members_of(configuration: msg.Configuration) -> dict[str, str]:
    return {m.node_id: m.incarnation for m in configuration.voters + configuration.learners}


def entries_of(terms: Iterable[int], first: int = 1) -> list[msg.Entry]:
    """A log as the paper draws it: the terms of its entries."""
    return [
        msg.Entry(i, term, msg.COMMAND, 0, b"%d@%d" % (i, term))
        for i, term in enumerate(terms, first)
    ]


class Node:
    """One member with its disk: what is synced survives a restart, the rest does not."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        terms: Iterable[int] = (),
        incarnation: str = "",
        configuration: msg.Configuration | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.incarnation = incarnation or "i-" + name
        # durable too: the configuration at the snapshot, or the founding one
        self.configuration = cluster.configuration if configuration is None else configuration
        self.up = True
        self.auto_sync = True
        # durable
        self.term = 0
        self.voted_for: str | None = None
        self.log: list[msg.Entry] = entries_of(terms)
        self.snapshot: SnapshotMeta | None = None
        self.snapshot_data = b""
        self.older: dict[int, tuple[SnapshotMeta, bytes, msg.Configuration]] = {}
        self.chunks: tuple[int, bytes] = (0, b"")
        # volatile
        self.unsynced: list[Callable[[], None]] = []
        self.after_sync: list[tuple[str, msg.RaftMessage]] = []
        self.synced: fx.Synced | None = None
        self.machine: list[bytes] = []
        self.effects: list[fx.Effect] = []
        self.roles: list[fx.RoleChanged] = []
        self.reads: dict[int, int] = {}
        self.boot()

    def boot(self) -> None:
        self.machine = [p for p in self.snapshot_data.split(b"|") if p]
        self.applied_configuration = self.configuration
        self.members = members_of(self.configuration)
        self.cluster.applied_by[self.name] = self.snapshot.index if self.snapshot else 0
        self.raft = Raft(
            group=GROUP,
            node_id=self.name,
            incarnation=self.incarnation,
            configuration=self.configuration,
            term=max(self.term, self.log[-1].term if self.log else 0),
            voted_for=self.voted_for,
            snapshot=self.snapshot,
            entries=self.log,
            settings=self.cluster.settings,
            rng=random.Random(self.cluster.rng.random()),
            now_ms=self.cluster.now,
        )
        self.members = members_of(self.raft.membership.configuration)

    def step(self, *events: fx.Event) -> list[fx.Effect]:
        if not self.up:
            return []
        for event in events:
            if isinstance(event, fx.Read):
                self.reads[event.ref] = max(self.cluster.applied, default=0)
        effects = self.raft.step(events, self.cluster.now)
        self.effects.extend(effects)
        if self.cluster.watch is not None:
            self.cluster.watch(self, effects)
        for effect in effects:
            if isinstance(effect, fx.ReadReady):
                # §6.4: a read sees all that anyone had applied when it was asked for.
                assert effect.index >= self.reads.pop(effect.ref), "a stale read"
        for effect in effects:
            self.carry_out(effect)
        self.raft.check_invariants()
        self.cluster.check(self)
        if self.auto_sync:
            self.sync()
        return effects

    def carry_out(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.SaveState):
            self.unsynced.append(lambda: self.write_state(effect))
            self.synced = self.synced or fx.Synced(0, 0)
        elif isinstance(effect, fx.Append):
            self.unsynced.append(lambda: self.write_entries(effect.entries))
            last = effect.entries[-1]
            self.synced = fx.Synced(last.index, last.term)
        elif isinstance(effect, fx.Send):
            self.cluster.post(self.name, effect.peer, effect.message)
        elif isinstance(effect, fx.SendAfterSync):
            self.after_sync.append((effect.peer, effect.message))
        elif isinstance(effect, fx.Apply):
            for entry in effect.entries:
                self.cluster.note_applied(self, entry)
                if entry.kind == msg.COMMAND:
                    self.machine.append(entry.payload)
                elif entry.kind in (msg.CONFIGURATION, msg.LEVEL):
                    self.applied_configuration = changed(self.applied_configuration, entry)
            self.cluster.later.append((self, fx.Applied(effect.entries[-1].index)))
        elif isinstance(effect, fx.SendSnapshot):
            self.send_chunk(effect)
        elif isinstance(effect, fx.StoreChunk):
            self.store_chunk(effect)
        elif isinstance(effect, fx.MembersChanged):
            self.members = members_of(effect.configuration)
        elif isinstance(effect, fx.RoleChanged):
            self.roles.append(effect)

    def write_state(self, state: fx.SaveState) -> None:
        self.term, self.voted_for = state.term, state.voted_for

    def write_entries(self, entries: tuple[msg.Entry, ...]) -> None:
        self.log = [e for e in self.log if e.index < entries[0].index] + list(entries)

    def sync(self) -> None:
        """The disk syncs: what waited for it leaves, and the core is told."""
        while self.unsynced or self.after_sync:
            for write in self.unsynced:
                write()
            self.unsynced.clear()
            leaving, self.after_sync = self.after_sync, []
            for peer, message in leaving:
                self.cluster.post(self.name, peer, message)
            synced, self.synced = self.synced, None
            if synced is not None and synced.index:
                auto, self.auto_sync = self.auto_sync, False
                self.step(synced)
                self.auto_sync = auto

    def restart(self) -> None:
        """Crash and come back: what was not synced is gone."""
        self.unsynced.clear()
        self.after_sync.clear()
        self.synced = None
        for queue in (self.cluster.later, self.cluster.now_first):
            queue[:] = [(node, event) for node, event in queue if node is not self]
        self.up = True
        self.boot()

    def take_snapshot(self) -> None:
        self.cluster.settle_local()  # the core must know what the machine has applied
        raft = self.raft
        index = raft.applied_index
        if self.snapshot is not None:
            self.older[self.snapshot.index] = (
                self.snapshot,
                self.snapshot_data,
                self.configuration,
            )
        meta = SnapshotMeta(index, raft.log.term_at(index) or 0, raft.log.log_ms_at(index), 0)
        self.snapshot_data = b"|".join(self.machine) or b"|"
        meta = msgspec.structs.replace(meta, size=len(self.snapshot_data))
        self.snapshot = meta
        self.configuration = self.applied_configuration
        self.step(fx.SnapshotTaken(meta.index, meta.term, meta.log_ms, meta.size))
        self.log = [e for e in self.log if e.index > raft.log.base_index]
        self.prune()

    def prune(self) -> None:
        """Older snapshots stay only as long as the core wants one."""
        keep = self.raft.snapshot_in_transfer
        self.older = {i: s for i, s in self.older.items() if keep is not None and i >= keep}

    def send_chunk(self, effect: fx.SendSnapshot) -> None:
        meta, whole, configuration = self.snapshot, self.snapshot_data, self.configuration
        assert meta is not None
        if meta.index != effect.index:
            meta, whole, configuration = self.older[effect.index]  # what is sent is still there
        data = whole[effect.offset : effect.offset + CHUNK_BYTES]
        chunk = msg.SnapshotChunk(
            GROUP,
            effect.term,
            meta.index,
            meta.term,
            meta.log_ms,
            configuration,
            meta.size,
            effect.offset,
            data,
        )
        self.cluster.post(self.name, effect.peer, chunk)

    def store_chunk(self, effect: fx.StoreChunk) -> None:
        chunk = effect.chunk
        index, data = self.chunks
        if index != chunk.index:
            data = b""
        if chunk.offset == len(data):
            data += chunk.data
        self.chunks = (chunk.index, data)
        if len(data) < chunk.size:
            answer = msg.SnapshotResponse(GROUP, chunk.term, chunk.index, len(data))
            self.after_sync.append((effect.peer, answer))
            return
        for write in self.unsynced:  # the disk writes in order
            write()
        self.unsynced.clear()
        matches = any((e.index, e.term) == (chunk.index, chunk.snapshot_term) for e in self.log)
        self.log = [e for e in self.log if matches and e.index > chunk.index]
        self.snapshot_data = data
        self.snapshot = SnapshotMeta(chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.size)
        self.configuration = self.applied_configuration = chunk.configuration
        self.chunks = (0, b"")
        self.machine = [p for p in data.split(b"|") if p]
        self.cluster.applied_by[self.name] = chunk.index
        installed = fx.SnapshotInstalled(
            chunk.index, chunk.snapshot_term, chunk.log_ms, chunk.size, chunk.configuration
        )
        self.cluster.now_first.append((self, installed))


class Cluster:
    """Nodes and the messages between them; nothing moves unless a test says so."""

    def __init__(
        self,
        size: int = 3,
        seed: int = 1,
        logs: dict[str, list[int]] | None = None,
        learners: Iterable[str] = (),
        **settings: object,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1_000
        self.settings = RaftSettings(**settings)  # type: ignore[arg-type]
        names = list(logs) if logs else [f"n{i + 1}" for i in range(size)]
        learners = list(learners)
        self.configuration = configuration([n for n in names if n not in learners], learners)
        self.wire: list[tuple[str, str, msg.RaftMessage]] = []
        self.later: list[tuple[Node, fx.Event]] = []
        self.now_first: list[tuple[Node, fx.Event]] = []
        self.cut: dict[tuple[str, str], None] = {}
        self.applied: dict[int, msg.Entry] = {}
        self.applied_by: dict[str, int] = {}
        self.leaders: dict[int, str] = {}
        self.watch: Callable[[Node, list[fx.Effect]], None] | None = None
        terms = logs or {}
        self.nodes = {name: Node(self, name, terms.get(name, ())) for name in names}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    # --- members ---------------------------------------------------------------------------

    def join(self, name: str, incarnation: str = "") -> Node:
        """An empty node, with a group that knows no members yet."""
        assert name not in self.nodes
        node = self.nodes[name] = Node(self, name, (), incarnation, msg.Configuration(()))
        return node

    def wipe(self, name: str) -> None:
        """The node and its disk are gone."""
        del self.nodes[name]
        for queue in (self.later, self.now_first):
            queue[:] = [(node, event) for node, event in queue if node.name != name]
        self.wire = [m for m in self.wire if name not in m[:2]]

    def change(self, name: str, member: str, *, remove: bool = False, incarnation: str = "") -> str:
        """Ask `name` to add or remove a member; the refusal's code, or "" when it was proposed."""
        of = msg.Member(member, incarnation or "i-" + member)
        effects = self.nodes[name].step(fx.ChangeMembers(1, of, remove))
        refused = [e.code for e in effects if isinstance(e, fx.ChangeRefused)]
        assert refused or any(isinstance(e, fx.ChangeProposed) for e in effects)
        return refused[0] if refused else ""

    def voters(self, name: str) -> list[str]:
        return list(self.nodes[name].raft.membership.voters)

    # --- network ---------------------------------------------------------------------------

    def post(self, source: str, target: str, message: msg.RaftMessage) -> None:
        if target in self.nodes and (source, target) not in self.cut:
            self.wire.append((source, target, message))

    def deliver(self, source: str, target: str, message: msg.RaftMessage) -> None:
        """As the engine does: what is counted must come from the incarnation that is listed."""
        if (source, target) in self.cut or source not in self.nodes or target not in self.nodes:
            return
        listed = self.nodes[target].members.get(source)
        if isinstance(message, msg.ANSWERS) and listed != self.nodes[source].incarnation:
            return
        self.nodes[target].step(fx.Receive(source, message))
        self.settle_local()

    def settle_local(self) -> None:
        """Hand back what the embedder owes: installations first, then Applied."""
        while self.now_first or self.later:
            node, event = (self.now_first or self.later).pop(0)
            node.step(event)

    def settle(self, rounds: int = 10_000) -> None:
        """Deliver everything, in order, until nothing moves."""
        self.settle_local()
        while self.wire:
            rounds -= 1
            assert rounds, "the cluster does not come to rest"
            self.deliver(*self.wire.pop(0))

    def isolate(self, *names: str) -> None:
        """Cut `names` off from the rest (they still hear each other)."""
        for a in self.nodes:
            for b in self.nodes:
                if (a in names) != (b in names):
                    self.cut[a, b] = None
        self.wire = [m for m in self.wire if (m[0], m[1]) not in self.cut]

    def heal(self) -> None:
        self.cut.clear()

    # --- time ------------------------------------------------------------------------------

    def tick(self, ms: int = 10) -> None:
        self.now += ms
        for node in self.nodes.values():
            if node.raft.next_deadline_ms <= self.now:
                node.step(fx.Tick())
        self.watch_nodes()
        self.settle_local()

    def watch_nodes(self) -> None:
        """What the engine does for quiescent groups: a node that is not heard rouses them."""
        for name, node in list(self.nodes.items()):
            raft = node.raft
            if not raft.quiescent:
                continue
            peers = raft.membership.members if raft.role == "leader" else [raft.leader]
            silent = [
                p
                for p in peers
                if p != name
                and (p not in self.nodes or not self.nodes[p].up or (p, name) in self.cut)
            ]
            if silent:
                node.step(fx.Rouse())

    def run(self, ms: int, step_ms: int = 10) -> None:
        """Let time pass, delivering everything."""
        for _ in range(ms // step_ms):
            self.tick(step_ms)
            self.settle()

    def elect(self, name: str) -> Node:
        """Make `name` campaign now (others' stickiness expires first) and win."""
        node = self.nodes[name]
        self.now += self.settings.election_max_ms + 1
        node.step(fx.Tick())
        self.settle()
        assert node.raft.role == "leader", list(node.raft.story)
        return node

    def leader(self) -> Node | None:
        leading = [n for n in self.nodes.values() if n.up and n.raft.role == "leader"]
        return max(leading, key=lambda n: n.raft.term, default=None)

    def await_leader(self, ms: int = 10_000) -> Node:
        for _ in range(ms // 10):
            self.run(10)
            node = self.leader()
            if node is not None and node.raft.commit_index >= node.raft._leading.noop_index:
                return node
        raise AssertionError({n.name: list(n.raft.story) for n in self.nodes.values()})

    # --- what must always hold ----------------------------------------------------------------

    def note_applied(self, node: Node, entry: msg.Entry) -> None:
        """State machine safety (§3.6.3): the same entry at the same index, everywhere."""
        known = self.applied.setdefault(entry.index, entry)
        assert known == entry, f"{node.name} applied {entry}, another applied {known}"
        last = self.applied_by.get(node.name, 0)
        assert entry.index == last + 1, f"{node.name} applied {last}, then {entry.index}"
        self.applied_by[node.name] = entry.index

    def check(self, node: Node) -> None:
        """Election safety (§3.4): at most one leader in a term."""
        if node.raft.role == "leader":
            known = self.leaders.setdefault(node.raft.term, node.name)
            assert known == node.name, f"{known} and {node.name} lead term {node.raft.term}"

    def check_log_matching(self) -> None:
        """§3.5: the same index and term mean the same log up to there."""
        rafts = [n.raft for n in self.nodes.values()]
        for a in rafts:
            for b in rafts:
                low = max(a.log.base_index, b.log.base_index)
                high = min(a.last_index, b.last_index)
                while high > low and a.log.term_at(high) != b.log.term_at(high):
                    high -= 1
                if high > low:
                    assert a.log.slice(low + 1, high) == b.log.slice(low + 1, high)

    def terms(self, name: str) -> list[int]:
        log = self.nodes[name].raft.log
        return [e.term for e in log.slice(log.base_index + 1, log.last_index)]
