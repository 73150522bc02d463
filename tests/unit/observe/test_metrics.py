"""observe/metrics.py: what a scrape sees."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dss.observe.metrics import LAG_EVERY_S, ProcessMonitor, Registry


def samples(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = registry.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counter_children__are_bound_once_and_scraped_by_label() -> None:
    registry = Registry()
    won = registry.counter("dss_raft_elections_total", "Elections.", result="won")
    lost = registry.counter("dss_raft_elections_total", "Elections.", result="lost")
    assert registry.counter("dss_raft_elections_total", "Elections.", result="won") is won
    won.inc(3)
    lost.value += 1
    seen = samples(registry)
    assert seen["dss_raft_elections_total", (("result", "won"),)] == 3
    assert seen["dss_raft_elections_total", (("result", "lost"),)] == 1


def test_histogram__buckets_are_cumulative_and_bounds_inclusive() -> None:
    registry = Registry()
    histogram = registry.histogram("dss_x_seconds", "X.", buckets=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    seen = samples(registry)
    assert seen["dss_x_seconds_bucket", (("le", "0.1"),)] == 2
    assert seen["dss_x_seconds_bucket", (("le", "1.0"),)] == 3
    assert seen["dss_x_seconds_bucket", (("le", "+Inf"),)] == 4
    assert seen["dss_x_seconds_count", ()] == 4
    assert seen["dss_x_seconds_sum", ()] == pytest.approx(7.65)


def test_gauge_callbacks__are_read_on_each_scrape() -> None:
    registry = Registry()
    state = {"depth": 1}
    registry.gauge("dss_queue_depth", "D.", lambda: {("jobs",): state["depth"]}, ("queue",))
    registry.gauge("dss_raft_term", "T.", lambda: None)
    registry.counter_callback("dss_lock_grants_total", "G.", lambda: state["depth"] * 10)
    assert samples(registry)["dss_queue_depth", (("queue", "jobs"),)] == 1
    state["depth"] = 7
    seen = samples(registry)
    assert seen["dss_queue_depth", (("queue", "jobs"),)] == 7
    assert seen["dss_lock_grants_total", ()] == 70
    assert ("dss_raft_term", ()) not in seen


def test_same_name_in_another_shape__is_refused() -> None:
    registry = Registry()
    registry.counter("dss_x_total", "X.", a="1")
    with pytest.raises(ValueError, match="dss_x_total"):
        registry.counter("dss_x_total", "X.", b="1")
    with pytest.raises(ValueError, match="dss_x_total"):
        registry.gauge("dss_x_total", "X.", lambda: 1)


def test_process_monitor__sees_a_blocked_loop_and_a_collection() -> None:
    registry = Registry()
    monitor = ProcessMonitor(registry, version="1", node_id="lock-1", role="lock")

    async def scenario() -> None:
        monitor.start()
        await asyncio.sleep(LAG_EVERY_S - 0.2)
        time.sleep(0.5)  # noqa: ASYNC251 - blocking the loop is the scenario
        await asyncio.sleep(0.01)
        gc.collect()
        monitor.stop()

    asyncio.run(scenario())
    seen = samples(registry)
    assert seen["dss_event_loop_lag_seconds_sum", ()] > 0.2
    assert seen["dss_gc_pause_seconds_count", ()] >= 1
    assert seen["process_resident_memory_bytes", ()] > 1_000_000
    assert any(name == "dss_build_info" and value == 1 for (name, _), value in seen.items())
    assert monitor._on_gc not in gc.callbacks
