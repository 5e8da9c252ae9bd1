"""The end of a run on the terminal: short, and with commands that can be typed."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.cli.show import show_tuning
from pipelines.cli.show_run import describe_metrics, show_summary

METRICS = {
    "occluded": {"masked": {"mAP": 0.6581}, "unmasked": {"mAP": 0.6512}},
    "holistic": {"masked": {"mAP": 0.74}, "unmasked": {"mAP": 0.7361}},
    "baselines": {"occluded": {"histogram": {"mAP": 0.155}}},
}
STEP = {"what": "search in it", "command": "dpmpp search --index 'my runs/gallery'"}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "counts": {"train": {"identities": 1200, "images": 9600}},
        "quarantined": [{"path": "a.jpg", "reason": "truncated", "detail": "it ends early"}],
        "warnings": ["person 3 is in both splits"],
        "stages": [
            {"name": "prepare", "seconds": 4.0, "reused": True},
            {"name": "metric", "seconds": 61.4, "reused": False},
        ],
        "metrics": METRICS,
        "report": "/somewhere/runs/demo-1/report.html",
        "model_uri": "models:/demo/3",
        "tracking_uri": "sqlite:////somewhere/runs/mlflow.db",
        "next": [STEP],
    } | changes


def test_one_line_tells_what_the_masks_are_worth() -> None:
    assert describe_metrics(METRICS) == (
        "mAP (%): occluded queries 65.8 with masks, 65.1 without; "
        "whole queries 74.0 with masks, 73.6 without"
    )


def test_a_summary_is_short_and_ends_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(result())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 left out: 1 truncated"
    assert lines[2] == "trained on 1,200 persons, 9,600 images: 61 s (1 of 2 stages reused)"
    assert lines[3] == describe_metrics(METRICS)
    assert lines[-5:] == [
        "What now:",
        "  open the report:",
        "    /somewhere/runs/demo-1/report.html",
        "  search in it:",
        f"    {STEP['command']}",
    ]
    assert len(lines) == 11


def test_a_training_alone_has_neither_figures_nor_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = result()
    for key in ("metrics", "report", "model_uri"):
        del alone[key]
    show_summary(alone)
    shown = capsys.readouterr().out
    assert "mAP" not in shown and "report" not in shown and STEP["command"] in shown


@pytest.mark.parametrize(
    ("data", "command"),
    [
        (None, "dpmpp demo --config runs/search-1/best.yaml"),
        ("my people", "dpmpp run --data 'my people' --config runs/search-1/best.yaml"),
    ],
)
def test_a_search_ends_with_a_command_that_takes_its_data(
    data: str | None, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {
        "data": data, "objectives": ["occluded"], "trials": [], "start": {"occluded": 0.5},
        "best": {"occluded": 0.6}, "best_changes": {"metric.lr": 0.1},
        "config": "runs/search-1/best.yaml", "folder": "f", "tracking_uri": "t",
    }  # fmt: skip
    show_tuning(result)
    assert command in capsys.readouterr().out.splitlines()
