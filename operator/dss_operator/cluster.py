"""The one task of each cluster: woken by events, never idle for longer than a tick, ended with its
resource. Here reading, planning, applying, sampling and the status come together.

Whatever fails, the task goes on: the next tick starts from what is there. What must not live here:
rules of any kind (plan.py, status.py, dss.remediation), kopf.
"""

from __future__ import annotations

import asyncio
import logging
import random
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec

from dss.base.errors import ConfigProblem
from dss.remediation import Record
from dss.topology.kube import ClusterRef, render_objects, render_secrets, secret_names
from dss.topology.variables import TEST_MODES
from dss_operator.apply import Applier, Outcome
from dss_operator.events import Event, Recorder
from dss_operator.founding import supported
from dss_operator.kube import ApiError, Kube, NotHolder
from dss_operator.lease import Leadership
from dss_operator.members import pods_by_member, rolling, slim, volatile_members
from dss_operator.metrics import Metrics
from dss_operator.observe import Observer, read_resource
from dss_operator.plan import Wanted, decoded_secret, mounted_secrets, plan, settle
from dss_operator.remedy import Remedy, Target, policy_of, sample_every_s
from dss_operator.reporter import Reporter
from dss_operator.rounds import Rounds
from dss_operator.sampling import Nodes
from dss_operator.settings import Settings
from dss_operator.state import (
    RESTARTED_AT,
    TEST_MODE,
    Key,
    Observed,
    Resource,
    owner_uid,
)
from dss_operator.status import Facts, compute, ever_ready, transitions
from dss_operator.told import events_of

log = logging.getLogger(__name__)

DEBOUNCE_S: Final = 0.3
"""Events come in swarms: a StatefulSet changes its status with each of its pods."""
SPACING_S: Final = 2.0
"""The shortest time between two ticks of one cluster, whatever wakes it: sixteen reads each."""
UNFINISHED_S: Final = 2.0
"""After a tick that changed something: look whether that was all."""
FAILED_FIRST_S: Final = 1.0
FAILED_MAX_S: Final = 30.0


class Deps(msgspec.Struct, frozen=True, kw_only=True):
    """What all clusters of a process share."""

    kube: Kube
    observer: Observer
    nodes: Nodes
    leadership: Leadership
    metrics: Metrics
    settings: Settings
    gate: asyncio.Semaphore
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """Unix seconds."""
    new_secret: Callable[[], str]


