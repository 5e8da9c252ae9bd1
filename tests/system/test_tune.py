"""`dpmpp tune` on real Ray Tune, Ray Train and MLflow: killed in the middle and restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from dpmpp_core.config import load_config
from dpmpp_core.config.schedule import shorten_schedule
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.retrieval.objectives import compute_objectives
from pipelines.reporting.figures import CLEAN_QUERIES
from pipelines.tuning.search import TuningRequest, compute_rungs
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG

SPACE = """
metric.lr: {low: 5.0e-4, high: 1.0e-2, log: true}
metric.identities: {choices: [4, 400]}
"""
TRIALS = 4


def begin(folder: Path, data: Path, *words: str) -> subprocess.Popen[str]:
    command = [
        str(Path(sys.executable).parent / "dpmpp"), "tune", "--config", TEXTLESS_CONFIG,
        *TEXTLESS, "--data", str(data),
        "--space", str(folder / "space.yaml"), "--trials", str(TRIALS), "--share", "0.4",
        "--searcher", "random", "--storage", "runs", "--json", *words,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def statuses(folder: Path) -> dict[int, str]:
    """Number of a trial -> its status, as Tune has stored them."""
    files = sorted(folder.glob("runs/tune-*/tune-0000/experiment_state-*.json"))
    try:
        rows = json.loads(files[-1].read_text())["trial_data"] if files else []
    except ValueError:  # it is being written
        return {}
    trials = [json.loads(state) for state, _ in rows]
    return {trial["config"]["number"]: trial["status"] for trial in trials}


def trained(folder: Path) -> set[Path]:
    """Finished trainings."""
    return set(folder.glob("runs/stages/metric-*/stage.json"))


@pytest.fixture(scope="module")
def searched(
    small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Folder, statuses when its driver was killed, and the result of the second start."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "space.yaml").write_text(SPACE)
    driver = begin(folder, small_demo)
    deadline = time.monotonic() + 900
    while "TERMINATED" not in statuses(folder).values():
        assert driver.poll() is None, driver.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    subprocess.run(["pkill", "-9", "-f", f"{folder}"], check=False)
    before = {file: file.stat().st_mtime for file in trained(folder)}
    out, err = begin(folder, small_demo).communicate(timeout=1500)
    return folder, before, json.loads(out.splitlines()[-1]) if out else {"error": err[-3000:]}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_it_continues_and_repeats_nothing(searched: Any) -> None:
    folder, before, result = searched
    assert "error" not in result, result["error"]
    trials = result["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert len({str(trial["changes"]) for trial in trials}) == TRIALS
    assert before and all(file.stat().st_mtime == before[file] for file in before)
    assert all(trial["state"] in ("done", "stopped", "failed") for trial in trials)
    assert trials[0]["state"] == "done" and trials[0]["changes"] == {}
    rungs = sum(len(trial["rungs"]) for trial in trials)
    assert len(trained(folder)) == rungs  # no other training was finished
    assert set(statuses(folder).values()) <= {"TERMINATED", "ERROR"}


@pytest.mark.slow
def test_a_trial_that_fails_says_why_and_stops_nothing(searched: Any) -> None:
    _, _, result = searched
    for trial in result["trials"]:
        impossible = trial["changes"].get("metric.identities") == 400
        assert (trial["state"] == "failed") == impossible == ("Error" in trial["reason"])
    assert {trial["state"] for trial in result["trials"]} > {"failed"}


@pytest.mark.slow
def test_the_best_is_a_configuration_and_all_is_one_run(searched: Any) -> None:
    folder, _, result = searched
    best = load_config(result["config"])
    for key, value in result["best_changes"].items():
        section, leaf = key.split(".")
        assert getattr(getattr(best, section), leaf) == value
    assert result["best"]["occluded"] >= result["start"]["occluded"]
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    run = client.get_run(result["run_id"])
    nested = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    trials = [one for one in nested if one.info.run_name.startswith("trial ")]
    assert len(trials) == TRIALS and all(one.info.status == "FINISHED" for one in trials)
    artifacts = {file.path for file in client.list_artifacts(result["run_id"])}
    assert {"best.yaml", "trials.md", "trials.csv"} <= artifacts


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objectives": ("mAP",)}, "one or two of occluded, holistic"),
        ({"searcher": "grid"}, "--searcher grid: one of tpe, random"),
        ({"scheduler": "median"}, "--scheduler median: one of asha, pbt, fifo"),
        ({"scheduler": "pbt", "trials": 1}, "2 or more members"),
        ({"scheduler": "pbt", "brackets": 2}, "--brackets is an option of --scheduler asha"),
        ({"scheduler": "fifo", "grace_period": 2}, "--grace-period is an option of --scheduler"),
        ({"perturbation_interval": 2}, "is an option of --scheduler pbt"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"trials": 0}, "--trials 0: 1 or more"),
        ({"max_concurrent": 0}, "--max-concurrent 0: 1 or more"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TuningRequest(**changes)


def test_a_rung_is_the_same_training_squeezed() -> None:
    config = load_config("market1501")
    assert compute_rungs(60, TuningRequest()) == [7, 20]
    assert compute_rungs(10, TuningRequest()) == [3]
    assert compute_rungs(60, TuningRequest(epochs=60, grace_period=7)) == [7, 21, 60]
    assert compute_rungs(60, TuningRequest(scheduler="fifo")) == [20]
    with pytest.raises(ConfigError, match="at most metric"):
        compute_rungs(60, TuningRequest(epochs=61))
    with pytest.raises(ConfigError, match="--grace-period 21: at most"):
        compute_rungs(60, TuningRequest(grace_period=21))
    with pytest.raises(ConfigError, match="--brackets 3: at most 2"):
        compute_rungs(60, TuningRequest(brackets=3))
    short = shorten_schedule(config, 20)
    assert short.metric.epochs == 20 and short.metric.warmup_epochs == 3
    assert short.metric.milestones is None and shorten_schedule(config, 60) == config
    given = load_config("market1501", ["metric.milestones=[30,50]"])
    assert shorten_schedule(given, 20).metric.milestones == (10, 17)
    assert compute_rungs(1, TuningRequest()) == [1]


def test_a_population_trains_equal_segments() -> None:
    request = TuningRequest(scheduler="pbt", trials=4)
    assert compute_rungs(60, request) == [7, 14, 21] and compute_rungs(10, request) == [1, 2, 3]
    assert compute_rungs(60, replace(request, perturbation_interval=5)) == [5, 10, 15, 20]
    with pytest.raises(ConfigError, match="are more than metric"):
        compute_rungs(1, request)


def test_few_really_occluded_queries_weigh_as_many_as_they_are() -> None:
    hidden: dict[str, Any] = {
        CLEAN_QUERIES: {"queries": 3, "mAP_masked": 0.9},
        "any": {"20-40": {"mAP_masked": 0.6}, "40-60": {"mAP_masked": 0.4}},
        "side": {"20-40": {"mAP_masked": 0.5}, "40-60": {"mAP_masked": None}},
    }
    metrics: dict[str, Any] = {"holistic": {"masked": {"mAP": 0.9}}}
    assert compute_objectives(metrics, hidden) == pytest.approx({"occluded": 0.5, "holistic": 0.9})
    metrics["occluded"] = {"masked": {"mAP": 1.0}, "num_queries": 1}
    assert compute_objectives(metrics, hidden)["occluded"] == pytest.approx(0.625)
    none = {"any": {"20-40": {"mAP_masked": None}}, CLEAN_QUERIES: {"queries": 3}}
    assert compute_objectives(metrics, none)["occluded"] == pytest.approx(1.0)
    del metrics["occluded"]
    with pytest.raises(DataError, match="could be occluded"):
        compute_objectives(metrics, none)
