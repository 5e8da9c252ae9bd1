"""A model by its name: the package's own, a folder, a URI."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models import reid, sources
from dpmpp_core.models.reid import load_model, save_model, shipped_model
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.sources import SHIPPED, SHIPPED_WORTH, fetch_model_folder
from tests.support.models import saved_model

RESULTS = Path(__file__).parents[3] / "bench" / "results"


def test_the_default_is_the_packages_model_which_states_its_worth_once(caplog) -> None:
    reid._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = load_model()
        again = load_model(SHIPPED)
    assert [record.getMessage() for record in caplog.records] == [SHIPPED_WORTH]
    # Nothing is random: an index that one process writes is of the model of another.
    assert weights_sha256(model.state_dict()) == weights_sha256(again.state_dict())
    assert not model.training and model.config.pretrained == "generated"


def test_its_visibility_head_is_the_one_of_the_package() -> None:
    model = shipped_model()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 256, 128, 3), np.uint8)
    untaught = shipped_model()
    assert model.visibility is not None and untaught.visibility is not None
    for parameter in untaught.visibility.parameters():
        parameter.data.zero_()
    assert not np.array_equal(model.embed(pictures).occluded, untaught.embed(pictures).occluded)


def test_the_stated_worth_is_the_measured_one() -> None:
    text = (RESULTS / "shipped.md").read_text()
    measured = [round(float(match[1])) for match in re.finditer(r"\| with mask \| (\d+\.\d)", text)]
    assert measured == [int(x) for x in re.findall(r"(\d+) %", SHIPPED_WORTH)]
    assert f"of {re.findall(r'photographs of ([0-9]+) persons', text)[0]} persons" in SHIPPED_WORTH


def test_the_folders_of_a_model_and_its_stage_load(tmp_path: Path) -> None:
    saved_model(tmp_path / "stage" / "model")
    first, second = load_model(tmp_path / "stage"), load_model(str(tmp_path / "stage" / "model"))
    assert weights_sha256(first.state_dict()) == weights_sha256(second.state_dict())


@pytest.mark.parametrize("name", ["models:/people@champion", "s3://bucket/model"])
def test_a_uri_without_the_extra_names_it(monkeypatch, name: str) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda **_: [])
    with pytest.raises(ConfigError, match=r"needs the extra train: pip install 'dpmpp\[train\]'"):
        load_model(name)


def test_a_uri_is_fetched_by_the_entry_point(monkeypatch, tmp_path: Path) -> None:
    class Fetch:
        def load(self):
            return lambda name: saved_model(tmp_path / name.rpartition("/")[2])

    monkeypatch.setattr(sources, "entry_points", lambda **_: [Fetch()])
    assert fetch_model_folder("models:/people/3") == tmp_path / "3"


def test_a_graph_and_an_absent_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="an exported graph"):
        load_model("model.onnx")
    with pytest.raises(WeightsError, match=r"not a saved model\. Name the folder of a"):
        load_model(tmp_path / "gone")


def test_the_packages_model_comes_back_from_a_folder(tmp_path: Path) -> None:
    model = shipped_model()
    digest = save_model(model, tmp_path)
    assert digest == weights_sha256(load_model(tmp_path).state_dict())
