"""Metrics: plain integers on the hot path, rendered in Prometheus' text format on scrape.

A service binds its children once (`registry.counter("dss_x_total", "…", role="leader")`) and
then only adds to an int: no locks, no label look-up. Everything runs on the loop's thread.
What must not live here: what any service counts; alerts (docker/ has them).
Source: Prometheus' exposition formats and naming practices.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SECONDS_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""For durations of requests and fsyncs: half a millisecond to the longest wait (30 s)."""
COUNT_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""For batch sizes."""

LAG_EVERY_S: Final = 1.0
"""How often the loop's lag is sampled: one wake-up a second does not show in idle CPU."""

Value = int | float
Values = Value | None | Mapping[tuple[str, ...], Value]
"""What a callback returns: one value, None for "nothing to report", or label values -> value."""


class Counter:
    """A number that only grows. `counter.value += n` is as good as `inc`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Value = 0

    def inc(self, n: Value = 1) -> None:
        self.value += n


class Histogram:
    """Counts per fixed bucket; `bounds` are inclusive upper bounds, ascending."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(bounds), "bucket bounds must ascend"
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class _Family:
    """One metric name: its help, its label names and its bound children or its callback."""

    def __init__(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        help_: str,
        labels: tuple[str, ...],
        callback: Callable[[], Values] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = help_
        self.labels = labels
        self.callback = callback
        self.children: dict[tuple[str, ...], Counter | Histogram] = {}

    def collect(self) -> Metric:
        if self.kind == "histogram":
            return self._collect_histogram()
        family: CounterMetricFamily | GaugeMetricFamily
        if self.kind == "counter":
            family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        else:
            family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for key, value in self._values().items():
            family.add_metric([str(part) for part in key], float(value))
        return family

    def _values(self) -> Mapping[tuple[str, ...], Value]:
        if self.callback is None:
            return {
                key: child.value
                for key, child in self.children.items()
                if isinstance(child, Counter)
            }
        values = self.callback()
        if values is None:
            return {}
        return values if isinstance(values, Mapping) else {(): values}

    def _collect_histogram(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for key, child in self.children.items():
            assert isinstance(child, Histogram)
            bounds = [*(repr(float(bound)) for bound in child.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(child.counts), strict=True))
            family.add_metric(list(key), buckets, child.sum)
        return family


class Registry:
    """All metrics of one node process."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._prometheus = CollectorRegistry(auto_describe=False)
        self._prometheus.register(_Bridge(self._families))
        ProcessCollector(registry=self._prometheus)

    def counter(self, name: str, help: str, **labels: str) -> Counter:
        """The counter of exactly these labels: bind it once, keep it.

        Args:
            name: `dss_<part>_<what>_total`.
        """
        family = self._family("counter", name, help, tuple(labels))
        child = family.children.setdefault(tuple(labels.values()), Counter())
        assert isinstance(child, Counter)
        return child

    def histogram(
        self, name: str, help: str, buckets: Sequence[float] = SECONDS_BUCKETS, **labels: str
    ) -> Histogram:
        """The histogram of exactly these labels: bind it once, keep it."""
        family = self._family("histogram", name, help, tuple(labels))
        child = family.children.setdefault(tuple(labels.values()), Histogram(buckets))
        assert isinstance(child, Histogram)
        return child

    def gauge(
        self,
        name: str,
        help: str,
        callback: Callable[[], Values],
        labels: tuple[str, ...] = (),
    ) -> None:
        """A value read on scrape.

        Args:
            callback: one number; or, with `labels`, a mapping {label values: number}.
        """
        self._family("gauge", name, help, labels, callback)

    def counter_callback(
        self,
        name: str,
        help: str,
        callback: Callable[[], Values],
        labels: tuple[str, ...] = (),
    ) -> None:
        """A counter that is kept elsewhere as a plain int, read on scrape."""
        self._family("counter", name, help, labels, callback)

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Metrics made wholly on scrape (prometheus_client's families)."""
        self._prometheus.register(_Call(collect))

    def render(self) -> bytes:
        """Prometheus' text format 0.0.4 (CONTENT_TYPE)."""
        return generate_latest(self._prometheus)

    def _family(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        help_: str,
        labels: tuple[str, ...],
        callback: Callable[[], Values] | None = None,
    ) -> _Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(kind, name, help_, labels, callback)
        elif callback is not None or family.callback is not None:
            raise ValueError(f"metric {name} is registered twice")
        elif (family.kind, family.labels) != (kind, labels):
            raise ValueError(f"metric {name} was registered as {family.kind}{family.labels}")
        return family


class _Bridge(Collector):
    """Hands our families to prometheus_client's renderer."""

    def __init__(self, families: dict[str, _Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families.values():
            yield family.collect()


class _Call(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class ProcessMonitor:
    """The process' own health: build, loop lag, GC pauses (memory and CPU come with Registry).

    `start` and `stop` run on the loop's thread.
    """

    def __init__(self, registry: Registry, *, version: str, node_id: str, role: str) -> None:
        labels = (version, node_id, role, platform.python_version())
        registry.gauge(
            "dss_build_info",
            "Always 1; the labels say what runs.",
            lambda: {labels: 1},
            ("version", "node", "role", "python"),
        )
        self._lag = registry.histogram(
            "dss_event_loop_lag_seconds", "How late the event loop ran a timer."
        )
        self._pause = registry.histogram(
            "dss_gc_pause_seconds", "Time that garbage collections stopped the process."
        )
        self._handle: asyncio.TimerHandle | None = None
        self._gc_started = 0.0

    def start(self) -> None:
        gc.callbacks.append(self._on_gc)
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        due = time.perf_counter() + LAG_EVERY_S
        self._handle = loop.call_later(LAG_EVERY_S, self._sample, loop, due)

    def _sample(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._lag.observe(max(0.0, time.perf_counter() - due))
        self._arm(loop)

    def _on_gc(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._gc_started = time.perf_counter()
        else:
            self._pause.observe(time.perf_counter() - self._gc_started)
