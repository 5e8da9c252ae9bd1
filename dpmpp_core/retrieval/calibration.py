"""Calibration of scores to the probability that two pictures show the same person.

Logistic calibration (Platt, 1999):

    logit p = slope * score + offset + logit(base rate),   slope > 0

It is fitted on pairs of validation pictures; those of the same person and those of two have equal
total weight. The base rate, the share of pairs of the same person in use, is stated, not learnt,
as validation sets do not contain it. On held-out persons this was better than beta calibration and
isotonic regression, which have more parameters (tests/bench/results/calibration.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval.evaluation import Embeddings
from dpmpp_core.retrieval.masks import expand_masks
from dpmpp_core.retrieval.similarity import masked_similarity

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BASE_RATE = 0.01
RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)  # of false accepts, with thresholds
MIN_ACCEPTED_PAIRS = 10  # of two persons above a threshold, for it to be reported
MAX_NEGATIVE_PAIRS = 1_000_000
BINS = 10


class Threshold(BaseModel):
    """Accept from `score` on: shares of pairs in [0, 1] that are then wrong.

    Attributes:
        false_accept: of pairs of two persons, those accepted.
        false_reject: of pairs of the same person, those refused.
    """

    score: float
    false_accept: float
    false_reject: float


class Fit(BaseModel):
    """Slope and offset of the formula above."""

    slope: float = Field(gt=0)
    offset: float

    def probability(self, scores: Floats, base_rate: float) -> Floats:
        """Return the probability in (0, 1) of each score in [-1, 1]; DataError for a bad rate."""
        if not 0 < base_rate < 1:
            raise DataError(f"base rate {base_rate}: a share above 0 and below 1 is needed")
        logit = self.slope * scores + self.offset + np.log(base_rate / (1 - base_rate))
        return 1 / (1 + np.exp(-logit))


class Calibration(BaseModel):
    """A fit, its data and its quality on held-out persons.

    Attributes:
        weights_sha256: the model whose scores these are.
        fit: the fit.
        same: number of pairs of the same person.
        different: number of pairs of two.
        persons: number of persons.
        base_rate: the default share of pairs of the same person.
        held_out: figures of fits on half of the persons, on the other half, both ways: `log_loss`
            (nats; `log_loss_prior` uses the base rate only), `ece` (expected calibration error),
            each at even odds and, with the ending `_stated`, at the base rate.
        reliability: at even odds, held out: mean probability, share of the same person, pairs.
        thresholds: by the share of false accepts.
    """

    model_config = ConfigDict(extra="forbid")
    weights_sha256: str
    fit: Fit
    same: int
    different: int
    persons: int
    base_rate: float
    held_out: dict[str, float]
    reliability: list[tuple[float, float, int]]
    thresholds: list[Threshold]

    def probability(self, scores: Floats, base_rate: float | None = None) -> Floats:
        """Return `Fit.probability` at the stated base rate or another."""
        return self.fit.probability(scores, self.base_rate if base_rate is None else base_rate)


class Pairs(NamedTuple):
    """Scores of pairs in [-1, 1], whether each is of the same person, and the person ids."""

    scores: Floats
    same: Bools
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def score_pairs(query: Embeddings, gallery: Embeddings, seed: int = 0) -> Pairs:
    """Score all pairs of the same person, as in evaluation (not of one camera), and pairs of two.

    Of the latter about MAX_NEGATIVE_PAIRS at most, drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    keep = min(1.0, MAX_NEGATIVE_PAIRS / max(1, len(query) * len(gallery)))
    parts: list[Pairs] = []
    for i, (pid, camid) in enumerate(zip(query.pids, query.camids, strict=True)):
        row = slice(i, i + 1)
        features = {s: x[row] for s, x in query.features.items()}
        masks = expand_masks({s: x[row] for s, x in query.masks.items()}, query.features)
        scores = masked_similarity(features, masks, gallery.features).numpy()[0].astype(np.float64)
        same = gallery.pids == pid
        other = ~same & (rng.random(len(gallery)) < keep)
        chosen = np.flatnonzero((same & (gallery.camids != camid)) | other)
        first = np.full(len(chosen), pid)
        parts.append(Pairs(scores[chosen], same[chosen], first, gallery.pids[chosen]))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def calibrate(
    pairs: Pairs, weights_sha256: str, base_rate: float = BASE_RATE, seed: int = 0
) -> Calibration:
    """Fit on all pairs, and measure fits on half of the persons with the other half.

    The pairs must be of persons that the model was not trained on, which cannot be checked.

    Raises:
        DataError: fewer than four persons, or no pair of the same person or of two in a half.
    """
    persons = np.unique(pairs.first)
    shuffled = np.random.default_rng(seed).permutation(persons)
    halves = [shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]]
    inside = [np.isin(pairs.first, half) & np.isin(pairs.second, half) for half in halves]
    if len(persons) < 4 or any(len(np.unique(pairs.same[part])) < 2 for part in inside):
        raise DataError(
            f"{len(persons)} persons with pairs: calibration needs four or more, each seen by two "
            "cameras"
        )
    columns = []
    for learnt, tested in (inside, inside[::-1]):
        fit = fit_scores(pairs.scores[learnt], pairs.same[learnt])
        scores = pairs.scores[tested]
        probabilities = fit.probability(scores, 0.5), fit.probability(scores, base_rate)
        columns.append((pairs.same[tested], *probabilities))
    same, even, stated = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    held_out = compute_calibration_figures(even, same, 0.5)
    at_base_rate = compute_calibration_figures(stated, same, base_rate)
    held_out |= {f"{name}_stated": value for name, value in at_base_rate.items()}
    return Calibration(
        weights_sha256=weights_sha256,
        fit=fit_scores(pairs.scores, pairs.same),
        same=int(pairs.same.sum()),
        different=int((~pairs.same).sum()),
        persons=len(persons),
        base_rate=base_rate,
        held_out=held_out,
        reliability=compute_reliability(even, same, 0.5),
        thresholds=compute_thresholds(pairs.scores, pairs.same),
    )


