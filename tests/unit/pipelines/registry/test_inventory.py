"""The list of models: what stands in it can be named, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry.inventory import NamedModel, list_models
from pipelines.registry.models import fetch_model, resolve_model_source
from pipelines.runtime.storage import MARKER
from tests.support.cli import invoke_dpmpp
from tests.support.models import saved_model

METRICS = {
    "occluded": {"masked": {"mAP": 0.581}, "unmasked": {"mAP": 0.517}},
    "holistic": {"masked": {"mAP": 0.74}, "unmasked": {"mAP": 0.743}},
}


def write_stage(storage: Path, key: str) -> Path:
    folder = saved_model(storage / key / "model")
    (storage / key / MARKER).write_text("{}")
    return folder


def write_run(storage: Path, name: str, key: str, **changes: Any) -> None:
    result = {
        "stages": [{"name": "prepare", "key": "stages/prepare-1"}, {"name": "metric", "key": key}],
        "counts": {"train": {"identities": 120, "images": 960}},
        "metrics": METRICS,
        "weights_sha256": "a" * 64,
        "model": str(storage / key / "model"),
    } | changes  # fmt: skip
    (storage / name).mkdir(parents=True)
    (storage / name / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a stage of no run with an exported graph, and folders that hold no model."""
    storage = tmp_path_factory.mktemp("models") / "runs"
    write_stage(storage, "stages/metric-1")
    write_run(storage, "shop-abc", "stages/metric-1")
    (write_stage(storage, "stages/metric-2") / "model.onnx").write_bytes(b"graph")
    saved_model(storage / "stages" / "metric-3" / "model")  # not finished
    write_run(storage, "gone-def", "stages/metric-4")
    write_run(storage, "measured-ghi", "stages/metric-1", metrics=[])
    (storage / "stages" / "prepare-1").mkdir()
    (storage / "photos").mkdir()
    return storage


@pytest.fixture
def models(storage: Path, monkeypatch: pytest.MonkeyPatch) -> list[NamedModel]:
    monkeypatch.chdir(storage.parent)
    return list_models("runs")


def test_each_model_is_listed_once_by_its_shortest_name(models: list[NamedModel]) -> None:
    assert [(model.name, model.kind) for model in models] == [
        ("shipped", "shipped"),
        ("runs/shop-abc", "run"),
        ("runs/stages/metric-2", "stage"),
        ("runs/stages/metric-2/model/model.onnx", "onnx"),
    ]


def test_data_date_and_figures_are_those_of_the_run(models: list[NamedModel]) -> None:
    run, stage = models[1:3]
    assert stage.date == run.date
    assert run.trained_on == "shop: 120 persons, 960 images"
    assert run.mAP == {"occluded": 0.581, "holistic": 0.74}
    assert len(run.date.split("-")) == 3
    assert not stage.mAP


def test_every_listed_folder_is_taken_as_a_model(models: list[NamedModel]) -> None:
    for model in models:
        if model.kind in ("run", "stage"):
            assert fetch_model(resolve_model_source(model.name)).name == "model"


def test_a_storage_that_is_missing_has_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [model.name for model in list_models("runs")] == ["shipped"]
    assert not list(tmp_path.iterdir())


def test_the_table_shows_names_whole(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(storage.parent)
    done = invoke_dpmpp("models")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[1:5]] == [
        "shipped", "runs/shop-abc", "runs/stages/metric-2", "runs/stages/metric-2/model/model.onnx",
    ]  # fmt: skip
    assert rows[2][-2:] == ["58.1", "74.0"] and rows[1][-2:] == ["-", "-"]
    listed = json.loads(invoke_dpmpp("models", "--json").stdout)["models"]
    assert listed[1]["mAP"] == {"occluded": 0.581, "holistic": 0.74}
