"""The registered model as MLflow calls it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dpmpp_core.errors import DataError
from pipelines.registry import serving
from pipelines.registry.serving import DpmppModel
from tests.support.models import saved_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> DpmppModel:
    folder = saved_model(tmp_path_factory.mktemp("saved") / "model")
    model = DpmppModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config={}))
    return model


@pytest.fixture(scope="module")
def pictures(small_demo: Path) -> list[bytes]:
    names = sorted((small_demo / "query").glob("*.jpg"))[:3]
    return [name.read_bytes() for name in names]


def test_the_rows_of_a_sorted_frame_keep_their_labels(
    served: DpmppModel, pictures: list[bytes]
) -> None:
    frame = pd.DataFrame({"image": pictures}, index=["a", "b", "c"])
    expected = served.predict(None, frame)
    turned = served.predict(None, frame.loc[["c", "a", "b"]])
    assert list(turned.index) == ["c", "a", "b"]
    for name in expected.columns:
        for label in frame.index:
            np.testing.assert_allclose(turned[name][label], expected[name][label], atol=1e-5)


@pytest.mark.parametrize(("given", "device"), [({"device": "cuda:1"}, "cuda:1"), (None, "cpu")])
def test_a_server_computes_where_its_configuration_puts_it(
    given: dict | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "load_model", lambda folder, device: device)
    model = DpmppModel()
    model.load_context(SimpleNamespace(artifacts={"model": "folder"}, model_config=given))
    assert model._model == device


def test_a_picture_whose_end_is_zeros_is_refused(served: DpmppModel, pictures: list[bytes]) -> None:
    half = len(pictures[0]) // 2
    frame = pd.DataFrame({"image": [pictures[0][:half] + bytes(half)]})
    with pytest.raises(DataError, match="the end of the picture is missing"):
        served.predict(None, frame)
