"""What `dpmpp tune` finds for its epochs, beside plain random search.

    python -m tests.bench.search_efficiency [--seeds 0 1 ...] [--arms tpe random ...]
        [--storage runs/search-efficiency] [--report]

Runs whole searches, several seeds per arm, each for BUDGET epochs of training, through the
`OptunaSearch` that `dpmpp tune` builds. A trial is real training (`search_trials`). Every result is
written at once and never trained again: the same command continues. `--report` trains
nothing. At the end `results/search-efficiency.md`, `.png` and `.json`, all trainings.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from dpmpp_core.config import load_config
from dpmpp_core.config.space import load_space
from pipelines.reporting.figures import save_png
from pipelines.runtime.tracking import environment, look_up
from pipelines.tuning.spaces import SearchSpec, TrialRecord, build_searcher
from pipelines.tuning.trials import select_changes
from tests.bench.search_report import Search, followed, picture, table, winner, within
from tests.bench.search_trials import BASE, Memory, Workshop, print_each
from tests.bench.timing import RESULTS

ARMS = ("random", "tpe")
BUDGET = 120  # epochs trained: 20 whole trials
AGAIN = (1, 2)  # other training seeds, with which the best of each search is trained again
MEASURED = "measured.jsonl"
NAME = "search-efficiency"

_workshop: Workshop  # made before the processes that run searches are forked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--storage", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    arguments.storage.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        # By pairs of seeds, so that a search finds in the file what the one before it drew too.
        jobs = [(arm, seed) for arm in arguments.arms for seed in arguments.seeds]
        run(arguments.storage, sorted(jobs, key=lambda job: job[1] // 2))
    write(arguments.storage, arguments.seeds)


def run(folder: Path, jobs: list[tuple[str, int]]) -> None:
    """The searches, as many at a time as there are cores: a trial takes one."""
    global _workshop
    _workshop = Workshop(folder / "data")
    print_each(search, [(folder, *job) for job in jobs])
    for other in AGAIN:
        Memory(_workshop, folder / MEASURED).measure({}, _workshop.base.metric.epochs, other)


def search(folder: Path, arm: str, seed: int) -> str:
    """One search to the end of its budget, and its best with other training seeds; a line."""
    memory = Memory(_workshop, folder / MEASURED)
    trials = run_trials(arm, seed, memory.measure)
    best = winner(within(trials, BUDGET))
    epochs = max(best.rungs)
    again = [memory.measure(best.changes, epochs, other)["occluded"] for other in AGAIN]
    figures = ", ".join(f"{100 * value:.2f}" for value in (best.last["occluded"], *again))
    return f"{arm}, seed {seed}: {len(trials)} trials, best {best.number}: {figures}"


def run_trials(
    arm: str, seed: int, measure: Callable[[dict[str, Any], int], dict[str, float]]
) -> list[TrialRecord]:
    """The trials of a search, one after the other, as the searcher of `dpmpp tune` proposes them.

    Args:
        measure: changes and epochs -> objectives.
    """
    space, base = load_space("default"), load_config("demo", BASE)
    values, epochs = base.model_dump(mode="json"), base.metric.epochs
    start = {key: look_up(values, key) for key in space}
    spec = SearchSpec(space, start, ("occluded",), (epochs,), searcher=arm, seed=seed)
    searcher, trials = build_searcher(spec), []
    while len(trials) * epochs < BUDGET:
        number = len(trials)
        config = searcher.suggest(str(number))
        assert config is not None
        changes = select_changes(config, spec)
        result = measure(changes, epochs)
        trials.append(TrialRecord(number, changes, "done", {epochs: result}))
        searcher.on_trial_result(str(number), {**result, "training_iteration": 1})
        searcher.on_trial_complete(str(number), result)
    return trials


def write(folder: Path, seeds: list[int]) -> None:
    """The results of the searches that came to their end."""
    rows = [json.loads(line) for line in (folder / MEASURED).read_text().splitlines()]
    known = {_key(row["changes"], row["epochs"], row["seed"]): row["values"] for row in rows}
    arms: dict[str, dict[int, Search]] = {}
    for arm in ARMS:
        for seed in seeds:
            try:
                trials = run_trials(arm, seed, lambda *trial: known[_key(*trial, 0)])
                best = winner(within(trials, BUDGET))
                keys = [_key(best.changes, max(best.rungs), other) for other in AGAIN]
                again = [known[key]["occluded"] for key in keys]
            except KeyError:  # not at its end
                continue
            arms.setdefault(arm, {})[seed] = followed(trials, BUDGET, again)
    epochs = load_config("demo", BASE).metric.epochs
    save_png(RESULTS / f"{NAME}.png", picture(arms, BUDGET, epochs))
    (RESULTS / f"{NAME}.md").write_text("\n".join(_lines(arms, rows, epochs)) + "\n")
    (RESULTS / f"{NAME}.json").write_text(_compact(rows))


def _key(changes: dict[str, Any], epochs: int, seed: int) -> str:
    return json.dumps([changes, epochs, seed], sort_keys=True)


def _compact(rows: list[dict[str, Any]]) -> str:
    """All that was measured: a line a training."""
    keys = list(load_space("default"))
    names = ("occluded", "holistic", "made", "real")
    lines = [
        json.dumps(
            [*(row["changes"].get(key) for key in keys), row["epochs"], row["seed"]]
            + [row["values"].get(name) for name in names]
        )
        for row in rows
    ]
    head = json.dumps([*keys, "epochs", "seed", *names])
    return "[\n" + ",\n".join([head, *lines]) + "\n]\n"


def _noise(rows: list[dict[str, Any]], epochs: int, figure: str) -> tuple[float, int]:
    """Standard deviation over training seeds of one configuration, pooled; configurations.

    Of the seeds that chose nothing: a winner's first seed is a lucky one.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["epochs"] == epochs and row["seed"] in AGAIN:
            groups.setdefault(_key(row["changes"], 0, 0), []).append(row["values"][figure])
    variances = [statistics.variance(values) for values in groups.values() if len(values) > 1]
    return statistics.mean(variances) ** 0.5, len(variances)


