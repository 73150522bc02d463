"""Plays a transcript: a text of commands to a small cluster, and what came of each.

A block is a command line, `----`, then the lines it must print, up to an empty line. Lines that
begin with `#` explain. The form is that of etcd-io/raft's testdata; the commands are below.
What must not live here: any scenario (transcripts/*.txt).

| command | does |
|---|---|
| `cluster n1 n2 n3 [learners=z] [n1=1,1,2] [setting=value]` | begins; `n1=…`: terms of its log |
| `campaign n1` | time passes until n1's election timeout; only n1 notices |
| `settle`, `settle quietly` | delivers all messages in order; quietly: only roles and members |
| `deliver n1 n2 [times]` | delivers the oldest message from n1 to n2 |
| `drop n1 n2` | loses all messages from n1 to n2 |
| `pass 100` | lets ms pass, ticking everybody, and settles quietly |
| `watch 100` | the same, but shows everything except heartbeats |
| `until snapshot` | as `watch`, up to a message that begins so, that one included |
| `propose n1 a b` | proposes, in one step |
| `hold n1`, `sync n1` | its disk does not sync by itself any more; it syncs now |
| `cut n1 …`, `heal` | cuts these off from the rest |
| `restart n1` | it loses what was not synced |
| `snapshot n1` | it saves a snapshot and compacts its log |
| `join n4 [incarnation]`, `wipe n3` | an empty node comes; a node and its disk go |
| `add n1 n4 [incarnation]`, `remove n1 n3 [incarnation]` | asks n1 to change the members |
| `transfer n1 [n2]` | asks n1 to hand over |
| `status`, `elections n1` | one line for each node; how n1's elections ended |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raft_cluster import Cluster, Node

from dss.core.raft import effects as fx
from dss.core.raft import membership
from dss.core.raft import messages as msg

KINDS = {msg.NOOP: "no-op", msg.COMMAND: "command", msg.CONFIGURATION: "members"}


def blocks(text: str) -> list[tuple[list[str], str, list[str]]]:
    """(comment and blank lines before, command, expected output)."""
    found = []
    before: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line or line.startswith("#"):
            before.append(line)
            continue
        assert next(lines, "") == "----", f"{line!r} must be followed by ----"
        output = []
        for printed in lines:
            if not printed:
                break
            output.append(printed)
        found.append((before, line, output))
        before = []
    return found


def replay(path: Path) -> str:
    """The transcript as it is today."""
    player = Player()
    written: list[str] = []
    for before, command, _ in blocks(path.read_text()):
        written += [*before, command, "----", *(player.play(command) or ["ok"]), ""]
    return "\n".join(written)


def describe(message: msg.RaftMessage) -> str:
    """A message in one line, in the paper's words."""
    term = f"term {message.term}"
    match message:
        case msg.VoteRequest():
            name = "pre-vote request" if message.pre else "vote request"
            forced = ", ordered by the leader" if message.transfer else ""
            return f"{name}, {term}, log ends {message.last_index}@{message.last_term}{forced}"
        case msg.VoteResponse():
            name = "pre-vote" if message.pre else "vote"
            why = ", your log is behind" if message.behind else ""
            if message.outside:
                why += f", you are no member at {message.outside}"
            return f"{name} {'granted' if message.granted else 'refused'}, {term}{why}"
        case msg.AppendRequest():
            return (
                f"append after {message.prev_index}@{message.prev_term}: "
                f"{entries(message.entries) or 'nothing'}, commit {message.commit}, {term}"
            )
        case msg.AppendResponse(ok=True):
            return f"appended up to {message.index}, {term}"
        case msg.AppendResponse():
            agree = f"could agree at {message.hint_index}@{message.hint_term}"
            return f"append refused after {message.index}, {agree}, {term}"
        case msg.Heartbeat():
            return f"heartbeat, commit {message.commit}, {term}"
        case msg.HeartbeatResponse():
            return f"heartbeat answered, {term}"
        case msg.SnapshotChunk():
            return (
                f"snapshot at {message.index}@{message.snapshot_term}, bytes "
                f"{message.offset}-{message.offset + len(message.data)} of {message.size}, {term}"
            )
        case msg.SnapshotResponse():
            return f"holds {message.offset} bytes of the snapshot at {message.index}, {term}"
        case msg.TimeoutNow():
            return f"campaign now, {term}"


def entries(found: tuple[msg.Entry, ...]) -> str:
    return " ".join(f"{e.index}@{e.term}:{payload_of(e)}" for e in found)


def payload_of(entry: msg.Entry) -> str:
    if entry.kind == msg.COMMAND:
        return entry.payload.decode()
    if entry.kind == msg.NOOP:
        return "no-op"
    return f"[{members(membership.decode(entry.payload))}]"


def members(configuration: msg.Configuration) -> str:
    voters = ",".join(m.node_id for m in configuration.voters)
    learners = ",".join(m.node_id for m in configuration.learners)
    return voters + (f"+{learners}" if learners else "")


