"""`dss doctor`: watches the lock nodes, says what is wrong, and with --fix helps.

The same `diagnose` and `decide` as the operator's, over HTTP from this machine; history lives as
long as the command. Exit codes: 0 healthy; 1 stuck, or a node is missing; 69 no lock node answers;
75 no leader yet, or not to be seen why.

What must not live here: rules (dss.remediation), carrying out an action (remedies).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from dss.base.errors import EXIT_FAILED, EXIT_TRY_AGAIN, EXIT_UNREACHABLE
from dss.base.ids import LOCK_GROUP, META_GROUP
from dss.cli.connect import nodes
from dss.cli.http import CliError, Nodes, Problem
from dss.cli.remedies import Remedies
from dss.remediation import (
    TOUCHING,
    Action,
    Diagnosis,
    Policy,
    Record,
    Sample,
    SampleWindow,
    decide,
    diagnose,
    parse_status,
    unanswered,
)

_ANSWER_S: Final = 2.0
"""A node that needs longer for its status is not to be counted on."""
_SAMPLES_A_WINDOW: Final = 10
_INTERVAL_S_MIN: Final = 0.2
_RECOVERY_S: Final = 60.0
"""Beside two windows: for a container that stops and starts."""
_GROUPS: Final[dict[int, str]] = {META_GROUP: "metadata", LOCK_GROUP: "locks"}


def doctor(args: argparse.Namespace) -> int:
    """Watch, judge, and with --fix act, until there is a verdict (--watch: until Ctrl-C)."""
    client = nodes(args)
    mode = "Enforce" if args.fix else "DryRun" if args.watch else "Off"
    policy = msgspec.convert({"mode": mode, "window_ms": int(args.window * 1000)}, Policy)
    return _Doctor(client, policy, args.watch, _Teller(args.json)).run()


def _name(group_id: int) -> str:
    return _GROUPS.get(group_id, f"group {group_id}")


class _Teller:
    """Standard output: lines for people, or with --json one document a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._progress = not as_json and sys.stderr.isatty()

    def say(self, event: str, text: str, **data: Any) -> None:
        self.clear()
        now = datetime.now(UTC)
        if self._as_json:
            at = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            text = json.dumps(
                {"at": at, "event": event, "message": text} | data, ensure_ascii=False
            )
        print(text, flush=True)

    def progress(self, text: str) -> None:
        if self._progress:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.progress("")


class _LockNodes:
    """Asks the lock nodes: from outside only the endpoints may be reachable, from inside only what
    the cluster lists, so each member is looked for at both."""

    def __init__(self, client: Nodes) -> None:
        self._client = client
        listed = client.cluster()
        self._listed = {str(n["id"]): str(n["url"]) for n in listed if n.get("role") == "lock"}
        self._unknown = list(dict.fromkeys([*client.endpoints, *self._listed.values()]))
        self.members = list(self._listed)
        if not self.members:
            raise CliError("the cluster lists no lock nodes. Check --endpoints")
        self.urls: dict[str, str] = {}
        """Where each member has answered."""
        self._pool = ThreadPoolExecutor(max_workers=16)

    def ask(self) -> list[Sample]:
        """One sample of each member, all asked at once."""
        at_ms = time.monotonic_ns() // 1_000_000
        missing = [member for member in self.members if member not in self.urls]
        urls = [*self.urls.values(), *(self._unknown if missing else [])]
        answers = dict(zip(urls, self._pool.map(self._status, urls), strict=True))
        for url, body in answers.items():
            self._learn(url, body)
        return [self._sample(member, answers, at_ms) for member in self.members]

    def _learn(self, url: str, body: dict[str, Any] | str) -> None:
        if isinstance(body, str):
            return
        member = str(body.get("node_id"))
        if member in self.members:
            self.urls.setdefault(member, url)
        if url in self._unknown:  # it has answered: known, or nobody we look for
            self._unknown.remove(url)

    def _sample(self, member: str, answers: dict[str, dict[str, Any] | str], at_ms: int) -> Sample:
        url = self.urls.get(member, self._listed[member])
        body = answers.get(url, "does not answer")
        if isinstance(body, str):
            return unanswered(member, at_ms, f"{body} at {url}")
        return parse_status(member, body, at_ms)

    def _status(self, url: str) -> dict[str, Any] | str:
        """The body of its Raft status, or why there is none."""
        try:
            answer = self._client.ask_one(url, "/v1/raft/status", _ANSWER_S)
            if answer is None:
                return "does not answer"
            body = answer.json()
        except Problem as problem:
            if problem.status in (401, 403):
                raise
            return str(problem)
        except CliError as error:
            return str(error)
        return body if isinstance(body, dict) else "its Raft status is no object"


