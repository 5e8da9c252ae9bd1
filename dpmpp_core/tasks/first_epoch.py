"""Bounds of the losses of stage 2 after its first epoch, so that a broken run ends there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpmpp_core.config import MetricConfig

INFORMED = 0.9  # ours: learnt prompts save at least a tenth of a guess's nats
REACH = 2.0  # ours: encoder and neck change logits as much as the prototypes do
TOO_LOW = (
    "falling faster than these rates allow: check metric.lr, metric.warmup_epochs and the number "
    "of identities"
)
TOO_HIGH = {
    "identity": "worse than a guess: the learning rates are too high, or the texts are not those "
    "of these identities",
    "masked": "worse than a guess: the learning rates are too high, or the texts are not those of "
    "these identities",
    "text": "the texts explain little of the pictures: check the losses of stage 1 (prompts), the "
    "weights of the backbone (model.pretrained) and the pixel scale (data.mean, data.std)",
}


class Window(NamedTuple):
    """Bounds of a weighted loss, mean over the first epoch, nats."""

    low: float
    high: float


def first_epoch_windows(
    section: MetricConfig, classes: int, spaces: Mapping[str, int], rates: Sequence[float]
) -> dict[str, Window]:
    """Compute windows of the losses whose start is known without the data (ours).

    Derivation, for C classes, a space of d dimensions, smoothing e, ArcFace scale s and margin m.
    After its batch-norm neck a feature has squared length d on average; prototypes are drawn with
    entries of variance 1/d.

    - `identity_*`, plain cross entropy: logits have variance 1 and are independent of the label, so
      by Jensen's inequality the loss starts at ln C + 1/2 at most.
    - `masked_*`, ArcFace: the mask is 0.5 everywhere, so cosines have variance 1/d, logits s^2/d;
      on the label cos(theta + m) is about -sin m. Start: ln C + s^2 / (2 d) + s sin m at most.
    - `text`, features of the images against the texts: logits independent of the label cost ln C or
      more (Gibbs' inequality; the step plan deals the identities evenly). Stage 1 fitted the texts
      to these images, so more than 0.9 ln C means that it failed, or used others.
    - Prototypes of the `joint` space start along the texts, which helps if they are the right ones.

    Training reduces these. Adam moves an entry by its rate per step, so by S = the sum of the rates
    so far: a plain logit by S |x|_1 <= S d, a cosine by S sqrt(d), the loss by twice as much (label
    up, others down). That and REACH give the lower bounds of the `visual` space. Losses with texts,
    and SGD, have the floor of the smoothed cross entropy alone. The upper bounds get three standard
    errors of a mean over C random prototypes.

    Without windows: `triplet` (its units differ by backbone), `heads` (can take any value of its
    range), `text_transfer` (a small part of the loss).

    Detected on the demo set (`tests/bench/results/first_epoch.md`): rates a hundred times too high,
    texts that are missing, random or of other identities, unscaled pixels, NaN. Not detected: rates
    ten times too high or too low (the first epoch is warm-up), pixels shifted equally in all
    stages, bad person masks, later problems; without text, next to nothing.

    Args:
        section: stage 2 as configured.
        classes: C, training identities.
        spaces: metric space -> d.
        rates: learning rate of the prototypes at each step of the first epoch.

    Returns:
        name of a loss -> its window; losses of weight 0 have none.
    """
    floor = _smoothed_floor(classes, section.loss.label_smoothing)
    guess = math.log(classes)
    scale, margin = section.loss.arcface_scale, section.loss.arcface_margin
    reach = _mean_reach(rates) if section.optimiser == "adam" else math.inf
    weights = section.loss
    windows = {}
    for space, width in spaces.items():
        if space not in ("visual", "joint"):
            continue
        informed = space == "joint"
        noise = 3 / math.sqrt(classes)
        if weights.identity:
            start = guess + 0.5
            low = floor if informed else max(floor, start - noise - 2 * REACH * reach * width)
            windows[f"identity_{space}"] = _weighted(weights.identity, low, start + noise)
        if weights.masked:
            start = guess + scale**2 / (2 * width) + scale * math.sin(margin)
            noise *= scale / math.sqrt(width)
            fall = 2 * REACH * reach * scale * math.sqrt(width)
            low = 0.0 if informed else max(0.0, start - noise - fall)
            windows[f"masked_{space}"] = _weighted(weights.masked, low, start + noise)
    if weights.text and "joint" in spaces:
        windows["text"] = _weighted(weights.text, min(floor, INFORMED * guess), INFORMED * guess)
    return windows


def outside_first_epoch(
    windows: Mapping[str, Window], figures: Mapping[str, float]
) -> dict[str, str]:
    """Return warnings, by name, about losses outside their windows, with possible causes (ours).

    Args:
        windows: from `first_epoch_windows`.
        figures: mean of each weighted loss over the first epoch; absent ones are not checked.
    """
    warnings = {}
    for name, (low, high) in windows.items():
        value = figures.get(name)
        if value is None or low <= value <= high:
            continue
        kind = name.partition("_")[0]
        if not math.isfinite(value):
            meaning = "lower the learning rates, or set metric.precision=fp32"
        elif value < low:
            meaning = TOO_LOW
        else:
            meaning = TOO_HIGH[kind]
        warnings[name] = (
            f"first epoch: loss {name} is {value:.3f}, expected {low:.3f} to {high:.3f}; {meaning}"
        )
    return warnings


def _weighted(weight: float, low: float, high: float) -> Window:
    return Window(round(weight * low, 4), round(weight * high, 4))


def _smoothed_floor(classes: int, smoothing: float) -> float:
    """Return the least cross entropy with smoothed labels: their entropy, nats."""
    if not smoothing:
        return 0.0
    rest = smoothing / classes
    right = 1 - smoothing + rest
    return -right * math.log(right) - (classes - 1) * rest * math.log(rest)


def _mean_reach(rates: Sequence[float]) -> float:
    """Return how far Adam moves an entry at most, mean over the steps of the losses."""
    moved = total = 0.0
    for rate in rates:
        total += moved
        moved += rate
    return total / max(1, len(rates))
