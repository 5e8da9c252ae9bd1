"""`dpmpp ablate` on real Ray Tune, Ray Train and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from dpmpp_core.data.synthesis import Band
from dpmpp_core.retrieval import MODES
from pipelines.runtime.stage import StageNotFoundError
from pipelines.workflows.ablation import AblationRequest, ablate
from pipelines.workflows.options import Options
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG

pytestmark = pytest.mark.long

# Two variants of the same model, one of which is trained with occlusions, and a third that is the
# second by another name: it must not be trained twice.
GRID = """
full: hidden
plain: plain
curves: [hidden]
variants:
  plain: {says: no occlusion, set: {occlusion.probability: 0.0, model.bands: 2, metric.epochs: 1}}
  hidden: {says: + occlusion, after: plain, set: {occlusion.probability: 0.5}}
  same: {says: + nothing, after: hidden}
"""


@pytest.fixture(scope="module")
def asked(
    small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Options, AblationRequest]:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "grid.yaml").write_text(GRID)
    # What the user says comes last, so TEXTLESS's epochs would win over the grid's.
    changes = [change for change in TEXTLESS if not change.startswith("metric.epochs")]
    options = Options(
        data=str(small_demo),
        config=TEXTLESS_CONFIG,
        overrides=changes,
        storage=str(folder / "runs"),
        bands=(Band(10, 30),),
        parts=("top",),
    )
    return options, AblationRequest(grid=str(folder / "grid.yaml"), seeds=(0,), few_seeds=(0,))


@pytest.fixture(scope="module")
def ablation(cluster: None, asked: tuple[Options, AblationRequest]) -> dict[str, Any]:
    return ablate(*asked)


def test_the_result_has_every_variant_mode_and_seed(ablation: dict[str, Any]) -> None:
    assert list(ablation["variants"]) == ["plain", "hidden", "same"] and not ablation["failed"]
    for measured in ablation["variants"].values():
        for query_set in ("occluded", "holistic"):
            assert set(measured[query_set]) == set(MODES)
            for figures in measured[query_set].values():
                assert len(figures["mAP"]) == len(figures["rank1"]) == 1
                assert 0 < figures["mAP"][0] <= 1
    assert ablation["variants"]["same"] == ablation["variants"]["hidden"]
    hashes = ablation["weights_sha256"]
    assert hashes["same 0"] == hashes["hidden 0"] != hashes["plain 0"]
    table = Path(ablation["table"])
    assert "| hidden | + occlusion | 1 |" in table.read_text()
    names = {path.name for path in table.parent.iterdir()}
    assert names >= {"table.csv", "table.json", "ablation.png", "robustness.png"}
    curves = json.loads((table.parent / "robustness.json").read_text())
    assert list(curves) == ["hidden"] and list(curves["hidden"]) == ["clean", "top"]


def test_trials_and_table_are_in_mlflow(ablation: dict[str, Any]) -> None:
    client = MlflowClient(ablation["tracking_uri"])
    parent = client.get_run(ablation["run_id"])
    assert parent.info.status == "FINISHED"
    files = {file.path for file in client.list_artifacts(ablation["run_id"])}
    assert {"table.md", "table.json", "ablation.png"} <= files
    condition = f"tags.`mlflow.parentRunId` = '{ablation['run_id']}'"
    nested = client.search_runs([parent.info.experiment_id], condition)
    found = {run.info.run_name: run.data.metrics for run in nested}
    own = ablation["variants"]["hidden"]["occluded"]["masked"]["mAP"][0]
    assert found["hidden 0"]["mAP_occluded"] == pytest.approx(own)


def test_the_same_command_again_trains_nothing(
    ablation: dict[str, Any],
    asked: tuple[Options, AblationRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray import tune

    monkeypatch.setattr(tune, "Tuner", None)  # nothing is left that it could be called for
    assert ablate(*asked) == ablation


def test_what_is_missing_is_not_built_where_it_is_looked_for(
    ablation: dict[str, Any],
    asked: tuple[Options, AblationRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial that another process has not finished is left to it."""
    import pipelines.workflows.ablation as module

    pending: list[str] = []

    def only_look(trials: list, storage: Any, plan: Any) -> dict[str, str]:
        for trial in trials:
            try:
                trial.stages(storage, plan)
            except StageNotFoundError:
                pending.append(trial.name)
        return {trial.name: "not trained here" for trial in trials if trial.name in pending}

    monkeypatch.setattr(module, "run_trials", only_look)
    options, request = asked
    found = ablate(options, AblationRequest(grid=request.grid, seeds=(0, 1), few_seeds=(0,)))
    assert pending == ["plain 1", "hidden 1"] and found["failed"].keys() == set(pending)
    assert found["variants"] == ablation["variants"]
    assert "- plain 1: not trained here" in Path(found["table"]).read_text()
