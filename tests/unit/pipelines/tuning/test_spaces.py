"""What a search draws, learns from its trials and reports."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpmpp_core.config import load_config
from dpmpp_core.config.reading import recipe_names
from dpmpp_core.config.space import Choices, Range, Space, apply_changes
from dpmpp_core.errors import ConfigError
from pipelines.runtime import progress
from pipelines.tuning import progress as trials_progress
from pipelines.tuning.progress import SearchProgress
from pipelines.tuning.report import compute_importances, render_report
from pipelines.tuning.spaces import (
    NUMBER_KEY,
    SearchSpec,
    TrialRecord,
    build_searcher,
    select_pareto_front,
)

SPACE = Space(
    {
        "metric.lr": Range(low=1e-4, high=1e-1, log=True),
        "metric.epochs": Range(low=1, high=9, whole=True),
        "model.taps": Choices(choices=[[1, 2], [3]]),
        "occlusion.rolling": Choices(choices=[True, False]),
    }
)
START = {"metric.lr": 1e-2, "metric.epochs": 3, "model.taps": [1, 2], "occlusion.rolling": True}
TWO = ("occluded", "holistic")


def make_spec(**changes: Any) -> SearchSpec:
    settings = {"space": SPACE, "start": START, "objectives": ("occluded",), "rungs": (3,)}
    return SearchSpec(**{**settings, **changes})


def goal(changes: dict[str, Any]) -> float:
    values = START | changes
    return 10 * values["metric.lr"] + 1e-3 * values["metric.epochs"]


def run(spec: SearchSpec, trials: int, records: list[TrialRecord] | None = None, kill: int = -1):
    """Trials one after the other; the searcher is saved and restored before number `kill`."""
    before = list(records or [])
    searcher, done = build_searcher(spec, before), list(before)
    for number in range(len(before), trials):
        if number == kill:
            searcher.save("searcher.pkl")
            searcher = build_searcher(spec, before)
            searcher.restore("searcher.pkl")
        config = searcher.suggest(str(number))
        assert config is not None and config.pop(NUMBER_KEY) == number
        changes = config if number else {}
        values = {"occluded": goal(changes), "holistic": -goal(changes)}
        done.append(TrialRecord(number, changes, "done", {3: values}))
        result = {**values, "training_iteration": 1}
        searcher.on_trial_result(str(number), result)
        searcher.on_trial_complete(str(number), result)
    return done


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_the_first_trial_is_the_start_and_others_stay_in_the_space(searcher: str) -> None:
    trials = run(make_spec(searcher=searcher), 12)
    for trial in trials[1:]:
        assert list(trial.changes) == list(SPACE)
        assert all(SPACE[key].contains(value) for key, value in trial.changes.items())
        assert float(f"{trial.changes['metric.lr']:.4g}") == trial.changes["metric.lr"]
    assert len({str(trial.changes) for trial in trials}) == 12


@pytest.mark.parametrize("start", [START, START | {"metric.lr": 1.0}, START | {"model.taps": [7]}])
def test_the_start_is_first_and_may_lie_outside_the_space(start: dict[str, Any]) -> None:
    spec = make_spec(start=start)
    first = build_searcher(spec).suggest("0")
    assert first == {NUMBER_KEY: 0} | (start if spec.contains(start) else {})
    trials = run(spec, 12)
    assert len(compute_importances(spec, trials)) == len(SPACE)
    assert "parallel-coordinates.png" in render_report(spec, trials, "dpmpp tune", {})


@pytest.mark.parametrize("searcher", ["tpe", "random"])
@pytest.mark.parametrize("killed", [1, 4, 9])
def test_a_restored_search_tries_what_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searcher: str, killed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = make_spec(searcher=searcher)
    assert run(spec, 12, kill=killed) == run(spec, 12)


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_further_trials_are_new_ones(searcher: str) -> None:
    spec = make_spec(searcher=searcher)
    more = run(spec, 16, run(spec, 8))
    assert [trial.number for trial in more] == list(range(16))
    assert len({str(trial.changes) for trial in more}) == 16


def test_another_seed_tries_others() -> None:
    one, other = run(make_spec(), 4), run(make_spec(seed=1), 4)
    assert one[1].changes != other[1].changes


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(0.5, 0.5), (0.4, 0.6), (0.6, 0.1), (0.4, 0.4), (0.5, 0.5), (0.3, 0.6)]
    records = [
        TrialRecord(number, {}, "done", {3: dict(zip(TWO, point, strict=True))})
        for number, point in enumerate(points)
    ]
    records.append(TrialRecord(6, {}, "failed", reason="lost"))
    records.append(TrialRecord(7, {}, "stopped", {1: {"occluded": 0.9, "holistic": 0.9}}))
    assert [trial.number for trial in select_pareto_front(make_spec(objectives=TWO), records)] == [
        2,
        0,
        1,
    ]
    assert [trial.number for trial in select_pareto_front(make_spec(), records)] == [2]
    assert select_pareto_front(make_spec(), records[6:7]) == []


def test_tpe_finds_more_than_chance() -> None:
    best = {
        searcher: sum(
            max(trial.last["occluded"] for trial in run(make_spec(searcher=searcher, seed=s), 30))
            for s in range(5)
        )
        for searcher in ("tpe", "random")
    }
    assert best["tpe"] > best["random"]


def test_importance_names_what_decides() -> None:
    spec = make_spec(searcher="random")
    shares = compute_importances(spec, run(spec, 40))
    assert set(shares) == set(SPACE)
    assert max(shares, key=lambda key: shares[key]) == "metric.lr"
    assert compute_importances(spec, []) == {}


def test_changes_that_do_not_go_together_are_refused() -> None:
    config = load_config("demo")
    changed = apply_changes(config, {"metric.lr": 0.5, "name": "other"})
    assert (changed.metric.lr, changed.name) == (0.5, "other")
    for recipe in recipe_names():
        assert apply_changes(load_config(recipe), {}) == load_config(recipe)
    with pytest.raises(ConfigError, match=r"^demo: occlusion: .*min_ratio 0.9 is above"):
        apply_changes(config, {"occlusion.min_ratio": 0.9, "occlusion.max_ratio": 0.5})


def test_a_bar_may_run_below_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(trials_progress, "console", console)
    spec = make_spec()
    records = run(spec, 3)
    with SearchProgress(spec, 3) as shown, progress.progress_bar("person masks", 2) as bar:
        bar.update(1)
        shown.update(records)
        shown.end(records[0])
    assert "3 of 3 trials" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_report_has_every_trial_and_its_pictures(tmp_path: Path) -> None:
    spec = make_spec(objectives=TWO)
    records = [*run(spec, 8), TrialRecord(8, {}, "failed", reason="a | reason")]
    files = render_report(spec, records, "dpmpp tune", {"train": {"images": 3}, "quarantined": {}})
    lines = files["trials.md"].decode().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 9  # its head and the trials
    assert "a / reason" in files["trials.md"].decode()
    assert len(files["trials.csv"].decode().splitlines()) == 10
    for name in ("parallel-coordinates.png", "importance.png", "pareto.png"):
        assert files[name].startswith(b"\x89PNG")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