class Player:
    """Carries commands out; `play` gives the lines that each prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.quiet = False
        self.cluster = Cluster(1)

    def play(self, command: str) -> list[str]:
        name, *words = command.split()
        self.lines, self.quiet = [], False
        act: Callable[..., None] = getattr(self, f"do_{name}")
        act(*words)
        return self.lines

    def say(self, line: str, *, always: bool = False) -> None:
        if always or not self.quiet:
            self.lines.append(line)

    def watch(self, node: Node, effects: list[fx.Effect]) -> None:
        name = node.name
        for effect in effects:
            match effect:
                case fx.RoleChanged():
                    leader = f", leader {effect.leader}" if effect.leader else ""
                    what = f"  {name} is {effect.role}, term {effect.term}{leader}"
                    self.say(f"{what}: {effect.reason}", always=True)
                case fx.SaveState():
                    self.say(f"  {name} saves term {effect.term}, vote {effect.voted_for}")
                case fx.Append():
                    self.say(f"  {name} appends {entries(effect.entries)}")
                case fx.Apply():
                    self.say(f"  {name} applies {entries(effect.entries)}")
                case fx.MembersChanged():
                    what = members(effect.configuration) or "nobody"
                    self.say(f"  {name} knows the members {what}", always=True)
                case fx.Refused() | fx.ChangeRefused():
                    self.say(f"  {name} refuses: {effect.code}, leader {effect.leader}")

    # --- the cluster -----------------------------------------------------------------------

    def do_cluster(self, *words: str) -> None:
        names = [word for word in words if "=" not in word]
        options = dict(word.split("=") for word in words if "=" in word)
        logs: dict[str, list[int]] = {
            name: [int(term) for term in options.pop(name, "").split(",") if term] for name in names
        }
        learners = [name for name in options.pop("learners", "").split(",") if name]
        settings = {key: int(value) for key, value in options.items()}
        self.cluster = Cluster(logs=logs, learners=learners, **settings)
        self.cluster.watch = self.watch

    def do_join(self, name: str, incarnation: str = "") -> None:
        self.cluster.join(name, incarnation)

    def do_wipe(self, name: str) -> None:
        self.cluster.wipe(name)

    def do_cut(self, *names: str) -> None:
        self.cluster.isolate(*names)

    def do_heal(self) -> None:
        self.cluster.heal()

    def do_status(self) -> None:
        for node in self.cluster.nodes.values():
            raft = node.raft
            log = raft.log
            held = entries(log.slice(log.base_index + 1, log.last_index))
            base = f"…{log.base_index} " if log.base_index else ""
            self.say(
                f"{node.name}: {raft.role}, term {raft.term}, leader {raft.leader}, "
                f"log {base}{held or 'empty'}, commit {raft.commit_index}, "
                f"members {members(raft.membership.configuration) or 'unknown'}"
            )

    # --- one node --------------------------------------------------------------------------

    def do_campaign(self, name: str) -> None:
        self.cluster.now += self.cluster.settings.election_max_ms + 1
        self.cluster[name].step(fx.Tick())

    def do_propose(self, name: str, *payloads: str) -> None:
        self.cluster[name].step(*(fx.Propose(i, p.encode()) for i, p in enumerate(payloads)))

    def do_elections(self, name: str) -> None:
        counters = self.cluster[name].raft.counters
        self.say(", ".join(f"{count} {outcome}" for outcome, count in counters.items()))

    def do_hold(self, name: str) -> None:
        self.cluster[name].auto_sync = False

    def do_sync(self, name: str) -> None:
        self.cluster[name].sync()
        self.cluster.settle_local()

    def do_restart(self, name: str) -> None:
        self.cluster[name].auto_sync = True
        self.cluster[name].restart()

    def do_snapshot(self, name: str) -> None:
        self.cluster[name].take_snapshot()
        log = self.cluster[name].raft.log
        self.say(f"  {name} has a snapshot at {log.snapshot.index}, its log begins after "
                 f"{log.base_index}")  # fmt: skip

    def do_add(self, at: str, name: str, incarnation: str = "") -> None:
        self.cluster.change(at, name, incarnation=incarnation)

    def do_remove(self, at: str, name: str, incarnation: str = "") -> None:
        self.cluster.change(at, name, remove=True, incarnation=incarnation)

    def do_transfer(self, name: str, target: str | None = None) -> None:
        self.cluster[name].step(fx.Transfer(target))

    # --- messages and time -----------------------------------------------------------------

    def do_settle(self, quietly: str = "") -> None:
        self.quiet = bool(quietly)
        self.cluster.settle_local()
        while self.cluster.wire:
            self._deliver(*self.cluster.wire.pop(0))

    def do_deliver(self, source: str, target: str, times: str = "1") -> None:
        for _ in range(int(times)):
            at = next(i for i, m in enumerate(self.cluster.wire) if m[:2] == (source, target))
            self._deliver(*self.cluster.wire.pop(at))

    def _deliver(
        self, source: str, target: str, message: msg.RaftMessage, *, beats: bool = True
    ) -> None:
        if not beats and isinstance(message, msg.Heartbeat | msg.HeartbeatResponse):
            self.cluster.deliver(source, target, message)
            return
        self.say(f"{source} -> {target}: {describe(message)}")
        listed = self.cluster[target].members.get(source)
        if isinstance(message, msg.ANSWERS) and listed != self.cluster[source].incarnation:
            self.say(f"  {target} does not count it: it knows {source} with another disk")
        self.cluster.deliver(source, target, message)

    def do_drop(self, source: str, target: str) -> None:
        lost = [m for m in self.cluster.wire if m[:2] == (source, target)]
        self.cluster.wire = [m for m in self.cluster.wire if m not in lost]
        for _, _, message in lost:
            self.say(f"{source} -> {target}: {describe(message)} (lost)")

    def do_watch(self, ms: str) -> None:
        for _ in range(int(ms) // 10):
            self.cluster.tick(10)
            while self.cluster.wire:
                self._deliver(*self.cluster.wire.pop(0), beats=False)

    def do_until(self, beginning: str) -> None:
        for _ in range(200):
            while self.cluster.wire:
                source, target, message = self.cluster.wire.pop(0)
                self._deliver(source, target, message, beats=False)
                if describe(message).startswith(beginning):
                    return
            self.cluster.tick(10)
        raise AssertionError(f"no message begins with {beginning!r}")

    def do_pass(self, ms: str) -> None:
        self.quiet = True
        self.cluster.run(int(ms))
