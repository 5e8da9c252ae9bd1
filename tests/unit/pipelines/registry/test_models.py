"""A model by any name: a folder, its stage, its run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

import dpmpp_core
from dpmpp_core.errors import WeightsError
from dpmpp_core.models.reid import shipped_model
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.sources import SHIPPED, WEIGHTS_FILE
from pipelines.registry.models import (
    fetch_model,
    load_source_model,
    read_model_version,
    resolve_model_source,
)
from tests.support.models import resolve_by_commands, saved_model


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run, its stage and its model."""
    storage = tmp_path_factory.mktemp("runs")
    model = saved_model(storage / "stages" / "metric-1" / "model")
    (storage / "demo-2").mkdir()
    (storage / "demo-2" / "result.json").write_text(json.dumps({"model": str(model)}))
    return storage


@pytest.mark.parametrize("name", ["stages/metric-1/model", "stages/metric-1", "demo-2"])
def test_the_folder_of_a_model_its_stage_and_its_run_are_one_model(
    storage: Path, small_demo: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = storage / "stages" / "metric-1" / "model", str(storage / name)
    source = resolve_model_source(given)
    assert fetch_model(source) == model
    version = read_model_version(source)
    assert weights_sha256(dpmpp_core.load_model(given).state_dict()) == version.weights_sha256
    assert resolve_by_commands(given, small_demo, monkeypatch) == [model] * 3


def test_the_packages_model_is_written_once_to_the_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert resolve_model_source(SHIPPED) == SHIPPED
    folder = fetch_model(SHIPPED)
    written = (folder / WEIGHTS_FILE).stat().st_mtime_ns
    version = read_model_version(SHIPPED)
    assert fetch_model(SHIPPED) == folder and (folder / WEIGHTS_FILE).stat().st_mtime_ns == written
    assert version.weights_sha256 == weights_sha256(shipped_model().state_dict())
    assert version.spaces == load_source_model(SHIPPED).spaces


@pytest.mark.parametrize("result", [None, "{}", '{"model": "/gone"}', "[]", "{"])
def test_a_folder_without_a_model_is_refused_with_what_can_be_named(
    tmp_path: Path, result: str | None
) -> None:
    if result is not None:
        (tmp_path / "result.json").write_text(result)
    with pytest.raises(WeightsError, match=r"not a saved model\. Name the folder of a"):
        resolve_model_source(str(tmp_path))
