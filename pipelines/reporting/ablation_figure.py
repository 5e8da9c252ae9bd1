"""The figure of an ablation: mAP of each variant, and the gain of its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dpmpp_core.retrieval import Difference
from pipelines.reporting.figures import create_panels, escape_math, rasterise

GAINS = {
    "permuted": ("over other queries' masks", "#0072B2", -0.13),
    "static": ("over the mean mask", "#D55E00", 0.13),
}


def draw_ablation(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    gains: Mapping[str, Mapping[str, Difference | None]],
) -> NDArray[np.uint8]:
    """Draw one row per variant, from above; one panel per query set, and one for the masks.

    Args:
        scores: Query set -> variant -> mAP by seed, fractions: dots, and a bar at their mean.
        gains: Control of `GAINS` -> variant -> gain of the own mask over it, fractions: a dot at
            the mean, a line over its interval.
    """
    variants = list(next(iter(scores.values())))
    height = 1.2 + 0.3 * len(variants)
    figure, panels = create_panels(len(scores) + 1, width=3.9, height=height)
    for axes, (query_set, values) in zip(panels, scores.items(), strict=False):
        for row, variant in enumerate(variants):
            percent = 100 * np.array(values[variant])
            axes.plot(percent, np.full(len(percent), row), "o", color="#7A7A7A", ms=3.5, alpha=0.7)
            axes.plot([percent.mean()] * 2, [row - 0.32, row + 0.32], color="#0072B2", lw=2.5)
        axes.set_title(escape_math(f"{query_set} queries"))
        axes.set_xlabel("mAP (%); dots: seeds, bar: mean")
        _label_rows(axes, variants if axes is panels[0] else [""] * len(variants))
    last = panels[-1]
    last.axvline(0, color="#7A7A7A", lw=1)
    for control, (label, colour, offset) in GAINS.items():
        shown = [(row, g) for row, v in enumerate(variants) if (g := gains[control][v]) is not None]
        for row, gain in shown:
            ends = [100 * gain.low, 100 * gain.high]
            last.plot(ends, [row + offset] * 2, color=colour, lw=1.6)
        means = [100 * gain.mean for _, gain in shown]
        at = [row + offset for row, _ in shown]
        last.plot(means, at, "o", color=colour, ms=4, label=label)
    last.set_title(escape_math(f"What the own mask adds: {next(iter(scores))}"))
    last.set_xlabel("points of mAP; line: 95 % interval")
    _label_rows(last, [""] * len(variants))
    last.legend(frameon=False, fontsize=8, loc="best")
    return rasterise(figure)


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [escape_math(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
