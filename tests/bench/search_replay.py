"""Ways to search, compared over many seeds on a model of what real trials measured.

    python -m tests.bench.search_replay [--seeds 40] [--only tpe ...]

Fits a model of the objective over the shipped space to the whole trials of
`results/search-efficiency.json`, and lets searches run against it: a proposal is answered by the
model's mean plus noise of the size measured between training seeds. What a search found is judged
by the model's mean, so that a lucky trial gains nothing. Two kinds of model, a Gaussian process
and trees, as either may favour a sampler that thinks as it does. Not real training: it only helps
to choose what is worth trying for real. Writes `results/search-replay.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import cross_val_predict

from dpmpp_core.config import load_config
from dpmpp_core.config.space import Choices, Space, load_space
from pipelines.storage import Storage
from pipelines.study import Study
from pipelines.tracking import environment, look_up
from tests.bench.search_report import difference, interval, spread2
from tests.bench.search_trials import BASE
from tests.bench.timing import RESULTS

TRIALS, EPOCHS = 20, 6  # of a search, of a trial: as in `search_efficiency`
Row = dict[str, Any]
Draws = Callable[[int], BaseSampler]


@dataclass(frozen=True)
class Way:
    """A way to search: how to propose, given a seed; `seeds`, at most, as some take long."""

    sampler: Draws
    seeds: int = 1000


def tpe(**changes: Any) -> Draws:
    """The sampler of `pipelines.study`, changed."""
    settings = {"n_startup_trials": 5, "multivariate": True, "constant_liar": True}
    return lambda seed: TPESampler(seed=seed, **(settings | changes))


def gp(startup: int) -> Draws:
    return lambda seed: GPSampler(seed=seed, n_startup_trials=startup)


WAYS = {
    "random": Way(lambda seed: RandomSampler(seed=seed)),
    "tpe, 5 at random": Way(tpe()),
    "tpe, 10 at random": Way(tpe(n_startup_trials=10)),
    "tpe, each key alone": Way(tpe(multivariate=False)),
    "tpe, 128 candidates": Way(tpe(n_ei_candidates=128)),
    "gp, 5 at random": Way(gp(5), 15),
    "gp, 1 at random": Way(gp(1), 15),
}


class Model:
    """What a trial would measure, as learnt from those that were trained.

    Attributes:
        quality: of predictions for a tenth that was left out: share of the variance explained, and
            rank correlation.
    """

    def __init__(self, kind: str, rows: list[Row], noise: float) -> None:
        self._space, self._noise = load_space("default"), noise
        self._start = start(self._space)
        own = [row for row in rows if row["epochs"] == EPOCHS and row["seed"] == 0]
        x = np.stack([self._encoded(row["changes"]) for row in own])
        y = np.array([row["occluded"] for row in own])
        self._level, self._scale = y.mean(), y.std()
        z = (y - self._level) / self._scale
        self._fit: Any
        if kind == "trees":
            self._fit = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0)
        else:
            kernel = ConstantKernel() * RBF(np.full(x.shape[1], 2.0), (0.2, 100)) + WhiteKernel(0.3)
            self._fit = GaussianProcessRegressor(kernel, random_state=0)
        with warnings.catch_warnings():  # a length at its bound is a key that says nothing
            warnings.simplefilter("ignore")
            left_out = cross_val_predict(self._fit, x, z, cv=10)
            self._fit.fit(x, z)
        rank = spearmanr(left_out, z).statistic
        self.quality = 1 - float(np.mean((left_out - z) ** 2)), float(rank)
        self.trained = len(own)

    def mean(self, changes: Mapping[str, Any]) -> float:
        z = self._fit.predict(self._encoded(changes)[None])[0]
        return float(self._level + self._scale * z)

    def measure(self, changes: Mapping[str, Any]) -> float:
        """The mean and a draw of the noise, the same whenever it is asked."""
        text = json.dumps(dict(changes), sort_keys=True)
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        return self.mean(changes) + float(np.random.default_rng(seed).normal(0, self._noise))

    def _encoded(self, changes: Mapping[str, Any]) -> NDArray[np.float64]:
        values: list[float] = []
        for key, parameter in self._space.items():
            value = changes.get(key, self._start[key])
            if isinstance(parameter, Choices):
                values += [float(value == choice) for choice in parameter.choices]
            else:
                scale = np.log if parameter.log else float
                low, high = scale(parameter.low), scale(parameter.high)
                values.append(float((scale(value) - low) / (high - low)))
        return np.array(values)


class Searching(Study):
    """A study with another sampler."""

    way: Way

    def _sampler(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return self.way.sampler(seed)


def start(space: Space) -> dict[str, Any]:
    values = load_config("demo", BASE).model_dump(mode="json")
    return {key: look_up(values, key) for key in space}


def found(way: Way, model: Model, seed: int, folder: Path) -> float:
    """What the model says of the configuration that a search of BUDGET epochs ends with."""
    space = load_space("default")
    goal = ("occluded",)
    one = Searching(
        Storage(str(folder)), "trials.json", space, start(space), goal, [EPOCHS], "tpe", seed
    )
    one.way = way
    while len(one.trials) < TRIALS:
        trial = one.ask()
        one.measured(trial.number, EPOCHS, {"occluded": model.measure(trial.changes)})
    return model.mean(one.front()[0].changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="optuna")
    rows, noise = load()
    only = "" if len(arguments.only) == len(WAYS) else " --only ..."
    lines = head(f"--seeds {arguments.seeds}{only}", noise)
    for kind in ("gaussian process", "trees"):
        model = Model(kind, rows, noise)
        explained, rank = model.quality
        lines += [
            "",
            f"Model: {kind}, of {model.trained} trials. Of trials left out it explains "
            f"{100 * explained:.0f} % of the variance; rank correlation {rank:.2f}.",
            "",
            "| way | searches | found, less the start | over random |",
            "|---|---:|---:|---:|",
        ]
        at_random: list[float] = []
        for name in dict.fromkeys(["random", *arguments.only]):
            way = WAYS[name]
            values = []
            for seed in range(min(way.seeds, arguments.seeds)):
                with tempfile.TemporaryDirectory() as folder:
                    values.append(found(way, model, seed, Path(folder)) - model.mean({}))
            at_random = at_random or values
            over = difference(values, at_random[: len(values)])
            cells = [name, str(len(values)), spread2(values)]
            cells.append("" if name == "random" else interval(over))
            lines.append(f"| {' | '.join(cells)} |")
            print(kind, lines[-1], flush=True)
    (RESULTS / "search-replay.md").write_text("\n".join(lines) + "\n")


def load() -> tuple[list[Row], float]:
    """All trainings, and the standard deviation between training seeds at the most epochs."""
    names, *table = json.loads((RESULTS / "search-efficiency.json").read_text())
    keys = names[: names.index("epochs")]
    rows = []
    for line in table:
        row = dict(zip(names, line, strict=True))
        row["changes"] = {key: row.pop(key) for key in keys}
        if row["changes"][keys[0]] is None:
            row["changes"] = {}
        rows.append(row)
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["seed"]:
            groups.setdefault(json.dumps(row["changes"]), []).append(row["occluded"])
    variances = [np.var(values, ddof=1) for values in groups.values() if len(values) > 1]
    return rows, float(np.mean(variances) ** 0.5)


def head(options: str, noise: float) -> list[str]:
    packages = environment()["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("optuna", "numpy"))
    return [
        "# Ways to search, on a model of the trials",
        "",
        f"`python -m tests.bench.search_replay {options}`; {date.today()}. Python "
        f"{platform.python_version()}, {versions}; {platform.machine()}. Searches of {TRIALS} "
        "trials; points of mAP, mean ± standard deviation over the searches, paired "
        "difference to random search and its 95 % interval. Nothing is trained: a proposal is "
        "answered by a model that was fitted to the trials of `search-efficiency.json`, plus "
        f"noise of {100 * noise:.2f}; what was found is judged by the model without noise.",
    ]


if __name__ == "__main__":
    main()
