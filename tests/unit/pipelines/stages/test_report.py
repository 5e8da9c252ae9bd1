"""The real report: every part once, captions of what was done, no row without content."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpmpp_core.config import load_config
from dpmpp_core.data.steps import NO_OCCLUSION, Mixture
from dpmpp_core.retrieval import Embeddings, evaluate
from pipelines.reporting.html import Picture, ReportData, write_report
from pipelines.runtime.stage import Stage
from pipelines.stages import report

NOISE = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
MASK = np.ones((8, 4), bool)
PATHS = SimpleNamespace(to_pylist=lambda: ["a/1.jpg", "b/1.jpg"])
MANIFEST: Any = SimpleNamespace(root="/data", subset=lambda split: {"path": PATHS})


class Maker:
    """The images of a first step, without any data."""

    def __init__(self, pairs: int = 2) -> None:
        self._pairs = pairs

    def make(self, step: int) -> dict[str, Any]:
        return {"donor_labels": [NO_OCCLUSION, 1], "images": [NOISE, NOISE]}

    def mixed_pairs(self, step: int) -> list[Mixture]:
        return [Mixture(NOISE, NOISE, MASK, NOISE, MASK, 0.25)] * self._pairs


def embeddings(camid: int) -> Embeddings:
    rng = np.random.default_rng(camid)
    features, masks = rng.random((2, 4, 4), dtype=np.float32)
    paths = [f"{camid}/{pid}.jpg" for pid in range(4)]
    return Embeddings({"v": features}, {"v": masks}, np.arange(4), np.full(4, camid), paths)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """All pictures that the stage draws for two sets of queries."""
    monkeypatch.setattr(report, "read_image", lambda root, path: NOISE)
    monkeypatch.setattr(report, "load_masks", lambda folder, paths, grid: [MASK] * len(paths))
    training_set = SimpleNamespace(build_step_maker=Maker)
    monkeypatch.setattr(report, "TrainingSet", lambda *arguments: training_set)
    storage = SimpleNamespace(uri="/runs")
    run: Any = SimpleNamespace(config=load_config("demo"), storage=storage, folder=lambda stage: "")
    stage = Stage("", "", {}, 0.0, False)
    queries = {name: embeddings(1) for name in ("occluded", "holistic")}
    measured = {"cmc": {name: {"with mask": np.linspace(0.2, 1, 5)} for name in queries}}
    drawn = report._retrieval_pictures(MANIFEST, measured, queries, embeddings(2))
    history = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    return drawn + report._training_pictures(run, stage, stage, MANIFEST, history)


def test_every_part_stands_once(tmp_path: Path, pictures: list[Picture]) -> None:
    found = {"occluded": evaluate(embeddings(1), embeddings(2), 0)}
    stages = [Stage("metric", "", {}, 1.0, False)]
    data = ReportData("t", facts={"seed": 1}, metrics=found, pictures=pictures, stages=stages)
    write_report(tmp_path / "report.html", data)
    page = (tmp_path / "report.html").read_text()
    titles = re.findall(r"<(?:h2|summary)[^>]*>([^<]+)<", page)
    anchors = re.findall(r'\bid="([^"]+)"', page)
    assert "Training" in titles and "Training batch" in titles
    assert len(set(titles)) == len(titles) and len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("rolled", [True, False])
def test_the_caption_says_rolled_only_where_it_was(rolled: bool) -> None:
    (picture,) = report._pairs_picture(Maker(), rolled)  # type: ignore[arg-type]
    assert ("rolled sideways" in picture.caption) is rolled
    assert "The recipient" in picture.caption and ", ," not in picture.caption
    assert report._pairs_picture(Maker(pairs=0), rolled) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("quarantined", [{}, {"blank": 3}])
def test_the_facts_have_a_row_of_quarantined_files_only_where_there_are_any(
    quarantined: dict[str, int],
) -> None:
    run: Any = SimpleNamespace(config=load_config("demo"))
    counts = {"train": {"images": 1200, "persons": 10}, "quarantined": quarantined}
    summary = {"root": "/d", "layout": "market1501", "dataset_id": "0" * 64, "counts": counts}
    prepared = Stage("prepare", "", summary, 0.0, False)
    facts = report._facts(run, prepared, Stage("metric", "", {"weights_sha256": "f" * 64}, 0, True))
    assert facts["train"] == "1,200 images, 10 persons"
    assert facts.get("quarantined") == ("3 blank" if quarantined else None)
    assert "" not in facts.values()
