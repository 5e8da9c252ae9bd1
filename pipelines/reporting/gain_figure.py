"""The figure of what masks are worth: each difference to no mask, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.reporting.figures import create_panels, escape_math, rasterise
from pipelines.reporting.tables import METRIC_LABELS, format_interval, label_queries

BETTER, WORSE, OPEN = "#0072B2", "#D55E00", "#7A7A7A"  # Okabe and Ito
MIN_SPAN = 2.0  # points to both sides of 0, so that noise is not drawn large


def draw_mask_gain(intervals: Mapping[str, Mapping[str, Any]]) -> NDArray[np.uint8]:
    """Draw what the own masks add to each metric (mAP, rank-1) of each query set.

    The gain is the metric with the query's own mask minus the metric without a mask. The axis is in
    percentage points. Each pair of query set and metric has a row: a dot at the mean, a line over
    the 95 % interval. Blue = all of the interval is above 0, orange = below, grey = it holds 0 or
    there is none. Rows without a mean are left out.

    Args:
        intervals: query set -> what `compute_intervals` returns, fractions; sets without `gain` are
            left out.

    Returns:
        RGB uint8 [H, W, 3]; H grows with the number of rows.

    Raises:
        ValueError: no query set has a gain with a mean.
    """
    rows = [
        (f"{label_queries(name)}, {METRIC_LABELS[figure]}", bounds)
        for name, kinds in intervals.items()
        for figure, bounds in kinds.get("gain", {}).items()
        if bounds["mean"] is not None
    ]
    if not rows:
        raise ValueError("no ranking without masks was measured")
    figure, (axes,) = create_panels(1, width=7.6, height=0.9 + 0.36 * len(rows))
    axes.axvline(0, color="#1f2328", lw=1)
    for row, (_, bounds) in enumerate(rows):
        mean, low, high = (100 * (bounds[key] or 0.0) for key in ("mean", "low", "high"))
        colour = OPEN
        if bounds["low"] is not None:
            colour = BETTER if low > 0 else WORSE if high < 0 else OPEN
            axes.plot([low, high], [row, row], color=colour, lw=3, solid_capstyle="round")
        axes.plot([mean], [row], "o", color=colour, ms=8)
    shown = [format_interval(bounds, signed=True) for _, bounds in rows]
    axes.set_yticks(range(len(rows)), [escape_math(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -MIN_SPAN), max(right, MIN_SPAN))
    values = axes.secondary_yaxis("right")
    values.set_yticks(range(len(rows)), shown)
    values.tick_params(length=0)
    values.spines[["right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left"]].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("points more with the own mask than with none; line: 95 % interval")
    return rasterise(figure)