def fit_scores(scores: Floats, same: Bools) -> Fit:
    """Minimise the log loss with equal weight of both kinds of pairs, by Newton's method.

    A small ridge keeps the slope finite where pairs are separated without an error.

    Raises:
        DataError: similarity does not rise with identity.
    """
    terms = np.stack([scores, np.ones_like(scores)], axis=1)
    weights, ridge = weigh_pairs(same, 0.5), np.array([1e-4, 1e-8])
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-terms @ beta))
        gradient = terms.T @ (weights * (p - same)) + ridge * beta
        bend = (terms * (weights * p * (1 - p))[:, None]).T @ terms + np.diag(ridge)
        step = np.linalg.solve(bend, gradient)
        beta -= step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    if beta[0] <= 0:
        raise DataError(
            "similarity does not rise with identity on the calibration pairs: cannot calibrate"
        )
    return Fit(slope=beta[0], offset=beta[1])


def compute_thresholds(
    scores: Floats, same: Bools, rates: Sequence[float] = RATES
) -> list[Threshold]:
    """Return the least scores that accept at most given shares of pairs of two persons.

    Rates with fewer than MIN_ACCEPTED_PAIRS such pairs are left out, as too uncertain.
    """
    others = np.sort(scores[~same])[::-1]
    positives = scores[same]
    thresholds = []
    for rate in rates:
        allowed = int(rate * len(others))
        if allowed < MIN_ACCEPTED_PAIRS:
            continue
        score = float(np.nextafter(others[allowed], 2))  # above the first that must not pass
        accepted, rejected = float((others >= score).mean()), float((positives < score).mean())
        thresholds.append(Threshold(score=score, false_accept=accepted, false_reject=rejected))
    return thresholds


def compute_reliability(
    probabilities: Floats, same: Bools, base_rate: float
) -> list[tuple[float, float, int]]:
    """Return mean, share of the same person and number of pairs of each tenth of probabilities.

    Mean and share are weighted to the base rate; tenths without pairs are left out.
    """
    weights = weigh_pairs(same, base_rate)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        if total := weights[inside].sum():
            mean = float((weights * probabilities)[inside].sum() / total)
            share = float(weights[inside & same].sum() / total)
            rows.append((mean, share, int(inside.sum())))
    return rows


def compute_calibration_figures(
    probabilities: Floats, same: Bools, base_rate: float
) -> dict[str, float]:
    """Compute `log_loss`, `log_loss_prior` and `ece`, with pairs weighted to the base rate."""
    weights = weigh_pairs(same, base_rate)
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    loss = -(weights * np.where(same, np.log(p), np.log1p(-p))).sum()
    prior = -(base_rate * np.log(base_rate) + (1 - base_rate) * np.log1p(-base_rate))
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = [abs((weights * (same - p))[bins == number].sum()) for number in range(BINS)]
    return {"log_loss": float(loss), "log_loss_prior": float(prior), "ece": float(sum(gaps))}


def weigh_pairs(same: Bools, base_rate: float) -> Floats:
    """Return the weight of each pair: those of the same person sum to the base rate, all to 1."""
    count = max(1, int(same.sum()))
    return np.where(same, base_rate / count, (1 - base_rate) / max(1, len(same) - count))
