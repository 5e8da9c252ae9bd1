"""What searches found for their epochs: figures over seeds, a table, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.reporting.figures import Image, create_panels, rasterise
from pipelines.tuning.spaces import STARTUP_TRIALS, TrialRecord

COLOURS = {"random": "#7A7A7A", "tpe": "#0072B2"}
REACHED = 0.5  # of the plain random searches have found as much at the end of the budget


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        trials: within the budget.
        steps: epochs trained since the start, after each trial -> best of the whole trials so far.
        best: the trial that won within the budget.
        again: of the winner, trained with other training seeds.
    """

    trials: list[TrialRecord]
    steps: list[tuple[int, float]]
    best: TrialRecord
    again: list[float]

    @property
    def start(self) -> float:
        return self.trials[0].last["occluded"]

    @property
    def full(self) -> int:
        return sum(trial.state == "done" for trial in self.trials)

    @property
    def proposed(self) -> float:
        """Mean of the whole trials after those that any search draws at random."""
        own = [t.last["occluded"] for t in self.trials[STARTUP_TRIALS:] if t.state == "done"]
        return statistics.mean(own)

    @property
    def final(self) -> float:
        return self.best.last["occluded"]

    def at(self, epochs: NDArray[np.int64]) -> NDArray[np.float64]:
        """The best so far at each of these numbers of epochs; NaN before the first trial's end."""
        ends, values = map(np.array, zip(*self.steps, strict=True))
        place = np.searchsorted(ends, epochs, side="right") - 1
        return np.where(place < 0, np.nan, values[place])

    def reached(self, value: float) -> float:
        """Epochs after which it had found as much; infinite if never."""
        return next((epochs for epochs, best in self.steps if best >= value), float("inf"))


def within(trials: Sequence[TrialRecord], budget: int) -> list[TrialRecord]:
    """The trials that end within so many epochs of training; each rung is a training of its own."""
    ends = np.cumsum([sum(trial.rungs) for trial in trials])
    return [trial for trial, end in zip(trials, ends, strict=True) if end <= budget]


def winner(trials: Sequence[TrialRecord]) -> TrialRecord:
    """The best of those trained to the end; of equals the first."""
    return max((t for t in trials if t.state == "done"), key=lambda t: t.last["occluded"])


def followed(records: Sequence[TrialRecord], budget: int, again: list[float]) -> Search:
    """The search as far as its budget goes."""
    trials = within(records, budget)
    steps, spent, best = [], 0, -np.inf
    for trial in trials:
        spent += sum(trial.rungs)
        if trial.state == "done":
            best = max(best, trial.last["occluded"])
        steps.append((spent, float(best)))
    return Search(trials, steps, winner(trials), again)


def difference(own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean paired difference and its 95 % interval (Student's t over the seeds)."""
    gains = np.array(own) - np.array(other)
    if len(gains) < 2:
        return float(gains.mean()), float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean()), float(gains.mean() - half), float(gains.mean() + half)


def table(
    arms: Mapping[str, Mapping[int, Search]], start: float, start_again: Sequence[float]
) -> list[str]:
    """A row an arm. Differences are to plain random search, over the seeds that both have.

    Args:
        start, start_again: the unchanged configuration, and with other training seeds.
    """
    target = float(np.quantile([s.final for s in arms["random"].values()], REACHED))
    lines = [
        "| search | seeds | trials | to the end | mean of its own trials | best found | the best "
        "trained again | over random: own trials | best found | trained again | epochs to "
        f"{100 * target:.2f} |",
        "|---|" + "---:|" * 10,
        f"| the start unchanged | | 1 | 1 | | {100 * start:.2f} | {spread2(start_again)} | | | | |",
    ]
    for arm, searches in arms.items():
        both = [seed for seed in searches if seed in arms["random"]]
        own, other = ([found[s] for s in both] for found in (searches, arms["random"]))
        figures = [
            [[s.proposed for s in group] for group in (own, other)],
            [[s.final for s in group] for group in (own, other)],
            [[statistics.mean(s.again) for s in group] for group in (own, other)],
        ]
        gains = [interval(difference(*pair)) for pair in figures]
        everything = searches.values()
        cells = [
            arm,
            str(len(searches)),
            f"{statistics.median(len(s.trials) for s in everything):.0f}",
            f"{statistics.median(s.full for s in everything):.0f}",
            spread2([s.proposed for s in everything]),
            spread2([s.final for s in everything]),
            spread2([statistics.mean(s.again) for s in everything]),
            *([""] * len(gains) if arm == "random" else gains),
            middle([s.reached(target) for s in everything]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread2(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent, two digits: `spread` has one."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def interval(found: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in found)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def middle(epochs: Sequence[float]) -> str:
    """The median, and how many never reached it."""
    never = sum(not np.isfinite(value) for value in epochs)
    median = float(np.median(epochs))
    shown = f"{median:.0f}" if np.isfinite(median) else "not within the budget"
    return shown + (f" ({never} of {len(epochs)} never)" if never else "")


def picture(arms: Mapping[str, Mapping[int, Search]], budget: int, first: int) -> Image:
    """The best so far against epochs spent: mean over seeds, band of one standard error."""
    figure, (axes,) = create_panels(1, width=7, height=4.2)
    epochs = np.arange(first, budget + 1)
    for arm, searches in arms.items():
        values = 100 * np.stack([search.at(epochs) for search in searches.values()])
        mean = values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * mean
        axes.plot(epochs, mean, color=COLOURS[arm], lw=2, label=f"{arm} ({len(searches)} seeds)")
        axes.fill_between(epochs, mean - error, mean + error, color=COLOURS[arm], alpha=0.18, lw=0)
    axes.set_xlabel("epochs trained")
    axes.set_ylabel("best so far: occluded mAP (%)")
    axes.legend(frameon=False, loc="lower right")
    return rasterise(figure)
