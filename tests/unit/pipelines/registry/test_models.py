"""A model by any name: a folder, its stage, its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpmpp_core.errors import WeightsError
from pipelines.registry.models import fetch_model, read_model_version, resolve_model_source
from tests.support.models import saved_model


def test_the_folder_of_a_model_its_stage_and_its_run_are_one_model(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "metric-1"
    model = saved_model(stage / "model")
    run = tmp_path / "demo-2"
    run.mkdir()
    (run / "result.json").write_text(json.dumps({"model": str(model)}))
    for name in (model, stage, run):
        source = resolve_model_source(str(name))
        assert fetch_model(source) == model
        assert read_model_version(source).spaces


@pytest.mark.parametrize("result", [None, "{}", '{"model": "/gone"}', "[]", "{"])
def test_a_folder_without_a_model_is_refused_with_what_can_be_named(
    tmp_path: Path, result: str | None
) -> None:
    if result is not None:
        (tmp_path / "result.json").write_text(result)
    with pytest.raises(WeightsError, match=r"not a saved model\. Name the folder of a"):
        resolve_model_source(str(tmp_path))
