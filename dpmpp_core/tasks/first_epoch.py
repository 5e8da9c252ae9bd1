"""What the losses of stage 2 can be after its first epoch, so that a broken run ends there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpmpp_core.config import MetricConfig

INFORMED = 0.9  # ours: what the prompts learned is worth a tenth of a guess's nats at least
REACH = 2.0  # ours: encoder and neck help the prototypes by as much again
TOO_LOW = (
    "falling faster than these rates allow: look at metric.lr, metric.warmup_epochs and the number "
    "of identities"
)
TOO_HIGH = {
    "identity": "worse than a guess: the learning rates are too high, or the texts are not those "
    "of these identities",
    "masked": "worse than a guess: the learning rates are too high, or the texts are not those of "
    "these identities",
    "text": "the texts say little of the pictures: look at the losses of stage 1 (prompts), the "
    "weights of the backbone (model.pretrained) and the pixel scale (data.mean, data.std)",
}


class Window(NamedTuple):
    """Bounds of a weighted loss, mean over the first epoch, nats."""

    low: float
    high: float


def first_epoch_windows(
    section: MetricConfig, classes: int, spaces: Mapping[str, int], rates: Sequence[float]
) -> dict[str, Window]:
    """Windows of the losses whose start is known without having seen the data (ours).

    Derivation, for C classes, a space of d dimensions, smoothing e, ArcFace scale s and margin m.
    Behind its batch-norm neck a feature has squared length d on average, whatever came before;
    prototypes are drawn with entries of variance 1/d.

    - `identity_*`, plain cross entropy: logits have variance 1 and know nothing, so by Jensen's
      inequality the loss starts at ln C + 1/2 at most.
    - `masked_*`, ArcFace: the mask is 0.5 everywhere, so cosines have variance 1/d, logits s^2/d;
      on the label cos(theta + m) is about -sin m. Start: ln C + s^2 / (2 d) + s sin m at most.
    - `text`, features of the images against the texts: logits that know nothing of the label cost
      ln C or more, whatever their size (Gibbs' inequality; the step plan deals the identities
      evenly). Stage 1 fitted the texts to these very images: more than 0.9 ln C means that it did
      not, or not to these.
    - Prototypes of the `joint` space start along the texts, which helps if they are the right
      ones.

    Training brings these down. Adam moves an entry by its rate a step, so by S = the sum of the
    rates until then: a plain logit by S |x|_1 <= S d, a cosine by S sqrt(d), the loss by twice as
    much (label up, rivals down). That and REACH give the lower bounds of the `visual` space; what
    knows the texts, and SGD, have the floor of the smoothed cross entropy alone. The upper bounds
    get three standard errors of a mean over C random prototypes.

    Without windows: `triplet` (in the units of the features, which differ by backbone), `heads`
    (can take any value of its range), `text_transfer` (a small part of the loss).

    Seen on the demo set (`tests/bench/results/first_epoch.md`): rates a hundred times too high,
    texts that are missing, random or of other identities, pixels of stage 2 that are not scaled;
    and of course NaN. Not seen: rates ten times too high, rates that are too low (the first epoch
    is warm-up), pixels that are shifted alike in all stages, bad person masks, all that goes wrong
    later; without text, next to nothing. Being inside is no proof of health.

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
    """The losses that left their windows, by name; each sentence says what it can mean (ours).

    Args:
        windows: from `first_epoch_windows`.
        figures: mean of each weighted loss over the first epoch; one that is absent is not judged.
    """
    found = {}
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
        found[name] = (
            f"first epoch: loss {name} is {value:.3f}, expected {low:.3f} to {high:.3f}; {meaning}"
        )
    return found


def _weighted(weight: float, low: float, high: float) -> Window:
    return Window(round(weight * low, 4), round(weight * high, 4))


def _smoothed_floor(classes: int, smoothing: float) -> float:
    """Least cross entropy with smoothed labels: the entropy of the smoothed label, nats."""
    if not smoothing:
        return 0.0
    rest = smoothing / classes
    right = 1 - smoothing + rest
    return -right * math.log(right) - (classes - 1) * rest * math.log(rest)


def _mean_reach(rates: Sequence[float]) -> float:
    """How far Adam has moved an entry at most, mean over the steps at which a loss is taken."""
    moved = total = 0.0
    for rate in rates:
        total += moved
        moved += rate
    return total / max(1, len(rates))
