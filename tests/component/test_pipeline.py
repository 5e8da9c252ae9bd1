"""The whole pipeline on real Ray Data, Ray Train and MLflow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

import dpmpp_core
from dpmpp_core.config import load_config
from dpmpp_core.data.synthesis import BANDS, PARTS
from pipelines.inference.onnx_export import export
from pipelines.registry.models import resolve_model_source
from pipelines.reporting.tables import format_interval
from pipelines.runtime.resources import plan_resources
from pipelines.runtime.run import Run
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.training.driver import _log_epochs
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import plan_stages, run_pipeline
from tests.support.cli import parse_command
from tests.support.configs import SMALL
from tests.support.tasks import metric_task

STAGES = [spec.name for spec in plan_stages(load_config("demo", SMALL), Options(), "register")]


def test_the_result_holds_what_the_readme_promises(result: dict[str, Any], runs: Path) -> None:
    assert [stage["name"] for stage in result["stages"]] == STAGES
    assert re.fullmatch(r"[0-9a-f]{64}", result["weights_sha256"])
    assert result["quarantined"] == []
    for query_set in ("occluded", "holistic"):
        for mode in ("masked", "unmasked", "permuted", "static"):
            figures = result["metrics"][query_set][mode]
            assert set(figures) == {"mAP", "rank1", "rank5", "rank10", "mINP"}
            assert all(0 <= value <= 1 for value in figures.values())
        sure = result["intervals"][query_set]["masked"]["mAP"]
        assert sure["mean"] == pytest.approx(result["metrics"][query_set]["masked"]["mAP"])
        assert 0 <= sure["low"] <= sure["mean"] <= sure["high"] <= 1
        cameras = result["strata"][query_set]["cameras"]
        assert cameras and all(row["query_camera"] != row["gallery_camera"] for row in cameras)
    shares = result["strata"]["occluded"]["hidden"]  # the demo set states them
    assert sum(row["queries"] for row in shares.values()) == 8
    assert list(result["strata"]["holistic"]["hidden"]) == ["0-10"]
    assert "multi_shot" not in result  # not asked for
    stored = json.loads((runs / result["run"] / "result.json").read_text())
    assert stored == {k: v for k, v in json.loads(json.dumps(result)).items() if k != "next"}


def test_what_to_do_next_can_be_typed(result: dict[str, Any], runs: Path) -> None:
    build, search, app = (parse_command(step["command"]) for step in result["next"])
    assert [build[0], search[0], app[0]] == [("index", "build"), ("search",), ("app",)]
    assert Path(build[1]["data"]).is_dir() and build[1]["split"] == "gallery"
    assert resolve_model_source(build[1]["model"]) == result["model"]
    assert Path(search[1]["query"]).is_file()
    folder = str(runs / result["run"] / "gallery")
    assert {build[1]["index"], search[1]["index"], app[1]["index"]} == {folder}


def test_the_same_command_again_reuses_every_stage(
    result: dict[str, Any], small_demo: Path, runs: Path
) -> None:
    again = run_pipeline(Options(data=str(small_demo), overrides=SMALL, storage=str(runs)))
    assert all(stage["reused"] for stage in again["stages"])
    for key in ("weights_sha256", "metrics", "model_uri", "run_id", "run"):
        assert again[key] == result[key]


def test_a_version_that_is_gone_from_the_registry_is_registered_again(
    result: dict[str, Any], small_demo: Path, runs: Path
) -> None:
    client = MlflowClient(result["tracking_uri"])
    _, name, number = result["model_uri"].split("/")
    client.delete_registered_model(name)
    again = run_pipeline(Options(data=str(small_demo), overrides=SMALL, storage=str(runs)))
    assert [stage["name"] for stage in again["stages"] if not stage["reused"]] == ["register"]
    assert again["model_uri"] == result["model_uri"] == f"models:/{name}/{number}"
    assert str(client.get_model_version_by_alias(name, "candidate").version) == number


def test_the_registered_model_embeds_encoded_images(
    result: dict[str, Any], small_demo: Path
) -> None:
    paths = sorted((small_demo / "query").glob("*.jpg"))[:3]
    images = pd.DataFrame({"image": [path.read_bytes() for path in paths]})
    mlflow.set_tracking_uri(result["tracking_uri"])
    served = mlflow.pyfunc.load_model(result["model_uri"]).predict(images)
    direct = dpmpp_core.load_model(result["model"]).embed(paths)
    for space, features in direct.features.items():
        np.testing.assert_allclose(np.stack(served[f"feature_{space}"]), features, atol=1e-5)
        np.testing.assert_allclose(
            np.stack(served[f"mask_{space}"]), direct.masks[space], atol=1e-5
        )


def test_mlflow_has_a_run_with_a_nested_run_a_stage(
    result: dict[str, Any], small_demo: Path, tmp_path: Path
) -> None:
    client = MlflowClient(result["tracking_uri"])
    parent = client.get_run(result["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["metric.epochs"] == "2"
    metrics = result["metrics"]
    expected = {
        f"{metric}_{label}{suffix}": metrics[name][mode][metric]
        for metric in ("mAP", "rank1")
        for name, label in (("occluded", "occluded"), ("holistic", "whole"))
        for mode, suffix in (("masked", ""), ("unmasked", "_no_mask"))
    }
    assert parent.data.metrics == expected
    tags = parent.data.tags
    assert tags["dpmpp.data"] == result["dataset_id"]
    assert tags["dpmpp.data_name"] == small_demo.name and tags["dpmpp.recipe"] == "demo"
    assert tags["dpmpp.version"] == dpmpp_core.__version__ and tags["dpmpp.commit"]
    note = tags["mlflow.note.content"]
    for kind in ("masked", "unmasked"):
        assert format_interval(result["intervals"]["occluded"][kind]["mAP"]) in note
    assert result["model"] in note and "With 4 persons" in note
    assert parent.inputs.dataset_inputs[0].dataset.digest == result["dataset_id"][:36]
    names = {file.path for file in client.list_artifacts(result["run_id"])}
    assert {"config.yaml", "environment.json", "report.html", "results.csv"} <= names
    figures = {file.path for file in client.list_artifacts(result["run_id"], "figures")}
    assert {"figures/what-the-own-mask-adds.png", "figures/cmc-curves.png"} <= figures
    table = pd.read_csv(client.download_artifacts(result["run_id"], "results.csv", str(tmp_path)))
    chosen = table[(table.queries == "whole") & (table.metric == "mINP")].set_index("ranking")
    assert chosen.value["permuted"] == pytest.approx(metrics["holistic"]["permuted"]["mINP"])
    gain = table[(table.queries == "occluded") & (table.ranking == "gain")].set_index("metric")
    bounds = result["intervals"]["occluded"]["gain"]["rank1"]
    assert gain.low["rank1"] == pytest.approx(bounds["low"])
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    by_stage = {run.data.tags["dpmpp.stage"]: run for run in nested}
    assert set(by_stage) == set(STAGES)
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert set(by_stage["evaluate"].data.metrics) == {*expected, "seconds"}
    metric = by_stage["metric"].info.run_id
    losses = client.get_metric_history(metric, "loss")
    assert [point.step for point in losses] == [1, 2]
    assert client.get_metric_history(metric, "mask_bands_std_samples")


def test_the_registered_version_says_which_weights_it_holds(
    result: dict[str, Any], small_demo: Path
) -> None:
    client = MlflowClient(result["tracking_uri"])
    name = result["model_uri"].split("/")[1]
    assert name == f"dpmpp-{small_demo.name}"  # named after the data
    version = client.get_model_version_by_alias(name, "candidate")
    assert version.tags["weights_sha256"] == result["weights_sha256"]
    assert result["model_uri"] == f"models:/{name}/{version.version}"


def test_the_report_is_one_file_with_all_in_it(
    result: dict[str, Any], small_demo: Path, runs: Path
) -> None:
    page = Path(result["report"]).read_text()
    assert len(re.findall(r"data:image/", page)) >= 8
    assert not re.search(r"""src=["'](?!data:)""", page)
    assert result["weights_sha256"][:16] in page
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert {"results", "worst-failures", "for-researchers"} <= set(anchors)
    assert all(f'id="{anchor}"' in page for anchor in anchors)
    links = re.findall(r'href="([^#"][^"]*)"', page)
    assert Path(result["model"]).as_uri() in links and small_demo.as_uri() in links
    assert [link for link in links if link.endswith(f"/runs/{result['run_id']}")]
    assert f"dpmpp index build --index {runs}/gallery --data {small_demo} --model " in page


