"""What `dss up` remembers in its data directory, and what it refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dss.base.errors import ConfigProblem
from dss.local.datadir import AlreadyRunning, DataDir, Shape


def test_second_start__finds_the_same_cluster_and_secret(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data:
        assert data.remembered() is None
        data.remember(3, 3, 2)
        secret = data.secret()
    with DataDir(tmp_path / "data") as data:
        data.expect(3, 3, 2)
        assert data.remembered() == Shape(3, 3, 2)
        assert data.secret() == secret
    assert len(secret) == 64


def test_secret__is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.secret()
        (tmp_path / "secret").chmod(0o644)
        data.secret()
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_other_counts_over_old_data__refused_with_the_old_ones_named(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.remember(3, 3, 2)
        with pytest.raises(ConfigProblem, match="dss up --lock 3 --queue 3 --cache 2"):
            data.expect(5, 3, 2)


def test_directory_in_use__refused_with_the_pid(tmp_path: Path) -> None:
    with (
        DataDir(tmp_path),
        pytest.raises(AlreadyRunning, match=r"a dss up \(pid \d+\) already runs"),
        DataDir(tmp_path),
    ):
        pytest.fail("the lock was granted twice")
    with DataDir(tmp_path):  # free again
        pass


def test_broken_memory__says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"lock": 3,')
    with DataDir(tmp_path) as data, pytest.raises(ConfigProblem, match="make clean"):
        data.expect(3, 3, 2)


def test_newer_format__is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"lock": 3, "queue": 3, "cache": 2, "format": 2}')
    with DataDir(tmp_path) as data, pytest.raises(ConfigProblem, match="format 2"):
        data.expect(3, 3, 2)


def test_data_dir_that_is_a_file__refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigProblem, match="cannot be written"):
        DataDir(tmp_path / "data").__enter__()
