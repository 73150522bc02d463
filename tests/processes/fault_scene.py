"""A scene: a cluster under load, faults measured one by one, everything judged at the end.

What must not live here: any one fault.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_cluster import FaultCluster
from fault_load import Load
from fault_report import Row, report
from fault_watch import Watch

CONVERGED_S = 15.0
"""After a heal all is as before: reliability.md's floor, on a machine that others use too twice."""
_numbers = itertools.count(1)


class Scene:
    """What a test sees of its load. `cluster` is whole when the scene ends."""

    def __init__(self, cluster: FaultCluster) -> None:
        self.cluster = cluster
        self.watch = Watch(cluster)
        self.load = Load(cluster, f"scene-{next(_numbers)}")

    @contextlib.contextmanager
    def fault(self, title: str, sound: Sequence[str], hold_s: float = 2.0) -> Iterator[None]:
        """The body does it; `sound` must serve again within 30 s and go on for `hold_s`."""
        began = time.monotonic()
        yield
        done = time.monotonic()
        self.watch.served(sound, done)
        self.watch.keep(self.cluster.url(sound[0]))
        time.sleep(hold_s)
        ended = time.monotonic()
        report.append(
            Row(
                title,
                len(self.cluster.names("lock")),
                self.watch.gap_ms(sound, began, ended),
                max(self.watch.gap_ms([name], began, ended) for name in sound),
                self.load.slowest_ms(sound, began),
            )
        )
        print(f"\n{report[-1].line()}")

    def whole_again(self, title: str = "") -> None:
        """All cuts are healed: every node serves within the time that is promised."""
        began = time.monotonic()
        self.cluster.heal()
        names = self.cluster.names("lock")
        self.watch.served(names, began, 2 * CONVERGED_S)
        self.cluster.until(self.cluster.all_ready, "every node is ready", 2 * CONVERGED_S)
        if title:
            took_ms = round((time.monotonic() - began) * 1_000)
            report.append(Row(f"{title}: healed, all serve", len(names), took_ms, took_ms, None))

    def rolling_restart(self) -> None:
        """SIGTERM of each node in turn; the next one only when all serve again."""
        cluster = self.cluster
        for name in cluster.names("lock"):
            title = f"SIGTERM of {name}, then started again"
            with self.fault(title, cluster.others(name), 0.2):
                cluster.send([name], signal.SIGTERM)
                assert cluster.ended(name) == 0, cluster.report()
            cluster.start_node(name)
            self.whole_again()


@contextlib.contextmanager
def scene(cluster: FaultCluster) -> Iterator[Scene]:
    """A load before, in and after the body; then the verdict."""
    cluster.heal()
    cluster.wait_ready()
    made = Scene(cluster)
    try:
        cluster.until(lambda: made.load.granted > 30, "the load runs")
        made.load.raised = all(
            (cluster.status(name) or {}).get("feature_level", 1) >= 2
            for name in cluster.names("lock")
        )
        yield made
    finally:
        made.load.stopped.set()
        cluster.heal()
        made.load.end()
        made.watch.end()
    made.load.judge()
    made.watch.nothing_lost()


def started(path: Path, nodes: int) -> Iterator[FaultCluster]:
    """For fixtures."""
    made = FaultCluster(path / "data", nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()