@pytest.mark.long
def test_a_changed_stage_2_starts_there(
    result: dict[str, Any], small_demo: Path, runs: Path
) -> None:
    """With what is off by default: masks of the class token, a second pass, and clean twins."""
    changes = ["metric.update=alternating", "metric.loss.visibility=0.5"]
    overrides = [*SMALL, *changes, "model.mask_generator=light", "occlusion.min_oiou=0.3"]
    options = Options(data=str(small_demo), overrides=overrides, storage=str(runs))
    other = run_pipeline(options, until="metric")
    reused = {stage["name"]: stage["reused"] for stage in other["stages"]}
    assert reused == {
        "prepare": True, "saliency": True, "features": True, "prompts": True, "metric": False,
    }  # fmt: skip
    assert other["weights_sha256"] != result["weights_sha256"]
    assert other["run"] != result["run"]
    stage = json.loads((runs / other["stages"][-1]["key"] / "stage.json").read_text())
    history = stage["summary"]["history"]
    assert all(row["visibility_visual"] != 0 for row in history)


def test_a_dead_mask_reaches_the_log_and_mlflow_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = metric_task("metric.epochs=4", "metric.warmup_epochs=1")
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri())
    tracking.begin(task.config, "dead", {"id": "0" * 64, "root": "data", "counts": {}})
    tracking.start_stage("metric")
    config = task.config
    one = plan_resources(cpus=2, gpus=0, config=config.cluster, shared=True)
    on_epoch = _log_epochs(Run(config, Storage(str(tmp_path)), tracking, one), task)
    for epoch in range(1, 5):
        figures = {"mask_visual_std_samples": 0.003, "mask_joint_std_samples": 0.2}
        on_epoch(epoch, figures)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING"
                  and record.name == "pipelines.training.driver")  # fmt: skip
    assert "visual space" in warning and "0.0030 in epoch 3 of 4" in warning
    run = MlflowClient(tracking.uri).get_run(str(tracking.run_id))
    assert "0.0030" in run.data.tags["dpmpp.dead_mask_visual"]
    assert "dpmpp.dead_mask_joint" not in run.data.tags


