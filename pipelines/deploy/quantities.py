"""Quantities of Kubernetes: 500m, 2, 1.5Gi, 1e3."""

from __future__ import annotations

import re
from typing import Any

from dpmpp_core.errors import ConfigError

_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1}
UNITS: dict[str, float] = _DECIMAL | {
    **{unit: 1000**power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)")


def parse_quantity(text: Any) -> float:
    """Return a quantity as a number: CPUs, bytes or pieces.

    Raises:
        ConfigError: Kubernetes would not take it.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ConfigError(f"{text!r} is no quantity; write it as 500m, 2 or 2Gi")
    number, exponent, unit = match.groups()
    if exponent:
        return float(number + exponent)
    factor = UNITS[unit or ""]
    # Division keeps 100m exact where a product with 0.001 would not.
    return float(number) / round(1 / factor) if factor < 1 else float(number) * factor


def format_quantity(name: str, value: float) -> str:
    """Return the quantity of a resource for people: memory and storage in Gi."""
    unit = "Gi" if "memory" in name or "storage" in name else ""
    return f"{value / UNITS[unit]:.6g}{unit}"
