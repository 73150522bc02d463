"""The operator's settings: defaults, every bad value, the exit of the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from dss.base.errors import ConfigProblem
from dss_operator.settings import VARIABLES, Settings, load_settings


def test_empty_environment__defaults() -> None:
    settings = load_settings({})
    assert settings.pod_id
    default = Settings(pod_id=settings.pod_id)
    assert settings == default


def test_all_set__all_taken() -> None:
    settings = load_settings(
        {
            "WATCH_NAMESPACE": "a", "POD_NAMESPACE": "b", "POD_ID": "c", "ALLOW_TEST_MODE": "1",
            "TICK_S": "5", "SAMPLE_S": "0.5", "LEASE_S": "9", "METRICS_PORT": "0",
            "HEALTH_PORT": "9", "PARALLEL": "2", "LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json",
            "DSS_TEST_EXIT_AT_CALL": "7",
        }
    )  # fmt: skip
    assert settings == Settings(
        watch_namespace="a", pod_namespace="b", pod_id="c", allow_test_mode=True, tick_s=5,
        sample_s=0.5, lease_s=9, metrics_port=0, health_port=9, parallel=2, log_level="DEBUG",
        log_format="json", exit_at_call=7,
    )  # fmt: skip


BAD = [
    ("ALLOW_TEST_MODE", "yes", "expected 0 or 1"),
    ("TICK_S", "0", "from 1 to 3600"),
    ("TICK_S", "soon", "from 1 to 3600"),
    ("TICK_S", "nan", "from 1 to 3600"),
    ("SAMPLE_S", "61", "from 0.5 to 60"),
    ("LEASE_S", "-1", "from 3 to 300"),
    ("METRICS_PORT", "65536", "from 0 to 65535"),
    ("METRICS_PORT", "²", "from 0 to 65535"),
    ("HEALTH_PORT", "1.5", "from 0 to 65535"),
    ("PARALLEL", "0", "from 1 to 100"),
    ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING, ERROR"),
    ("LOG_FORMAT", "xml", "text, json"),
    ("DSS_TEST_EXIT_AT_CALL", "3", "refused without ALLOW_TEST_MODE=1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_bad_value__one_line_that_names_it(name: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load_settings({name: value})
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: ")
    assert expected in lines[0]


def test_several_bad_values__all_said_at_once() -> None:
    with pytest.raises(ConfigProblem) as caught:
        load_settings({"TICK_S": "x", "LOG_LEVEL": "x"})
    assert len(str(caught.value).splitlines()) == 2


def test_bad_value__process_exits_with_78_and_no_traceback() -> None:
    env = {**os.environ, "TICK_S": "x"}
    command = [sys.executable, "-m", "dss_operator"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert done.stderr == "TICK_S: expected a number from 1 to 3600, found 'x'.\n"


def test_every_setting__has_its_meaning_unit_and_reason_written_down() -> None:
    source = sys.modules[Settings.__module__].__file__
    assert source is not None
    with open(source, encoding="utf-8") as file:
        text = file.read()
    for field in Settings.__struct_fields__:
        assert re.search(rf"^    {field}: .*\n(    \w+: .*\n)?    \"\"\"", text, re.MULTILINE), (
            field
        )
    assert {field for field, _ in VARIABLES.values()} == set(Settings.__struct_fields__)