@pytest.mark.slow
def test_two_train_workers_lose_what_one_loses(
    result: dict[str, Any], small_demo: Path, runs: Path
) -> None:
    """Each of the first 20 steps, as an epoch of its own: the same batch, the same losses."""
    steps = ["metric.identities=8", "metric.images=4", "metric.epochs=20"]
    histories = []
    for workers in (1, 2):
        overrides = [*SMALL, *steps, f"cluster.train_workers={workers}"]
        run = run_pipeline(
            Options(data=str(small_demo), overrides=overrides, storage=str(runs)), until="metric"
        )
        stage = json.loads((runs / run["stages"][-1]["key"] / "stage.json").read_text())
        histories.append(stage["summary"]["history"])
    one, two = histories
    assert len(one) == 20
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "text", "triplet", "identity_visual", "masked_bands", "heads"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (a["epoch"], name)


def test_a_saved_model_is_measured_on_other_data(
    result: dict[str, Any], small_demo: Path, tmp_path: Path
) -> None:
    options = Options(data=str(small_demo), storage=str(tmp_path), model=result["model"])
    measured = run_pipeline(options, until="evaluate")
    assert [stage["name"] for stage in measured["stages"]] == ["prepare", "evaluate"]
    assert measured["metrics"]["occluded"] == result["metrics"]["occluded"]


