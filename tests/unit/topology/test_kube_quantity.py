"""Quantities come back from the API server as they were sent."""

from __future__ import annotations

import pytest

from dss.topology.kube.quantity import canonical


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("1Gi", "1Gi"), ("1024Mi", "1Gi"), ("1536Mi", "1536Mi"), ("0.5Gi", "512Mi"),
        ("1.5Gi", "1536Mi"), ("1Ki", "1Ki"), ("0.5Ki", "512"), ("2048Ti", "2Pi"),
        (1, "1"), ("1", "1"), ("1000m", "1"), ("1500m", "1500m"), ("0.1", "100m"),
        ("1.5", "1500m"), ("1000", "1k"), ("1024", "1024"), ("2M", "2M"), ("2000k", "2M"),
        ("0", "0"), ("0Gi", "0"), ("0.0001", "100u"),
    ],
)  # fmt: skip
def test_quantity__in_the_api_servers_form(given: str | int, kept: str) -> None:
    assert canonical(given) == kept
    assert canonical(kept) == kept


@pytest.mark.parametrize("bad", ["", "lots", "1 Gi", "1Xi", "-1"])
def test_no_quantity__refused(bad: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        canonical(bad)
