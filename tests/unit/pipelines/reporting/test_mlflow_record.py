"""What MLflow shows of an evaluation: few metrics by plain names, one table, a description."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from pipelines.reporting.mlflow_record import (
    TABLE_COLUMNS,
    headline_metrics,
    render_description,
    render_results_csv,
)

NAN = float("nan")


def figures(m_ap: float) -> dict[str, float]:
    return {"mAP": m_ap, "rank1": 0.7, "rank5": 0.8, "rank10": 0.9, "mINP": 0.2}


def result(permuted: float) -> dict[str, Any]:
    return {
        "masked": figures(0.6),
        "unmasked": figures(0.5),
        "permuted": figures(permuted),
        "num_queries": 12,
        "num_skipped": 0,
    }


METRICS = {
    "occluded": result(0.4),
    "holistic": result(NAN),
    "baselines": {"occluded": {"histogram": figures(0.1), "chance": {"mAP": 0.01}}},
}
BOUNDS = {"mean": 0.1, "low": 0.05, "high": 0.15}
OWN = {"mean": 0.6, "low": 0.5, "high": 0.7}
INTERVALS = {
    "occluded": {
        "masked": {"mAP": OWN, "rank1": OWN},
        "unmasked": {"mAP": OWN, "rank1": OWN},
        "gain": {"mAP": BOUNDS, "rank1": BOUNDS},
    }
}


def test_headline_metrics_have_plain_names() -> None:
    metrics = headline_metrics(METRICS)
    assert list(metrics) == [
        "mAP_occluded", "mAP_occluded_no_mask", "mAP_whole", "mAP_whole_no_mask",
        "rank1_occluded", "rank1_occluded_no_mask", "rank1_whole", "rank1_whole_no_mask",
    ]  # fmt: skip
    assert metrics["mAP_occluded"] == 0.6 and metrics["mAP_whole_no_mask"] == 0.5
    assert not [name for name in metrics if "/" in name]


def test_the_table_holds_every_figure_that_was_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(render_results_csv(METRICS, INTERVALS))))
    assert tuple(rows[0]) == TABLE_COLUMNS
    by_name = {(row["queries"], row["ranking"], row["metric"]): row for row in rows}
    own = by_name["occluded", "masked", "mAP"]
    assert [float(own[column]) for column in ("value", "low", "high")] == [0.6, 0.5, 0.7]
    assert by_name["occluded", "permuted", "mINP"]["value"] == "0.2"
    assert by_name["occluded", "chance", "mAP"]["low"] == ""
    assert by_name["occluded", "gain", "rank1"]["high"] == "0.15"
    assert by_name["whole", "", "num_queries"]["value"] == "12"
    assert ("whole", "permuted", "mAP") not in by_name  # not measured


def test_the_description_is_the_verdict_a_table_and_facts() -> None:
    text = render_description(METRICS, INTERVALS, {"occluded": 60}, {"Model": "runs/a/model"})
    assert text.startswith(
        "**On occluded queries a query's own mask is worth +10.0 mAP [+5.0, +15.0] over no mask.**"
    )
    assert (
        "| occluded | mAP | 60.0 [50.0, 70.0] | 60.0 [50.0, 70.0] | +10.0 [+5.0, +15.0] | 10.0 | "
        "1.0 |"
    ) in text
    assert "| whole | mAP | 60.0 | 50.0 | +10.0 | — | — |" in text
    assert "- Model: `runs/a/model`" in text
    assert text.index("| occluded |") < text.index("\n- ")  # MLflow folds what comes late
    header = next(line for line in text.splitlines() if line.startswith("| queries"))
    assert all(line.count("|") == header.count("|") for line in text.splitlines() if "|" in line)


@pytest.mark.parametrize("sets", [[], ["holistic"]])
def test_sets_that_are_absent_leave_nothing(sets: list[str]) -> None:
    metrics = {name: METRICS[name] for name in sets}
    assert all("whole" in name for name in headline_metrics(metrics))
    assert "occluded" not in render_results_csv(metrics, {})
    assert "occluded" not in render_description(metrics, {}, {}, {})
