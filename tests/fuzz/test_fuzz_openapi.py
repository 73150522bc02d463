"""Every answer of every node is one that its `/openapi.json` declares.

A small sample runs with `make test`, FUZZ_CASES (20,000) of them with `make fuzz`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_process import Cluster, until
from fuzzing import Fuzz

SAMPLE_S = 4
"""For each role."""
# The roles' shares of all cases are their shares of the operations.
SHARES = {"lock": 0.4, "queue": 0.33, "cache": 0.27}


def of(path: Path, counts: tuple[int, int, int]) -> Iterator[Cluster]:
    made = Cluster(path / "data", counts=counts)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from of(tmp_path_factory.mktemp("small"), (1, 1, 1))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from of(tmp_path_factory.mktemp("large"), (3, 3, 2))


def judge(cluster: Cluster, role: str, fuzz: Fuzz) -> None:
    print(f"\n{role}: {fuzz.report()}")
    assert not fuzz.failures, "\n".join([*fuzz.failures.values(), cluster.report()])
    until(cluster.all_ready, "every node is ready afterwards", 60)


@pytest.mark.processes
@pytest.mark.parametrize("role", SHARES)
def test_sample__only_declared_answers(small: Cluster, role: str) -> None:
    fuzz = Fuzz(small.urls(role))
    fuzz.run(400, until=time.monotonic() + SAMPLE_S)
    judge(small, role, fuzz)
    assert fuzz.cases > 50


@pytest.mark.fuzz
@pytest.mark.parametrize("role", SHARES)
def test_many__only_declared_answers(large: Cluster, role: str) -> None:
    number = int(os.environ.get("FUZZ_SEED", "1"))
    fuzz = Fuzz(large.urls(role), number)
    fuzz.run(round(int(os.environ.get("FUZZ_CASES", "20000")) * SHARES[role]) + 1)
    judge(large, role, fuzz)
