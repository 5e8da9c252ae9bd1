"""What the report says of a failure is proven by the data, and the gain is drawn as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmpp_core.retrieval import Embeddings, Failure
from pipelines.reporting.failures import build_failure_card
from pipelines.reporting.gain_figure import draw_mask_gain

SURE = {"mean": 0.612, "low": 0.55, "high": 0.678}


def embeddings(camid: int) -> Embeddings:
    features = {"v": np.eye(4, dtype=np.float32)}
    paths = [f"{camid}/{pid}" for pid in range(4)]
    return Embeddings(features, {}, np.arange(4), np.full(4, camid), paths)


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(2).sum())


def painted(top: int, bottom: int) -> np.ndarray:
    """A picture of two colours, each given by its red."""
    image = np.zeros((60, 20, 3), np.uint8)
    image[:30, :, 0], image[30:, :, 0] = top, bottom
    return image


def explain(failure: Failure, hidden: float, images: list[np.ndarray], camera: int) -> list[str]:
    query, gallery = embeddings(0), embeddings(1)
    gallery.camids[failure.wrong] = camera
    by_path = dict(zip(("0/0", "1/1", "1/0"), images, strict=True))
    card = build_failure_card(failure, query, gallery, hidden, by_path.__getitem__)
    assert (card.path, card.rank) == ("0/0", failure.rank)
    assert [id(x) for x in (card.query, card.wrong, card.right)] == [id(x) for x in images]
    return list(card.reasons)


def test_a_failure_says_what_the_data_proves_and_no_more() -> None:
    red, dark = painted(250, 250), painted(10, 10)
    plain = Failure(query=0, wrong=1, right=0, rank=5, rank_unmasked=5, candidates=9, positives=2)
    assert explain(plain, float("nan"), [red, dark, red], camera=1) == []
    assert explain(plain, 0.02, [red, red, red], camera=1) == []
    alone = Failure(query=0, wrong=1, right=0, rank=5, rank_unmasked=2, candidates=9, positives=1)
    assert explain(alone, 0.43, [red, red, dark], camera=0) == [
        "The mask makes it worse: without it the right person is at 2",
        "The gallery has a single picture of this person to find",
        "43 % of the person is hidden",
        "The wrong picture is from the query's own camera, the right one is not",
        "In colour the wrong picture is nearer: histograms agree by 100.0 %, with the right one by "
        "0.0 %",
    ]
    helped = Failure(query=0, wrong=1, right=0, rank=5, rank_unmasked=8, candidates=9, positives=2)
    small = [x[:4] for x in (red, red, dark)]  # too small for six stripes
    assert explain(helped, 0.0, small, camera=1) == [
        "The mask helps: without it the right person is at 8"
    ]


def gain(mean: float, low: float, high: float) -> dict[str, Any]:
    bounds = {"mean": mean, "low": low, "high": high}
    return {"gain": {"mAP": bounds, "rank1": bounds}}


def test_the_gain_is_drawn_in_the_colour_of_its_sign() -> None:
    better, worse, unknown = (
        draw_mask_gain({"occluded": gain(*values)})
        for values in ((0.06, 0.04, 0.08), (-0.06, -0.08, -0.04), (0.01, -0.02, 0.04))
    )
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert count(better, blue) > 100 and count(worse, orange) > 100
    assert count(better, orange) == count(worse, blue) == count(unknown, blue) == 0
    assert draw_mask_gain({"a": gain(0, 0, 0), "b": gain(0, 0, 0)}).shape[0] > better.shape[0]
    with pytest.raises(ValueError, match="without masks"):
        draw_mask_gain({"occluded": {"masked": {"mAP": SURE}}})
