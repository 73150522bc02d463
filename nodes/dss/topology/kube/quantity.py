"""Quantities (`1Gi`, `500m`) as the API server writes them back.

What is sent in another form comes back changed, and would look like drift for ever.
What must not live here: which quantities are allowed (spec.py).
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from typing import Final

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_FORM: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)")


def canonical(quantity: str | int) -> str:
    """The largest suffix of the same family without a fraction: 1024Mi is 1Gi, 1000m is 1.

    Raises:
        ValueError: no quantity of the CRD's pattern.
    """
    match = _FORM.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"no quantity: {quantity!r}")
    number, suffix = Fraction(match[1]), match[2]
    if suffix in _BINARY[1:]:
        value = number * 1024 ** _BINARY.index(suffix)
        if value >= 1024:
            return _binary(ceil(value))
    elif suffix in _DECIMAL:
        value = number * Fraction(1000) ** _DECIMAL[suffix]
    else:
        raise ValueError(f"no quantity: {quantity!r}")
    return _decimal(ceil(value * 1000**3))


def _binary(value: int) -> str:
    power = 0
    while value % 1024 == 0 and power < len(_BINARY) - 1:
        value //= 1024
        power += 1
    return f"{value}{_BINARY[power]}"


def _decimal(nano: int) -> str:
    suffixes = list(_DECIMAL)
    power = 0
    if not nano:
        return "0"
    while nano % 1000 == 0 and power < len(suffixes) - 1:
        nano //= 1000
        power += 1
    return f"{nano}{suffixes[power]}"
