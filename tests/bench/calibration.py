"""Which way of turning scores into probabilities holds on persons not fitted on.

    python -m tests.bench.calibration --model FOLDER --data DIR [DIR ...]

Fits on half of the persons, measured on the other half, both ways, five times: logistic (ours),
beta calibration (Kull et al., AISTATS 2017) and isotonic regression, the last two by SciPy and
scikit-learn. Log loss in nats and expected calibration error over ten bins, at even odds and at a
base rate of 1 %.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from dpmpp_core.data.files import list_files
from dpmpp_core.data.sightings import find_sightings
from dpmpp_core.models.reid import load_model
from dpmpp_core.retrieval import to_columns
from dpmpp_core.retrieval.calibration import (
    Pairs,
    compute_calibration_figures,
    fit_scores,
    score_pairs,
    weigh_pairs,
)
from pipelines.gallery.calibration import split_queries_and_gallery
from pipelines.runtime.tracking import environment
from tests.bench.timing import RESULTS

EDGE = 1e-4
RATE = 0.01


def logistic(scores: np.ndarray, same: np.ndarray, asked: np.ndarray) -> np.ndarray:
    return fit_scores(scores, same).probability(asked, 0.5)


def beta(scores: np.ndarray, same: np.ndarray, asked: np.ndarray) -> np.ndarray:
    weights = weigh_pairs(same, 0.5)

    def logit(x: np.ndarray, values: np.ndarray) -> np.ndarray:
        share = np.clip((values + 1) / 2, 1e-6, 1 - 1e-6)
        return x[0] * np.log(share) - x[1] * np.log1p(-share) + x[2]

    def loss(x: np.ndarray) -> float:
        return float((weights * np.logaddexp(0, np.where(same, -1, 1) * logit(x, scores))).sum())

    fitted = minimize(loss, [1.0, 1.0, 0.0], bounds=[(0, None), (0, None), (None, None)])
    return 1 / (1 + np.exp(-logit(fitted.x, asked)))


def isotonic(scores: np.ndarray, same: np.ndarray, asked: np.ndarray) -> np.ndarray:
    fit = IsotonicRegression(y_min=EDGE, y_max=1 - EDGE, out_of_bounds="clip")
    return fit.fit(scores, same, weigh_pairs(same, 0.5)).predict(asked)


WAYS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "logistic": logistic,
    "beta": beta,
    "isotonic": isotonic,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    arguments = parser.parse_args()
    columns = "data", "pairs of one / two", "persons", "fit", "log loss", "ECE (%)"
    lines = [f"| {' | '.join(columns)} | log loss at 1 % | ECE at 1 % (%) |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|---:|"]
    for data in arguments.data:
        pairs = pairs_of(data, arguments.model)
        name = Path(data).name
        count = f"{pairs.same.sum():,} / {(~pairs.same).sum():,}"
        persons = len(np.unique(pairs.first))
        for way, fit in WAYS.items():
            rows = [measured(pairs, fit, seed) for seed in range(5)]
            mean, std = np.mean(rows, 0), np.std(rows, 0, ddof=1)
            cells = [
                f"{scale * m:.{digits}f} ± {scale * s:.{digits}f}"
                for m, s, scale, digits in zip(
                    mean, std, (1, 100, 1, 100), (3, 1, 4, 2), strict=True
                )
            ]
            lines.append(f"| {name} | {count} | {persons} | {way} | {' | '.join(cells)} |")
    write(lines)


def pairs_of(data: str, model: str) -> Pairs:
    """Queries against the gallery, as `dpmpp index calibrate` pairs them."""
    found = find_sightings(list_files(data))
    images = [x for x in found.images if x.pid is not None and x.split != "train"]
    made = load_model(model).embed([Path(data) / image.path for image in images])
    return score_pairs(*split_queries_and_gallery(images, to_columns(made.features, made.masks)))


def measured(
    pairs: Pairs, fit: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], seed: int
) -> list[float]:
    persons = np.random.default_rng(seed).permutation(np.unique(pairs.first))
    halves = persons[: len(persons) // 2], persons[len(persons) // 2 :]
    inside = [np.isin(pairs.first, half) & np.isin(pairs.second, half) for half in halves]
    told, same = [], []
    for learnt, tested in (inside, inside[::-1]):
        told.append(fit(pairs.scores[learnt], pairs.same[learnt], pairs.scores[tested]))
        same.append(pairs.same[tested])
    p, truth = np.clip(np.concatenate(told), 1e-9, 1 - 1e-9), np.concatenate(same)
    odds = p / (1 - p) * RATE / (1 - RATE)
    even, stated = (
        compute_calibration_figures(p, truth, 0.5),
        compute_calibration_figures(odds / (1 + odds), truth, RATE),
    )
    return [even["log_loss"], even["ece"], stated["log_loss"], stated["ece"]]


def write(lines: list[str]) -> None:
    packages = ", ".join(f"{k} {v}" for k, v in environment()["packages"].items())
    text = [
        "# From scores to probabilities",
        "",
        f"`python -m tests.bench.calibration --model FOLDER --data DIR ...`, {date.today()}, "
        f"{platform.processor() or platform.machine()}; {packages}.",
        "",
        *lines,
        "",
        "Persons not fitted on; mean ± std over five ways to halve them. Even odds: the base rate "
        f"only is known, log loss 0.693; at 1 %: {-(RATE * np.log(RATE) + (1 - RATE) * np.log(1 - RATE)):.4f}.",  # noqa: E501
        "",
    ]
    (RESULTS / "calibration.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
