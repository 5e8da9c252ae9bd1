"""Captions in the report tell pictures of one name apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmpp_core.retrieval import Embeddings
from pipelines.stages import report


@pytest.mark.parametrize(
    ("paths", "captions"),
    [
        (["q/camA/1.jpg", "q/camB/1.jpg"], ["camA/1", "camB/1"]),
        (["q/a.jpg", "q/b.jpg"], ["a", "b"]),
        (["q/a.jpg", "q/a.png"], ["a.jpg", "a.png"]),
    ],
)
def test_queries_of_one_name_have_different_captions(
    paths: list[str], captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(cells: Any, texts: list[str], columns: int) -> None:
        drawn.extend(texts)

    monkeypatch.setattr(report, "draw_contact_sheet", draw)
    features = {"visual": np.eye(2, dtype=np.float32)}
    persons = np.arange(2)
    query = Embeddings(features, features, persons, persons, paths, np.zeros((2, 8)))
    report._draw_occluded(query, [0, 1], lambda path: np.zeros((128, 64, 3), np.uint8))
    assert drawn[::2] == captions
