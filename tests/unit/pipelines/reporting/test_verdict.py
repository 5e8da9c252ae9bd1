"""The sentence on masks claims no more than the intervals allow."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.reporting.verdict import build_verdict

Bounds = tuple[float, float | None, float | None]
GAIN, LOSS = (0.063, 0.049, 0.077), (-0.021, -0.04, -0.002)
TIGHT, OPEN, NONE = (0.001, -0.003, 0.004), (0.008, -0.02, 0.035), (0.0, 0.0, 0.0)
MANY = {"occluded": 60, "holistic": 60}


def bounds(values: Bounds) -> dict[str, float | None]:
    return dict(zip(("mean", "low", "high"), values, strict=True))


def kinds(gain: Bounds | None) -> dict[str, Any]:
    masked = {"masked": {"mAP": bounds((0.58, 0.5, 0.66)), "rank1": bounds((0.7, 0.6, 0.8))}}
    return masked | ({} if gain is None else {"gain": {f: bounds(gain) for f in ("mAP", "rank1")}})


def metrics(permuted: float = 0.4) -> dict[str, Any]:
    figures = {"masked": {"mAP": 0.58}, "permuted": {"mAP": permuted}}
    return {"occluded": figures, "holistic": figures}


@pytest.mark.parametrize(
    ("occluded", "whole", "sentence"),
    [
        (GAIN, TIGHT, "On occluded queries a query's own mask is worth +6.3 mAP [+4.9, +7.7] over "
         "no mask; whole queries are unchanged, +0.1 mAP [-0.3, +0.4]"),
        (GAIN, GAIN, "On occluded queries a query's own mask is worth +6.3 mAP [+4.9, +7.7] over "
         "no mask; on whole queries it is worth +6.3 mAP [+4.9, +7.7]"),
        (LOSS, LOSS, "On occluded queries a query's own mask costs accuracy, -2.1 mAP [-4.0, "
         "-0.2] against no mask; on whole queries it costs accuracy, -2.1 mAP [-4.0, -0.2]"),
        (OPEN, OPEN, "On occluded queries it is open whether a query's own mask helps, +0.8 mAP "
         "[-2.0, +3.5]; on whole queries it is open whether a query's own mask helps, +0.8 mAP "
         "[-2.0, +3.5]"),
        (TIGHT, GAIN, "On occluded queries a query's own mask changes nothing, +0.1 mAP [-0.3, "
         "+0.4]; on whole queries it is worth +6.3 mAP [+4.9, +7.7]"),
        ((0.02, None, None), TIGHT, "On occluded queries mAP differs by +2.0 with masks, too few "
         "persons for an interval; whole queries are unchanged, +0.1 mAP [-0.3, +0.4]"),
        (NONE, NONE, "Masks change no ranking, so the model works as one without them: mAP 58.0 "
         "[50.0, 66.0] on occluded queries, 58.0 [50.0, 66.0] on whole queries"),
        (None, None, "On occluded queries mAP is 58.0 [50.0, 66.0], and a ranking without masks "
         "was not measured; on whole queries mAP is 58.0 [50.0, 66.0], and a ranking without "
         "masks was not measured"),
    ],
)  # fmt: skip
def test_each_interval_has_its_own_words(
    occluded: Bounds | None, whole: Bounds | None, sentence: str
) -> None:
    intervals = {"occluded": kinds(occluded), "holistic": kinds(whole)}
    verdict = build_verdict(metrics(), intervals, MANY)
    assert verdict is not None and verdict.sentence == sentence
    assert verdict.caveats == (
        "Intervals of 95 % are over persons; another training may differ more.",
    )


def test_queries_of_unknown_occlusion_are_not_called_whole() -> None:
    verdict = build_verdict(metrics(), {"holistic": kinds(GAIN)}, MANY)
    assert verdict is not None
    assert verdict.sentence.startswith("On these queries a query's own mask is worth +6.3")
    assert verdict.caveats[0].startswith("No query is known to be occluded")
    tight = build_verdict(metrics(), {"holistic": kinds(TIGHT)}, MANY)
    assert tight is not None and tight.sentence.startswith("On these queries a query's own mask")


def test_few_persons_and_masks_that_fit_any_query_are_said() -> None:
    verdict = build_verdict(metrics(permuted=0.6), {"occluded": kinds(GAIN)}, {"occluded": 8})
    assert verdict is not None
    assert verdict.caveats[:2] == (
        "On occluded queries the masks of other queries do as well, mAP 60.0: there a mask need "
        "not fit its query.",
        "With 8 persons the true intervals are wider than these.",
    )
    nan = build_verdict(metrics(permuted=float("nan")), {"occluded": kinds(GAIN)}, MANY)
    assert nan is not None and len(nan.caveats) == 1


def test_without_intervals_there_is_no_verdict() -> None:
    assert build_verdict(metrics(), {}, {}) is None