def _lines(
    arms: dict[str, dict[int, Search]], rows: list[dict[str, Any]], epochs: int
) -> list[str]:
    packages = environment()["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "optuna", "numpy"))
    named = " ".join(f'"{arm}"' if " " in arm else arm for arm in arms)
    noise, count = _noise(rows, epochs, "occluded")
    made, real = (_noise(rows, epochs, figure)[0] for figure in ("made", "real"))
    unchanged = [
        row["values"]["occluded"]
        for row in rows
        if not row["changes"] and row["epochs"] == epochs and row["seed"] in (0, *AGAIN)
    ]
    # What random search drew: all that it measured to the end, the start left out.
    drawn = {
        _key(t.changes, 0, 0): t.last["occluded"]
        for t in _trials(arms, "random")
        if t.number and t.state == "done"
    }
    return [
        "# Search beside random search",
        "",
        f"`python -m tests.bench.search_efficiency --arms {named}`; {date.today()}. Python "
        f"{platform.python_version()}, {versions}; {environment()['cpus']}-core "
        f"{platform.machine()} CPU, one thread a trial. Budget: {BUDGET} epochs trained a search, "
        f"{epochs} a whole trial. mAP in percent, mean ± standard deviation over the seeds of the "
        "search, on occluded queries of held-out identities.",
        "",
        *table(arms, unchanged[0], unchanged[1:]),
        "",
        f"Noise: the same configuration trained with another seed differs by {100 * noise:.2f} "
        f"(standard deviation, pooled over {count} configurations; of the "
        f"hidden queries alone {100 * made:.2f}, of the one that is really occluded "
        f"{100 * real:.1f}). Configurations drawn at random differ "
        f"by {100 * statistics.stdev(drawn.values()):.2f} ({len(drawn)} of them: lowest "
        f"{100 * min(drawn.values()):.1f}, median {100 * statistics.median(drawn.values()):.1f}, "
        f"highest {100 * max(drawn.values()):.1f}).",
        "",
        *(
            f"- {arm}, by seed: best found {_each([[s.final] for s in searches.values()])}; "
            f"trained again {_each([s.again for s in searches.values()])}"
            for arm, searches in arms.items()
        ),
        "",
        f"![The best so far against epochs trained]({NAME}.png)",
        "*Mean over the seeds, band: one standard error.*",
    ]


def _each(groups: list[list[float]]) -> str:
    return ", ".join(f"{100 * statistics.mean(values):.2f}" for values in groups)


def _trials(arms: dict[str, dict[int, Search]], arm: str) -> list[Any]:
    return [trial for search in arms[arm].values() for trial in search.trials]


if __name__ == "__main__":
    main()
