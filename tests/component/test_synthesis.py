"""`dpmpp synthesize` as a user runs it: a data set that our readers take, hidden as ordered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import pytest

from dpmpp_core.config import load_config
from dpmpp_core.data.layouts import scan
from dpmpp_core.data.manifest import Manifest, read_manifest
from dpmpp_core.data.synthesis import Band, parse_bands
from dpmpp_core.errors import ConfigError, DataError
from pipelines.stages.synthesis import JPEG_QUALITY, SHEET, TABLE, SynthesisRequest
from pipelines.training.training_set import TrainingSet
from tests.support.cli import invoke_dpmpp

SIZE = ["data.height=128", "data.width=64"]


@pytest.fixture(scope="module")
def made(
    cluster: None, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("synthesis")
    done = invoke_dpmpp(
        "synthesize",
        *("--data", str(small_demo), "--out", str(folder / "out"), "--bands", "10-30,40-60"),
        *("--splits", "query,train", "--seed", "3", "--storage", str(folder / "runs"), "--json"),
        *SIZE,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_the_layout_is_read_and_holds_what_was_ordered(
    made: tuple[Path, dict[str, Any]], small_demo: Path
) -> None:
    folder, result = made
    found = scan(str(folder / "out"))
    assert found.layout == "market1501" and not found.rejected
    manifest, source = read_manifest(str(folder / "out")), read_manifest(str(small_demo))
    assert not manifest.quarantine.num_rows
    for name in ("query_holistic", "gallery"):
        assert manifest.counts()[name] == source.counts()[name]
    bands = result["synthesis"]["bands"]
    clean = source.counts()["query_holistic"]["images"] + source.counts()["train"]["images"]
    assert set(bands) == {"10-30", "40-60"}
    for band in bands.values():
        assert band["images"] + band["missed"] == clean
        assert band["images"] > 0.8 * clean
    files = result["synthesis"]["files"]
    assert files == {p.name: len(list(p.iterdir())) for p in (folder / "out").iterdir()
                     if p.is_dir()}  # fmt: skip


@pytest.mark.long
def test_every_file_is_noted_and_hidden_by_training_images_within_its_band(
    made: tuple[Path, dict[str, Any]], small_demo: Path
) -> None:
    out = made[0] / "out"
    rows = pq.read_table(out / TABLE).to_pylist()
    files = {str(p.relative_to(out)) for p in out.rglob("*.jpg")}
    assert {row["path"] for row in rows} == files
    for row in rows:
        if row["band"] is None:
            assert (out / row["path"]).read_bytes() == (small_demo / row["source"]).read_bytes()
            continue
        low, high = map(int, row["band"].split("-"))
        assert low - 1e-9 <= 100 * row["hidden"] < high
        assert row["donor"].startswith("bounding_box_train/") and row["donor"] != row["source"]
        assert row["path"].startswith(("query/", "bounding_box_train/"))
        assert cv2.imread(str(out / row["path"])).shape == (128, 64, 3)
    sheet = cv2.imread(str(out / SHEET))
    assert sheet.shape[0] > 8 * 128 // 2


@pytest.mark.long
def test_one_process_makes_the_same_bytes_as_the_workers(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    keys = {stage["name"]: stage["key"] for stage in result["stages"]}
    config = load_config("demo", [*SIZE, "seed=3"])
    training_set = TrainingSet(config, str(folder / "runs"), keys["prepare"], keys["saliency"])
    paths = Manifest.load(folder / "runs" / keys["prepare"]).images["path"].to_pylist()
    maker = training_set.build_synthesiser()
    rows = [r for r in pq.read_table(folder / "out" / TABLE).to_pylist() if r["band"]]
    for row in rows[::5]:
        again = maker.make(paths.index(row["source"]), Band(*map(int, row["band"].split("-"))))
        assert again is not None and again.donor == row["donor"]
        pixels = cv2.cvtColor(again.image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        assert (folder / "out" / row["path"]).read_bytes() == jpeg.tobytes()


def test_an_order_goes_to_a_new_place_and_names_bands_that_can_be(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        SynthesisRequest(str(tmp_path))
    assert re.search(r"/\d{4}-\d\d-\d\d$", SynthesisRequest(str(tmp_path / "{date}")).out)
    with pytest.raises(ConfigError, match="LOW-HIGH"):
        parse_bands("30-20")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
