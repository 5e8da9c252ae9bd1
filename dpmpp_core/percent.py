"""Fractions as people read them."""

from __future__ import annotations

import math

NONE = "—"  # where there is no figure


def format_percent(value: float | None, signed: bool = False) -> str:
    """Return a fraction in percent with one decimal, as `12.3` or, signed, `+12.3`.

    Return NONE for None and for what is no number.
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(100 * value, 1) + 0.0:{'+' if signed else ''}.1f}"  # zero turns -0.0 into 0.0
