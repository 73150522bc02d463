"""One cluster of eight real processes for most tests here; tests that stop it start their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fault_report
from cluster_process import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.processes)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if fault_report.report:
        terminalreporter.section("time to service under faults")
        terminalreporter.write_line(fault_report.HEADING)
        for row in fault_report.report:
            terminalreporter.write_line(row.line())


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "data")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared cluster, with every node ready again after what the last test did."""
    try:
        shared_cluster.wait_ready()
        from cluster_process import until

        until(shared_cluster.all_ready, "every node is ready", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{shared_cluster.report()}") from None
    return shared_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that the test starts and stops itself."""
    made = Cluster(tmp_path / "data")
    yield made
    made.stop()