class Cluster:
    """One DSSCluster's task and all that a process remembers of it."""

    def __init__(self, deps: Deps, namespace: str, name: str) -> None:
        self._deps = deps
        self.namespace = namespace
        self.name = name
        self._key = (namespace, name)
        self._wake = asyncio.Event()
        self._uid = ""
        self.meaning: object = None
        """Of the newest event that woke it."""
        self.failures = 0
        self.next_tick = 0.0
        self._ticked_at = float("-inf")
        self._next_sample = 0.0
        self._forget()

    def _forget(self) -> None:
        """Another resource of this name: nothing of the last one's counts."""
        deps = self._deps
        self._applier = Applier(deps.kube, deps.clock)
        self._recorder = Recorder(deps.kube, deps.settings.pod_id, deps.clock)
        self._remedy = Remedy(
            deps.kube,
            deps.nodes,
            f"{self.namespace}/{self.name}",
            store=self._store,
            tell=self._tell,
            count=self._count,
        )
        self._secrets: dict[str, dict[str, str]] = {}
        self._resource: Resource | None = None
        self._observed: Observed | None = None
        self._outcome = Outcome()
        self._wanted = Wanted(objects=())
        self._rounds = Rounds(deps.nodes, deps.clock)
        self._reporter = Reporter(deps.kube, deps.clock)
        self._followed: tuple[Any, ...] = ()
        self._met = False
        self._observed_at = float("-inf")

    def wake(self) -> None:
        self._wake.set()

    # --- the loop ---

    async def run(self) -> None:
        """Until the resource is gone."""
        try:
            # A wake that came while it was found gone may tell of its successor.
            while await self._turn() or self._wake.is_set():
                pass
        finally:
            self._deps.metrics.forget(self.namespace, self.name)

    async def _turn(self) -> bool:
        await self._deps.leadership.wait()
        clock = self._deps.clock
        if await self._woken(min(self.next_tick, self._next_sample) - clock()):
            await asyncio.sleep(DEBOUNCE_S)
            self._wake.clear()
            if not self.failures:  # a back-off is for the API server's sake
                self.next_tick = min(self.next_tick, self._ticked_at + SPACING_S)
        if clock() >= self.next_tick:
            async with self._deps.gate:
                if not await self.tick():
                    return False
        if clock() >= self._next_sample:
            self._next_sample = clock() + self._sample_every_s()
            await self.sample()
        return True

    async def _woken(self, timeout_s: float) -> bool:
        if timeout_s <= 0:
            return self._wake.is_set()
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def tick(self) -> bool:
        """One look, whatever comes of it; False: the resource is gone."""
        deps, began = self._deps, self._deps.clock()
        self._ticked_at = began
        result = "ok"
        try:
            alive = await self._reconcile()
        except NotHolder:
            alive, result = True, "not-holder"
        except ApiError as error:
            changed = error.status == HTTPStatus.CONFLICT
            alive, result = True, "changed" if changed else "api-error"
            log.log(logging.INFO if changed else logging.WARNING, "%s/%s: %s", *self._key, error)
        except Exception:
            alive, result = True, "defect"
            log.exception("%s/%s: a tick failed", self.namespace, self.name)
        self.failures = 0 if result == "ok" else self.failures + 1
        deps.metrics.ticks.labels(result).inc()
        deps.metrics.tick_seconds.observe(deps.clock() - began)
        self.next_tick = self._tick_after()
        return alive

    def _tick_after(self) -> float:
        """When to look again: at the latest when a held-back status may be written."""
        return min(self._look_after(), self._reporter.due)

    def _look_after(self) -> float:
        now = self._deps.clock()
        if self.failures:
            wait_s = min(FAILED_FIRST_S * 2.0 ** (self.failures - 1), FAILED_MAX_S)
            return now + wait_s * random.uniform(0.75, 1.25)  # noqa: S311
        if self._outcome.unfinished:
            return now + UNFINISHED_S
        # Clusters of one namespace tick together and share their LISTs, namespaces apart.
        every = self._deps.settings.tick_s
        phase = every * (zlib.crc32(self.namespace.encode()) % 997) / 997
        at = ((now - phase) // every + 1) * every + phase
        return max(at, now + SPACING_S)

    # --- one look ---

    async def _reconcile(self) -> bool:
        deps = self._deps
        resource = await read_resource(deps.kube, self.namespace, self.name)
        if resource is None:
            return False
        if resource.uid != self._uid:
            self._uid = resource.uid
            self._forget()
            self._remedy.load(resource.status)
        elif self._reporter.overwritten(resource):
            self._remedy.load(resource.status, keep=True)
        self._resource = resource
        if resource.deleting:
            return True
        self._observed = observed = await deps.observer.observe(self.namespace, self.name)
        self._observed_at = deps.clock()
        self._remember_secrets(observed)
        self._outcome = Outcome()
        if resource.spec is not None and not resource.paused:
            await self._make_true(resource, observed)
        if not self._rounds.answers:  # a new process says nothing of members before it asked them
            await self._ask(observed)
        await self._write_status()
        self._observed = slim(observed)
        return True

    async def _make_true(self, resource: Resource, observed: Observed) -> None:
        try:
            self._wanted, fresh = self._render(resource, observed)
        except ConfigProblem as problem:
            # The counts that are kept may not fit the rest of a changed spec.
            self._resource = msgspec.structs.replace(resource, fault=str(problem))
            return
        actions = plan(self._wanted.objects, observed, resource.uid)
        self._wanted = msgspec.structs.replace(self._wanted, objects=())  # not kept between ticks
        self._outcome = await self._applier.carry_out(actions, self.namespace, resource.uid)
        done = self._outcome.done
        for action in done:
            self._deps.metrics.actions.labels(action.verb, action.kind).inc()
        created = {(a.kind, a.name) for a in done if a.verb == "create"}
        asked = (
            resource.generation,
            resource.annotations.get(RESTARTED_AT),
            resource.annotations.get(TEST_MODE),
        )
        changed, self._followed = asked != self._followed, asked
        await self._tell(events_of(done, fresh & created, changed=changed))

    def _render(self, resource: Resource, observed: Observed) -> tuple[Wanted, set[Key]]:
        """What is wanted, and the Secrets that get new values though the cluster had some."""
        assert resource.spec is not None
        spec, refused = supported(resource.spec, observed, self.name)
        ref = ClusterRef(
            name=self.name,
            namespace=self.namespace,
            uid=resource.uid,
            operator_namespace=self._deps.settings.pod_namespace,
            test_mode=self._test_mode(resource)[0],
            restarted_at=resource.annotations.get(RESTARTED_AT, ""),
        )
        secrets = render_secrets(spec, ref, self._secrets, self._deps.new_secret)
        wanted = settle([*secrets, *render_objects(spec, ref)], observed)
        in_use = mounted_secrets(observed)
        if f"{self.name}-auth" in in_use:
            in_use |= {f"{self.name}-tokens"}  # what the mounted hashes are made of
        fresh = {("Secret", name) for name in in_use - self._secrets.keys()}
        unsupported = (*refused, *wanted.unsupported)
        return msgspec.structs.replace(wanted, unsupported=unsupported), fresh

    def _test_mode(self, resource: Resource) -> tuple[str, str]:
        """(the test mode that is on, why one that is asked for is not)."""
        asked = resource.annotations.get(TEST_MODE, "")
        if not asked:
            return "", ""
        if not self._deps.settings.allow_test_mode:
            return "", "the operator runs without ALLOW_TEST_MODE=1"
        if asked not in TEST_MODES:
            return "", f"expected {' or '.join(TEST_MODES)}, found {asked[:40]!r}"
        return asked, ""

    def _remember_secrets(self, observed: Observed) -> None:
        """Values once seen are kept for as long as this process lives: a Secret that is deleted or
        spoilt comes back as it was, and no node loses its peers."""
        for name in secret_names(self.name):
            live = observed.owned.get(("Secret", name))
            if live is not None and owner_uid(live) in ("", self._uid):
                values = decoded_secret(live)
                self._secrets[name] = values | self._secrets.get(name, {})

    # --- the nodes ---

    async def sample(self) -> None:
        """Asks the members, lets remediation act, and writes the status if it says more now."""
        resource, observed = self._resource, self._observed
        if resource is None or observed is None or resource.deleting:
            return
        try:
            await self._ask(observed)
            if resource.spec is not None:
                busy = self._busy(resource, observed)
                policy = policy_of(resource.spec)
                await self._remedy.act(policy, busy, self._deps.wall(), self._target)
            await self._write_status()
        except NotHolder:
            return
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                log.warning("%s/%s: %s", self.namespace, self.name, error)
            self.next_tick = self._deps.clock()  # read again: it was changed, or worse
        except Exception:
            log.exception("%s/%s: sampling failed", self.namespace, self.name)

    def _sample_every_s(self) -> float:
        spec = self._resource.spec if self._resource else None
        return sample_every_s(policy_of(spec), self._deps.settings.sample_s)

    async def _ask(self, observed: Observed) -> None:
        locks = await self._rounds.ask(self.name, observed, self._token)
        self._met = self._met or any(answer.body is not None for answer in locks.values())
        if self._resource is not None and (self._met or ever_ready(self._resource)):
            now_ms = round(self._deps.clock() * 1_000)
            policy = policy_of(self._resource.spec)
            self._remedy.observe(locks, policy, now_ms, volatile_members(observed))
        stuck = any(found.state == "ElectionStuck" for found in self._remedy.diagnoses)
        self._deps.metrics.stuck.labels(self.namespace, self.name).set(stuck)

    @property
    def _token(self) -> str:
        return self._secrets.get(f"{self.name}-tokens", {}).get("operator", "")

    def _busy(self, resource: Resource, observed: Observed) -> str:
        """Why no member may be touched now."""
        if resource.paused:
            return "spec.paused is true"
        age_s = self._deps.clock() - self._observed_at
        if age_s > 2 * self._deps.settings.tick_s:
            return "the API server has not told of the pods for a while"
        locks = f"{self.name}-lock"
        if self._outcome.concerns("StatefulSet", locks) or rolling(observed, locks):
            return "the lock nodes are being rolled out"
        ending = [
            member
            for member, pod in pods_by_member(observed).items()
            if member.startswith("lock-") and pod["metadata"].get("deletionTimestamp")
        ]
        return f"{', '.join(ending)} is ending" if ending else ""

    def _target(self, member: str) -> Target | None:
        answer = self._rounds.answers.get(member)
        pod = pods_by_member(self._observed).get(member) if self._observed else None
        address = ((pod or {}).get("status") or {}).get("podIP")
        if answer is None or not answer.pod_uid or not address:
            return None
        return Target(
            namespace=self.namespace,
            pod=answer.pod,
            pod_uid=answer.pod_uid,
            address=address,
            token=self._token,
        )

    # --- status and events ---

    async def _store(self, record: Record) -> None:
        """Remediation's row, before it acts: written at once, or nothing is done."""
        await self._write_status(at_once=True)

    async def _write_status(self, *, at_once: bool = False) -> None:
        """If it says something else than the last one, at most once in STATUS_S."""
        resource = self._resource
        assert resource is not None
        status = self._compute(resource)
        self._deps.metrics.ready.labels(self.namespace, self.name).set(_is_ready(status))
        kept = await self._reporter.write(resource, status, at_once=at_once)
        if kept is None:
            return
        self._resource = kept
        await self._recorder.tell(resource, transitions(resource.status, status))

    def _compute(self, resource: Resource) -> dict[str, Any]:
        assert self._observed is not None
        mode, refused = self._test_mode(resource)
        facts = Facts(
            resource=resource,
            observed=self._observed,
            answers=self._rounds.answers,
            diagnoses=self._remedy.diagnoses,
            record=self._remedy.record,
            policy=policy_of(resource.spec),
            outcome=self._outcome,
            unsupported=self._wanted.unsupported,
            test_mode=mode,
            test_mode_refused=refused,
            record_fault=self._remedy.fault,
        )
        now = datetime.fromtimestamp(self._deps.wall(), UTC)
        return compute(facts, now.strftime("%Y-%m-%dT%H:%M:%SZ"))

    async def _tell(self, events: list[Event]) -> None:
        if self._resource is not None and events:
            await self._recorder.tell(self._resource, events)

    def _count(self, action: str, reason: str) -> None:
        labels = (self.namespace, self.name, action, reason)
        self._deps.metrics.decisions.labels(*labels).inc()


def _is_ready(status: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
