"""What a search tries, stops and remembers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pipelines.population import RATES
from pipelines.study import Study, Tried
from rich.console import Console

from dpmpp_core.config.space import Choices, Range, Space
from pipelines import progress, tune_report
from pipelines.storage import Storage
from pipelines.tune_report import render

SPACE = Space(
    {
        "metric.lr": Range(low=1e-4, high=1e-1, log=True),
        "metric.epochs": Range(low=1, high=9, whole=True),
        "model.taps": Choices(choices=[[1, 2], [3]]),
        "occlusion.rolling": Choices(choices=[True, False]),
    }
)
START = {"metric.lr": 1e-2, "metric.epochs": 3, "model.taps": [1, 2], "occlusion.rolling": True}


def study(folder: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "storage": Storage(str(folder)), "key": "trials.json", "space": SPACE, "start": START,
        "objectives": ("occluded",), "rungs": (1, 3), "algorithm": "tpe", "seed": 0,
    }  # fmt: skip
    return Study(**(settings | changes))


def goal(changes: dict[str, Any]) -> float:
    values = START | changes
    return 10 * values["metric.lr"] + 1e-3 * values["metric.epochs"]


POPULATION = {
    "algorithm": "pbt", "members": 4, "rungs": (1, 2, 3), "start": START | {RATES: [1.0]}
}  # fmt: skip


def finish(one: Study, trial: Tried | None) -> None:
    assert trial is not None
    for epochs in one.rungs_of(trial):
        figure = goal(trial.changes) * epochs / one.rungs[-1]
        values = {"occluded": figure, "holistic": -figure}
        if not one.measured(trial.number, epochs, values):
            return


def run(folder: Path, trials: int, **changes: Any) -> Study:
    one = study(folder, **changes)
    while len(one.trials) < trials or one.unfinished:
        finish(one, one.ask())
    return one


def test_the_first_trial_changes_nothing_and_others_stay_in_the_space(tmp_path: Path) -> None:
    trials = run(tmp_path, 12).trials
    assert trials[0].changes == {}
    for trial in trials[1:]:
        assert list(trial.changes) == list(SPACE)
        assert all(SPACE[key].contains(value) for key, value in trial.changes.items())
    assert len({str(trial.changes) for trial in trials}) == 12


@pytest.mark.parametrize("algorithm", ["tpe", "random", "pbt"])
@pytest.mark.parametrize("killed", [1, 4, 9])
def test_a_search_that_was_killed_tries_what_it_would_have(
    tmp_path: Path, algorithm: str, killed: int
) -> None:
    how = {"algorithm": algorithm} | (POPULATION if algorithm == "pbt" else {})
    whole = run(tmp_path / "whole", 12, **how)
    part = run(tmp_path / "part", killed, **how)
    left = part.ask()  # its driver is killed now
    assert left is not None
    went_on = run(tmp_path / "part", 12, **how)
    assert went_on.trials[killed].changes == left.changes
    assert [t.changes for t in went_on.trials] == [t.changes for t in whole.trials]
    assert [t.state for t in went_on.trials] == [t.state for t in whole.trials]


def test_a_generation_waits_for_the_one_before(tmp_path: Path) -> None:
    one = study(tmp_path, **POPULATION)
    asked = [one.ask() for _ in range(4)]
    assert [trial and trial.changes == {} for trial in asked] == [True, False, False, False]
    assert one.ask() is None
    for trial in asked[:3]:
        finish(one, trial)
    assert one.ask() is None
    one.failed(3, "lost")
    trial = one.ask()
    assert trial is not None and trial.changes == {} and trial.parent == 0


def test_the_worst_of_a_population_go_on_from_the_best(tmp_path: Path) -> None:
    one = run(tmp_path, 12, **POPULATION)
    assert [trial.unchanged for trial in one.trials] == ([True] + [False] * 3) * 3
    for before in (one.trials[:4], one.trials[4:8]):
        part = one.trials.index(before[0]) // 4 + 1
        ranked = sorted(before, key=lambda trial: -trial.last["occluded"])
        for own, trial in zip(before, one.trials[4 * part : 4 * part + 4], strict=True):
            if own is not ranked[-1] or own.unchanged:
                assert (trial.parent, trial.changes) == (own.number, own.changes)
                continue
            assert trial.parent == ranked[0].number
            old = ranked[0].changes.get(RATES, [1.0] * 3)
            new = trial.changes[RATES]
            assert new[:part] == old[:part] and new[part] / old[part - 1] in (0.8, 1.25)
    assert {trial.number for trial in one.full()} == {8, 9, 10, 11}


def test_another_seed_tries_others(tmp_path: Path) -> None:
    one, other = run(tmp_path / "0", 4), run(tmp_path / "1", 4, seed=1)
    assert one.trials[1].changes != other.trials[1].changes


def test_only_the_best_third_goes_on_at_a_rung(tmp_path: Path) -> None:
    one = study(tmp_path)
    figures = [0.5, 0.4, 0.6, 0.3, 0.7, 0.55, 0.1]
    for number, figure in enumerate(figures):
        one.ask()
        one.measured(number, 1, {"occluded": figure})
    states = [trial.state for trial in one.trials]
    # The first always goes on; 0.55 is the third of six, of whom two may.
    assert states == ["running", "stopped", "running", "stopped", "running", "stopped", "stopped"]
    assert study(tmp_path).measured(4, 1, {"occluded": 0.7})  # measured before it was killed


def test_brackets_leave_the_first_rungs_out(tmp_path: Path) -> None:
    one = run(tmp_path, 6, rungs=(1, 2, 3), brackets=3)
    assert [min(trial.rungs) for trial in one.trials] == [1, 2, 3, 1, 2, 3]
    assert all(trial.state == "done" for trial in one.trials[2::3])


def test_a_failed_trial_is_kept_and_says_why(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.ask()
    one.failed(0, "out of memory")
    again = study(tmp_path)
    assert not again.unfinished and again.trials[0].reason == "out of memory"
    assert again.ask().number == 1 and again.front() == []


def test_the_front_holds_what_nothing_beats_in_both(tmp_path: Path) -> None:
    one = study(tmp_path, objectives=("occluded", "holistic"), rungs=(1,))
    points = [(0.5, 0.5), (0.4, 0.6), (0.6, 0.1), (0.4, 0.4), (0.5, 0.5), (0.3, 0.6)]
    for number, (occluded, holistic) in enumerate(points):
        one.ask()
        one.measured(number, 1, {"occluded": occluded, "holistic": holistic})
    assert [trial.number for trial in one.front()] == [2, 0, 1]


def test_tpe_finds_more_than_chance(tmp_path: Path) -> None:
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for algorithm, found in best.items():
        for seed in range(5):
            folder = tmp_path / f"{algorithm}{seed}"
            one = run(folder, 30, algorithm=algorithm, seed=seed, rungs=(1,))
            found.append(one.front()[0].last["occluded"])
    assert sum(best["tpe"]) > sum(best["random"])


def test_importance_names_what_decides(tmp_path: Path) -> None:
    one = run(tmp_path, 40, algorithm="random", rungs=(1,))
    importance = one.importance()
    assert set(importance) == set(SPACE)
    assert max(importance, key=lambda key: importance[key]) == "metric.lr"
    assert study(tmp_path / "empty").importance() == {}


def test_a_bar_may_run_below_the_live_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(tune_report, "console", console)
    one = run(tmp_path, 3, rungs=(1,))
    with tune_report.Shown(one, 3) as shown, progress.bar("person masks", 2) as bar:
        bar.update(1)
        shown.ended(one.trials[0])
    assert "3 of 3 trials" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_report_has_every_trial_and_its_pictures(tmp_path: Path) -> None:
    one = run(tmp_path, 8, objectives=("occluded", "holistic"), rungs=(1,))
    one.ask()
    one.failed(8, "a | reason")
    files = render(one, "dpmpp tune", {"train": {"images": 3}, "quarantined": {}})
    lines = files["trials.md"].decode().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 9  # its head and the trials
    assert "a / reason" in files["trials.md"].decode()
    assert len(files["trials.csv"].decode().splitlines()) == 10
    for name in ("parallel-coordinates.png", "importance.png", "pareto.png"):
        assert files[name].startswith(b"\x89PNG")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
