"""JSON schemas of what Grafana reads: provisioning and dashboard, as far as we use them.

Written from Grafana's documentation (provisioning; dashboard JSON model). Stricter than Grafana:
an unknown field is a fault, for Grafana would pass over a misspelt one in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
DATASOURCE = closed({"type": {"const": "prometheus"}, "uid": TEXT})

DATASOURCES = closed(
    {
        "apiVersion": {"const": 1},
        "datasources": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {
                    "name": TEXT,
                    "type": {"const": "prometheus"},
                    "access": {"enum": ["proxy", "direct"]},
                    "url": {"type": "string", "pattern": "^http://[a-z-]+:[0-9]+$"},
                },
                {
                    "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
                    "isDefault": FLAG,
                    "editable": FLAG,
                    "jsonData": closed(
                        {}, {"timeInterval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}}
                    ),
                },
            ),
        },
    }
)

PROVIDERS = closed(
    {
        "apiVersion": {"const": 1},
        "providers": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {
                    "name": TEXT,
                    "type": {"const": "file"},
                    "options": closed({"path": {"type": "string", "pattern": "^/"}}),
                },
                {"folder": TEXT, "disableDeletion": FLAG, "allowUiUpdates": FLAG},
            ),
        },
    }
)

GRID = closed(
    {
        "x": {"type": "integer", "minimum": 0, "maximum": 23},
        "y": {"type": "integer", "minimum": 0},
        "w": {"type": "integer", "minimum": 1, "maximum": 24},
        "h": {"type": "integer", "minimum": 1},
    }
)
UNITS = ["short", "s", "ops", "reqps", "percentunit", "bytes"]
TARGET = closed(
    {
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
        "datasource": DATASOURCE,
        "expr": TEXT,
        "legendFormat": TEXT,
        "instant": FLAG,
        "range": FLAG,
    },
    {"format": {"enum": ["table", "time_series", "heatmap"]}},
)
ROW = closed(
    {
        "id": {"type": "integer", "minimum": 1},
        "type": {"const": "row"},
        "title": TEXT,
        "collapsed": FLAG,
        "gridPos": GRID,
        "panels": {"type": "array", "maxItems": 0},
    }
)
PANEL = closed(
    {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat", "table"]},
        "title": TEXT,
        "description": TEXT,
        "datasource": DATASOURCE,
        "gridPos": GRID,
        "fieldConfig": closed(
            {
                "defaults": closed(
                    {"unit": {"enum": UNITS}}, {"mappings": {"type": "array", "minItems": 1}}
                ),
                "overrides": {"type": "array"},
            }
        ),
        "options": {"type": "object"},
        "targets": {"type": "array", "minItems": 1, "items": TARGET},
    }
)
DASHBOARD = closed(
    {
        "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
        "title": TEXT,
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 1, "items": {"oneOf": [ROW, PANEL]}},
    },
    {
        "description": TEXT,
        "tags": {"type": "array", "items": TEXT},
        "version": {"type": "integer"},
        "editable": FLAG,
        "refresh": {"type": "string", "pattern": "^[0-9]+[sm]$"},
        "time": closed({"from": TEXT, "to": TEXT}),
        "timezone": {"enum": ["browser", "utc"]},
        "templating": closed({"list": {"type": "array"}}),
        "annotations": closed({"list": {"type": "array"}}),
    },
)


def check_grafana_files(docker: Path) -> None:
    """Raise on the first fault of the files below `docker`/grafana, or between them."""
    base = docker / "grafana"
    sources = yaml.safe_load((base / "provisioning/datasources/prometheus.yml").read_text())
    providers = yaml.safe_load((base / "provisioning/dashboards/dss.yml").read_text())
    jsonschema.validate(sources, DATASOURCES)
    jsonschema.validate(providers, PROVIDERS)
    mounts = yaml.safe_load((docker / "docker-compose.yml").read_text())["services"]["grafana"]
    folder = providers["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in mounts["volumes"], "dashboards are not mounted"
    dashboards = sorted((base / "dashboards").glob("*.json"))
    assert dashboards, "no dashboard"
    known = {source["uid"] for source in sources["datasources"]}
    for file in dashboards:
        dashboard = json.loads(file.read_text())
        jsonschema.validate(dashboard, DASHBOARD)
        check_dashboard(dashboard, known)


def check_dashboard(dashboard: dict[str, Any], datasource_uids: set[str]) -> None:
    """What a schema cannot say: ids are unique, panels do not overlap, data sources exist."""
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)), "two panels have one id"
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, f"{panel['title']} is wider than the page"
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies on {other}"
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] in datasource_uids