@pytest.mark.long
def test_an_exported_model_is_measured_as_the_model_is_with_tracklets(
    result: dict[str, Any], small_demo: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "model.onnx"
    assert export(Path(result["model"]), graph)["weights_sha256"] == result["weights_sha256"]
    shots = ["evaluation.shots=[1,2]"]
    options = Options(
        data=str(small_demo), storage=str(tmp_path), overrides=shots, model=str(graph)
    )
    measured = run_pipeline(options, until="evaluate")
    for query_set in ("occluded", "holistic"):
        ours, torchs = (one["metrics"][query_set]["masked"]["mAP"] for one in (measured, result))
        assert ours == pytest.approx(torchs, abs=0.05)  # near ties may fall the other way
        tracklets = measured["multi_shot"][query_set]
        assert list(tracklets) == ["1"]  # no person has two queries of one camera
        assert tracklets["1"]["fused"]["mAP"] == pytest.approx(ours)


def test_bad_files_are_named_and_the_rest_is_used(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_demo, data)
    train = data / "bounding_box_train"
    first = sorted(train.glob("*.jpg"))
    first[0].write_bytes(first[0].read_bytes()[:-200])
    (train / "0001_c1s1_000999_99.jpg").write_text("no picture")
    (train / "holiday.jpg").write_bytes(first[1].read_bytes())
    (train / "loop").symlink_to(train)
    result = run_pipeline(
        Options(data=str(data), overrides=SMALL, storage=str(tmp_path / "runs")), until="saliency"
    )
    reasons = {row["path"].rpartition("/")[2]: row["reason"] for row in result["quarantined"]}
    assert reasons == {
        first[0].name: "truncated",
        "0001_c1s1_000999_99.jpg": "not_an_image",
        "holiday.jpg": "misnamed",
        "loop": "symlink_loop",
    }


def test_the_robustness_curve_has_every_part_and_band_and_starts_at_the_clean_queries(
    result: dict[str, Any],
) -> None:
    curve = result["robustness"]
    clean = curve["clean"]
    assert list(curve) == ["clean", *PARTS]
    for mode in ("masked", "unmasked"):
        assert clean[f"mAP_{mode}"] == result["metrics"]["holistic"][mode]["mAP"]
    for part in PARTS:
        assert list(curve[part]) == list(map(str, BANDS))
        for band, values in zip(BANDS, curve[part].values(), strict=True):
            assert values["queries"] + values["missed"] == clean["queries"]
            if values["queries"]:
                assert band.low - 1e-6 <= 100 * values["hidden"] < band.high
    assert curve["top"] != curve["bottom"]
    folder = Path(result["curve"])
    rows = pd.read_csv(folder / "robustness.csv")
    assert len(rows) == 1 + len(PARTS) * len(BANDS)
    assert set(rows["part"].dropna()) == set(PARTS)
    assert json.loads((folder / "robustness.json").read_text()) == curve
    assert (folder / "robustness.png").stat().st_size > 10_000
    mlflow.set_tracking_uri(result["tracking_uri"])
    run = next(
        run
        for run in mlflow.search_runs(search_all_experiments=True, output_format="list")
        if "top_mAP_masked" in run.data.metrics
    )
    steps = MlflowClient().get_metric_history(run.info.run_id, "top_mAP_masked")
    logged = {metric.step: metric.value for metric in steps}
    shown = {band.high: curve["top"][str(band)]["mAP_masked"] for band in BANDS}
    assert logged == {0: clean["mAP_masked"]} | {k: v for k, v in shown.items() if v is not None}
