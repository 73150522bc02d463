"""The data directory: one owner, one process, one incarnation for its life."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dss.base.errors import ConfigProblem, CorruptData
from dss.storage.identity import DataDir


def test_first_open__makes_a_private_directory_with_an_identity(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "lock-1"
    data = DataDir.open(home, "c1", "lock-1")
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "identity.json").stat().st_mode & 0o777 == 0o600
    identity = json.loads((home / "identity.json").read_text())
    assert identity["cluster_id"] == "c1"
    assert identity["node_id"] == "lock-1"
    assert identity["incarnation"] == data.incarnation
    assert len(data.incarnation) == len(data.boot_id) == 32
    assert not (home / "identity.json.tmp").exists()
    data.close()


def test_opened_again__same_incarnation_other_boot(tmp_path: Path) -> None:
    first = DataDir.open(tmp_path / "n", "c1", "lock-1")
    first.close()
    second = DataDir.open(tmp_path / "n", "c1", "lock-1")
    assert second.incarnation == first.incarnation
    assert second.boot_id != first.boot_id
    second.close()


def test_new_directory__new_incarnation(tmp_path: Path) -> None:
    first = DataDir.open(tmp_path / "a", "c1", "lock-1")
    second = DataDir.open(tmp_path / "b", "c1", "lock-1")
    assert first.incarnation != second.incarnation
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("cluster_id", "node_id", "expected"),
    [
        ("c2", "lock-1", "belongs to cluster 'c1', but CLUSTER_ID is 'c2'"),
        ("c1", "lock-2", "belongs to node 'lock-1', but NODE_ID is 'lock-2'"),
    ],
)
def test_directory_of_another__is_refused_in_one_line(
    tmp_path: Path, cluster_id: str, node_id: str, expected: str
) -> None:
    DataDir.open(tmp_path, "c1", "lock-1").close()
    with pytest.raises(ConfigProblem, match=expected) as caught:
        DataDir.open(tmp_path, cluster_id, node_id)
    assert "\n" not in caught.value.message
    DataDir.open(tmp_path, "c1", "lock-1").close()  # the refusal released the lock


def test_held_by_another_process__names_it_and_what_to_do(tmp_path: Path) -> None:
    code = (
        "import sys; from dss.storage.identity import DataDir;"
        f"DataDir.open({str(tmp_path)!r}, 'c1', 'lock-1'); print('ready', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(ConfigProblem) as caught:
            DataDir.open(tmp_path, "c1", "lock-1")
        assert f"(pid {holder.pid})" in caught.value.message
        assert "Stop it" in caught.value.message
        holder.kill()
    DataDir.open(tmp_path, "c1", "lock-1").close()


def test_sub_directories__are_private_and_flat(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "n", "c1", "lock-1")
    files = data.files("wal")
    assert (tmp_path / "n" / "wal").stat().st_mode & 0o777 == 0o700
    assert files.where == str(tmp_path / "n" / "wal")
    for name in ("../x", "a/b", "", "..", "."):
        with pytest.raises(ValueError, match="flat"):
            data.files(name)
        with pytest.raises(ValueError, match="flat"):
            files.open(name, create=True)
    data.close()


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1}', "[]", "\x00" * 50])
def test_identity_damaged__is_refused(tmp_path: Path, text: str) -> None:
    DataDir.open(tmp_path, "c1", "lock-1").close()
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(CorruptData, match=r"identity\.json is damaged"):
        DataDir.open(tmp_path, "c1", "lock-1")


def test_identity_missing_beside_data__is_refused(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path, "c1", "lock-1")
    data.files("wal").open("x", create=True).close()
    data.close()
    os.remove(tmp_path / "identity.json")
    with pytest.raises(CorruptData, match=r"identity\.json is missing, but wal/ has data"):
        DataDir.open(tmp_path, "c1", "lock-1")


def test_newer_identity__is_refused(tmp_path: Path) -> None:
    DataDir.open(tmp_path, "c1", "lock-1").close()
    file = tmp_path / "identity.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ConfigProblem, match="format 2"):
        DataDir.open(tmp_path, "c1", "lock-1")


def test_crash_while_the_identity_was_made__starts_over(tmp_path: Path) -> None:
    (tmp_path / "identity.json.tmp").write_text('{"format')
    DataDir.open(tmp_path, "c1", "lock-1").close()
    assert not (tmp_path / "identity.json.tmp").exists()


def test_path_that_cannot_be_a_directory__is_a_configuration_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigProblem, match="cannot be written"):
            DataDir.open(path, "c1", "lock-1")
