"""Grafana's files by schema; the schema itself refuses what Grafana would pass over."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from grafana_schema import DASHBOARD, check_dashboard, check_grafana_files

DOCKER = Path(__file__).parents[2] / "docker"


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/dss.json").read_text())
    return loaded


def test_grafana_files__valid_and_consistent() -> None:
    check_grafana_files(DOCKER)


@pytest.mark.parametrize("field", ["targets", "gridPos", "datasource", "title"])
def test_panel_without_a_field__refused(field: str) -> None:
    broken = dashboard()
    del broken["panels"][1][field]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, DASHBOARD)


def test_misspelt_field__refused() -> None:
    broken = dashboard()
    broken["panels"][1]["targets"][0]["epxr"] = "up"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, DASHBOARD)


def test_overlapping_panels__refused() -> None:
    broken = dashboard()
    extra = copy.deepcopy(broken["panels"][1]) | {"id": 999, "title": "on top"}
    broken["panels"].append(extra)
    with pytest.raises(AssertionError, match="on top lies on"):
        check_dashboard(broken, {"dss-prometheus"})