class _Doctor:
    def __init__(self, client: Nodes, policy: Policy, watch: bool, teller: _Teller) -> None:
        self._policy = policy
        self._watch = watch
        self._teller = teller
        self._window = SampleWindow(policy.window_ms)
        self._record = Record()
        self._told: dict[int, tuple[str, ...]] = {}
        self._nodes = _LockNodes(client)
        self._remedies = Remedies(client, lambda text: teller.say("progress", text))
        self._window_s = policy.window_ms / 1000
        self._interval_s = max(self._window_s / _SAMPLES_A_WINDOW, _INTERVAL_S_MIN)

    def run(self) -> int:
        began = time.monotonic()
        # One interval more: the oldest sample must be as old as the window.
        until = began + self._window_s + 2 * self._interval_s
        while True:
            for sample in self._nodes.ask():
                self._window.add(sample)
            diagnoses = self._diagnose()
            self._tell(diagnoses)
            action = self._decide(diagnoses)
            if action.kind in TOUCHING and not action.dry_run:
                until = time.monotonic() + 2 * self._window_s + _RECOVERY_S
            elif self._watch:
                pass  # until Ctrl-C
            elif self._concluded(diagnoses, action) or time.monotonic() >= until:
                return self._verdict(diagnoses)
            else:
                self._show_progress(began)
            time.sleep(self._interval_s)

    def _diagnose(self) -> list[Diagnosis]:
        now_ms = time.monotonic_ns() // 1_000_000
        return diagnose(self._window.samples(), self._nodes.members, self._policy, now_ms)

    def _concluded(self, diagnoses: Sequence[Diagnosis], action: Action) -> bool:
        """Watching on would change nothing."""
        if all(found.state == "Healthy" for found in diagnoses):
            return True
        if self._policy.mode == "Enforce":
            return action.kind == "alert" or action.reason in ("Alerted", "Cooldown")
        return any(found.state == "ElectionStuck" for found in diagnoses)

    def _decide(self, diagnoses: Sequence[Diagnosis]) -> Action:
        now = time.time()
        action = decide(diagnoses, self._policy, self._record.history, "", now)
        if action.kind == "none":
            return action
        self._record = self._record.begin(action, now)
        self._teller.say("action", self._words(action), **msgspec.to_builtins(action))
        if action.kind in TOUCHING and not action.dry_run:
            url = self._nodes.urls[action.member]
            outcome = self._remedies.carry_out(action, url)
            self._record = self._record.ended(outcome)
            self._teller.say("outcome", f"{action.kind} of {action.member}: {outcome}")
        return action

    # --- words ------------------------------------------------------------------------------

    def _tell(self, diagnoses: Sequence[Diagnosis]) -> None:
        """What has changed, a line for each group."""
        for found in diagnoses:
            key: tuple[str, ...] = (found.state, found.reason, found.candidate or "")
            if found.state == "Healthy":
                key = (found.state, found.message)
            if self._told.get(found.group_id) == key:
                continue
            self._told[found.group_id] = key
            stamp = f"{datetime.now():%H:%M:%S}  " if self._watch else ""
            self._teller.say(
                "diagnosis",
                f"{stamp}{_name(found.group_id)}: {found.state}: {found.message}",
                **msgspec.to_builtins(found),
            )

    @staticmethod
    def _words(action: Action) -> str:
        name = _name(action.group_id)
        if action.kind not in TOUCHING:
            return f"{name}: {action.kind}: {action.message}"
        what = "give up its candidacy" if action.kind == "backoff" else "restart"
        if action.dry_run:
            return f"{name}: with --fix {action.member} would now be made to {what}"
        return f"{name}: making {action.member} {what}"

    def _show_progress(self, began: float) -> None:
        passed = time.monotonic() - began
        names = " ".join(self._nodes.members)
        self._teller.progress(f"watching {names}: {passed:.0f} s, window {self._window_s:g} s")

    def _verdict(self, diagnoses: Sequence[Diagnosis]) -> int:
        latest = {member: self._window.latest(member) for member in self._nodes.members}
        missing = {m: s.reason for m, s in latest.items() if s is not None and not s.answered}
        stuck = [found for found in diagnoses if found.state == "ElectionStuck"]
        if len(missing) == len(latest):
            verdict, code = "unreachable", EXIT_UNREACHABLE
            text = f"no lock node answers ({', '.join(latest)}). Are they running? dss status"
        elif stuck:
            verdict, code, text = "stuck", EXIT_FAILED, self._stuck_text(stuck[0])
        elif any(found.state != "Healthy" for found in diagnoses):
            verdict, code, text = "no leader", EXIT_TRY_AGAIN, self._leaderless_text(missing)
        elif missing:
            verdict, code = "degraded", EXIT_FAILED
            gone = "; ".join(f"{member}: {reason}" for member, reason in missing.items())
            text = f"degraded: locks are served, but one more failure may stop them. {gone}"
        else:
            verdict, code = "healthy", 0
            text = "healthy: every group of the lock nodes has a leader and all of them answer"
        self._teller.say("verdict", text, verdict=verdict, exit_code=code)
        return code

    def _stuck_text(self, found: Diagnosis) -> str:
        text = "stuck: locks are refused until somebody wins an election. "
        if found.candidate is None:
            return text + "No member may be touched safely: look at the nodes' clocks and load"
        if self._policy.mode == "Enforce":
            return text + "Backing off and restarting did not help: look at clocks, load, network"
        return text + (
            f"Next: dss doctor --fix asks {found.candidate} to give up its candidacy, and "
            "restarts it if that does not help"
        )

    @staticmethod
    def _leaderless_text(missing: dict[str, str]) -> str:
        if missing:
            gone = "; ".join(f"{member}: {reason}" for member, reason in missing.items())
            return (
                f"no leader, and not all lock nodes can be seen. Start what is down first. {gone}"
            )
        return "no leader yet, and it is no split vote: wait and look again, or: dss doctor --watch"
