"""`dpmpp reproduce` on a tiny data set, and what it refuses before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpmpp_core.errors import DataError, UserError
from dpmpp_core.protocols import load_protocol
from pipelines.cli.show import show_protocols, show_reproduction
from pipelines.workflows.reproduce import ReproductionRequest, _summarise, reproduce
from tests.support.cli import assert_mistake, invoke_dpmpp
from tests.support.configs import SMALL

TINY = [
    *SMALL,
    "model.backbone=dpmpp-small",
    "model.pretrained=generated",
    "model.taps=[1,2,4,6]",
    "model.normalise_text=true",
    "saliency.provider=spectral",
]


@pytest.fixture(scope="module")
def occluded_reid(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's test persons in the layout of Occluded-REID."""
    root = tmp_path_factory.mktemp("occluded_reid")
    for source, target in (
        ("query", "occluded_body_images"),
        ("bounding_box_test", "whole_body_images"),
    ):
        for number, file in enumerate(sorted((small_demo / source).glob("*.jpg"))):
            person = file.name[:4]
            place = root / target / person / f"{person}_{number:02}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return root


@pytest.mark.slow
def test_other_counts_are_refused_before_training_and_any_counts_goes_on_to_the_table(
    cluster: None,
    small_demo: Path,
    occluded_reid: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request: dict[str, Any] = {
        "protocol": "market1501_to_occluded_reid",
        "data": str(small_demo),
        "test_data": str(occluded_reid),
        "seeds": (3,),
        "overrides": TINY,
        "storage": str(tmp_path),
    }
    with pytest.raises(DataError) as refused:
        reproduce(ReproductionRequest(**request))
    message = str(refused.value)
    assert "market1501: train: 48 images, published are 12,936 (12,888 fewer)" in message
    assert "occluded_reid: query: 8 images, published are 1,000 (992 fewer)" in message
    assert "--any-counts" in message and "\n" not in message
    assert {folder.name.partition("-")[0] for folder in tmp_path.glob("stages/*")} == {"prepare"}

    result = reproduce(ReproductionRequest(**request, any_counts=True))
    assert result["verdict"].keys() == {"rank1", "mAP"}
    assert result["count_differences"] and len(result["caveats"]) >= 3
    (run,) = result["runs"]
    assert result["ours"]["mAP"] == {"mean": run["mAP"], "std": None, "values": [run["mAP"]]}
    assert run["mAP"] == 100 * run["metrics"]["occluded"]["masked"]["mAP"]
    assert set(run["metrics"]) == {"occluded", "baselines"}  # of Occluded-REID, not of the demo
    first = run["first_epoch"]
    assert set(first["losses"]) == set(first["windows"]) >= {"identity_visual", "text"}
    (warning,) = first["outside"]  # two epochs of stage 1 teach the texts nothing
    assert warning.startswith("first epoch: loss text is ")
    assert Path(run["report"]).is_file() and (Path(run["model"]) / "model.json").is_file()
    stored = json.loads((tmp_path / "reproduce/market1501_to_occluded_reid.json").read_text())
    assert stored == json.loads(json.dumps(result))
    show_reproduction(result)
    shown = capsys.readouterr().out
    assert "verdict: rank-1" in shown and "FLaN-Net" in shown and "counts are not" in shown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": None}, "market1501: --data is missing"),
        ({"data": "/nowhere/data"}, "/nowhere/data"),
        ({"test_data": "/tmp"}, "leave --test-data out"),
        ({"protocol": "market1501_to_occluded_reid"}, "--test-data is missing"),
        ({"protocol": "market"}, "did you mean 'market1501'"),
        ({"overrides": ["seed=3"]}, "--seeds"),
        ({"overrides": ["metric.epoch=3"]}, "did you mean 'metric.epochs'"),
        ({"overrides": ["model.checkpoint=/nowhere/clip.pt"]}, "/nowhere/clip.pt"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    changes: dict[str, Any], says: str, small_demo: Path, tmp_path: Path
) -> None:
    plain = {"protocol": "market1501", "data": str(small_demo), "storage": str(tmp_path / "runs")}
    with pytest.raises(UserError, match=says) as caught:
        reproduce(ReproductionRequest(**{**plain, **changes}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_three_seeds_stand_with_their_spread_beside_the_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "occluded_duke"
    warning = "first epoch: loss text is 6.6, expected 0.8 to 5.9; [why]"
    runs = [
        {"seed": seed, "rank1": 70.0 + seed, "mAP": 58.0, "first_epoch": {"outside": outside}}
        for seed, outside in enumerate(([], [warning], []))
    ]
    request = ReproductionRequest(protocol=name, data="data", overrides=["cluster.gpu=true"])
    result = _summarise(request, load_protocol(name), runs, [])
    assert result["ours"]["rank1"]["mean"] == 71 and result["ours"]["rank1"]["std"] == 1
    assert result["verdict"] == {"rank1": "inside", "mAP": "below"}
    assert result["caveats"] == ["losses of the first epoch were outside their windows"]
    show_reproduction(result)
    shown = capsys.readouterr().out
    assert "71.0 ± 1.0" in shown and "SPT" in shown and f"warning: seed 1: {warning}" in shown
    assert "rank-1 inside the published 66.4-84.3; mAP below the published 59.2-75.1" in shown


def test_the_program_lists_protocols_and_exits_2_with_one_line_for_an_unknown_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_mistake(invoke_dpmpp("reproduce", "occluded_duk"), "did you mean 'occluded_duke'")
    done = invoke_dpmpp("reproduce", "--list", "--json")
    listed = json.loads(done.stdout.splitlines()[-1])
    assert listed["msmt17"]["published"] == [] and listed["p_duke"]["bracket"]["mAP"] is None
    show_protocols(listed)
    shown = capsys.readouterr().out
    assert "market1501_to_occluded_reid" in shown and "not measured" in shown
    assert "--test-data occluded_reid (1,000 query, 1,000 gallery images)" in shown
