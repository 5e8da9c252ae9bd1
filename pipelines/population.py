"""Population-based training (PBT, Jaderberg et al. 2017): rates are changed while members train.

A generation trains one part of the training. When all of it are measured, the worst quarter go on
from copies of the best quarter, at other learning rates; the rest go on as they are. The first
member is the configuration unchanged and always goes on, so that there is something to compare
with. What a member does depends on (seed, its number, what the generation before measured), not on
who was measured first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipelines.study import Tried

RATES = "metric.rates"
FACTORS = (0.8, 1.25)  # on the rates of a copy (the paper's)
SHARE = 4  # one in so many is given up, and one in so many copied


def over(trials: Sequence[Tried], number: int, size: int) -> bool:
    """Whether the generation before a trial's is over, so that it can begin."""
    return all(trial.state != "running" for trial in _before(trials, number, size))


def descend(
    trials: Sequence[Tried],
    number: int,
    size: int,
    objective: str,
    rates: Sequence[float],
    seed: int,
) -> tuple[int, dict[str, Any]] | None:
    """From which trial a new one goes on, and its changes; None = the generation before it failed.

    Args:
        trials: all before it, `over` for it, and at least one generation.
        size: members of a generation.
        objective: the larger, the better.
        rates: `metric.rates` of the configuration unchanged, one a generation.
    """
    alive = [trial for trial in _before(trials, number, size) if trial.state != "failed"]
    ranked = sorted(alive, key=lambda trial: -trial.last[objective])
    few = max(1, min(size, len(ranked)) // SHARE)
    own, worst = trials[number - size], ranked[1:][-few:]
    if own.state != "failed" and (own not in worst or number % size == 0):
        return own.number, own.changes
    if not ranked:
        return None
    rng = np.random.default_rng([seed, number])
    copied = ranked[int(rng.integers(few))]
    before, part = list(copied.changes.get(RATES, rates)), number // size
    other = float(f"{before[part - 1] * rng.choice(FACTORS):.4g}")
    return copied.number, {**copied.changes, RATES: before[:part] + [other] * (len(before) - part)}


def _before(trials: Sequence[Tried], number: int, size: int) -> Sequence[Tried]:
    generation = number // size
    return trials[max(0, generation - 1) * size : generation * size]
